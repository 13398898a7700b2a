"""Models of healthy anatomical variability: one smooth velocity field per subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simba_lab.errors import SimbaError
from simba_lab.synthesis import _kernels
from simba_lab.synthesis.anatomy import Lattice, Template

# Subject fields are smooth (length scales of at least 10 mm): this lattice holds them whatever the output spacing.
SUBJECT_SPACING_MM = 4.0
# Share of the variance of each axis that the kept modes carry.
VARIANCE_KEPT = 0.995


@dataclass(frozen=True)
class GaussianProcessSubjects:
    """Velocity fields drawn from a Gaussian process with a mixture of squared-exponential covariances.

    Each component of the field is an independent zero-mean process whose covariance is the sum over scales of
    ``deviation^2 exp(-|x - y|^2 / (2 length_scale^2))``. The covariance is separable, so its Karhunen-Loeve modes are
    products of one-dimensional modes and no dense covariance matrix is ever formed. Every coefficient is independent:
    subjects fill the space of modes instead of lying on one line through it.

    Parameters
    ----------
    length_scales_mm : tuple of float
        How far neighbouring tissue moves together, one per scale.
    deviations_mm : tuple of float
        Standard deviation of each velocity component in mm, one per scale.

    References
    ----------
    Williams and Rasmussen (2006), "Gaussian processes for machine learning", eq. 4.9 (covariance); Ghanem and Spanos
    (1991), "Stochastic finite elements", sec. 2.3 (Karhunen-Loeve expansion).
    """

    length_scales_mm: tuple[float, ...] = (60.0, 20.0)
    deviations_mm: tuple[float, ...] = (2.5, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length_scales_mm", tuple(float(v) for v in self.length_scales_mm))
        object.__setattr__(self, "deviations_mm", tuple(float(v) for v in self.deviations_mm))
        if len(self.length_scales_mm) != len(self.deviations_mm) or not self.length_scales_mm:
            raise SimbaError(
                "variability.deviations_mm", self.deviations_mm, f"{len(self.length_scales_mm)} numbers (one a scale)"
            )
        if min(self.length_scales_mm) < 10:
            raise SimbaError(
                "variability.length_scales_mm", self.length_scales_mm, "at least 10 mm each",
                "Shorter scales are not resolved by the lattice of the subject fields.",
            )  # fmt: skip
        if min(self.deviations_mm) < 0:
            raise SimbaError("variability.deviations_mm", self.deviations_mm, "at least 0")

    def coefficient_count(self, lattice: Lattice) -> int:
        """Return the number of independent coefficients of a subject on a lattice."""
        return sum(3 * scale.size for *_, scale in _modes(self, lattice))

    def leading(self, lattice: Lattice, count: int) -> np.ndarray:
        """Return the indices of the `count` coefficients that carry most variance, largest first."""
        weights = np.concatenate([np.broadcast_to(scale, (3, *scale.shape)).ravel() for *_, scale in _modes(self, lattice)])
        return np.argsort(-weights, kind="stable")[:count]

    def velocity(self, coefficients: np.ndarray, lattice: Lattice) -> np.ndarray:
        """Return the velocity field of a subject in mm, interleaved float32, shape (X, Y, Z, 3).

        Parameters
        ----------
        coefficients : ndarray, shape (coefficient_count,)
            Standard normal for a subject of the population.
        """
        expected = self.coefficient_count(lattice)
        if np.shape(coefficients) != (expected,):
            raise SimbaError("coefficients", np.shape(coefficients), f"of shape ({expected},)")
        field = np.zeros((*lattice.shape, 3), np.float32)
        start = 0
        for basis_x, basis_y, basis_z, scale in _modes(self, lattice):
            stop = start + 3 * scale.size
            block = np.float32(np.reshape(coefficients[start:stop], (3, *scale.shape)) * scale)
            _kernels.separable_sum(block, basis_x, basis_y, basis_z, field)
            start = stop
        return field


def subject_lattice(template: Template) -> Lattice:
    """Return the coarse lattice of the subject fields: it spans the template's field of view from face to face."""
    return Lattice.spanning(*template.box_mm, SUBJECT_SPACING_MM, centred=False)


@lru_cache(maxsize=8)
def _modes(subjects: GaussianProcessSubjects, lattice: Lattice) -> list[tuple[np.ndarray, ...]]:
    """Per scale: the one-dimensional modes of each axis (points x modes) and the deviation of each 3D mode."""
    scales = []
    for length, deviation in zip(subjects.length_scales_mm, subjects.deviations_mm, strict=True):
        bases, spectra = [], []
        for axis in range(3):
            x = lattice.axis_mm(axis)
            values, vectors = np.linalg.eigh(np.exp(-((x[:, None] - x) ** 2) / (2 * length**2)))
            values, vectors = values[::-1].clip(0), vectors[:, ::-1]
            kept = int(np.searchsorted(np.cumsum(values) / values.sum(), VARIANCE_KEPT)) + 1
            # The sign of an eigenvector is arbitrary: fix it, so that a seed means the same brain on every machine.
            peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
            bases.append(np.ascontiguousarray((vectors * np.sign(peak))[:, :kept], dtype=np.float32))
            spectra.append(np.sqrt(values[:kept]))
        scales.append((*bases, deviation * np.einsum("a,b,c->abc", *spectra)))
    return scales
