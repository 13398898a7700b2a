"""Disease and bias effects: what changes in a brain or its image, how strongly, and in how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy.stats import norm, truncnorm

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Bound, choice, is_number, keep_plain, share, whole_number
from simba_lab.core.errors import SimbaError

CLASSES = ("control", "disease")
# Below this share, quantiles of a truncated distribution are rounding errors.
LEAST_KEPT = 1e-9


@checks_arguments
@dataclass(frozen=True)
class Normal:
    """A normal distribution of magnitudes, truncated if bounds are given; 1 is an effect as set.

    Parameters
    ----------
    mean, sd : float
        Mean and standard deviation before truncation.
    low, high : float
        Bounds of the magnitude.

    Raises
    ------
    SimbaError
        If `mean` or `sd` is not finite, `sd` is negative, or the bounds exclude every magnitude.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.Normal(2.0, 1.0).ppf([0.5, 0.975]).round(2)
    array([2.  , 3.96])
    >>> sb.Normal(2.0, 1.0, low=0.0).ppf([0.0])
    array([0.])
    """

    mean: float
    sd: float = 1.0
    low: Bound = -np.inf
    high: Bound = np.inf

    def __post_init__(self) -> None:
        keep_plain(self)
        values = (self.mean, self.sd, self.low, self.high)
        numbers = all(is_number(value) for value in values)
        if not numbers or not np.isfinite(values[:2]).all() or self.sd < 0:
            allowed = "finite, with a standard deviation of at least 0"
            raise SimbaError("magnitude", values[:2], allowed)
        constant = self.low <= self.mean <= self.high
        if not (constant if self.sd == 0 else self.low < self.high):
            allowed = "bounds (low, high) in this order, with something between them"
            raise SimbaError("magnitude", values[2:], allowed)
        if self.sd > 0 and self._kept < LEAST_KEPT:
            allowed = f"bounds (low, high) that keep at least {LEAST_KEPT:g} of the distribution"
            raise SimbaError("magnitude", values[2:], allowed, f"Its mean is {self.mean:g}.")

    @property
    def _kept(self) -> float:
        """The share of the distribution that lies within the bounds."""
        low, high = ((bound - self.mean) / self.sd for bound in (self.low, self.high))
        # In the upper tail the distribution function is 1, whatever the bound.
        return float(norm.sf(low) - norm.sf(high) if low > 0 else norm.cdf(high) - norm.cdf(low))

    @property
    def _distribution(self) -> Any:
        if np.isinf(self.low) and np.isinf(self.high):
            return norm(self.mean, self.sd)
        bounds = [(bound - self.mean) / self.sd for bound in (self.low, self.high)]
        return truncnorm(*bounds, loc=self.mean, scale=self.sd)

    def pdf(self, magnitude: float) -> float:
        """Return the probability density at a magnitude."""
        return float(self._distribution.pdf(magnitude))

    def ppf(self, shares: np.ndarray) -> np.ndarray:
        """Return the magnitudes below which given shares of the population lie."""
        if self.sd == 0:
            return np.full(np.shape(shares), float(self.mean))
        return self._distribution.ppf(shares)


@checks_arguments
@dataclass(frozen=True)
class Morphology:
    """A region that grows, shrinks or changes shape, and pushes its neighbourhood smoothly.

    By default the velocity is the downhill gradient of the smoothed region mask: it points outwards
    at the region's surface and vanishes far from it. With `mode` it is one mode of the scenario's
    healthy variability, multiplied by the smoothed mask (Stanley et al. 2023 use the first
    principal component).

    Parameters
    ----------
    region : str
        Name of the region in the template.
    amplitude_mm : float
        Peak displacement at magnitude 1; negative amplitudes shrink the region.
    magnitude : Normal or mapping of class to Normal, optional
        Distribution of the magnitude. The default is N(+1, 1) and N(-1, 1) for disease and control
        if the effect is the disease of a scenario, and N(2, 1) if it is a bias (Stanley et al.
        2023).
    prevalence : float or mapping of class to float, optional
        P(bias group | class); for a bias only. The default, half of either class, is no bias.
    smoothness_mm : float
        Standard deviation of the Gaussian that smooths the mask.
    mode : int, optional
        Mode of the variability; 1 has the most variance.

    Raises
    ------
    SimbaError
        If a value is out of range.

    References
    ----------
    Stanley, Wilms, Forkert (2023), "A flexible framework for simulating and evaluating biases in
    deep learning-based medical image analysis", MICCAI.

    Examples
    --------
    >>> import simba_lab as sb
    >>> atrophy = sb.Morphology("Hippocampus_L", amplitude_mm=-2.0)
    >>> atrophy.scaled(0.5).amplitude_mm
    -1.0
    """

    region: str
    amplitude_mm: float
    magnitude: Mapping[str, Normal] | Normal | None = None
    prevalence: Mapping[str, float] | float | None = None
    smoothness_mm: float = 5.0
    mode: int | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        amplitude, smoothness = self.amplitude_mm, self.smoothness_mm
        if not is_number(amplitude) or not 0 < abs(amplitude) < np.inf:
            allowed = "a finite number of mm other than 0"
            raise SimbaError("amplitude_mm", amplitude, allowed, "2.5 is moderate.")
        if not is_number(smoothness) or not 2 <= smoothness <= 20:
            allowed = "from 2 to 20 (mm)"
            raise SimbaError("smoothness_mm", smoothness, allowed, "5 suits most regions.")
        if self.mode is not None:
            whole_number("mode", self.mode, remedy="1 is the mode with most variance.")
        _complete_classes(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def scaled(self, factor: float) -> Morphology:
        """Return the same effect with its amplitude multiplied by a factor."""
        return replace(self, amplitude_mm=self.amplitude_mm * float(factor))


# Meaning and range of the strength of each kind of intensity effect.
INTENSITIES = {
    "contrast": ("relative change of the distance from the mean tissue intensity", (-0.9, 4.0)),
    "gamma": ("relative change of the exponent of the intensity", (-0.9, 4.0)),
    "bias_field": ("standard deviation of the log of the field over the brain", (0.0, 1.0)),
    "noise": ("standard deviation of added Rician noise, as a share of white matter", (0.0, 1.0)),
    "blur": ("full width at half maximum of added blur, in mm", (0.0, 20.0)),
}


@checks_arguments
@dataclass(frozen=True)
class Intensity:
    """An effect of the scanner on the image, everywhere in the brain.

    At magnitude m, ``contrast`` multiplies the distance of each intensity from the template's mean
    by (1 + strength)^m; ``gamma`` raises intensities (white matter: 1) to the power (1 +
    strength)^m; ``bias_field`` multiplies the image by a smooth field whose log has the standard
    deviation m x strength; ``noise`` and ``blur`` add m x strength in quadrature to the noise and
    blur of the scanner, and nothing where m is negative.

    Parameters
    ----------
    kind : {"contrast", "gamma", "bias_field", "noise", "blur"}
    strength : float
        Strength at magnitude 1: relative for contrast and gamma (0.2 is 20 % more), a share for
        bias field and noise, mm (full width at half maximum) for blur.
    magnitude, prevalence
        As for `Morphology`. `Intensity.KINDS` has the meaning and range of each strength.

    Raises
    ------
    SimbaError
        If a value is out of range.

    References
    ----------
    Stanley et al. (2024), JAMIA 31:2613-2621 (contrast); Gudbjartsson and Patz (1995), MRM
    34:910-914, eq. 1 (noise).

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.Intensity("contrast", 0.2, prevalence={"disease": 0.8, "control": 0.2}).prevalence
    {'control': 0.2, 'disease': 0.8}
    """

    KINDS: ClassVar[dict[str, tuple[str, tuple[float, float]]]] = INTENSITIES

    kind: str
    strength: float
    magnitude: Mapping[str, Normal] | Normal | None = None
    prevalence: Mapping[str, float] | float | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        meaning, (low, high) = INTENSITIES[choice("kind", self.kind, INTENSITIES)]
        number = is_number(self.strength)
        if not number or self.strength == 0 or not low <= self.strength <= high:
            allowed = f"from {low:g} to {high:g} and not 0 for {self.kind}"
            raise SimbaError("strength", self.strength, allowed, f"It is the {meaning}.")
        _complete_classes(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def scaled(self, factor: float) -> Intensity:
        """Return the same effect with its strength multiplied by a factor."""
        return replace(self, strength=self.strength * float(factor))


Effect = Morphology | Intensity
EXAMPLE = "an effect such as Morphology('Insula_L', amplitude_mm=2.5) or Intensity('contrast', 0.2)"


def magnitude_in(effect: Effect, class_name: str) -> Normal:
    """Return the distribution of an effect's magnitude in a class of a scenario."""
    assert isinstance(effect.magnitude, Mapping)  # a scenario completes its effects
    return effect.magnitude[class_name]


