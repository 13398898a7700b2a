"""Placement: where voxels of a scan lie in the template, by an affine or a displacement field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import map_coordinates

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.nifti import DAMAGE, MOST_VOXELS
from simba_lab.synthesis.rendering.deformation import least_jacobian

# The inverse of a field is iterated to this distance; 1 mm voxels that are 0.01 mm off differ by
# far less than noise.
TOLERANCE_MM = 1e-3
ITERATIONS = 100
FIELD = "a displacement field in mm of shape (X, Y, Z, 3) or (X, Y, Z, 1, 3)"


@checks_arguments
@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A registration as a file: the point x of the scan lies at x + u(x) in the template.

    Parameters
    ----------
    image : path or nibabel image
        The displacements u in mm, shape (X, Y, Z, 3) or (X, Y, Z, 1, 3), given over the scan.
    vectors : {"RAS", "LPS"}
        The axes of the vectors; fields of ITK and ANTs have LPS.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.scans.DisplacementField("scan_to_template.nii.gz", vectors="LPS").vectors
    'LPS'
    """

    image: str | Path | nib.spatialimages.SpatialImage
    vectors: str = "RAS"

    def __post_init__(self) -> None:
        choice("vectors", self.vectors, ("RAS", "LPS"))


Registration = str | Path | nib.spatialimages.SpatialImage | np.ndarray | DisplacementField | None


