"""Transforms of ITK, as ANTs and fMRIPrep write them, as displacement fields for `plant`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from simba_lab.core.checks import Positive
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import write_new
from simba_lab.core.unfinished import disk_errors
from simba_lab.scans.bids_images import SPACES, BidsImages
from simba_lab.scans.image_writing import nifti_bytes
from simba_lab.scans.planting.placement import DisplacementField
from simba_lab.scans.preparation import PreparedImages, for_each_subject
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.anatomy.nifti import open_nifti

SPACE = SPACES["fmriprep"]["space"]


def itk_transforms(
    scans: ScanCohort, images: BidsImages, folder: str | Path, *, spacing_mm: Positive = 3.0
) -> dict[str, DisplacementField]:
    """Return where native scans of fMRIPrep lie in the template, for ``plant(transforms=...)``.

    A file that takes *images* from the template to a scan takes *points* of the scan to the
    template, which is what `plant` asks for. So the file that is read is
    ``from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5``, not its inverse. It is written as a
    displacement field over the scan. Needs SimpleITK.

    Parameters
    ----------
    scans : ScanCohort
        From `read_bids` with these images.
    images : BidsImages
        With ``layout="fmriprep-native"``.
    folder : path
        Where fields are written, as ``sub-01_xfm.nii.gz``; those that are there already are kept.
    spacing_mm : float
        Voxel size of the fields, at most that of the scan's field of view.

    Returns
    -------
    dict of participant to DisplacementField

    Raises
    ------
    SimbaError
        If SimpleITK is not installed, or a transform is missing, is none of three dimensions, or
        cannot be read.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> images = sb.scans.BidsImages("study", layout="fmriprep")
    >>> scans = sb.scans.ScanCohort(pd.DataFrame(), sb.scans.Preparation(spacing_mm=8).images({}))
    >>> sb.scans.itk_transforms(scans, images, "fields")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: images must be BidsImages(layout="fmriprep-native"), ...
    """
    source = scans.source
    if images.layout != "fmriprep-native" or not isinstance(source, PreparedImages):
        allowed = 'BidsImages(layout="fmriprep-native"), whose files the scans are'
        raise SimbaError("images", images.layout, allowed)
    folder = Path(folder)
    with disk_errors("folder", folder, "call again with another."):
        folder.mkdir(parents=True, exist_ok=True)
    names = dict(zip(scans.table["participant"], scans.table.index.tolist(), strict=True))

    def field_of(name: str) -> DisplacementField:
        scan = source.paths[names[name]]
        path = folder / f"{name}_xfm.nii.gz"
        if not path.is_file():
            transform = _read(_beside(scan, name), name)
            image = _field(transform, open_nifti(scan, f"image of {name}"), spacing_mm)
            write_new(path, nifti_bytes(image))
        return DisplacementField(path, "LPS")

    return dict(zip(names, for_each_subject(field_of, names), strict=True))


def _beside(scan: Path, name: str) -> Path:
    """Return the transform of a scan: of its session and run, or the one of the person."""
    ending = f"from-{SPACE}_to-T1w_mode-image_xfm.h5"
    stem = scan.name.split("desc-")[0]
    files = sorted(scan.parent.glob(f"*{ending}"))
    chosen = [path for path in files if path.name == stem + ending] or files
    if len(chosen) != 1:
        listed = ", ".join(path.name for path in files) or "none"
        remedy = f"Found: {listed}."
        value = str(scan.parent / (stem + ending))
        raise SimbaError(f"transform of {name}", value, "exactly one file", remedy)
    return chosen[0]


def _read(path: Path, name: str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise SimbaError.problem(
            "SimpleITK reads transforms, and is not installed.", "pip install SimpleITK"
        ) from error
    allowed = "a transform of ITK in three dimensions that can be read"
    try:
        transform = SimpleITK.ReadTransform(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise SimbaError(f"transform of {name}", str(path), allowed, reason) from error
    if transform.GetDimension() != 3:
        raise SimbaError(f"transform of {name}", str(path), allowed)
    return transform


def _field(transform: Any, scan: nib.Nifti1Image, spacing_mm: float) -> nib.Nifti1Image:
    """Return the displacements over a scan, vectors in LPS, shape (X, Y, Z, 1, 3)."""
    import SimpleITK

    edges = np.linalg.norm(scan.affine[:3, :3], axis=0)
    steps = np.maximum(spacing_mm / edges, 1.0)
    shape = [math.ceil((n - 1) / step) + 1 for n, step in zip(scan.shape[:3], steps, strict=True)]
    shape = [max(2, n) for n in shape]
    affine = scan.affine @ np.diag([*steps, 1.0])
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    field = SimpleITK.TransformToDisplacementField(
        transform,
        SimpleITK.sitkVectorFloat32,
        shape,
        to_lps[:3, 3].tolist(),
        (edges * steps).tolist(),
        (to_lps[:3, :3] / (edges * steps)).ravel().tolist(),
    )
    values = SimpleITK.GetArrayFromImage(field).transpose(2, 1, 0, 3)[:, :, :, None]
    image = nib.Nifti1Image(values, affine)
    image.header.set_intent("vector")
    return image