def prevalence_in(effect: Effect, class_name: str) -> float:
    """Return the share of a class of a scenario that is in the group of a bias."""
    assert isinstance(effect.prevalence, Mapping)  # a scenario completes its effects
    return effect.prevalence[class_name]


def _complete_classes(effect: Effect) -> None:
    """Check magnitude and prevalence of an effect, and complete them to one value per class."""
    checks = {"magnitude": _normal, "prevalence": partial(share, remedy="It is P(group | class).")}
    for field, check in checks.items():
        value = getattr(effect, field)
        if value is not None:
            object.__setattr__(effect, field, _per_class(value, field, check))


def _per_class(value: object, field: str, check: Any) -> dict[str, Any]:
    """Return `value` as a mapping with one entry per class; a single value counts for both."""
    if not isinstance(value, Mapping):
        value = dict.fromkeys(CLASSES, value)
    if set(value) != set(CLASSES):
        raise SimbaError(field, dict(value), f"given for the classes {' and '.join(CLASSES)}")
    for name, entry in value.items():
        check(f"{field}[{name!r}]", entry)
    return {name: value[name] for name in CLASSES}


def _normal(field: str, value: object) -> None:
    if not isinstance(value, Normal):
        raise SimbaError(field, value, "a Normal distribution", "Write Normal(mean, sd).")
