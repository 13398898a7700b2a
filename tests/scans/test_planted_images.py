"""Scans and planted twins as files for tools of others: what they hold, and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab import cli
from simba_lab.scans.planting.plans import read_plan, study_scans

MARKS = {"scanner": sb.Intensity("contrast", 0.1), "left_putamen": sb.Morphology("Putamen_L", 2.5)}
PLAN = """marks:
  scanner: {kind: contrast, strength: 0.1}
  left_putamen: {region: Putamen_L, amplitude_mm: 2.5}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three brains of 5 mm voxels in int16, one with something bright around it."""
    folder = tmp_path_factory.mktemp("study") / "bids"
    template = sb.load_template().image().slicer[::5, ::5, ::5]
    for number, gain in enumerate((700, 500, 900)):
        values = (template.get_fdata() * gain).astype(np.int16)
        if number == 2:  # bright all around the brain
            values[values == 0] = 400
        image = nib.Nifti1Image(values, template.affine)
        image.header.set_xyzt_units("mm")
        path = folder / f"sub-0{number + 1}" / "anat" / f"sub-0{number + 1}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
    (folder / "dataset_description.json").write_text('{"Name": "S", "BIDSVersion": "1.10.0"}')
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def planted(study, plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "out"
    assert cli.main(["plant", str(study), str(plan), str(folder), "--jobs", "1"]) == 0
    return folder


def image_of(folder, person, label):
    return nib.load(folder / f"sub-{person}" / "anat" / f"sub-{person}_desc-{label}_T1w.nii.gz")


def test_images_are_what_inject_makes_and_the_scan_itself(study, planted):
    scan = study / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    original = nib.load(scan)
    untouched = image_of(planted, "02", "none")
    np.testing.assert_array_equal(np.asarray(untouched.dataobj), np.asarray(original.dataobj))
    for mark, label in (("scanner", "scanner"), ("left_putamen", "leftPutamen")):
        twin = image_of(planted, "02", label)
        expected = sb.scans.inject(scan, {mark: MARKS[mark]}).image
        np.testing.assert_array_equal(np.asarray(twin.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_array_equal(twin.affine, original.affine)
        assert twin.get_data_dtype() == np.int16
        assert (np.asarray(twin.dataobj) != np.asarray(original.dataobj)).any()


def test_side_files_say_what_was_planted_and_in_what(study, planted):
    anat = planted / "sub-02" / "anat"
    side = json.loads((anat / "sub-02_desc-leftPutamen_T1w.json").read_text())
    content = (study / "sub-02" / "anat" / "sub-02_T1w.nii.gz").read_bytes()
    assert side["SourceSha256"] == hashlib.sha256(content).hexdigest()
    assert side["Sources"] == ["bids:raw:sub-02/anat/sub-02_T1w.nii.gz"]
    assert side["Planted"]["Mark"] == "left_putamen" and side["Planted"]["Magnitude"] == 1
    assert side["Planted"]["Effect"]["amplitude_mm"] == 2.5 and side["SkullStripped"] is True
    assert json.loads((anat / "sub-02_desc-none_T1w.json").read_text())["Planted"] == {
        "Mark": "none"
    }
    skull = planted / "sub-03" / "anat" / "sub-03_desc-none_T1w.json"
    assert json.loads(skull.read_text())["SkullStripped"] is False


def test_table_lists_every_image_once(planted):
    table = pd.read_csv(planted / "images.tsv", sep="\t")
    assert len(table) == 9 and table["mark"].tolist()[:3] == ["none", "scanner", "left_putamen"]
    files = {path.relative_to(planted).as_posix() for path in planted.rglob("*.nii.gz")}
    assert set(table["file"]) == files
    assert read_plan(planted / "code" / "plan.yaml").marks == MARKS


def test_public_validator_finds_no_error(planted):
    command = ["bids-validator-deno", str(planted), "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert not [issue for issue in issues if issue["severity"] == "error"], issues
    assert {issue["code"] for issue in issues} <= {"TOO_FEW_AUTHORS", "NO_AUTHORS"}


def test_the_same_call_makes_nothing_anew_and_other_marks_are_refused(
    study, plan, planted, tmp_path, capsys
):
    before = {path: path.stat().st_mtime_ns for path in planted.rglob("*.nii.gz")}
    assert cli.main(["plant", str(study), str(plan), str(planted)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in planted.rglob("*.nii.gz")}
    (tmp_path / "other.yaml").write_text(PLAN.replace("0.1", "0.2"))
    assert cli.main(["plant", str(study), str(tmp_path / "other.yaml"), str(planted)]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert cli.main(["plant", str(study), str(plan), str(tmp_path / "full")]) == 2
    errors = capsys.readouterr().err
    assert "other scans or marks" in errors and "'thesis.tex'; nothing is overwritten" in errors


def test_what_was_killed_goes_on_to_the_same_bytes(study, plan, planted, tmp_path):
    """SIGKILL at several moments of the writing; the last time nobody kills it."""
    place = tmp_path / "out"
    for moment in (0.0, 0.05, 0.1, 0.2):
        child = os.fork()
        if child == 0:
            try:
                cli.main(["plant", str(study), str(plan), str(place), "--jobs", "1"])
            finally:
                os._exit(0)
        deadline = time.monotonic() + 20
        while not (place / "code" / "planting.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for side in place.rglob("*_T1w.json"):  # whatever has its side file is whole
            json.loads(side.read_text())
            nib.load(side.with_suffix(".nii.gz")).get_fdata()
    assert cli.main(["plant", str(study), str(plan), str(place), "--jobs", "1"]) == 0
    names = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(planted) for path in planted.rglob("*") if path.is_file()
    )
    for name in (name for name in names if name.name.endswith(".nii.gz")):
        assert (place / name).read_bytes() == (planted / name).read_bytes(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("marks: {}\n", "plan.marks"),
        ("marks:\n  scanner: {strength: 0.1}\n", "plan.marks.scanner must be a mapping with kind"),
        ("marks:\n  x: {kind: contrast, strength: 9e9}\n", "plan.marks.x"),
        ("marks:\n  x: {region: Putamen, amplitude_mm: 2}\n", "Putamen_L"),
        ("marks:\n  x: {kind: blur, strength: 0.1}\n  x: {kind: blur, strength: 0.2}\n", "twice"),
        ("marks:\n  x: &a {kind: blur, strength: 0.1}\n  y: *a\n", "aliases are not allowed"),
        (PLAN + "sed: 3\n", "seed"),
        (PLAN + "transforms: {sub-01: null}\n", "without 2 of 3: sub-02, sub-03"),
        (PLAN + "transforms: 'x/{participant}.nii.gz'\n", "an existing file"),
        (PLAN + "transforms: {sub-01: [[1, 2]]}\n", "4 rows of 4 numbers"),
        ("marks:\n  none: {kind: blur, strength: 0.1}\n", "'none'"),
        ("marks:\n  a_b: {kind: blur, strength: 0.1}\n  aB: {kind: blur, strength: 0.1}\n", "aB"),
    ],
)
def test_bad_plans_are_one_line(study, tmp_path, capsys, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    command = ["plant", str(study), str(tmp_path / "plan.yaml"), str(tmp_path / "out")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("simba-lab: ") and message in error
    assert not (tmp_path / "out").exists()


def test_transforms_of_a_plan_are_those_of_plant(study, tmp_path):
    shift = np.eye(4)
    shift[0, 3] = 4.0
    rows = "\n".join(f"  sub-0{n}: {shift.tolist()}" for n in (1, 2, 3))
    (tmp_path / "plan.yaml").write_text(f"{PLAN}transforms:\n{rows}\n")
    plan = read_plan(tmp_path / "plan.yaml")
    marked = plan.planted(study_scans(study, plan), n_jobs=1)
    folder = sb.scans.export_planted(marked.where([0]), tmp_path / "out", n_jobs=1)
    scan = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    mark = {"left_putamen": MARKS["left_putamen"]}
    expected = sb.scans.inject(scan, mark, to_template=shift).image
    twin = image_of(folder, "01", "leftPutamen")
    np.testing.assert_array_equal(np.asarray(twin.dataobj), np.asarray(expected.dataobj))
    assert (np.asarray(twin.dataobj) != sb.scans.inject(scan, mark).image.get_fdata()).any()


def test_a_study_without_scans_and_a_folder_that_cannot_be_made(study, plan, tmp_path, capsys):
    assert cli.main(["plant", str(tmp_path), str(plan), str(tmp_path / "out")]) == 2
    assert cli.main(["plant", str(study), str(plan), str(tmp_path / "no" / "out")]) == 2
    errors = capsys.readouterr().err
    assert "a BIDS dataset" in errors and "in a folder that exists" in errors
