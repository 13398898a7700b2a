"""Audits of scans with groups of several values, with numbers for labels, and without labels."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import simba_lab as sb
from simba_lab import cli

PREPARED = sb.scans.Preparation(spacing_mm=8)
SETTINGS = sb.auditing.AuditSettings(without=("maps",), layers=("held",))
MARK = {"scanner": sb.Intensity("contrast", 0.3)}


class Contrast(torch.nn.Module):
    """Answers with the contrast of the brain, relative to its mean."""

    def __init__(self, gain=60.0):
        super().__init__()
        self.held, self.gain = torch.nn.Identity(), torch.nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        brain = (x > 0.3).float()
        count = brain.sum((1, 2, 3, 4))
        mean = (x * brain).sum((1, 2, 3, 4)) / count
        square = (x * x * brain).sum((1, 2, 3, 4)) / count
        ratio = (square - mean**2).sqrt() / mean - 0.27
        return self.gain * self.held(torch.stack([ratio, mean], dim=1))[:, :1]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    sb.export_bids(sb.synthesise(scenario).where(np.arange(42)), folder, masks=False)
    path = folder / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    rank = table.groupby("label").cumcount().to_numpy()
    table["site"] = np.where(rank < 2, "tiny", np.array(["north", "south", "west"])[rank % 3])
    table["sex"] = np.array(["F", "M"])[rank % 2]
    table["age"] = [str(50 + number) for number in range(42)]
    table.to_csv(path, sep="\t", index=False)
    return folder


def marked(study, **options):
    options = {"use": "test", "preparation": PREPARED} | options
    return sb.plant(sb.read_bids(study, **options), MARK)


def test_groups_of_several_values_are_compared_one_with_the_rest(study):
    groups = ["site", "sex", "age"]
    scans = marked(study, label="label", disease="disease", groups=groups)
    audit = sb.audit(Contrast(), scans, groups=groups, settings=SETTINGS)
    names = ["site north", "site south", "site west", "sex", "age above 70.5"]
    assert audit.groups.index.unique("column").tolist() == names
    assert audit.rates.index.unique("column").tolist() == names
    assert audit.erased.index.unique("column").tolist() == groups
    assert (audit.groups["auroc"].between(0, 1) & audit.groups["leak"].ge(0.5)).all()
    assert sum("fewer than 8 people" in note and "tiny (4)" in note for note in audit.notes) == 1
    north = (scans["site"] == "north").astype(int)
    by_hand = marked(study, label="label", disease="disease", groups={"site": "north"})
    np.testing.assert_array_equal(by_hand["site"], north)
    single = sb.audit(Contrast(), by_hand, groups=["site"], settings=SETTINGS)
    rates = single.rates.loc["site", "difference"]
    np.testing.assert_allclose(audit.rates.loc["site north", "difference"], rates)


def test_scans_without_labels_are_audited_by_their_twins(study):
    known = marked(study, label="label", disease="disease")
    labelled = sb.audit(Contrast(), known, settings=SETTINGS)
    scans = marked(study, groups="site")
    settings = sb.auditing.AuditSettings(layers=("held",))
    audit = sb.audit(Contrast(), scans, groups=["site"], settings=settings)
    assert audit.marks.loc["scanner", "verdict"] == "used"
    pd.testing.assert_frame_equal(audit.marks, labelled.marks)
    assert audit.layers.loc[("scanner", "held"), "read"] > 0.9
    assert audit.maps.loc["scanner", "n"] == 8
    assert audit.groups is None and audit.rates is None
    assert sum("Labels are missing: question C" in note for note in audit.notes) == 1


def test_networks_of_numbers_are_audited_in_their_unit(study):
    scans = marked(study, label="age", groups="site")
    network = sb.adapt(Contrast(), target="number")
    audit = sb.audit(network, scans, groups=["site"], settings=SETTINGS)
    off, on = (sb.logits(network, scans.twin(**{s: "scanner"})) for s in ("without", "carrying"))
    row = audit.marks.loc["scanner"]
    assert row["verdict"] == "used" and row["number"] == pytest.approx((on - off).mean())
    assert not {"flips", "logit"} & set(audit.marks.columns)
    assert sum("numbers, not classes: question C" in note for note in audit.notes) == 1
    classes = marked(study, label="label", disease="disease", groups="sex")
    audit = sb.audit(network, classes, groups=["sex"], settings=SETTINGS)
    assert audit.rates is None and audit.groups is not None
    assert "moved" in audit.erased and "before" not in audit.erased
    assert any("no rates by group" in note for note in audit.notes)
    with pytest.raises(sb.SimbaError, match="another kind of answer"):
        sb.audit(network, scans, control=Contrast(), settings=SETTINGS)


def test_the_command_drops_people_and_counts_scans_before_the_work(
    study, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code = f"import torch\n\n{inspect.getsource(Contrast)}"
    (tmp_path / "their_code.py").write_text(code, encoding="utf-8")
    (tmp_path / "plan.yaml").write_text("marks:\n  scanner: {kind: contrast, strength: 0.3}\n")
    save_file({"gain": torch.tensor(60.0)}, tmp_path / "w.safetensors")
    path = study / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    before = path.read_text(encoding="utf-8")
    table.loc[0, "sex"] = "n/a"
    table["half"] = np.where(np.arange(42) < 10, "test", "train")
    table.to_csv(path, sep="\t", index=False)
    command = ["audit", "--network", "their_code:Contrast", "--weights", "w.safetensors"]
    command += ["--bids", str(study), "--plant", "plan.yaml", "--spacing-mm", "8"]
    command += ["--label", "label", "--disease", "disease", "--groups", "sex"]
    try:
        assert cli.main([*command, "--out", "r.html"]) == 2
        assert cli.main([*command, "--on-missing", "drop", "--use", "half", "--out", "r.html"]) == 2
        with pytest.warns(UserWarning, match="1 of 42 people were dropped"):
            assert cli.main([*command, "--on-missing", "drop", "--out", "r.html"]) == 0
    finally:
        path.write_text(before, encoding="utf-8")
    errors = capsys.readouterr().err
    assert "1 of 42 missing" in errors and "at least 16 scans, got 9 scans" in errors
    assert "41 scans" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("label", ["age", None])
def test_what_counts_classes_refuses_other_labels(study, label):
    scans = sb.read_bids(study, label=label, groups={"sex": "F"}, preparation=PREPARED)
    for call in (
        lambda: sb.evaluate(Contrast(), scans),
        lambda: sb.disparity(Contrast(), scans, by="sex"),
        lambda: sb.training.calibration(Contrast(), scans),
    ):
        with pytest.raises(sb.SimbaError, match="a cohort whose labels are 0 and 1, got a ScanC"):
            call()
