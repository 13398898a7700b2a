"""check_scans: what was done to a scan is found, and nothing in people to whom nothing was done."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_dilation, shift

import simba_lab as sb
from simba_lab.scans import Preparation, ScanCohort, check_scans

# None of these is among the people on whom the limits were set (seed 100).
PEOPLE, SPACING_MM = 200, 8


@pytest.fixture(scope="module")
def people():
    scenario = sb.Scenario(
        PEOPLE, sb.Morphology("Insula_L", 2.5), sb.Intensity("contrast", 0.2), spacing_mm=SPACING_MM
    )
    return sb.synthesise(scenario, seed=0)


class Altered:
    """A source whose volumes are those of a cohort, each changed by a function."""

    def __init__(self, cohort, change):
        self.cohort, self.change, self.lattice = cohort, change, cohort.lattice
        self.identity = {"template": "icbm2009c"}

    def array(self, subject):
        return self.change(self.cohort.array(subject)).astype(np.float32)


def changed(people, change, count=PEOPLE):
    return ScanCohort(pd.DataFrame(index=range(count)), Altered(people, change))


def moved(volume, offset_mm):
    return shift(volume, np.array(offset_mm) / SPACING_MM, order=1)


def with_scalp(volume):
    """A bright shell some way off the brain, as scalp is."""
    brain = volume > 0.02
    near = binary_dilation(brain)
    return np.where(binary_dilation(near, iterations=2) & ~near, 0.8, volume)


def without_top(volume):
    volume[:, :, -5:] = 0
    return volume


def without_slices(volume):
    volume[:, 11:13] = 0
    return volume


def share_with(checks, words):
    return checks.table["problems"].str.contains(words, regex=False).mean()


def test_of_two_hundred_people_one_is_flagged(people):
    checks = check_scans(people)
    assert len(checks.table) == PEOPLE and len(checks.bad) <= 1, checks.bad["problems"].tolist()
    assert checks.table["outside"].isna().all()  # there are no files
    assert checks.table["overlap"].min() > 0.8
    assert (checks.table["asymmetry"] < 0).sum() <= 1


def test_of_two_hundred_mirrored_people_all_are_found(people):
    checks = check_scans(changed(people, lambda volume: volume[::-1]))
    assert share_with(checks, "left and right are swapped") >= 0.99
    assert (checks.table["asymmetry"] < 0).mean() >= 0.99
    assert not checks.table["problems"].str.contains("shifted|skull|unlike|cut").any()


@pytest.mark.parametrize(
    ("offset_mm", "words"),
    [
        ((12, 0, 0), "12 mm to the right"),
        ((-12, 0, 0), "12 mm to the left"),
        ((0, 12, 0), "12 mm to the front"),
        ((0, 0, -12), "12 mm to the bottom"),
    ],
)
def test_a_shift_is_found_with_its_direction(people, offset_mm, words):
    checks = check_scans(changed(people, lambda volume: moved(volume, offset_mm), 40))
    assert share_with(checks, "shifted by") == 1
    assert share_with(checks, words.split("mm ")[1]) == 1
    parts = checks.table[["shift_right_mm", "shift_front_mm", "shift_up_mm"]]
    assert np.abs(parts - offset_mm).max().max() < 6
    assert not checks.table["problems"].str.contains("skull|unlike").any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_scalp, "skull left on"),
        (without_top, "cut off at the top"),
        (without_slices, "slices are missing"),
        (lambda volume: volume[:, :, ::-1], "turned upside down"),
        (lambda volume: volume[:, ::-1], "turned front to back"),
        (lambda volume: 1.2 * (volume > 0) - volume, "turned"),
        (lambda volume: 0 * volume, "empty"),
        (lambda volume: 0 * volume + 3, "empty"),
        (lambda volume: volume * np.where(volume > 1, np.nan, 1), "not finite"),
    ],
)
def test_what_was_done_is_found(people, change, words):
    checks = check_scans(changed(people, change, 40))
    assert share_with(checks, words) == 1, checks.table["problems"].unique()


def test_brightness_does_not_count(people):
    bright = check_scans(changed(people, lambda volume: 300 * volume, 10)).table
    as_made = check_scans(people.where(range(10))).table
    pd.testing.assert_frame_equal(bright, as_made, atol=1e-3, check_names=False)


def test_a_symmetric_template_tells_no_sides(people):
    source = Altered(people, lambda volume: volume[::-1])
    source.identity = {"template": "mni152"}
    checks = check_scans(ScanCohort(pd.DataFrame(index=range(4)), source))
    assert checks.table["asymmetry"].isna().all() and checks.table["ok"].all()


@pytest.fixture(scope="module")
def files(people, tmp_path_factory):
    """Files of five people: whole, cut off, full of NaN, of zeros, and gone since."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(5):
        image = people.volume(number)
        if number == 1:
            image = image.slicer[:, :, 5:]
        values = np.asarray(image.dataobj)
        values = {2: np.full_like(values, np.nan), 3: 0 * values}.get(number, values)
        nib.save(nib.Nifti1Image(values, image.affine), folder / f"{number}.nii")
    paths = {10 + number: folder / f"{number}.nii" for number in range(5)}
    images = Preparation(spacing_mm=SPACING_MM).images(paths)
    paths[14].unlink()
    names = [f"sub-{number}" for number in range(5)]
    return ScanCohort(pd.DataFrame({"participant": names}, index=list(paths)), images)


