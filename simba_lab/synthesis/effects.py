"""Disease and bias effects: what is done to a brain, how strongly, and how often in each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq

from simba_lab.errors import FoldingError, SimbaError
from simba_lab.synthesis import _kernels
from simba_lab.synthesis.anatomy import Lattice, Template

CLASSES = ("control", "disease")
# The local fields live on every second template voxel; their smoothness (5 mm by default) is resolved by that.
STRIDE = 2
# Magnitudes between two knots of the tabulated flow are interpolated.
KNOT_SPACING = 0.25
# Flow time, in mm at the peak velocity, after which the search for a fold or an amplitude ends.
LONGEST_TRAVEL = 60.0


@dataclass(frozen=True)
class Normal:
    """A normal distribution of effect magnitudes (1 is the nominal strength of the effect)."""

    mean: float
    sd: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.mean) or not np.isfinite(self.sd) or self.sd < 0:
            raise SimbaError("magnitude", (self.mean, self.sd), "finite, with a standard deviation of at least 0")


def per_class(value: object, kind: type, field_name: str) -> dict:
    """Return `value` as a mapping with one entry per class; a single value counts for both."""
    if not isinstance(value, Mapping):
        value = dict.fromkeys(CLASSES, value)
    if set(value) != set(CLASSES):
        raise SimbaError(field_name, dict(value), f"given for the classes {' and '.join(CLASSES)}")
    for name, entry in value.items():
        if not isinstance(entry, kind):
            raise SimbaError(f"{field_name}[{name!r}]", entry, f"of type {getattr(kind, '__name__', kind)}")
    return {name: value[name] for name in CLASSES}


@dataclass(frozen=True)
class Morphology:
    """A region that grows (or shrinks), pushing its neighbourhood smoothly.

    The velocity is the downhill gradient of the smoothed region mask: it points outwards at the region's surface and
    vanishes far from it.

    Parameters
    ----------
    region : str
        Name of the region in the template.
    amplitude_mm : float
        Peak displacement at magnitude 1; negative amplitudes shrink the region.
    magnitude : Normal or mapping of class to Normal, optional
        Distribution of the magnitude; by default N(+1, 1) and N(-1, 1) for disease and control if the effect is the
        disease of a scenario, and N(2, 1) if it is a bias (Stanley et al. 2023).
    prevalence : mapping of class to float, optional
        P(bias group | class); for a bias only. Half of either class by default, which is no bias at all.
    smoothness_mm : float
        Standard deviation of the Gaussian that smooths the mask.
    """

    region: str
    amplitude_mm: float
    magnitude: Mapping[str, Normal] | Normal | None = None
    prevalence: Mapping[str, float] | None = None
    smoothness_mm: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.amplitude_mm, int | float) or not 0 < abs(self.amplitude_mm) < np.inf:
            raise SimbaError("amplitude_mm", self.amplitude_mm, "a finite number of mm other than 0", "2.5 is moderate.")
        if not isinstance(self.smoothness_mm, int | float) or not 2 <= self.smoothness_mm <= 20:
            raise SimbaError("smoothness_mm", self.smoothness_mm, "from 2 to 20 (mm)", "5 suits most regions.")
        if self.magnitude is not None:
            object.__setattr__(self, "magnitude", per_class(self.magnitude, Normal, "magnitude"))
        if self.prevalence is not None:
            prevalence = per_class(self.prevalence, int | float, "prevalence")
            for name, value in prevalence.items():
                if not 0 <= value <= 1:
                    raise SimbaError(f"prevalence[{name!r}]", value, "in [0, 1]", "It is P(bias group | class).")
            object.__setattr__(self, "prevalence", prevalence)

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True, eq=False)
class LocalFlow:
    """The one-parameter family of deformations of one effect, tabulated over its magnitude.

    Effects of one region differ between subjects in magnitude alone, so their flow is integrated once and each subject
    reads it off, instead of exponentiating a field of its own.

    Parameters
    ----------
    lattice : Lattice
        The box around the region.
    knots : ndarray, shape (M,)
        Increasing magnitudes; 0 is among them.
    table : ndarray of float32, shape (M, X, Y, Z, 3)
        At each magnitude m the displacement, in mm, at which an image has to be sampled: that of ``exp(-m v)``.
    """

    lattice: Lattice
    knots: np.ndarray
    table: np.ndarray

    def at(self, magnitude: float) -> np.ndarray:
        """Return the displacement for one magnitude in mm, interleaved float32, shape (X, Y, Z, 3)."""
        low = int(np.clip(np.searchsorted(self.knots, magnitude, side="right") - 1, 0, len(self.knots) - 2))
        weight = np.float32((magnitude - self.knots[low]) / (self.knots[low + 1] - self.knots[low]))
        return self.table[low] + weight * (self.table[low + 1] - self.table[low])


@lru_cache(maxsize=8)
def local_velocity(region: str, smoothness_mm: float, template: Template) -> tuple[np.ndarray, Lattice]:
    """Return the velocity that makes a region grow, interleaved float32 (X, Y, Z, 3), and the lattice of its box.

    Its peak is 1 mm; `tabulate` scales it.
    """
    mask = template.region(region)
    spacing = template.lattice.spacing_mm
    margin = int(np.ceil(4 * smoothness_mm / spacing)) + STRIDE
    inside = np.argwhere(mask)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    padded = np.pad(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32), margin)
    smooth = gaussian_filter(padded, smoothness_mm / spacing, mode="constant")
    gradient = np.stack(np.gradient(smooth, spacing), axis=-1)[::STRIDE, ::STRIDE, ::STRIDE]
    origin = np.asarray(template.lattice.origin_mm) + (low - margin) * spacing
    lattice = Lattice(gradient.shape[:3], spacing * STRIDE, tuple(float(v) for v in origin))
    velocity = np.ascontiguousarray(-gradient, dtype=np.float32)
    return velocity / np.sqrt((velocity**2).sum(axis=-1)).max(), lattice


def tabulate(
    effect: Morphology, template: Template, magnitudes: np.ndarray, *, field_name: str = "effect",
    subjects: np.ndarray | None = None,
) -> LocalFlow:  # fmt: skip
    """Tabulate the flow of an effect over the magnitudes that a cohort needs, and check that none of them folds.

    Parameters
    ----------
    magnitudes : ndarray, shape (n,)
        Every magnitude that will be rendered.
    field_name : str
        What errors call the effect, such as ``"scenario.bias"``.
    subjects : ndarray, shape (n,), optional
        Whose magnitudes these are, for errors.

    Raises
    ------
    UnknownNameError
        If the template has no such region.
    FoldingError
        If a magnitude would fold the brain; it names the subject and the largest amplitude that would not.
    """
    template.region(effect.region, field_name=f"{field_name}.region")
    magnitudes = np.asarray(magnitudes, float)
    sign, amplitude = np.sign(effect.amplitude_mm), abs(effect.amplitude_mm)
    # Growth (positive travel) and shrinkage fold at different travels; magnitudes below 0 turn one into the other.
    extremes = {
        growth: max(0.0, float((sign * magnitudes).max() if growth else (-sign * magnitudes).max()))
        for growth in (True, False)
    }
    travel = _travel_for(effect.region, effect.smoothness_mm, template, amplitude)
    longest = min(
        _travel_to_fold(effect.region, effect.smoothness_mm, template, growth) / max(1.0, extreme)
        for growth, extreme in extremes.items()
    )
    if travel is None or travel > longest:
        reachable = _peak(_travelled(*local_velocity(effect.region, effect.smoothness_mm, template), longest))
        worst = int(np.argmax(np.abs(magnitudes)))
        who = "" if subjects is None else f" of subject {subjects[worst]}"
        raise FoldingError(
            f"{field_name}.amplitude_mm", effect.amplitude_mm,
            f"at most {np.floor(reachable * 100) / 100:.2f} mm in size for region {effect.region!r}",
            f"The magnitude {magnitudes[worst]:+.2f}{who} would fold the brain. Lower the amplitude, narrow the "
            "distribution of magnitudes, or raise smoothness_mm.",
        )  # fmt: skip
    below, above = (max(1, int(np.ceil(max(0.0, side) / KNOT_SPACING))) for side in (-magnitudes.min(), magnitudes.max()))
    # Images are sampled at where tissue comes from: the displacement of the opposite velocity.
    return _table(effect.region, effect.smoothness_mm, template, -sign * travel, below, above)


def _peak(displacement: np.ndarray) -> float:
    return float(np.sqrt((displacement**2).sum(axis=-1).max()))


def _travelled(velocity: np.ndarray, lattice: Lattice, time: float, start: np.ndarray | None = None) -> np.ndarray:
    """Displacement after flowing for `time` (which may be negative) from `start`."""
    out = np.zeros_like(velocity) if start is None else start.copy()
    substeps = max(1, int(np.ceil(abs(time) / lattice.spacing_mm * 2)))  # at most half a voxel each: |v| is at most 1
    _kernels.flow(velocity, np.float32(1 / lattice.spacing_mm), out, time, substeps, out)
    return out


@lru_cache(maxsize=32)
def _travel_for(region: str, smoothness_mm: float, template: Template, amplitude_mm: float) -> float | None:
    """Flow time at which the peak displacement is `amplitude_mm`; None if it takes forever.

    The amplitude is a promise about the displacement, not about the velocity. Growth and shrinkage keep it alike: a map
    and its inverse have the same peak displacement.
    """
    velocity, lattice = local_velocity(region, smoothness_mm, template)

    def missing(time: float) -> float:
        return _peak(_travelled(velocity, lattice, time)) - amplitude_mm

    high = amplitude_mm
    while missing(high) < 0:
        high *= 1.5
        if high > LONGEST_TRAVEL:
            return None
    return float(brentq(missing, 0.0, high, xtol=1e-4))


@lru_cache(maxsize=32)
def _travel_to_fold(region: str, smoothness_mm: float, template: Template, growth: bool) -> float:
    """Longest flow time at which every cell of the pulled-back lattice still has a positive Jacobian."""
    velocity, lattice = local_velocity(region, smoothness_mm, template)
    time, step, displacement = 0.0, 1.0, np.zeros_like(velocity)
    while time < LONGEST_TRAVEL:
        further = _travelled(velocity, lattice, -step if growth else step, start=displacement)
        if _kernels.least_jacobian(further, np.float32(1 / lattice.spacing_mm)) <= 0:
            break
        displacement, time = further, time + step
    return time


@lru_cache(maxsize=4)
def _table(region: str, smoothness_mm: float, template: Template, unit: float, below: int, above: int) -> LocalFlow:
    """Flow for multiples of `unit`, from `below` knots under zero to `above` knots over it."""
    velocity, lattice = local_velocity(region, smoothness_mm, template)
    table = np.zeros((below + above + 1, *velocity.shape), np.float32)
    for direction, count in ((-1, below), (1, above)):
        for step in range(1, count + 1):
            at = below + direction * step
            table[at] = _travelled(velocity, lattice, direction * unit * KNOT_SPACING, start=table[at - direction])
    table.setflags(write=False)
    return LocalFlow(lattice, np.arange(-below, above + 1) * KNOT_SPACING, table)
