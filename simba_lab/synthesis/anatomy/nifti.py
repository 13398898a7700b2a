"""Read NIfTI images with care: the header is checked before any voxel is read, and each fault gives one clear error."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from simba_lab.core.errors import TemplateError

# Deflate cannot make data more than this many times smaller, so a gzip file that claims more is
# lying.
GZIP_RATIO = 1032
# 1 GiB as float32; a head at 0.35 mm has fewer.
MOST_VOXELS = 2**28
# Voxels outside this range mean a damaged affine, or one in metres or micrometres.
VOXEL_RANGE_MM = (0.05, 50.0)
# Volume of a voxel as a share of the box with its edges: 1 for right angles, 0 if the axes lie in a
# plane.
LEAST_VOLUME = 0.05
# What nibabel and the decompressor raise on damaged files.
DAMAGE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.spatialimages.HeaderTypeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    zlib.error,
)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def open_nifti(path: str | Path, field_name: str = "image") -> nib.Nifti1Image:
    """Open an image without reading its voxels, and check everything that can be checked before that.

    Parameters
    ----------
    path : path
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.
    field_name : str
        What errors call the image.

    Returns
    -------
    nibabel.Nifti1Image or nibabel.Nifti2Image
        Three-dimensional, real-valued, with an orientation; its voxels are still in the file.

    Raises
    ------
    TemplateError
        If the file is missing or no NIfTI file, is not three-dimensional, claims more data than the
        file can hold, or has no usable orientation.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise TemplateError(
            field_name, str(path), "a NIfTI file (.nii or .nii.gz)", "Convert the image first."
        )
    if not path.is_file():
        raise TemplateError(field_name, str(path), "an existing NIfTI file", "Check the path.")
    try:
        image = nib.load(path)
        affine, shape = np.array(image.affine, float), tuple(int(n) for n in image.shape)
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        kind, size = image.get_data_dtype().kind, image.get_data_dtype().itemsize
        claimed = int(image.dataobj.offset) + size * int(np.prod(shape, dtype=object))
    except DAMAGE as error:
        raise _damaged(field_name, path, error) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one too
        raise TemplateError(
            field_name, str(path), "a NIfTI file (.nii or .nii.gz)", "Convert the image first."
        )
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise TemplateError(
            field_name,
            str(path),
            "a three-dimensional image",
            f"Its shape is {shape}: pick or make one volume.",
        )
    if kind not in "biuf":
        raise TemplateError(
            field_name, str(path), "an image of real numbers", f"It holds {image.get_data_dtype()}."
        )
    on_disk = path.stat().st_size
    possible = on_disk * GZIP_RATIO if _zipped(path) else on_disk
    if claimed > possible:
        raise TemplateError(
            field_name,
            str(path),
            "a NIfTI file that holds what its header claims",
            f"It is truncated or corrupt: {on_disk:,} bytes cannot hold the {claimed:,} that it claims. Fetch it again.",
        )
    if np.prod(shape, dtype=object) > MOST_VOXELS:
        raise TemplateError(
            field_name,
            str(path),
            f"an image of at most {MOST_VOXELS:,} voxels",
            f"Its shape is {shape}.",
        )
    if not any(code > 0 for code in codes) or not _usable(affine):
        raise TemplateError(
            field_name,
            str(path),
            "an image with an orientation (sform or qform)",
            f"Voxels must be {VOXEL_RANGE_MM[0]:g} to {VOXEL_RANGE_MM[1]:g} mm large and their axes independent, but the "
            f"affine is {np.array2string(affine[:3], precision=3, separator=', ').replace(chr(10), '')} "
            f"with the codes {codes}. Repair the header first.",
        )
    return image


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def read_nifti(path: str | Path, field_name: str = "image") -> nib.Nifti1Image:
    """Read an image as float32, its axes ordered and directed as near to RAS+ as can be without resampling.

    Parameters
    ----------
    path : path
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.
    field_name : str
        What errors call the image.

    Returns
    -------
    nibabel.Nifti1Image
        Three-dimensional, finite, in memory.

    Raises
    ------
    TemplateError
        As `open_nifti`, and if the data are truncated, corrupt, NaN or infinite.
    """
    path, image = Path(path), open_nifti(path, field_name)
    try:
        data = np.asarray(
            (_unzipped(path, image) if _zipped(path) else image).dataobj, dtype=np.float32
        )
        data = data.reshape(data.shape[:3])
    except DAMAGE as error:
        raise _damaged(field_name, path, error) from error
    if not np.isfinite(data).all():
        raise TemplateError(
            field_name, str(path), "an image without NaN or infinity", "Repair the image first."
        )
    return nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))


def _zipped(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _unzipped(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the image with its bytes in memory; nibabel alone would not notice a wrong checksum at the end."""
    claimed = int(image.dataobj.offset) + image.get_data_dtype().itemsize * int(
        np.prod(image.shape)
    )
    with gzip.open(path) as handle:
        content = handle.read(claimed)
        handle.read(1)  # the checksum is compared when the end is reached
    return type(image).from_bytes(content)


def _usable(affine: np.ndarray) -> bool:
    """Tell whether an affine turns voxels into positions: finite, of sane scale, not flat."""
    if not np.isfinite(affine).all():
        return False
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges.min() < VOXEL_RANGE_MM[0] or edges.max() > VOXEL_RANGE_MM[1]:
        return False
    return abs(np.linalg.det(affine[:3, :3] / edges)) >= LEAST_VOLUME


def _damaged(field_name: str, path: Path, error: BaseException) -> TemplateError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TemplateError(
        field_name,
        str(path),
        "a readable NIfTI file",
        f"It is truncated or corrupt ({reason}); fetch it again.",
    )
