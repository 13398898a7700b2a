"""Healthy variability as a Gaussian process: one smooth random velocity field per subject."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.modes import Modes, modes, open_mesh
from simba_lab.synthesis.kernels import modes as _kernels


@checks_arguments
@dataclass(frozen=True)
class GaussianProcessSubjects:
    """Velocity fields drawn from a Gaussian process: broad and local smooth displacements.

    Each component of the field is an independent zero-mean process whose covariance is the sum over
    scales of ``deviation^2 exp(-|x - y|^2 / (2 length_scale^2))``. The covariance is separable, so
    its Karhunen-Loeve modes are products of one-dimensional modes and no dense covariance matrix is
    ever formed. Every coefficient is independent: subjects fill the space of modes instead of lying
    on one line through it.

    Long scales mostly move the whole head, which registration undoes in practice, so the rigid part
    of every field is taken out: with ``K`` the covariance above and ``P`` the least-squares
    projection onto translations and rotations, fields have the covariance ``(1 - P) K (1 - P)'``.
    `P` weighs the ellipsoid that fits into the lattice, which is about where the brain is.

    With the defaults the volumes of brain and deep grey nuclei vary as among healthy adults, by
    about 9 and 10 to 12 %. The ventricles vary by as little; those of people of different ages vary
    by half (`population_volumes`).

    Parameters
    ----------
    length_scales_mm : tuple of float
        Distance over which neighbouring tissue moves together, one per scale.
    deviations_mm : tuple of float
        Standard deviation of each velocity component in mm before the rigid part is taken out, one
        per scale.

    References
    ----------
    Rasmussen and Williams (2006), "Gaussian processes for machine learning", eq. 4.9 (covariance);
    Ghanem and Spanos (1991), "Stochastic finite elements", sec. 2.3 (Karhunen-Loeve expansion).

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> model = sb.synthesis.GaussianProcessSubjects((120.0, 40.0), (5.0, 1.5))
    >>> lattice = sb.core.Lattice((9, 11, 9), 20.0, (0.0, 0.0, 0.0))
    >>> model.velocity(np.zeros(model.coefficient_count(lattice)), lattice).shape
    (9, 11, 9, 3)
    """

    length_scales_mm: tuple[float, ...] = (200.0, 20.0)
    deviations_mm: tuple[float, ...] = (11.0, 1.2)

    def __post_init__(self) -> None:
        for name in ("length_scales_mm", "deviations_mm"):
            values = getattr(self, name)
            try:
                object.__setattr__(self, name, tuple(float(value) for value in values))
            except (TypeError, ValueError) as error:
                allowed = "a list of numbers, one per scale"
                raise SimbaError(f"variability.{name}", values, allowed) from error
            if not np.isfinite(getattr(self, name)).all():
                raise SimbaError(f"variability.{name}", values, "finite")
        lengths, deviations = self.length_scales_mm, self.deviations_mm
        if len(lengths) != len(deviations) or not lengths:
            allowed = f"{len(lengths)} numbers (one per scale)"
            raise SimbaError("variability.deviations_mm", deviations, allowed)
        if min(lengths) < 10:
            remedy = "The lattice of the subject fields does not resolve shorter scales."
            raise SimbaError("variability.length_scales_mm", lengths, "at least 10 mm each", remedy)
        if min(deviations) < 0:
            raise SimbaError("variability.deviations_mm", deviations, "at least 0")

    @property
    def summary(self) -> str:
        """The model in a few words, for errors and captions."""
        pairs = zip(self.deviations_mm, self.length_scales_mm, strict=True)
        return "Gaussian process of " + " and ".join(
            f"{deviation:g} mm over {length:g} mm" for deviation, length in pairs
        )

    def scaled(self, share: float) -> GaussianProcessSubjects:
        """Return the model with all deviations multiplied by a number."""
        return replace(
            self, deviations_mm=tuple(share * deviation for deviation in self.deviations_mm)
        )

    def coefficient_count(self, lattice: Lattice) -> int:
        """Return the number of independent coefficients of a subject on a lattice."""
        return self._modes(lattice).order.size

    def leading(self, lattice: Lattice, count: int) -> np.ndarray:
        """Return the indices of the `count` coefficients with most variance, largest first."""
        return self._modes(lattice).order[:count].copy()

    def _modes(self, lattice: Lattice) -> Modes:
        return modes(self.length_scales_mm, self.deviations_mm, lattice)

    def velocity(self, coefficients: np.ndarray, lattice: Lattice) -> np.ndarray:
        """Return the velocity field of a subject in mm, interleaved float32, shape (X, Y, Z, 3).

        Parameters
        ----------
        coefficients : ndarray, shape (coefficient_count,)
            Standard normal for a subject of the population.
        """
        basis = self._modes(lattice)
        coefficients = of_shape("coefficients", coefficients, basis.order.shape).astype(float)
        shift, turn = np.float32(basis.rigid @ coefficients).reshape(2, 3)
        x, y, z = open_mesh(lattice)
        velocity = np.empty((*lattice.shape, 3), np.float32)
        velocity[..., 0] = turn[2] * y - turn[1] * z - shift[0]
        velocity[..., 1] = turn[0] * z - turn[2] * x - shift[1]
        velocity[..., 2] = turn[1] * x - turn[0] * y - shift[2]
        start = 0
        for basis_x, basis_y, basis_z, scale in basis.scales:
            stop = start + 3 * scale.size
            block = np.float32(coefficients[start:stop].reshape(3, *scale.shape) * scale)
            _kernels.separable_sum(block, basis_x, basis_y, basis_z, velocity)
            start = stop
        return velocity
