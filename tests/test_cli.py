"""The command line: what it writes, and what it says to bad input."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import simba_lab as sb
from simba_lab import cli

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
