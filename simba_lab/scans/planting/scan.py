"""Scan: a NIfTI image of a real person whose stored numbers, scaling and header are to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import is_proxy

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import check_absent, write_new
from simba_lab.core.unfinished import disk_errors
from simba_lab.scans.image_writing import nifti_bytes
from simba_lab.scans.masks import check_grid
from simba_lab.synthesis.anatomy.nifti import DAMAGE, read_nifti

# Integers up to here are exact in float64.
LARGEST_INTEGER = 2**53


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it is stored: an intensity is ``stored * slope + inter``.

    Parameters
    ----------
    image : nibabel image
        Header and affine are taken from it.
    stored : ndarray, shape (X, Y, Z)
        In the data type of the file.
    slope, inter : float
        The scaling of the stored numbers.
    """

    image: nib.Nifti1Image
    stored: np.ndarray
    slope: float
    inter: float

    def cast(self, values: np.ndarray) -> np.ndarray:
        """Return float64 values in the stored type: integers are rounded; its range limits them."""
        dtype = self.stored.dtype
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        rounded = values if dtype.kind == "f" else np.rint(values)
        return np.clip(rounded, limits.min, limits.max).astype(dtype)

    def with_stored(self, stored: np.ndarray) -> nib.Nifti1Image:
        """Return an image of other stored numbers with the scan's header, scaling and affine."""
        values = stored.reshape(self.image.shape)
        image = type(self.image)(values, self.image.affine, self.image.header)
        if (self.slope, self.inter) == (1, 0):
            return image
        # An image in memory knows no scaling; one that reads itself from bytes does.
        image.header.set_slope_inter(self.slope, self.inter)
        return type(image).from_bytes(image.to_bytes())

    def mask_image(self, mask: np.ndarray) -> nib.Nifti1Image:
        """Return a boolean array, shape (X, Y, Z), as a uint8 image on the scan's grid."""
        header = self.image.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 1
        values = mask.astype(np.uint8).reshape(self.image.shape)
        return type(self.image)(values, self.image.affine, header)


def open_scan(
    source: str | Path | nib.spatialimages.SpatialImage, mask: Path | None = None
) -> Scan:
    """Read a scan and check it; set it to 0 around the mask in a file, if there is one.

    Raises
    ------
    SimbaError
        If it is not a three-dimensional NIfTI image of finite real numbers with an orientation;
        `TemplateError` for files.
    """
    if isinstance(source, str | Path):
        read_nifti(source, "scan")  # looks at every byte: header, size, checksum, NaN
        source = nib.load(source)  # type: ignore[assignment]
    if not isinstance(source, nib.Nifti1Image):  # Nifti2Image is one too
        allowed = "a path or a NIfTI image of nibabel"
        raise SimbaError("scan", type(source).__name__, allowed, "Convert other formats first.")
    if len(source.shape) < 3 or min(source.shape) < 1 or any(n != 1 for n in source.shape[3:]):
        allowed = "a three-dimensional image"
        raise SimbaError("scan", source.shape, allowed, "Pick or make one volume.")
    affine = np.zeros((4, 4)) if source.affine is None else source.affine
    coded = int(source.header["sform_code"]) > 0 or int(source.header["qform_code"]) > 0
    if not coded or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-6:
        allowed = "an image with an orientation: an affine that can be inverted"
        raise SimbaError("scan", affine.tolist(), allowed)
    scan = _stored_numbers(source)
    if mask is None:
        return scan
    read_nifti(mask, "mask of the scan")
    brain: Any = nib.load(mask)
    check_grid(source, brain, mask)
    kept = np.asarray(brain.dataobj).reshape(scan.stored.shape) > 0.5
    nothing = scan.cast(np.array(-scan.inter / scan.slope))
    return replace(scan, stored=np.where(kept, scan.stored, nothing))


def _stored_numbers(image: nib.Nifti1Image) -> Scan:
    proxy: Any = image.dataobj if is_proxy(image.dataobj) else None
    try:
        stored = np.asarray(image.dataobj if proxy is None else proxy.get_unscaled())
        stored = stored.reshape(image.shape[:3])
    except DAMAGE as error:
        raise SimbaError("scan", image.get_filename(), "a readable image", f"{error}.") from error
    dtype = stored.dtype
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or not np.isfinite(stored).all():
        allowed = "an image of real numbers without NaN or infinity"
        raise SimbaError("scan", str(dtype), allowed, "Repair it first.")
    largest = max(abs(int(stored.min())), abs(int(stored.max()))) if dtype.kind != "f" else 0
    if largest > LARGEST_INTEGER:
        allowed = f"an image of integers of at most {LARGEST_INTEGER}"
        raise SimbaError("scan", largest, allowed)
    if proxy is None:
        return Scan(image, stored, 1.0, 0.0)
    return Scan(image, stored, float(proxy.slope), float(proxy.inter))


def save_as_stored(images: Mapping[str, nib.Nifti1Image], folder: str | Path) -> None:
    """Write images as ``NAME.nii.gz`` with the scaling that they have, each complete or not at all.

    Raises
    ------
    SimbaError
        If one of the files is there already, or if the folder cannot be written.
    """
    folder = Path(folder)
    for name in images:
        check_absent(folder / f"{name}.nii.gz", "file")
    with disk_errors("folder", folder, "call again with another."):
        folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        proxy: Any = image.dataobj
        if is_proxy(proxy):
            image = type(image)(proxy.get_unscaled(), image.affine, image.header)
            image.header.set_slope_inter(proxy.slope, proxy.inter)
        write_new(folder / f"{name}.nii.gz", nifti_bytes(image))
