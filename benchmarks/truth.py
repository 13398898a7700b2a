"""What the lab approximates, without approximations: velocities by definition, fine flows.

Float64, cubic splines on lattices far below the length scales, classical Runge-Kutta. Slow, and
sharing nothing with the lab's kernels; the strength of an effect is calibrated anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import brentq

from simba_lab import Cohort, Morphology
from simba_lab.core import Lattice
from simba_lab.synthesis import Template
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.rendering.flows import local_velocity

# Half of the step at which cubic splines of a field with a length scale of 10 mm (the least
# allowed) err by a micrometre.
FINE_SPACING_MM = 2.0
# Steps of the Runge-Kutta rule for the unit of time; twice as many change no position by a
# micrometre.
STEPS = 24


@dataclass(frozen=True, eq=False)
class Field:
    """A smooth vector field between the points of a lattice, by cubic splines.

    Parameters
    ----------
    values : ndarray of float64, shape (3, X, Y, Z)
        In mm on `lattice`.
    low_mm, high_mm : ndarray, shape (3,), optional
        Outside this box the field keeps the value of the box's nearest point; without a box, it is
        zero off its lattice.
    """

    values: np.ndarray
    lattice: Lattice
    low_mm: np.ndarray | None = None
    high_mm: np.ndarray | None = None

    @cached_property
    def _splines(self) -> list[np.ndarray]:
        return [
            spline_filter(component.astype(np.float64), order=3, mode="mirror")
            for component in self.values
        ]

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """Return the field at points in mm, both of shape (3, n)."""
        if self.low_mm is not None:
            points_mm = np.clip(points_mm, self.low_mm[:, None], self.high_mm[:, None])
        voxels = (points_mm - np.reshape(self.lattice.origin_mm, (3, 1))) / self.lattice.spacing_mm
        mask = ((voxels >= 0) & (voxels <= np.reshape(self.lattice.shape, (3, 1)) - 1)).all(axis=0)
        out = np.zeros(points_mm.shape)
        for component, spline in enumerate(self._splines):
            out[component, mask] = map_coordinates(
                spline, voxels[:, mask], order=3, mode="mirror", prefilter=False
            )
        return out


def flowed(field: Field, points_mm: np.ndarray, time: float, *, steps: int = STEPS) -> np.ndarray:
    """Return where the flow of a stationary field carries points (3, n): Runge-Kutta steps."""
    positions, step = np.array(points_mm, np.float64), time / steps
    for _ in range(steps):
        first = field(positions)
        second = field(positions + step / 2 * first)
        third = field(positions + step / 2 * second)
        positions = positions + step / 6 * (
            first + 2 * (second + third) + field(positions + step * third)
        )
    return positions


def subject_velocity(cohort: Cohort, index: int, onto: Lattice) -> np.ndarray:
    """Return the velocity of a subject's anatomy on any lattice in mm, float64, (3, X, Y, Z).

    The model gives it on the coarse lattice; quintic splines fill the space between. With a length
    scale of 20 mm, five points, they are within 0.2 um of the Gaussian process itself (its modes
    continued by their covariance). Outside the field of view the velocity keeps the border's value.
    """
    coarse = subject_lattice(cohort.template)
    velocity = cohort.scenario.variability.velocity(cohort.coefficients(index), coarse).astype(
        np.float64
    )
    for axis in range(3):
        positions = coarse.axis_mm(axis)
        velocity = make_interp_spline(positions, velocity, k=5, axis=axis)(
            onto.axis_mm(axis).clip(positions[0], positions[-1])
        )
    return np.moveaxis(velocity, -1, 0)


def subject_field(cohort: Cohort, index: int) -> Field:
    """Return the velocity of one subject's anatomy everywhere."""
    low, high = cohort.template.box_mm
    fine = Lattice.spanning(
        low - FINE_SPACING_MM, high + FINE_SPACING_MM, FINE_SPACING_MM, centred=False
    )
    return Field(subject_velocity(cohort, index, fine), fine, low, high)


def effect_field(effect: Morphology, template: Template) -> Field:
    """Return the velocity of an effect of magnitude 1: the peak of its flow is the amplitude."""
    values, box = local_velocity(effect, template)
    shape = Field(np.moveaxis(values, -1, 0), box)
    dense = Lattice.spanning(
        box.origin_mm, [box.axis_mm(axis)[-1] for axis in range(3)], 1.0, centred=False
    )
    points = dense.points_mm().reshape(3, -1)
    # Tissue travels furthest along the steepest part of the velocity.
    points = points[:, np.linalg.norm(shape(points), axis=0) > 0.7]

    def missing(travel: float) -> float:
        moved = np.linalg.norm(flowed(shape, points, travel, steps=8) - points, axis=0)
        return moved.max() - abs(effect.amplitude_mm)

    travel = brentq(
        missing, 0.5 * abs(effect.amplitude_mm), 4 * abs(effect.amplitude_mm), xtol=1e-4
    )
    return Field(np.sign(effect.amplitude_mm) * travel * shape.values, box)


def sampled_at(cohort: Cohort, index: int, points_mm: np.ndarray) -> np.ndarray:
    """Return where in the template a subject's volume is sampled for points (3, n), in mm.

    The image is ``T o exp(-disease) o exp(-bias) o exp(-subject)``: the effect applied last is
    undone first.
    """
    points_mm = flowed(subject_field(cohort, index), points_mm, -1.0)
    for name, magnitude in reversed(cohort.magnitudes(index).items()):
        if magnitude:
            points_mm = flowed(
                effect_field(cohort.scenario.effects[name], cohort.template), points_mm, -magnitude
            )
    return points_mm
