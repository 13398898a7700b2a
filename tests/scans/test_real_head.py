"""Checks of a real head: Colin27, as Debian's mricron-data has it, with and without its skull."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from simba_lab.scans import Preparation, ScanCohort, check_scans

FOLDER = Path("/usr/share/mricron/templates")
pytestmark = pytest.mark.skipif(
    not (FOLDER / "ch2bet.nii.gz").is_file(), reason="install mricron-data for a real head"
)


def problems_of(name, folder, offset_mm=(0, 0, 0), mirror=1.0):
    image = nib.load(FOLDER / f"{name}.nii.gz")
    change = nib.affines.from_matvec(np.diag([mirror, 1, 1]), offset_mm)
    values = np.asarray(image.dataobj, np.float32)
    nib.save(nib.Nifti1Image(values, change @ image.affine), folder / "head.nii")
    images = Preparation(spacing_mm=4).images({0: folder / "head.nii"})
    scans = ScanCohort(pd.DataFrame({"participant": ["colin"]}), images)
    return check_scans(scans).table["problems"].iloc[0]


def test_the_brain_has_no_problem_and_the_head_its_skull(tmp_path):
    assert problems_of("ch2bet", tmp_path) == ""
    head = problems_of("ch2", tmp_path)
    assert "skull left on" in head and "swapped" not in head and "shifted" not in head


@pytest.mark.parametrize("name", ["ch2", "ch2bet"])
def test_a_mirror_image_is_found(name, tmp_path):
    assert "swapped" in problems_of(name, tmp_path, mirror=-1.0)


@pytest.mark.parametrize("name", ["ch2", "ch2bet"])
def test_a_shift_is_found(name, tmp_path):
    assert "mm to the right" in problems_of(name, tmp_path, offset_mm=(12, 0, 0))
