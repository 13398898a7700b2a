"""Scans of real people: NIfTI images whose stored numbers, scaling and header are to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import is_proxy

from simba_lab.core.errors import SimbaError
from simba_lab.synthesis.anatomy.nifti import DAMAGE, read_nifti

# Integers up to here are exact in float64.
LARGEST_INTEGER = 2**53


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan as it is stored: an intensity is ``stored * slope + inter``.

    Parameters
    ----------
    image : nibabel image
        Where everything else is taken from.
    stored : ndarray, shape (X, Y, Z)
        Of the type in the file.
    slope, inter : float
    """

    image: nib.Nifti1Image
    stored: np.ndarray
    slope: float
    inter: float

    def fitting(self, values: np.ndarray) -> np.ndarray:
        """Return float64 values in the stored type: rounded if it holds integers, and within its range."""
        dtype = self.stored.dtype
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        return np.clip(
            values if dtype.kind == "f" else np.rint(values), limits.min, limits.max
        ).astype(dtype)

    def showing(self, stored: np.ndarray) -> nib.Nifti1Image:
        """Return an image of other stored numbers; everything else, scaling included, is that of the scan."""
        image = type(self.image)(
            stored.reshape(self.image.shape), self.image.affine, self.image.header
        )
        if (self.slope, self.inter) == (1, 0):
            return image
        # An image in memory knows no scaling; one that reads itself from bytes does.
        image.header.set_slope_inter(self.slope, self.inter)
        return type(image).from_bytes(image.to_bytes())

    def mask(self, inside: np.ndarray) -> nib.Nifti1Image:
        """Return a boolean array as a uint8 image on the scan's grid."""
        header = self.image.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 1
        return type(self.image)(
            inside.astype(np.uint8).reshape(self.image.shape), self.image.affine, header
        )


def open_scan(scan: str | Path | nib.Nifti1Image) -> Scan:
    """Read a scan and check it.

    Raises
    ------
    SimbaError
        If it is not a three-dimensional NIfTI image of finite real numbers with an orientation;
        `TemplateError` for files.
    """
    if isinstance(scan, str | Path):
        read_nifti(scan, "scan")  # looks at every byte: header, size, checksum, NaN
        scan = nib.load(scan)
    if not isinstance(scan, nib.Nifti1Image):  # Nifti2Image is one too
        raise SimbaError(
            "scan",
            type(scan).__name__,
            "a path or a NIfTI image of nibabel",
            "Convert other formats first.",
        )
    if len(scan.shape) < 3 or min(scan.shape) < 1 or any(n != 1 for n in scan.shape[3:]):
        raise SimbaError(
            "scan", scan.shape, "a three-dimensional image", "Pick or make one volume."
        )
    codes = int(scan.header["sform_code"]), int(scan.header["qform_code"])
    affine = np.zeros((4, 4)) if scan.affine is None else scan.affine
    if (
        not any(code > 0 for code in codes)
        or not np.isfinite(affine).all()
        or abs(np.linalg.det(affine)) < 1e-6
    ):
        raise SimbaError(
            "scan", affine.tolist(), "an image with an orientation: an affine that can be inverted"
        )
    proxy = scan.dataobj if is_proxy(scan.dataobj) else None
    try:
        stored = np.asarray(scan.dataobj if proxy is None else proxy.get_unscaled()).reshape(
            scan.shape[:3]
        )
    except DAMAGE as error:
        raise SimbaError("scan", scan.get_filename(), "a readable image", f"({error})") from error
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize > 8 or not np.isfinite(stored).all():
        raise SimbaError(
            "scan",
            str(stored.dtype),
            "an image of real numbers without NaN or infinity",
            "Repair it first.",
        )
    if (
        stored.dtype.kind != "f"
        and max(abs(int(stored.min())), abs(int(stored.max()))) > LARGEST_INTEGER
    ):
        raise SimbaError(
            "scan", int(stored.max()), f"an image of integers of at most {LARGEST_INTEGER}"
        )
    return Scan(
        scan, stored, *((1.0, 0.0) if proxy is None else (float(proxy.slope), float(proxy.inter)))
    )


def save_as_stored(images: Mapping[str, nib.Nifti1Image], folder: str | Path) -> None:
    """Write images as ``NAME.nii.gz`` without scaling them anew, each complete or not at all.

    Raises
    ------
    SimbaError
        If the folder cannot be written to.
    """
    folder = Path(folder)
    part = folder / f".{uuid4().hex}.nii.gz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            if is_proxy(image.dataobj):
                scaling = image.dataobj.slope, image.dataobj.inter
                image = type(image)(image.dataobj.get_unscaled(), image.affine, image.header)
                image.header.set_slope_inter(*scaling)
            image.to_filename(part)
            part.replace(folder / f"{name}.nii.gz")
    except OSError as error:
        raise SimbaError(
            "folder", str(folder), "a folder that can be written to", f"({error})"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
