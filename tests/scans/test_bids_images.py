"""Images as fMRIPrep and CAT12 write them, cut to the brain by their masks."""

import shutil

import nibabel as nib
import numpy as np
import pytest

import simba_lab as sb
from simba_lab import cli
from simba_lab.scans import BidsImages, Preparation

PEOPLE = [f"sub-{number:02d}" for number in range(1, 11)]
PREPARED = Preparation(spacing_mm=8)
SPACE = "space-MNI152NLin2009cAsym"
LABELS = {"label": "group", "disease": "AD", "preparation": PREPARED}


@pytest.fixture(scope="module")
def head():
    """A brain of 8 mm voxels in scaled int16, with a bright skull, and the mask of the brain."""
    image = sb.load_template().image().slicer[4::8, 4::8, 4::8]
    values = image.get_fdata()
    brain = values > 0.05
    skull = np.where(brain, values, 0.8)
    scan = nib.Nifti1Image((skull * 900).astype(np.int16), image.affine)
    return scan, nib.Nifti1Image(brain.astype(np.uint8), image.affine), brain


@pytest.fixture
def study(tmp_path):
    rows = [f"{name}\t{'AD' if k % 2 else 'CN'}" for k, name in enumerate(PEOPLE)]
    text = "\n".join(["participant_id\tgroup", *rows])
    (tmp_path / "participants.tsv").write_text(text + "\n", encoding="utf-8")
    return tmp_path


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def fmriprep(study, scan, mask, session=""):
    for name in PEOPLE:
        anat = study / "derivatives" / "fmriprep" / name / session / "anat"
        stem = f"{name}_{session}_" if session else f"{name}_"
        for middle in (f"{SPACE}_", ""):
            write(anat / f"{stem}{middle}desc-preproc_T1w.nii.gz", scan)
            write(anat / f"{stem}{middle}desc-brain_mask.nii.gz", mask)
        write(anat / f"{stem}{SPACE}_res-2_desc-preproc_T1w.nii.gz", scan)
        write(anat / f"{stem}{SPACE}_label-GM_probseg.nii.gz", mask)


def test_images_of_fmriprep_are_those_in_the_template_cut_to_the_brain(study, head):
    scan, mask, brain = head
    fmriprep(study, scan, mask, "ses-01")
    images = BidsImages(study, layout="fmriprep", entities={"res": None})
    cohort = sb.read_bids(images, **LABELS)
    path = cohort.source.paths[3]
    assert path.name == f"sub-03_ses-01_{SPACE}_desc-preproc_T1w.nii.gz"
    whole = Preparation(8, rescale=False).images({3: path}).array(3)
    cut = cohort.source.sampled(nib.Nifti1Image(scan.get_fdata() * brain, scan.affine), None)
    assert (whole > 0).sum() > 1.5 * (cohort.array(3) > 0).sum()
    np.testing.assert_allclose(cohort.array(3) / cohort.array(3).max(), cut / cut.max(), atol=1e-6)
    with pytest.raises(sb.SimbaError, match=r"exactly one file.*res-2"):
        sb.read_bids(BidsImages(study, layout="fmriprep"), **LABELS)
    native = sb.read_bids(BidsImages(study, layout="fmriprep-native"), **LABELS)
    assert native.source.paths[3].name == "sub-03_ses-01_desc-preproc_T1w.nii.gz"
    assert native.identity != cohort.identity


def test_marks_are_planted_in_the_brain_that_was_cut_out(study, head):
    scan, mask, brain = head
    fmriprep(study, scan, mask)
    images = BidsImages(study, layout="fmriprep", entities={"res": None})
    scans = sb.read_bids(images, use="test", **LABELS)
    marked = sb.plant(scans, {"scanner": sb.Intensity("contrast", 0.2)})
    np.testing.assert_array_equal(marked.twin(without="scanner").array(0), scans.array(0))
    marks = {"scanner": sb.Intensity("contrast", 0.2)}
    cut = nib.Nifti1Image((np.asarray(scan.dataobj) * brain).astype(np.int16), scan.affine)
    planted = marked.source.planted(1, (("scanner", 1.0),))
    expected = sb.scans.inject(cut, marks).image
    np.testing.assert_array_equal(np.asarray(planted.dataobj), np.asarray(expected.dataobj))
    sb.save_cohort(marked, study / "store", n_jobs=1)
    opened = sb.open_cohort(study / "store").twin(without="scanner")
    np.testing.assert_array_equal(opened.array(0), scans.array(0))


def test_masks_that_are_missing_or_on_another_grid_are_named(study, head):
    scan, mask, _ = head
    fmriprep(study, scan, mask)
    anat = study / "derivatives" / "fmriprep" / "sub-04" / "anat"
    path = anat / f"sub-04_{SPACE}_desc-brain_mask.nii.gz"
    images = BidsImages(study, layout="fmriprep", entities={"res": None})
    write(path, mask.slicer[1:])
    with pytest.raises(
        sb.SimbaError, match=r"mask must be on the grid \(20, 24, 20\) of its image"
    ):
        sb.read_bids(images, **LABELS)
    path.unlink()
    with pytest.raises(sb.SimbaError, match="mask of sub-04 must be an existing file"):
        sb.read_bids(images, **LABELS)
    shutil.rmtree(study / "derivatives")
    with pytest.raises(sb.SimbaError, match=r"a folder with one of fmriprep.*Found: none"):
        sb.read_bids(images, **LABELS)


