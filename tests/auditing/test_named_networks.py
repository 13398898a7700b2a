"""Networks that somebody names: what is run, what is read, and the errors before the work."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

import simba_lab as sb
from simba_lab import cli
from simba_lab.auditing.networks import built_network, with_weights

CODE = """
import torch
from torch import nn

class Contrast(nn.Module):
    def __init__(self, gain=60.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        brain = (x > 0.3).float()
        count = brain.sum((1, 2, 3, 4))
        mean = (x * brain).sum((1, 2, 3, 4)) / count
        square = (x * x * brain).sum((1, 2, 3, 4)) / count
        return (self.gain * ((square - mean**2).sqrt() / mean - 0.27))[:, None]

def build():
    return Contrast(gain=1.0)

def broken():
    raise KeyError("no disk")

number = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_network.py").write_text(CODE)


def test_weights_come_from_both_kinds_of_files(tmp_path):
    state = {"gain": torch.tensor(60.0)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {"module.gain": state["gain"]}, "epoch": 3}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        network = with_weights(built_network("their_network:build"), tmp_path / name)
        assert network.gain.item() == 60 and not network.training


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("their_network", "a module and a function"),
        ("absent_package:build", "ModuleNotFoundError"),
        ("their_network:absent", "AttributeError"),
        ("their_network:broken", "KeyError: 'no disk'"),
        ("their_network:number", "TypeError"),
        ("their_network:Contrast.forward", "AttributeError"),
        ("collections:OrderedDict", "torch.nn.Module, got OrderedDict"),
    ],
)
def test_code_that_builds_no_network_is_one_error(code, message):
    with pytest.raises(sb.SimbaError, match=message):
        built_network(code)


class Runs:
    def __reduce__(self):
        return (print, ("this ran",))


def test_weights_that_do_not_fit_or_would_run_are_refused(tmp_path, capsys):
    network = built_network("their_network:build")
    save_file({"other": torch.zeros(2), "more": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"gain": torch.zeros(2)}, tmp_path / "shape.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Runs()))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hi")
    for name, message in (
        ("other.safetensors", "lacks 1 of them: gain"),
        ("shape.safetensors", "in another shape 1 of them: gain"),
        ("damaged.safetensors", "cannot be read safely"),
        ("evil.pt", "cannot be read safely"),
        ("list.pt", "It holds a list"),
        ("empty.pt", "cannot be read safely"),
        ("text.pt", "cannot be read safely"),
        ("absent.pt", "an existing file"),
    ):
        with pytest.raises(sb.SimbaError, match=message):
            with_weights(network, tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


def answers_of(network, marked, **options):
    settings = sb.auditing.AuditSettings(without=("layers", "maps"))
    return sb.audit(network, marked, settings=settings, **options).marks


def test_a_network_that_reads_contrast_is_found_unless_the_control_does_too(tmp_path):
    scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    folder = sb.export_bids(sb.synthesise(scenario), tmp_path / "study", masks=False)
    preparation = sb.scans.Preparation(spacing_mm=8)
    scans = sb.read_bids(folder, label="label", disease="disease", preparation=preparation).test
    marks = {"scanner": sb.Intensity("contrast", 0.3), "blur": sb.Intensity("blur", 0.01)}
    marked, network = sb.plant(scans, marks), built_network("their_network:build")
    table = answers_of(network, marked)
    assert table["verdict"].to_dict() == {"scanner": "used", "blur": "not used"}
    # Each mark alone: the other does not show in either twin.
    alone = answers_of(network, sb.plant(scans, {"scanner": marks["scanner"]}))
    assert alone.loc["scanner", "effect"] == table.loc["scanner", "effect"]
    other = type(network)(gain=2.0)
    controlled = answers_of(network, marked, control=[other])
    assert controlled.loc["scanner", "verdict"] == "not used"
    with pytest.raises(sb.SimbaError, match="two networks with the same answers"):
        answers_of(network, marked, control=[network])
    with pytest.raises(sb.SimbaError, match="at least 16 scans, got 3 scans"):
        answers_of(network, marked.where([0, 1, 2]))


def test_the_command_audits_a_network_and_names_what_is_missing(tmp_path, capsys):
    disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8)).train
    folder = sb.export_bids(cohort, tmp_path / "study", masks=False)
    (tmp_path / "plan.yaml").write_text("marks:\n  scanner: {kind: contrast, strength: 0.3}\n")
    save_file({"gain": torch.tensor(60.0)}, tmp_path / "w.safetensors")
    command = ["audit", "--network", "their_network:build", "--out", "report.html"]
    assert cli.main(command) == 2
    command += ["--weights", "w.safetensors", "--bids", str(folder), "--plant", "plan.yaml"]
    assert cli.main([*command, "--disease", "AD"]) == 2
    assert cli.main([*command, "--groups", "bias"]) == 2
    command += ["--spacing-mm", "8", "--orientation", "LPS"]
    labelled = ["--label", "label", "--disease", "disease", "--groups", "bias", "--untrained", "1"]
    assert cli.main([*command, *labelled]) == 0
    out, err = capsys.readouterr()
    assert "--label must be given" in err
    tables = sorted(path.name for path in tmp_path.glob("report_*.csv"))
    assert {"report_marks.csv", "report_rates.csv"} <= set(tables)
    assert "--weights must be given" in err and "used" in out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "simba-lab audit --network their_network:build" in page and "32 scans" in page
    assert cli.main(["audit", "--out", "other.html"]) == 2
    assert "--answers must be given" in capsys.readouterr().err