def test_files_that_cannot_be_used_are_rows_too(files):
    table = check_scans(files, n_jobs=1).table
    assert table.index.tolist() == [10, 11, 12, 13, 14]
    assert table["ok"].tolist() == [True, False, False, False, False]
    for number, words in ((11, "cut off"), (12, "not finite"), (13, "empty"), (14, "missing")):
        assert words in table.loc[number, "problems"]
    assert table.loc[11, "outside"] > 0.05 and table.loc[10, "outside"] < 0.01
    assert table.loc[[12, 13, 14], "likeness"].isna().all()


def test_planted_scans_are_checked_as_they_are(people, tmp_path):
    paths = {}
    for number in range(2):
        paths[number] = tmp_path / f"{number}.nii"
        nib.save(people.volume(number), paths[number])
    images = Preparation(spacing_mm=SPACING_MM).images(paths)
    scans = ScanCohort(pd.DataFrame({"participant": ["a", "b"]}), images)
    marked = sb.plant(scans, {"mark": sb.Morphology("Putamen_L", 2.5)})
    checks = check_scans(marked)
    assert checks.table["ok"].all() and checks.table["outside"].max() < 0.01
    stored = sb.save_cohort(scans, tmp_path / "store")
    assert check_scans(stored).table["ok"].all()


def test_a_mosaic_frames_and_names_what_is_wrong(files):
    checks = check_scans(files)
    figure = checks.mosaic(title="A study")
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 5
    widths = [axes.spines["left"].get_linewidth() for axes in panels]
    assert widths == [0.5, 3, 3, 3, 3]
    assert "not finite" in panels[2].get_xlabel() and panels[2].get_title() == "sub-2"
    letters = [text.get_text() for text in panels[0].texts]
    assert letters == ["L", "R", "L", "R", "P", "A"]
    assert "sub-1: cut off" in figure.alt_text and "sub-0: no problem found" in figure.alt_text
    content, metadata = figure._repr_png_()
    assert content.startswith(b"\x89PNG") and metadata == {"alt": figure.alt_text}
    worst = [axes for axes in checks.mosaic(2, columns=1).axes if axes.axison]
    assert len(worst) == 2 and all(axes.spines["left"].get_linewidth() == 3 for axes in worst)


def test_hostile_names_are_drawn_as_they_are(people):
    source = Altered(people, lambda volume: volume)
    table = pd.DataFrame({"participant": ["$\\frac{a$", "x" * 500]})
    figure = check_scans(ScanCohort(table, source)).mosaic()
    assert figure._repr_png_()[0].startswith(b"\x89PNG")


def test_there_must_be_scans(people):
    with pytest.raises(sb.SimbaError, match="scans must be at least one scan"):
        check_scans(people.where(np.zeros(PEOPLE, bool)))
    source = Altered(people, lambda volume: volume)
    source.identity = {"template": "somebody's"}
    with pytest.raises(sb.SimbaError, match="template of the scans"):
        check_scans(ScanCohort(pd.DataFrame(index=[0]), source))
