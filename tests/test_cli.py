"""The command line: what it writes, and what it says to bad input."""

import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

import simba_lab as sb
from simba_lab import cli
from simba_lab.core.unfinished import one_process

HEAVY = ("torch", "captum", "matplotlib", "numba", "scipy.stats", "sklearn", "nvflare")


@pytest.fixture
def scenario_file(tmp_path, scenario):
    scenario.replace(subjects=40).to_yaml(tmp_path / "scenario.yaml")
    return tmp_path / "scenario.yaml"


def test_commands_from_scenario_to_probe(tmp_path, scenario_file, capsys):
    scenario = sb.Scenario.from_yaml(scenario_file)
    # The default network halves four times: 8 mm voxels leave just enough.
    assert cli.main(["synthesise", str(scenario_file), str(tmp_path / "volumes")]) == 0
    cohort = sb.open_cohort(tmp_path / "volumes", verify=True)
    np.testing.assert_array_equal(cohort.array(3), sb.synthesise(scenario, seed=0).array(3))
    assert cli.main(["export", str(tmp_path / "volumes"), str(tmp_path / "bids")]) == 0
    exported = tmp_path / "bids" / "sub-0003" / "anat" / "sub-0003_T1w.nii.gz"
    np.testing.assert_array_equal(nib.load(exported).get_fdata(dtype=np.float32), cohort.array(3))
    assert list((tmp_path / "bids" / "derivatives").rglob("*mask.nii.gz"))
    assert cli.main(["fit", str(scenario_file), str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert "ceiling" in capsys.readouterr().out
    again = ["synthesise", str(scenario_file), str(tmp_path / "volumes")]
    assert cli.main(again) == 0  # the store is complete already
    assert cli.main([*again, "--seed", "1"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert cli.main(["probe", str(scenario_file), str(tmp_path / "run"), "--seed", "1"]) == 2
    assert "fitted on another cohort. These differ: seed." in capsys.readouterr().err
    scenario.replace(noise=0.01).to_yaml(tmp_path / "noisier.yaml")
    assert cli.main(["probe", str(tmp_path / "noisier.yaml"), str(tmp_path / "run")]) == 2
    assert "These differ: scenario.noise." in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["fit"], ["federate"]], ids=["all", "fit", "federate"])
def test_help_imports_nothing_heavy(command):
    code = (
        f"import sys\nfrom simba_lab import cli\ntry:\n    cli.main([*{command!r}, '--help'])\n"
        f"except SystemExit:\n    print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"
    assert "usage: simba-lab" in run.stdout


def test_regions_are_listed(capsys):
    assert cli.main(["regions"]) == 0
    assert "Putamen_L" in capsys.readouterr().out.splitlines()


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text(
        "subjects: 100\ndisease: {region: Insula, amplitude_mm: 2}\n", encoding="utf-8"
    )
    assert cli.main(["synthesise", str(tmp_path / "bad.yaml"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "scenario.disease.region" in error and "Insula_L" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_with_one_line(tmp_path, scenario_file, monkeypatch, capsys, number):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    # A process that was started in the background may have been told to ignore Ctrl-C.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("simba_lab.scans.bids_export.describe_raw", interrupted)
    monkeypatch.setattr("simba_lab.scans.saving._locked", interrupted)
    for command, again in (("export", "Nothing was left behind"), ("synthesise", "it resumes")):
        assert cli.main([command, str(scenario_file), str(tmp_path / "out")]) == 130
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1].startswith("simba-lab: Interrupted. ") and again in errors[-1]
        assert "Traceback" not in str(errors)
    assert {path.name for path in tmp_path.iterdir()} == {"scenario.yaml"}
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before
    signal.signal(signal.SIGINT, inherited)


def test_an_output_that_cannot_be_written_is_found_before_the_training(
    tmp_path, scenario_file, monkeypatch, capsys
):
    monkeypatch.setattr("simba_lab.training.fitting.fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").write_text("x")
    assert cli.main(["fit", str(scenario_file), str(tmp_path / "file" / "run")]) == 2
    assert cli.main(["fit", str(scenario_file), str(tmp_path / "file")]) == 2
    with one_process(tmp_path / "run", ""):
        assert cli.main(["fit", str(scenario_file), str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert "Nothing is overwritten" in errors and "Another process is about to write" in errors


def test_a_run_that_cannot_be_saved_is_still_judged(tmp_path, scenario_file, monkeypatch, capsys):
    def full(*_):
        raise sb.SimbaError("folder", "run", "on a disk with enough space")

    monkeypatch.setattr(sb.training.Run, "save", full)
    command = ["fit", str(scenario_file), str(tmp_path / "run"), "--epochs", "1"]
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    assert "auroc" in out and "enough space" in err