@dataclass(frozen=True, eq=False)
class Placement:
    """The map from the voxels of a scan to template millimetres: an affine.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxels of the scan to its world millimetres.
    linear : ndarray, shape (4, 4)
        World to template millimetres.
    """

    affine: np.ndarray
    linear: np.ndarray

    def template_mm(self, voxels: np.ndarray) -> np.ndarray:
        """Return where voxels lie in the template, both (3, N)."""
        return transformed(self.linear @ self.affine, voxels)

    def voxels(self, points_mm: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the voxels of positions in template mm, (3, N); `start` is near them."""
        return transformed(np.linalg.inv(self.linear @ self.affine), points_mm)

    def covers(self, voxels: np.ndarray) -> np.ndarray:
        """Tell for voxels, (3, N), whether the map is known there."""
        return np.ones(voxels.shape[1], bool)

    def check_invertible(self, voxels: np.ndarray) -> None:
        """Raise unless the map is one to one around these voxels, (3, N), which it covers."""


@dataclass(frozen=True, eq=False)
class FieldPlacement(Placement):
    """The map from the voxels of a scan to template millimetres: a displacement field.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxels of the scan to its world millimetres.
    linear : ndarray, shape (4, 4)
        World to template millimetres: the affine that is nearest to the field.
    displacement : ndarray of float32, shape (3, A, B, C)
        In mm: the point x of the scan lies at x + u(x) in the template.
    field_affine : ndarray, shape (4, 4)
        Voxels of the field to world millimetres of the scan.
    """

    displacement: np.ndarray
    field_affine: np.ndarray

    @cached_property
    def _scan_to_field(self) -> np.ndarray:
        return np.linalg.inv(self.field_affine) @ self.affine

    def template_mm(self, voxels: np.ndarray) -> np.ndarray:
        """Return where voxels lie in the template, both (3, N); the field goes on at its border."""
        field_voxels = transformed(self._scan_to_field, voxels)
        return transformed(self.affine, voxels) + [
            map_coordinates(component, field_voxels, order=1, mode="nearest")
            for component in self.displacement
        ]

    def voxels(self, points_mm: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the voxels of positions in template mm, (3, N): NaN where none is found.

        By the fixed-point iteration of Chen et al. (2008, Medical Physics 35(1), eq. 4) from
        `start`, in voxels. The residual is taken through the inverse of the nearest affine, so that
        a rotation or scaling in the field does not slow it down.
        """
        inverse = np.linalg.inv(self.linear @ self.affine)
        voxels = start.astype(float)
        pending = np.arange(voxels.shape[1])
        for _ in range(ITERATIONS):
            residual = points_mm[:, pending] - self.template_mm(voxels[:, pending])
            far = np.linalg.norm(residual, axis=0) > TOLERANCE_MM
            pending, residual = pending[far], residual[:, far]
            if not pending.size:
                break
            voxels[:, pending] += inverse[:3, :3] @ residual
        voxels[:, pending] = np.nan
        return voxels

    def covers(self, voxels: np.ndarray) -> np.ndarray:
        """Tell for voxels, (3, N), whether the field is given there, to half a voxel of it."""
        field_voxels = transformed(self._scan_to_field, voxels)
        shape = np.reshape(self.displacement.shape[1:], (3, 1))
        return np.all((field_voxels > -0.51) & (field_voxels < shape - 0.49), axis=0)

    def check_invertible(self, voxels: np.ndarray) -> None:
        """Raise unless the map is one to one around these voxels, (3, N), which it covers."""
        if not voxels.size or (np.isfinite(voxels).all() and self._least_jacobian(voxels) > 0):
            return
        problem = "to_template cannot be inverted around the effects: it folds there."
        raise SimbaError.problem(problem, "Register more smoothly.")

    def _least_jacobian(self, voxels: np.ndarray) -> float:
        field_voxels = transformed(self._scan_to_field, voxels)
        low = np.maximum(np.floor(field_voxels.min(axis=1)).astype(int) - 1, 0)
        high = np.maximum(np.ceil(field_voxels.max(axis=1)).astype(int) + 2, 0)
        box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        crop = self.displacement[(slice(None), *box)]
        # The determinant is the same in voxels of the field, where the lattice is even.
        in_voxels = np.tensordot(np.linalg.inv(self.field_affine[:3, :3]), crop, axes=1)
        return least_jacobian(in_voxels, Lattice(crop.shape[1:], 1.0, (0.0, 0.0, 0.0)))


def transformed(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine (4, 4) to points (3, N)."""
    return matrix[:3, :3] @ points + matrix[:3, 3:]


def placement_of(affine: np.ndarray, to_template: Registration) -> Placement:
    """Return the placement of a scan from its affine and its registration (see `inject`)."""
    if to_template is None:
        return Placement(affine, np.eye(4))
    if isinstance(to_template, str | Path | nib.spatialimages.SpatialImage):
        to_template = DisplacementField(to_template)
    if isinstance(to_template, DisplacementField):
        return _by_field(affine, to_template)
    try:
        matrix = np.asarray(to_template, dtype=float)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4):
        allowed = f"None, an affine of shape (4, 4), or {FIELD}"
        raise SimbaError("to_template", np.shape(matrix), allowed)
    last_row = np.allclose(matrix[3], [0, 0, 0, 1])
    if not np.isfinite(matrix).all() or not last_row or not np.linalg.det(matrix) > 1e-3:
        allowed = "an affine that can be inverted, without a mirror, with the last row 0 0 0 1"
        remedy = "It takes millimetres of the scan to millimetres of the template, both RAS+."
        raise SimbaError("to_template", matrix.tolist(), allowed, remedy)
    return Placement(affine, matrix)


def _by_field(affine: np.ndarray, registration: DisplacementField) -> Placement:
    source = registration.image
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    displacement, field_affine = _read_field(source, name)
    if registration.vectors == "LPS":
        displacement = displacement * np.array([-1, -1, 1], np.float32).reshape(3, 1, 1, 1)
    linear = _nearest_affine(displacement, field_affine)
    if not np.linalg.det(linear) > 1e-3:
        remedy = "On the whole, it mirrors or flattens."
        raise SimbaError("to_template", name, "a field that can be inverted", remedy)
    return FieldPlacement(affine, linear, np.ascontiguousarray(displacement), field_affine)


def _read_field(
    source: str | Path | nib.spatialimages.SpatialImage, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the displacements, (3, A, B, C), and the affine of a field."""
    try:
        image: Any = nib.load(source) if isinstance(source, str | Path) else source
        shape = tuple(image.shape)
        shaped = shape[3:] in ((3,), (1, 3)) and min(shape[:3]) >= 2
        sound = shaped and image.affine is not None
        sound = sound and np.prod(shape, dtype=object) <= 3 * MOST_VOXELS
        affine = np.array(image.affine, float)
        content = image.dataobj if sound else []
        values = np.asarray(content, dtype=np.float32)
    except DAMAGE as error:
        allowed = f"{FIELD} that can be read"
        raise SimbaError("to_template", name, allowed, f"{error}.") from error
    if not shaped:
        allowed = f"{FIELD}, with at least 2 points along each axis"
        raise SimbaError("to_template", shape, allowed)
    sound = sound and np.isfinite(affine).all() and abs(np.linalg.det(affine)) >= 1e-6
    if not sound or not np.isfinite(values).all():
        allowed = f"{FIELD} with an affine, of sane size, without NaN or infinity"
        raise SimbaError("to_template", name, allowed)
    return np.moveaxis(values.reshape(*shape[:3], 3), -1, 0), affine


def _nearest_affine(displacement: np.ndarray, field_affine: np.ndarray) -> np.ndarray:
    """Return the affine nearest to a field, from a sample: least squares of x + u(x) on x."""
    axes = [np.unique(np.linspace(0, n - 1, 12).astype(int)) for n in displacement.shape[1:]]
    index = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    points = transformed(field_affine, index)
    targets = points + displacement[(slice(None), *index)]
    homogeneous = np.vstack([points, np.ones(points.shape[1])])
    linear = np.eye(4)
    linear[:3] = np.linalg.lstsq(homogeneous.T, targets.T, rcond=None)[0].T
    return linear
