import json
from pathlib import Path

import pytest
import torch

import simba_lab as sb
from simba_lab.cli import main
from simba_lab.federation.clients import LocalClient
from simba_lab.federation.ledger import Ledger
from simba_lab.federation.plan import Plan
from simba_lab.federation.steps import follow
from simba_lab.federation.study import Study

EXAMPLES = sorted(Path("data/federations").glob("*.yaml"))
SMALL = """
scenario: {disease: {region: Insula_L, amplitude_mm: 2.5}, spacing_mm: 6}
sites: [{name: north, subjects: 6}, {name: south, subjects: 4, scanner: {scanner_noise: 1.0}}]
validation: 4
test: 8
strategy: travelling
options: {cycles: 2}
network: {name: SimBANet, widths: [4, 8]}
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_can_be_read(example):
    study = Study.from_yaml(example)
    assert Plan.from_dict(study.plan.to_dict()).to_dict() == study.plan.to_dict()


def test_sites_may_be_drawn(path):
    path.write_text(
        SMALL.replace(SMALL.splitlines()[2], "sites: {count: 5, median: 3, largest: 8}")
    )
    assert len(Study.from_yaml(path).sites) == 5


def test_a_study_runs_from_the_command_line_and_resumes(path, tmp_path, capsys):
    assert main(["federate", str(path), str(tmp_path / "run"), "--local"]) == 0
    assert "auroc" in capsys.readouterr().out
    study = Study.from_yaml(path)
    ledger = Ledger(tmp_path / "run", study.plan)
    assert [row["number"] for row in ledger.history()] == [1, 2, 3, 4]
    clients = [
        LocalClient(name, study.plan.model(), study.federation.at(name), study.plan.visit)
        for name in ("north", "south")
    ]
    expected = follow(study.plan.steps(clients)).weights
    assert all(
        torch.equal(value, expected[name]) for name, value in ledger.resume().weights.items()
    )
    stopped = Ledger(tmp_path / "stopped", study.plan)
    steps = study.plan.steps(clients)
    stopped(next(steps))
    (tmp_path / "stopped" / "steps.jsonl").open("a").write(
        '{"number": 2, "pha'
    )  # killed while it wrote
    assert main(["federate", str(path), str(tmp_path / "stopped"), "--local"]) == 0
    assert [row["number"] for row in stopped.history()] == [1, 2, 3, 4]
    assert all(
        torch.equal(value, expected[name]) for name, value in stopped.resume().weights.items()
    )


def test_a_harmonised_study_keeps_its_head_and_goes_on_with_it(path, tmp_path):
    path.write_text(SMALL.replace("strategy: travelling", "strategy: harmonised"))
    assert main(["federate", str(path), str(tmp_path / "run"), "--local"]) == 0
    study = Study.from_yaml(path)
    clients = [
        LocalClient(name, study.plan.model(), study.federation.at(name), study.plan.visit)
        for name in ("north", "south")
    ]
    stopped = Ledger(tmp_path / "stopped", study.plan)
    with pytest.raises(sb.SimbaError, match="has not begun"):
        stopped.network()
    steps = study.plan.steps(clients)
    for _ in range(2):
        stopped(next(steps))
    assert main(["federate", str(path), str(tmp_path / "stopped"), "--local"]) == 0
    whole = Ledger(tmp_path / "run", study.plan)
    assert all(
        torch.equal(value, stopped.resume().weights[name])
        for name, value in whole.resume().weights.items()
    )
    assert all(
        torch.equal(value, stopped.resume().head[name])
        for name, value in whole.resume().head.items()
    )
    assert len(whole.resume().head) == 4
    assert set(whole.network()) == set(study.plan.model().state_dict())


def test_a_ledger_of_another_plan_and_a_damaged_one_are_refused(path, tmp_path):
    plan = Study.from_yaml(path).plan
    Ledger(tmp_path / "ledger", plan)
    reseeded = Plan.from_dict(plan.to_dict() | {"seed": 3})
    with pytest.raises(sb.SimbaError, match="ledger of another plan"):
        Ledger(tmp_path / "ledger", reseeded)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(sb.SimbaError, match="Nothing is overwritten"):
        Ledger(tmp_path / "full", plan)
    (tmp_path / "ledger" / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(sb.SimbaError, match="damaged"):
        Ledger(tmp_path / "ledger", plan).resume()


def test_provisioning_writes_stores_and_kits_and_says_who_starts_what(path, tmp_path, capsys):
    pytest.importorskip("nvflare")
    assert (
        main(["federate", str(path), str(tmp_path / "out"), "--provision", "--port", "8602"]) == 0
    )
    output = capsys.readouterr().out
    for role in ("server", "north", "south", "admin"):
        assert f"{role}:  " in output
    assert str(tmp_path / "out" / "kits" / "kits" / "simba-lab" / "state") in output
    assert "move that folder to a safe place" in output
    kit = tmp_path / "out" / "kits" / "kits" / "simba-lab" / "prod_00" / "north"
    assert (
        json.loads((kit / "startup" / "fed_client.json").read_text())["client"][
            "connection_security"
        ]
        == "mtls"
    )
    assert (tmp_path / "out" / "stores" / "north" / "manifest.json").is_file()
    assert main(["federate", str(path), str(tmp_path / "out"), "--provision"]) == 2
    assert main(["federate", str(path), str(tmp_path / "elsewhere"), "--submit"]) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("strategy: travelling", "strategy: gossip"), "plan.strategy"),
        (("strategy: travelling", "tactic: travelling"), "study.tactic"),
        (("test: 8", "tests: 8"), "study.tests"),
        (("name: SimBANet", "name: os.system"), "plan.network.name"),
        (("subjects: 6", "subjects: 6, colour: red"), r"study.sites\[0\].colour"),
        (("sites: [{", "sites: [{x: ["), "valid YAML"),
    ],
)
def test_bad_studies_are_refused(path, change, match):
    path.write_text(SMALL.replace(*change))
    with pytest.raises(sb.SimbaError, match=match):
        Study.from_yaml(path)
