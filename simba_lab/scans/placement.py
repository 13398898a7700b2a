"""Where the voxels of a scan lie in the template: through its header, an affine, or a displacement field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy.ndimage import map_coordinates

from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.scans.scan_files import Scan
from simba_lab.synthesis.anatomy.nifti import DAMAGE, MOST_VOXELS
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.rendering.deformation import least_jacobian

# The inverse of a field is iterated to this distance; 1 mm voxels that are 0.01 mm off differ by
# far less than noise.
TOLERANCE_MM = 1e-3
ITERATIONS = 100
# Distance of the voxels that are looked at to find brain and regions in a scan, in mm.
SURVEY_MM = 4.0
# Correlation of scan and template over the brain. Measured: 0.45 to 0.86 where anatomy fits, below
# 0.2 where a scan is off by 20 mm, or by 30 degrees, or upside down, or front to back.
LEAST_LIKENESS = 0.2
FIELD = "a displacement field in mm of shape (X, Y, Z, 3) or (X, Y, Z, 1, 3)"


def moved_by(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply an affine (4, 4) to points (3, N)."""
    return matrix[:3, :3] @ points + matrix[:3, 3:]


@dataclass(frozen=True, eq=False)
class Placement:
    """The map T from the voxels of a scan to template millimetres.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxels of the scan to its world millimetres.
    linear : ndarray, shape (4, 4)
        World to template millimetres; for a field, the affine that is nearest to it.
    displacement : ndarray of float32, shape (3, A, B, C), optional
        In mm: the point x of the scan lies at x + u(x) in the template.
    lattice : ndarray, shape (4, 4), optional
        Voxels of the field to world millimetres of the scan.
    """

    affine: np.ndarray
    linear: np.ndarray
    displacement: np.ndarray | None = None
    lattice: np.ndarray | None = None

    @cached_property
    def _to_field(self) -> np.ndarray:
        return np.linalg.inv(self.lattice) @ self.affine

    def there(self, index: np.ndarray) -> np.ndarray:
        """Return the positions in template mm of positions in voxels, both (3, N); a field goes on beyond its border."""
        if self.displacement is None:
            return moved_by(self.linear @ self.affine, index)
        at = moved_by(self._to_field, index)
        return moved_by(self.affine, index) + [
            map_coordinates(u, at, order=1, mode="nearest") for u in self.displacement
        ]

    def back(self, points_mm: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Return the positions in voxels of positions in template mm, (3, N): NaN where the inverse is not found.

        For a field by the fixed-point iteration of Chen et al. (2008, Medical Physics 35(1), eq. 4)
        from `start`, in voxels. What is missing is taken through the inverse of the nearest affine,
        so that a rotation or scaling in the field does not slow it down.
        """
        inverse = np.linalg.inv(self.linear @ self.affine)
        if self.displacement is None:
            return moved_by(inverse, points_mm)
        found = start.astype(float)
        open_ones = np.arange(found.shape[1])
        for _ in range(ITERATIONS):
            missing = points_mm[:, open_ones] - self.there(found[:, open_ones])
            apart = np.linalg.norm(missing, axis=0) > TOLERANCE_MM
            open_ones, missing = open_ones[apart], missing[:, apart]
            if not open_ones.size:
                break
            found[:, open_ones] += inverse[:3, :3] @ missing
        found[:, open_ones] = np.nan
        return found

    def covers(self, index: np.ndarray) -> np.ndarray:
        """Tell for positions in voxels, (3, N), whether the field is given there, to half a voxel of it."""
        if self.displacement is None:
            return np.ones(index.shape[1], bool)
        at = moved_by(self._to_field, index)
        return ((at > -0.51) & (at < np.reshape(self.displacement.shape[1:], (3, 1)) - 0.49)).all(
            axis=0
        )

    def check(self, index: np.ndarray) -> None:
        """Raise unless the map is one to one around positions in voxels, (3, N), all of them inside the field."""
        if self.displacement is None or not index.size:
            return
        if np.isfinite(index).all():
            at = moved_by(self._to_field, index)
            low = np.maximum(np.floor(at.min(axis=1)).astype(int) - 1, 0)
            high = np.maximum(np.ceil(at.max(axis=1)).astype(int) + 2, 0)
            part = self.displacement[
                (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
            ]
            # The determinant is the same in voxels of the field, where the lattice is even.
            voxels = np.tensordot(np.linalg.inv(self.lattice[:3, :3]), part, axes=1)
            least = least_jacobian(voxels, Lattice(part.shape[1:], 1.0, (0.0, 0.0, 0.0)))
            if least > 0:
                return
        raise SimbaError(
            "to_template",
            "a field that folds",
            "invertible around the effects",
            "Register more smoothly.",
        )


def placement(affine: np.ndarray, to_template: object, vectors: str) -> Placement:
    """Return where a scan lies, given its affine and what the user says about the way to the template (see `inject`)."""
    if vectors not in ("RAS", "LPS"):
        raise SimbaError("vectors", vectors, "'RAS' or 'LPS'")
    if to_template is None:
        return Placement(affine, np.eye(4))
    if isinstance(to_template, str | Path | nib.spatialimages.SpatialImage):
        return _from_field(affine, to_template, vectors)
    try:
        matrix = np.asarray(to_template, dtype=float)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4):
        raise SimbaError(
            "to_template", np.shape(matrix), f"None, an affine of shape (4, 4), or {FIELD}"
        )
    if (
        not np.isfinite(matrix).all()
        or not np.allclose(matrix[3], [0, 0, 0, 1])
        or not np.linalg.det(matrix) > 1e-3
    ):
        raise SimbaError(
            "to_template",
            matrix.tolist(),
            "an affine that can be inverted, without a mirror, with the last row 0 0 0 1",
            "It takes millimetres of the scan to millimetres of the template, both RAS+.",
        )
    return Placement(affine, matrix)


def _from_field(affine: np.ndarray, source: object, vectors: str) -> Placement:
    name = source if isinstance(source, str | Path) else type(source).__name__
    try:
        image = nib.load(source) if isinstance(source, str | Path) else source
        shape = tuple(image.shape)
        right = shape[3:] in ((3,), (1, 3)) and min(shape[:3]) >= 2
        sound = (
            right and image.affine is not None and np.prod(shape, dtype=object) <= 3 * MOST_VOXELS
        )
        lattice = np.array(image.affine, float)
        field = np.asarray(image.dataobj, dtype=np.float32) if sound else np.zeros(0, np.float32)
    except DAMAGE as error:
        raise SimbaError(
            "to_template", str(name), f"{FIELD} that can be read", f"({error})"
        ) from error
    if not right:
        raise SimbaError("to_template", shape, f"{FIELD}, with at least 2 points along each axis")
    if (
        not sound
        or not np.isfinite(lattice).all()
        or abs(np.linalg.det(lattice)) < 1e-6
        or not np.isfinite(field).all()
    ):
        raise SimbaError(
            "to_template",
            str(name),
            f"{FIELD} with an affine, of sane size, without NaN or infinity",
        )
    field = np.moveaxis(field.reshape(*shape[:3], 3), -1, 0)
    if vectors == "LPS":
        field = field * np.reshape(np.float32([-1, -1, 1]), (3, 1, 1, 1))
    # The nearest affine, from a sample: least squares of x + u(x) on x.
    index = np.stack(
        np.meshgrid(
            *(np.unique(np.linspace(0, n - 1, 12).astype(int)) for n in shape[:3]), indexing="ij"
        )
    )
    index = index.reshape(3, -1)
    points = moved_by(lattice, index)
    given = np.vstack([points, np.ones(points.shape[1])])
    linear = np.eye(4)
    linear[:3] = np.linalg.lstsq(given.T, (points + field[(slice(None), *index)]).T, rcond=None)[
        0
    ].T
    if not np.linalg.det(linear) > 1e-3:
        raise SimbaError(
            "to_template",
            str(name),
            "a field that can be inverted",
            "On the whole, it mirrors or flattens.",
        )
    return Placement(affine, linear, np.ascontiguousarray(field), lattice)


@dataclass(frozen=True, eq=False)
class Survey:
    """Some voxels of a scan, evenly spread: indices and positions in template mm, both (3, N), and the strides."""

    index: np.ndarray
    points_mm: np.ndarray
    strides: np.ndarray

    def within(self, box: Lattice) -> np.ndarray:
        """Tell which of them are in a box."""
        low = np.reshape(box.origin_mm, (3, 1))
        high = low + box.spacing_mm * (np.reshape(box.shape, (3, 1)) - 1)
        return ((self.points_mm > low) & (self.points_mm < high)).all(axis=0)


def survey(patient: Scan, place: Placement) -> Survey:
    """Look at every few millimetres of a scan."""
    strides = np.maximum(1, (SURVEY_MM / voxel_sizes(place.affine)).astype(int))
    axes = [
        np.arange(0, n, stride) for n, stride in zip(patient.stored.shape, strides, strict=True)
    ]
    index = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    return Survey(index, place.there(index), strides)


def tissue(patient: Scan, seen: Survey, atlas: Template) -> tuple[float, float]:
    """Return the level of white matter, and the mean of the brain relative to it; check that there is a brain."""
    at = (seen.points_mm - np.reshape(atlas.lattice.origin_mm, (3, 1))) / atlas.lattice.spacing_mm
    expected = map_coordinates(atlas.t1, at, order=0, mode="constant")
    brain = expected > 0
    found = patient.stored[tuple(seen.index[:, brain])].astype(np.float64)
    remedy = "Register the scan to the template and give the transform as to_template."
    if len(found) < 3:
        raise SimbaError(
            "scan",
            "a field of view beside the brain",
            "an image that overlaps the template's brain",
            remedy,
        )
    found = found * patient.slope + patient.inter
    white = float(np.percentile(found, 99))
    if white <= 0 or found.min() == found.max():
        raise SimbaError("scan", white, "an image with signal in the template's brain", remedy)
    likeness = float(np.corrcoef(found / white, expected[brain])[0, 1])
    if abs(likeness) < LEAST_LIKENESS:
        raise SimbaError(
            "scan",
            f"an image with a correlation of {likeness:.2f}",
            f"like the template where its brain is (a correlation of at least {LEAST_LIKENESS})",
            f"Its orientation or position is wrong. {remedy}",
        )
    return white, float(np.mean(found / white))
