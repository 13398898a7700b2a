"""Velocity fields in files: those of registration programs, and models made from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.ndimage import map_coordinates
from tqdm.auto import tqdm

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import new_file, read_json, write_json
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.nifti import DAMAGE, MOST_VOXELS
from simba_lab.synthesis.anatomy.template import Template

# Signs that turn the x, y and z of a vector to the right, to the front and up.
CONVENTIONS = {"ras": (1, 1, 1), "lps": (-1, -1, 1)}
# A field that holds less of the brain than this is in another space.
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
    nodes = (
        lattice.points_mm() - np.reshape(template.lattice.origin_mm, (3, 1, 1, 1))
    ) / template.lattice.spacing_mm
    brain = (
        map_coordinates(template.brain.astype(np.float32), nodes, order=1, mode="constant") > 0.5
    )
    out = np.empty((len(sources), 3 * brain.size), np.float32)
    for number, source in enumerate(tqdm(sources, disable=not progress, unit="field")):
        out[number] = read_velocity(source, lattice, brain, convention, f"fields[{number}]").ravel()
    return out


def read_velocity(
    source: str | Path | nib.Nifti1Image,
    lattice: Lattice,
    brain: np.ndarray,
    convention: str,
    field_name: str,
) -> np.ndarray:
    """Read a velocity field and bring it to a lattice of template millimetres, by linear interpolation.

    Positions go through the affine, whatever its orientation. The vectors are millimetres along the
    axes of the world, not of the voxel grid: nothing has to be rotated, but two signs differ
    between NIfTI (RAS) and ITK (LPS).

    Parameters
    ----------
    source : path or nibabel image
        NIfTI of shape (X, Y, Z, 3) or, as ITK writes it, (X, Y, Z, 1, 3).
    lattice : Lattice
        Where the field is wanted; it is zero where `source` has no voxels.
    brain : ndarray of bool, on `lattice`
        Where `source` should have voxels.
    convention : {"ras", "lps"}
        Directions of the vectors' components.
    field_name : str
        What errors call the field.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z, 3), on `lattice`

    Raises
    ------
    SimbaError
        If the file is missing or damaged, has other dimensions, holds NaN, has no orientation, or
        misses the brain.
    """
    if convention not in CONVENTIONS:
        raise UnknownNameError.among("convention", convention, CONVENTIONS)
    given = isinstance(source, nib.Nifti1Image)
    image, value = (source, "an image") if given else (_opened(source, field_name), str(source))
    shape = (
        image.shape[:3] + image.shape[4:]
        if image.ndim == 5 and image.shape[3] == 1
        else image.shape
    )
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
        raise SimbaError(
            field_name,
            image.shape,
            "of shape (X, Y, Z, 3) or (X, Y, Z, 1, 3)",
            "Vectors come last.",
        )
    if np.prod(shape, dtype=object) > 3 * MOST_VOXELS or image.get_data_dtype().kind not in "iuf":
        raise SimbaError(
            field_name,
            f"{shape} {image.get_data_dtype()}",
            f"of at most {MOST_VOXELS:,} real vectors",
        )
    affine = np.asarray(image.affine, float)
    coded = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    if not coded or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise SimbaError(
            field_name,
            value,
            "an image with an orientation (sform or qform)",
            "Repair the header first.",
        )
    try:
        vectors = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except DAMAGE as error:
        raise SimbaError(
            field_name, value, "a readable NIfTI file", f"It is truncated or corrupt ({error})."
        ) from error
    if not np.isfinite(vectors).all():
        raise SimbaError(
            field_name, value, "without NaN and infinity", "Set what is outside the head to zero."
        )
    voxels = nib.affines.apply_affine(
        np.linalg.inv(affine), np.moveaxis(lattice.points_mm(), 0, -1)
    )
    # Rounded, for lattices that share their outermost points would otherwise miss them by a
    # rounding error.
    voxels = np.moveaxis(np.round(voxels, 6), -1, 0)
    inside = ((voxels >= 0) & (voxels <= np.reshape(shape[:3], (3, 1, 1, 1)) - 1)).all(axis=0)
    cover = inside[brain].mean()
    if cover < LEAST_COVER:
        raise SimbaError(
            field_name,
            value,
            "a field in the space of the template",
            f"It holds {cover:.0%} of the template's brain. Register to the template first, and check the affine.",
        )
    signs = CONVENTIONS[convention]
    parts = [
        signs[d] * map_coordinates(vectors[..., d], voxels, order=1, mode="constant")
        for d in range(3)
    ]
    return np.stack(parts, axis=-1, dtype=np.float32)


def _opened(path: str | Path, field_name: str) -> nib.Nifti1Image:
    allowed = "an existing NIfTI file (.nii or .nii.gz)"
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise SimbaError(
            field_name, path if isinstance(path, str | Path) else type(path).__name__, allowed
        )
    try:
        image = nib.load(path)
    except DAMAGE as error:
        raise SimbaError(
            field_name, str(path), allowed, f"It is truncated or corrupt ({error})."
        ) from error
    if not isinstance(image, nib.Nifti1Image):
        raise SimbaError(field_name, str(path), allowed, "Convert the field first.")
    return image


def write_model(stem: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Write ``<stem>.safetensors`` and ``<stem>.json``; each appears complete or not at all, the header last."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    tensors, text = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".json"))
    with new_file(tensors) as part:
        save_file(arrays, part)
    write_json(text, header)


def read_model(stem: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_model` wrote: arrays and header. Raises `SimbaError` unless the header is of format `kind`."""
    tensors, text = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".json"))
    for path in (tensors, text):
        if not path.is_file():
            raise SimbaError(
                "file",
                str(path),
                "an existing file",
                "A model is a pair of .safetensors and .json files.",
            )
    try:
        header = read_json(text, "file")
        known = isinstance(header, dict) and header.get("format") == kind
        arrays = load_file(tensors) if known else {}
    except Exception as error:  # safetensors and json raise types of their own for a damaged file
        raise SimbaError(
            "file", str(stem), "a complete model", f"It is truncated or corrupt ({error})."
        ) from error
    if not known:
        raise SimbaError("file", str(text), f"of the format {kind!r}")
    return arrays, header


def stem_of(path: str | Path) -> Path:
    """Return a model's path without the ending of either of its files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
