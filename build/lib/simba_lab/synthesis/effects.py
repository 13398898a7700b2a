"""Disease and bias effects: what is done to a brain, how strongly, and how often in each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def local_velocity(effect: Morphology, template: Template, *, field_name: str) -> tuple[np.ndarray, Lattice]:
    """Return the velocity of an effect before scaling, interleaved float32 (X, Y, Z, 3), and the lattice of its box."""
    mask = template.region(effect.region, field_name=f"{field_name}.region")
    spacing = template.lattice.spacing_mm
    margin = int(np.ceil(4 * effect.smoothness_mm / spacing)) + STRIDE
    inside = np.argwhere(mask)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    padded = np.pad(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32), margin)
    smooth = gaussian_filter(padded, effect.smoothness_mm / spacing, mode="constant")
    gradient = np.stack(np.gradient(smooth, spacing), axis=-1)[::STRIDE, ::STRIDE, ::STRIDE]
    origin = np.asarray(template.lattice.origin_mm) + (low - margin) * spacing
    lattice = Lattice(gradient.shape[:3], spacing * STRIDE, tuple(float(v) for v in origin))
    velocity = np.ascontiguousarray(-np.sign(effect.amplitude_mm) * gradient, dtype=np.float32)
    return velocity / np.sqrt((velocity**2).sum(axis=-1)).max(), lattice


def _peak(displacement: np.ndarray) -> float:
    return float(np.sqrt((displacement**2).sum(axis=-1).max()))


def _march(velocity: np.ndarray, lattice: Lattice, time: float, start: np.ndarray | None = None) -> np.ndarray:
    """Displacement after flowing for `time` (which may be negative) from `start`."""
    out = np.zeros_like(velocity) if start is None else start.copy()
    substeps = max(1, int(np.ceil(abs(time) / lattice.spacing_mm * 2)))  # at most half a voxel each: |v| is at most 1
    _kernels.flow(velocity, np.float32(1 / lattice.spacing_mm), out, time, substeps, out)
    return out


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
    FoldingError
        If a magnitude would fold the brain; it names the subject and the largest amplitude that would not.
    """
    velocity, lattice = local_velocity(effect, template, field_name=field_name)
    amplitude = abs(effect.amplitude_mm)
    magnitudes = np.asarray(magnitudes, float)
    low, high = min(0.0, float(magnitudes.min())), max(0.0, float(magnitudes.max()))
    limits = [_time_to_fold(velocity, lattice, sign) for sign in (-1, 1)]
    # The displacement that an effect of magnitude 1 may have at most, so that the strongest one does not fold.
    longest = min(limit / max(abs(extreme), 1.0) for limit, extreme in zip(limits, (high, low), strict=True))
    reachable = _peak(_march(velocity, lattice, -longest))
    if amplitude > reachable:
        worst = int(np.argmax(np.abs(magnitudes)))
        who = "" if subjects is None else f" of subject {subjects[worst]}"
        raise FoldingError(
            f"{field_name}.amplitude_mm", effect.amplitude_mm,
            f"at most {np.floor(reachable * 100) / 100:.2f} mm in size for region {effect.region!r}",
            f"The magnitude {magnitudes[worst]:+.2f}{who} would fold the brain. Lower the amplitude, narrow the "
            "distribution of magnitudes, or raise smoothness_mm.",
        )  # fmt: skip
    # amplitude_mm is a promise about the displacement, not about the velocity: find the flow time that keeps it.
    unit = brentq(lambda time: _peak(_march(velocity, lattice, -time)) - amplitude, 0.0, longest * 1.001, xtol=1e-4)
    below, above = int(np.ceil(-low / KNOT_SPACING)), max(1, int(np.ceil(high / KNOT_SPACING)))
    knots = np.arange(-below, above + 1) * KNOT_SPACING
    table = np.zeros((len(knots), *velocity.shape), np.float32)
    for direction, count in ((-1, below), (1, above)):
        for step in range(1, count + 1):
            at = below + direction * step
            table[at] = _march(velocity, lattice, -direction * unit * KNOT_SPACING, start=table[at - direction])
    return LocalFlow(lattice, knots, table)


def _time_to_fold(velocity: np.ndarray, lattice: Lattice, direction: int, *, longest: float = 60.0) -> float:
    """Longest flow time, in mm of travel at the peak velocity, at which every cell still has a positive Jacobian."""
    time, step, displacement = 0.0, 1.0, np.zeros_like(velocity)
    while time < longest:
        further = _march(velocity, lattice, direction * step, start=displacement)
        if _kernels.least_jacobian(further, np.float32(1 / lattice.spacing_mm)) <= 0:
            break
        displacement, time = further, time + step
    return time