def test_the_command_plants_in_what_a_pipeline_made(study, head, capsys):
    scan, mask, _ = head
    for name in PEOPLE:
        anat = study / "derivatives" / "cat12" / name / "mri"
        write(anat / f"m{name}_T1w.nii", scan)
        write(anat / f"p0{name}_T1w.nii", mask)
    (study / "plan.yaml").write_text("marks:\n  scanner: {kind: contrast, strength: 0.3}\n")
    command = ["plant", str(study), str(study / "plan.yaml"), str(study / "out")]
    assert cli.main(command) == 2
    assert cli.main([*command, "--layout", "cat12-native"]) == 0
    out, err = capsys.readouterr()
    assert "10 scans are too few" in out and "T1w image of sub-01" in err
    untouched = nib.load(study / "out" / "sub-01" / "anat" / "sub-01_desc-none_T1w.nii.gz")
    kept = np.asarray(scan.dataobj) * np.asarray(mask.dataobj)
    np.testing.assert_array_equal(np.asarray(untouched.dataobj), kept)


@pytest.mark.parametrize("folder", ["mri", ""])
def test_images_of_cat12(study, head, folder):
    scan, mask, brain = head
    cut = nib.Nifti1Image((np.asarray(scan.dataobj) * brain).astype(np.int16), scan.affine)
    for name in PEOPLE:
        anat = study / "derivatives" / "CAT12.9_2577" / name / "anat" / folder
        for prefix, image in (("wm", cut), ("mwp1", mask), ("m", scan), ("p0", mask)):
            write(anat / f"{prefix}{name}_T1w.nii", image)
    warped = sb.read_bids(BidsImages(study, layout="cat12"), **LABELS)
    native = sb.read_bids(BidsImages(study, layout="cat12-native"), **LABELS)
    assert warped.source.paths[3].name == "wmsub-03_T1w.nii" and not warped.source.masks
    assert native.source.masks[3].name == "p0sub-03_T1w.nii"
    np.testing.assert_array_equal(warped.array(0), native.array(0))


def test_people_without_a_table_are_those_with_folders(study, head):
    scan, mask, _ = head
    fmriprep(study, scan, mask)
    (study / "participants.tsv").unlink()
    images = BidsImages(study, layout="fmriprep", entities={"res": None})
    scans = sb.read_bids(images, use="test", preparation=PREPARED)
    assert scans["participant"].tolist() == PEOPLE and "label" not in scans.table
    with pytest.raises(sb.SimbaError, match="table must be an existing"):
        sb.read_bids(images, **LABELS)
    with pytest.raises(sb.SimbaError, match="Did you mean fmriprep"):
        BidsImages(study, layout="fmriprp")


def test_transforms_of_itk_take_points_of_the_scan_to_the_template(study, head):
    """The mark lies where the chain of affine and field says, also for a scan that is turned."""
    sitk = pytest.importorskip("SimpleITK")
    scan, mask, _ = head
    turn = nib.affines.from_matvec(np.diag([1.05, 0.97, 1.0]), (6.0, -4.0, 3.0))
    turn[0, 1], turn[1, 0] = -0.1, 0.1
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = scan.shape[0] - 1  # stored from right to left
    affine = np.linalg.inv(turn) @ scan.affine
    native = nib.Nifti1Image(np.asarray(scan.dataobj)[::-1], affine @ flip)
    fmriprep(study, native, nib.Nifti1Image(np.asarray(mask.dataobj)[::-1], affine @ flip))
    linear = sitk.AffineTransform(3)
    swap = np.diag([-1.0, -1.0, 1.0])
    linear.SetMatrix((swap @ turn[:3, :3] @ swap).ravel().tolist())
    linear.SetTranslation((swap @ turn[:3, 3]).tolist())
    grid = sitk.Image([12, 12, 12], sitk.sitkVectorFloat64)
    grid.SetSpacing((30.0, 30.0, 30.0))
    grid.SetOrigin((-165.0, -165.0, -165.0))
    field = sitk.DisplacementFieldTransform(grid)
    chain = sitk.CompositeTransform([field, linear])
    for name in PEOPLE:
        anat = study / "derivatives" / "fmriprep" / name / "anat"
        ending = "from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5"
        sitk.WriteTransform(chain, str(anat / f"{name}_{ending}"))
    images = BidsImages(study, layout="fmriprep-native")
    labels = LABELS | {"preparation": Preparation(8, align="centre")}
    scans = sb.read_bids(images, use="test", **labels)
    transforms = sb.scans.itk_transforms(scans, images, study / "fields", spacing_mm=12)
    mark = {"putamen": sb.Morphology("Putamen_L", 2.5)}
    planted = sb.plant(scans, mark, transforms=transforms).source.planted(1, (("putamen", 1.0),))
    values = np.where(np.asarray(mask.dataobj)[::-1] > 0, np.asarray(native.dataobj), 0)
    cut = nib.Nifti1Image(values.astype(np.int16), native.affine)
    expected = sb.scans.inject(cut, mark, to_template=turn).image
    difference = np.asarray(planted.dataobj, float) - np.asarray(expected.dataobj, float)
    changed = np.asarray(expected.dataobj, float) != values
    assert changed.sum() > 10 and np.abs(difference).max() <= 2
    with pytest.raises(sb.SimbaError, match="like the template"):  # the inverse is another place
        sb.scans.inject(cut, mark, to_template=np.linalg.inv(turn))
    # Written once, and not again.
    before = {path: path.stat().st_mtime_ns for path in (study / "fields").iterdir()}
    sb.scans.itk_transforms(scans, images, study / "fields")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (anat / f"sub-10_{ending}").write_text("no transform")
    with pytest.raises(sb.SimbaError, match=r"transform of sub-10 must be a transform of ITK"):
        sb.scans.itk_transforms(scans, images, study / "other")
    (anat / f"sub-10_{ending}").unlink()
    with pytest.raises(sb.SimbaError, match=r"sub-10 must be exactly one file.*Found: none"):
        sb.scans.itk_transforms(scans, images, study / "third")
