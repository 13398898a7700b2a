"""Flows of morphology effects: integrated once over the magnitude, looked up for each subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import brentq

from simba_lab.core.errors import FoldingError, SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.anatomy.variability import GaussianProcessSubjects, Variability
from simba_lab.synthesis.effects import Morphology
from simba_lab.synthesis.kernels import differences as _kernels
from simba_lab.synthesis.rendering.deformation import chord_corrected, flow

# The local fields are given on every second template voxel, which resolves their smoothness (5 mm
# by default).
STRIDE = 2
# Magnitudes between two knots of the tabulated flow are interpolated.
KNOT_SPACING = 0.25
# Flow time, in mm at the peak velocity, after which the search for a fold or an amplitude ends.
LONGEST_TRAVEL = 60.0


@dataclass(frozen=True, eq=False)
class LocalFlow:
    """The one-parameter family of deformations of one effect, tabulated over its magnitude.

    Effects of one region differ between subjects in magnitude alone, so their flow is integrated
    once and interpolated for each subject, instead of exponentiating a field per subject.

    Parameters
    ----------
    lattice : Lattice
        The box around the region.
    knots : ndarray, shape (M,)
        Increasing magnitudes; 0 is among them.
    table : ndarray of float32, shape (M, X, Y, Z, 3)
        At each magnitude m the displacement, in mm, at which an image has to be sampled: that of
        ``exp(-m v)``.
    """

    lattice: Lattice
    knots: np.ndarray
    table: np.ndarray

    def at(self, magnitude: float) -> np.ndarray:
        """Return the displacement at a magnitude, in mm: interleaved float32, (X, Y, Z, 3)."""
        low = int(
            np.clip(
                np.searchsorted(self.knots, magnitude, side="right") - 1, 0, len(self.knots) - 2
            )
        )
        weight = np.float32((magnitude - self.knots[low]) / (self.knots[low + 1] - self.knots[low]))
        return self.table[low] + weight * (self.table[low + 1] - self.table[low])


@dataclass(frozen=True)
class _Shape:
    """Everything that determines an effect but its amplitude: the key of the caches below."""

    region: str
    smoothness_mm: float
    template: Template
    mode: tuple[int, Variability] | None = None


def _shape(effect: Morphology, template: Template, variability: Variability | None) -> _Shape:
    if effect.mode is None:
        return _Shape(effect.region, effect.smoothness_mm, template)
    mode = effect.mode, variability or GaussianProcessSubjects()
    return _Shape(effect.region, effect.smoothness_mm, template, mode)


def local_velocity(
    effect: Morphology, template: Template, variability: Variability | None = None
) -> tuple[np.ndarray, Lattice]:
    """Return the velocity of an effect, interleaved, (X, Y, Z, 3), and the lattice of its box.

    Its peak is 1 mm; `local_flow` scales it. `variability` is needed for effects that follow one of
    its modes.
    """
    return _velocity(_shape(effect, template, variability))


@lru_cache(maxsize=16)
def _velocity(shape: _Shape) -> tuple[np.ndarray, Lattice]:
    template, spacing = shape.template, shape.template.lattice.spacing_mm
    mask = template.region(shape.region)
    margin = int(np.ceil(4 * shape.smoothness_mm / spacing)) + STRIDE
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    padded = np.pad(mask[box].astype(np.float32), margin)
    smooth = gaussian_filter(padded, shape.smoothness_mm / spacing, mode="constant")
    every_second = (slice(None, None, STRIDE),) * 3
    x, y, z = map(float, np.asarray(template.lattice.origin_mm) + (low - margin) * spacing)
    if shape.mode is None:
        velocity = -np.stack(np.gradient(smooth, spacing), axis=-1)[every_second]
        lattice = Lattice(velocity.shape[:3], spacing * STRIDE, (x, y, z))
    else:
        window = smooth[every_second]
        lattice = Lattice(window.shape, spacing * STRIDE, (x, y, z))
        velocity = window[..., None] * _mode_at(*shape.mode, template, lattice)
    velocity = np.ascontiguousarray(velocity, dtype=np.float32)
    return velocity / _peak(velocity), lattice


def _mode_at(
    mode: int, variability: Variability, template: Template, lattice: Lattice
) -> np.ndarray:
    """Velocity field of one mode of the variability on another lattice, (X, Y, Z, 3)."""
    source = subject_lattice(template)
    count = variability.coefficient_count(source)
    if mode > count:
        raise SimbaError("mode", mode, f"at most {count}, the number of modes of the variability")
    unit = np.zeros(count)
    unit[variability.leading(source, mode)[-1]] = 1.0
    velocity = variability.velocity(unit, source)
    origin = np.reshape(source.origin_mm, (3, 1, 1, 1))
    voxels = (lattice.points_mm() - origin) / source.spacing_mm
    components = np.moveaxis(velocity, -1, 0)
    return np.stack(
        [map_coordinates(component, voxels, order=3, mode="nearest") for component in components],
        axis=-1,
    )


def local_flow(
    effect: Morphology,
    template: Template,
    magnitudes: np.ndarray,
    *,
    field: str = "effect",
    subjects: np.ndarray | None = None,
    variability: Variability | None = None,
) -> LocalFlow:
    """Return the flow of an effect over the magnitudes of a cohort; none of them folds.

    Parameters
    ----------
    magnitudes : ndarray, shape (n,)
        Every magnitude that will be rendered.
    field : str
        Name of the effect in errors, such as ``"scenario.bias"``.
    subjects : ndarray, shape (n,), optional
        Number of the subject of each magnitude, for errors.
    variability : GaussianProcessSubjects or PCASubjects, optional
        Model whose modes an effect with `mode` follows.

    Raises
    ------
    UnknownNameError
        If the template has no such region.
    FoldingError
        If a magnitude would fold the brain; it names the subject and the largest amplitude that
        would not.

    Examples
    --------
    >>> import simba_lab as sb
    >>> flow = sb.synthesis.local_flow(
    ...     sb.Morphology("Putamen_L", 2.0), sb.load_template(), [-1.0, 1.0]
    ... )
    >>> round(float((flow.at(1.0) ** 2).sum(axis=-1).max() ** 0.5), 1)
    2.0
    """
    template.region(effect.region, field=f"{field}.region")
    magnitudes = np.asarray(magnitudes, float)
    sign, amplitude = np.sign(effect.amplitude_mm), abs(effect.amplitude_mm)
    # Growth (positive travel) and shrinkage fold at different travels; magnitudes below 0 turn one
    # into the other.
    extremes = {True: (sign * magnitudes).max(), False: (-sign * magnitudes).max()}
    shape = _shape(effect, template, variability)
    travel = _travel_for(shape, amplitude)
    longest = min(
        _travel_to_fold(shape, growth) / max(1.0, float(extreme))
        for growth, extreme in extremes.items()
    )
    if travel is None or travel > longest:
        limit = np.floor(100 * _peak(_travelled(*_velocity(shape), longest))) / 100
        allowed = f"at most {limit:.2f} mm in size for region {effect.region!r}"
        worst = int(np.argmax(np.abs(magnitudes)))
        carrier = "" if subjects is None else f" of subject {subjects[worst]}"
        remedy = (
            f"The magnitude {magnitudes[worst]:+.2f}{carrier} would fold the brain. Lower the "
            "amplitude, narrow the distribution of magnitudes, or raise smoothness_mm."
        )
        raise FoldingError(f"{field}.amplitude_mm", effect.amplitude_mm, allowed, remedy)
    below, above = (
        max(1, int(np.ceil(max(0.0, side) / KNOT_SPACING)))
        for side in (-magnitudes.min(), magnitudes.max())
    )
    # Images are sampled at the position that tissue comes from: the displacement of the opposite
    # velocity.
    return _table(shape, -sign * travel, below, above)


def _peak(displacement: np.ndarray) -> float:
    return float(np.sqrt((displacement**2).sum(axis=-1).max()))


def _travelled(
    velocity: np.ndarray, lattice: Lattice, time: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Displacement after flowing for `time` (which may be negative) from `start`."""
    return flow(velocity, lattice.spacing_mm, time, start=start)


