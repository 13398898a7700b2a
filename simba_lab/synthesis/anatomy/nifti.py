"""Read NIfTI images with care: the header is checked before any voxel is read."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from simba_lab.core.errors import TemplateError

# Deflate cannot make data more than this many times smaller: a gzip file that claims more is
# damaged.
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
def open_nifti(path: str | Path, field: str = "image") -> nib.Nifti1Image:
    """Open an image without reading its voxels, and check its header.

    Parameters
    ----------
    path : path
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.
    field : str
        Name of the image in errors.

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
    allowed, remedy = "a NIfTI file (.nii or .nii.gz)", "Convert the image first."
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise TemplateError(field, str(path), allowed, remedy)
    _check_present(field, path)
    try:
        image = nib.load(path)
    except DAMAGE as error:
        raise _damaged(field, path, error) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is a subclass
        raise TemplateError(field, str(path), allowed, remedy)
    try:
        affine, shape = np.array(image.affine, float), tuple(int(n) for n in image.shape)
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        dtype, claimed = image.get_data_dtype(), _claimed_bytes(image)
    except DAMAGE as error:
        raise _damaged(field, path, error) from error
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        remedy = f"Its shape is {shape}: choose or make one volume."
        raise TemplateError(field, str(path), "a three-dimensional image", remedy)
    if dtype.kind not in "biuf":
        raise TemplateError(field, str(path), "an image of real numbers", f"It holds {dtype}.")
    _check_size(field, path, claimed, shape)
    _check_orientation(field, path, affine, codes)
    return image


def _check_present(field: str, path: Path) -> None:
    """Raise if a file is missing, was not fetched, or is compressed and does not say so."""
    if not path.is_file():
        remedy = "Check the path."
        if path.is_symlink():
            target = str(path.readlink())
            remedy = f"It is a link to {target}, where nothing is."
            if "annex" in target:
                remedy = f"Get it first: git annex get '{path.name}' (or datalad get)."
        raise TemplateError(field, str(path), "an existing NIfTI file", remedy)
    try:
        with path.open("rb") as handle:
            start = handle.read(64)
    except OSError as error:
        raise _damaged(field, path, error) from error
    if start.startswith((b"/annex/objects/", b"version https://git-lfs")):
        tool = "annex get" if start.startswith(b"/annex") else "lfs pull"
        remedy = f"It only points to its content. Get it first: git {tool}."
        raise TemplateError(field, str(path), "an existing NIfTI file", remedy)
    zipped = start.startswith(b"\x1f\x8b")
    if start and zipped != _zipped(path):
        says = "is compressed: call it .nii.gz" if zipped else "is not compressed: call it .nii"
        remedy = f"It {says}."
        if not zipped and path.stat().st_size < 348:
            remedy = "It is truncated or corrupt; fetch it again."
        raise TemplateError(field, str(path), "a NIfTI file that is what its name says", remedy)


def _check_size(field: str, path: Path, claimed: int, shape: tuple[int, ...]) -> None:
    on_disk = path.stat().st_size
    if claimed > (on_disk * GZIP_RATIO if _zipped(path) else on_disk):
        remedy = (
            f"It is truncated or corrupt: {on_disk:,} bytes cannot hold the {claimed:,} that it "
            "claims. Fetch it again."
        )
        allowed = "a NIfTI file that holds what its header claims"
        raise TemplateError(field, str(path), allowed, remedy)
    if np.prod(shape, dtype=object) > MOST_VOXELS:
        allowed = f"an image of at most {MOST_VOXELS:,} voxels"
        raise TemplateError(field, str(path), allowed, f"Its shape is {shape}.")


def _check_orientation(field: str, path: Path, affine: np.ndarray, codes: tuple[int, int]) -> None:
    if any(code > 0 for code in codes) and _usable(affine):
        return
    low, high = VOXEL_RANGE_MM
    rows = np.array2string(affine[:3], precision=3, separator=", ").replace("\n", "")
    remedy = (
        f"Voxels must be {low:g} to {high:g} mm large, their axes independent, but the affine is "
        f"{rows} with the codes {codes}. Repair the header first."
    )
    allowed = "an image with an orientation (sform or qform)"
    raise TemplateError(field, str(path), allowed, remedy)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def read_nifti(path: str | Path, field: str = "image") -> nib.Nifti1Image:
    """Read an image as float32, its axes ordered and directed as near to RAS+ as possible.

    Parameters
    ----------
    path : path
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.
    field : str
        Name of the image in errors.

    Returns
    -------
    nibabel.Nifti1Image
        Three-dimensional, finite, in memory.

    Raises
    ------
    TemplateError
        As `open_nifti`, and if the data are truncated, corrupt, NaN or infinite.
    """
    path, image = Path(path), open_nifti(path, field)
    try:
        readable = _unzipped(path, image) if _zipped(path) else image
        data = np.asarray(readable.dataobj, dtype=np.float32)
        data = data.reshape(data.shape[:3])
    except DAMAGE as error:
        raise _damaged(field, path, error) from error
    if not np.isfinite(data).all():
        allowed = "an image without NaN or infinity"
        raise TemplateError(field, str(path), allowed, "Repair the image first.")
    return nib.as_closest_canonical(nib.Nifti1Image(data, image.affine))


def _zipped(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _claimed_bytes(image: nib.Nifti1Image) -> int:
    """Return the size that a file has by its header."""
    assert isinstance(image.dataobj, ArrayProxy)  # its voxels are still in the file
    voxels = int(np.prod(image.shape, dtype=object))
    return int(image.dataobj.offset) + image.get_data_dtype().itemsize * voxels


def _unzipped(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the image with its bytes in memory; unlike nibabel, compare its checksum."""
    claimed = _claimed_bytes(image)
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


def _damaged(field: str, path: Path, error: BaseException) -> TemplateError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    remedy = f"It is truncated or corrupt ({reason}); fetch it again."
    return TemplateError(field, str(path), "a readable NIfTI file", remedy)
