"""Velocity fields in files: those of registration programs, and models made from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file, save
from scipy.ndimage import map_coordinates
from tqdm.auto import tqdm

from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.files import read_json, write_new
from simba_lab.core.lattice import Lattice
from simba_lab.core.unfinished import disk_errors
from simba_lab.synthesis.anatomy.nifti import DAMAGE, MOST_VOXELS
from simba_lab.synthesis.anatomy.template import Template

# Signs that turn the x, y and z of a vector to the right, to the front and up.
CONVENTIONS = {"ras": (1, 1, 1), "lps": (-1, -1, 1)}
# A field that covers less of the brain than this is in another space.
LEAST_COVER = 0.5


def read_velocities(
    sources: Iterable[str | Path | nib.Nifti1Image],
    template: Template,
    lattice: Lattice,
    convention: str,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Read several fields with `read_velocity`: float32, one flattened field a row."""
    if isinstance(sources, str | Path | nib.Nifti1Image) or not isinstance(sources, Iterable):
        raise SimbaError("fields", type(sources).__name__, "a list of paths or images")
    sources = list(sources)
    origin = np.reshape(template.lattice.origin_mm, (3, 1, 1, 1))
    voxels = (lattice.points_mm() - origin) / template.lattice.spacing_mm
    share = map_coordinates(template.brain.astype(np.float32), voxels, order=1, mode="constant")
    brain = share > 0.5
    fields = np.empty((len(sources), 3 * brain.size), np.float32)
    for number, source in enumerate(tqdm(sources, disable=not progress, unit="field")):
        field = f"fields[{number}]"
        fields[number] = read_velocity(source, lattice, brain, convention, field).ravel()
    return fields


def read_velocity(
    source: str | Path | nib.Nifti1Image,
    lattice: Lattice,
    brain: np.ndarray,
    convention: str,
    field: str,
) -> np.ndarray:
    """Read a velocity field and interpolate it linearly on a lattice of template millimetres.

    Positions go through the affine, whatever its orientation. The vectors are millimetres along the
    axes of the world, not of the voxel grid: nothing has to be rotated, but two signs differ
    between NIfTI (RAS) and ITK (LPS).

    Parameters
    ----------
    source : path or nibabel image
        NIfTI of shape (X, Y, Z, 3) or, as ITK writes it, (X, Y, Z, 1, 3).
    lattice : Lattice
        Points at which the field is wanted; it is zero outside the voxels of `source`.
    brain : ndarray of bool, on `lattice`
        Points that `source` should cover.
    convention : {"ras", "lps"}
        Directions of the vectors' components.
    field : str
        Name of the field in errors.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z, 3), on `lattice`

    Raises
    ------
    SimbaError
        If the file is missing or damaged, has other dimensions, holds NaN, has no orientation, or
        misses the brain.
    """
    choice("convention", convention, CONVENTIONS)
    image = source if isinstance(source, nib.Nifti1Image) else _opened(source, field)
    value = "an image" if image is source else str(source)
    affine, vectors = _vectors(image, field, value)
    points = np.moveaxis(lattice.points_mm(), 0, -1)
    # Rounded: lattices that share their outermost points would otherwise miss them by a rounding
    # error.
    voxels = np.round(nib.affines.apply_affine(np.linalg.inv(affine), points), 6)
    covered = ((voxels >= 0) & (voxels <= np.array(vectors.shape[:3]) - 1)).all(axis=-1)
    cover = covered[brain].mean()
    if cover < LEAST_COVER:
        remedy = (
            f"It holds {cover:.0%} of the template's brain. Register to the template first, and "
            "check the affine."
        )
        raise SimbaError(field, value, "a field in the space of the template", remedy)
    voxels = np.moveaxis(voxels, -1, 0)
    components = [
        sign * map_coordinates(vectors[..., axis], voxels, order=1, mode="constant")
        for axis, sign in enumerate(CONVENTIONS[convention])
    ]
    return np.stack(components, axis=-1, dtype=np.float32)


def _vectors(image: nib.Nifti1Image, field: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Return affine and vectors, (X, Y, Z, 3) float32, of an image that has been checked."""
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) == 5 and shape[3] == 1:
        shape = shape[:3] + shape[4:]
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        allowed = "of shape (X, Y, Z, 3) or (X, Y, Z, 1, 3)"
        raise SimbaError(field, image.shape, allowed, "Vectors come last.")
    if np.prod(shape, dtype=object) > 3 * MOST_VOXELS or dtype.kind not in "iuf":
        raise SimbaError(
            field, Words(f"{shape} {dtype}"), f"of at most {MOST_VOXELS:,} real vectors"
        )
    affine = np.asarray(image.affine, float)
    coded = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    if not coded or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        allowed = "an image with an orientation (sform or qform)"
        raise SimbaError(field, value, allowed, "Repair the header first.")
    try:
        vectors = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except DAMAGE as error:
        remedy = f"It is truncated or corrupt ({error})."
        raise SimbaError(field, value, "a readable NIfTI file", remedy) from error
    if not np.isfinite(vectors).all():
        remedy = "Set voxels outside the head to zero."
        raise SimbaError(field, value, "without NaN and infinity", remedy)
    return affine, vectors


def _opened(path: str | Path, field: str) -> nib.Nifti1Image:
    allowed = "an existing NIfTI file (.nii or .nii.gz)"
    if not isinstance(path, str | Path):
        raise SimbaError(field, type(path).__name__, allowed)
    if not Path(path).is_file():
        raise SimbaError(field, path, allowed)
    try:
        image = nib.load(path)
    except DAMAGE as error:
        remedy = f"It is truncated or corrupt ({error})."
        raise SimbaError(field, str(path), allowed, remedy) from error
    if not isinstance(image, nib.Nifti1Image):
        raise SimbaError(field, str(path), allowed, "Convert the field first.")
    return image


def write_model(stem: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write ``<stem>.safetensors`` and ``<stem>.json``; both complete, the header last.

    Raises
    ------
    SimbaError
        If another model is there, or if the folder cannot be written.
    """
    with disk_errors("file", stem, "choose another."):
        stem.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, bytes | str] = {
        ".safetensors": save(arrays),
        ".json": json.dumps(header, indent=1) + "\n",
    }
    for ending, part in content.items():
        write_new(stem.with_name(stem.name + ending), part)


def read_model(stem: Path, format_name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return arrays and header that `write_model` wrote; an error unless they have this format."""
    tensors, text = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".json"))
    for path in (tensors, text):
        if not path.is_file():
            remedy = "A model is a pair of .safetensors and .json files."
            raise SimbaError("file", str(path), "an existing file", remedy)
    try:
        header = read_json(text, "file")
        matching = isinstance(header, dict) and header.get("format") == format_name
        arrays = load_file(tensors) if matching else {}
    except Exception as error:  # safetensors and json raise types of their own for a damaged file
        remedy = f"It is truncated or corrupt ({error})."
        raise SimbaError("file", str(stem), "a complete model", remedy) from error
    if not matching:
        raise SimbaError("file", str(text), f"of the format {format_name!r}")
    return arrays, header


def stem_of(path: str | Path) -> Path:
    """Return a model's path without the ending of either of its files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