@lru_cache(maxsize=32)
def _travel_for(shape: _Shape, amplitude_mm: float) -> float | None:
    """Flow time at which the peak displacement is `amplitude_mm`; None if no time is long enough.

    The amplitude is that of the displacement, not of the velocity, for growth and shrinkage alike:
    a map and its inverse have the same peak displacement.
    """
    velocity, lattice = _velocity(shape)

    def missing(time: float) -> float:
        return _peak(_travelled(velocity, lattice, time)) - amplitude_mm

    high = amplitude_mm
    while missing(high) < 0:
        high *= 1.5
        if high > LONGEST_TRAVEL:
            return None
    return float(brentq(missing, 0.0, high, xtol=1e-4))


@lru_cache(maxsize=32)
def _travel_to_fold(shape: _Shape, growth: bool) -> float:
    """Longest flow time at which every cell of the pulled-back lattice has a positive Jacobian."""
    velocity, lattice = _velocity(shape)
    time, step, displacement = 0.0, 1.0, np.zeros_like(velocity)
    while time < LONGEST_TRAVEL:
        further = _travelled(velocity, lattice, -step if growth else step, start=displacement)
        if _kernels.least_jacobian(further, np.float32(1 / lattice.spacing_mm)) <= 0:
            break
        displacement, time = further, time + step
    return time


@lru_cache(maxsize=4)
def _table(shape: _Shape, unit: float, below: int, above: int) -> LocalFlow:
    """Flow for multiples of `unit`, from `below` knots under zero to `above` knots over it."""
    velocity, lattice = _velocity(shape)
    table = np.zeros((below + above + 1, *velocity.shape), np.float32)
    for direction, count in ((-1, below), (1, above)):
        for step in range(1, count + 1):
            at = below + direction * step
            table[at] = _travelled(
                velocity, lattice, direction * unit * KNOT_SPACING, start=table[at - direction]
            )
    for knot in table:
        corrected = chord_corrected(knot)
        # At magnitudes that nearly fold, the correction of the steepest cells would fold them.
        if _kernels.least_jacobian(corrected, np.float32(1 / lattice.spacing_mm)) > 0:
            knot[:] = corrected
    table.setflags(write=False)
    return LocalFlow(lattice, np.arange(-below, above + 1) * KNOT_SPACING, table)
