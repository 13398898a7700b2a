"""Lattice: where the points of a volume or of a field are, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from simba_lab.core.border import checks_arguments

FWHM_PER_SIGMA = 2.354820045


@checks_arguments
@dataclass(frozen=True)
class Lattice:
    """An axis-aligned lattice of points in template millimetres.

    Parameters
    ----------
    shape : tuple of int
        Points along x, y and z.
    spacing_mm : float
        Distance between neighbours, the same on each axis.
    origin_mm : tuple of float
        Position of point (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing_mm: float
    origin_mm: tuple[float, float, float]

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to template millimetres, shape (4, 4)."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def axis_mm(self, axis: int) -> np.ndarray:
        """Positions along one axis in mm."""
        return self.origin_mm[axis] + self.spacing_mm * np.arange(self.shape[axis])

    def points_mm(self) -> np.ndarray:
        """Positions of all points in mm, shape (3, X, Y, Z)."""
        return np.stack(np.meshgrid(*(self.axis_mm(axis) for axis in range(3)), indexing="ij"))

    @classmethod
    def spanning(
        cls, low_mm: ArrayLike, high_mm: ArrayLike, spacing_mm: float, *, centred: bool
    ) -> Lattice:
        """Cover a box with voxel centres inside it (`centred`), or points from face to face."""
        low, extent = np.asarray(low_mm, float), np.subtract(high_mm, low_mm).astype(float)
        cells = np.maximum(1, np.ceil(np.round(extent / spacing_mm, 6))).astype(int)
        # Where the spacing does not divide the box, the surplus is shared between both ends.
        start = low - (cells * spacing_mm - extent) / 2 + (spacing_mm / 2 if centred else 0.0)
        shape = cells if centred else cells + 1
        nx, ny, nz = (int(count) for count in shape)
        x, y, z = (float(position) for position in start)
        return cls((nx, ny, nz), float(spacing_mm), (x, y, z))
