"""Disease and bias effects: what is done to a brain or its image, how strongly, and how often in each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm, truncnorm

from simba_lab.core.errors import SimbaError, UnknownNameError

if TYPE_CHECKING:
    from simba_lab.synthesis.scenario import Scenario

CLASSES = ("control", "disease")


@dataclass(frozen=True)
class Normal:
    """A normal distribution of effect magnitudes (1 is the nominal strength of the effect), truncated if bounds are given.

    Parameters
    ----------
    mean, sd : float
        Of the normal distribution before it is truncated.
    low, high : float
        No magnitude lies outside these.
    """

    mean: float
    sd: float = 1.0
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        numbers = (self.mean, self.sd, self.low, self.high)
        if (
            not all(isinstance(value, int | float) for value in numbers)
            or not np.isfinite(numbers[:2]).all()
            or self.sd < 0
        ):
            raise SimbaError(
                "magnitude", numbers[:2], "finite, with a standard deviation of at least 0"
            )
        inside = self.low <= self.mean <= self.high if self.sd == 0 else self.low < self.high
        if not inside:
            raise SimbaError(
                "magnitude",
                numbers[2:],
                "bounds (low, high) in this order, with something between them",
            )

    @property
    def _distribution(self):
        if np.isinf(self.low) and np.isinf(self.high):
            return norm(self.mean, self.sd)
        bounds = [(bound - self.mean) / self.sd for bound in (self.low, self.high)]
        return truncnorm(*bounds, loc=self.mean, scale=self.sd)

    def pdf(self, x: float) -> float:
        """Return the density at a magnitude."""
        return float(self._distribution.pdf(x))

    def ppf(self, share: np.ndarray) -> np.ndarray:
        """Return the magnitudes below which given shares of the population lie."""
        return (
            np.full(np.shape(share), float(self.mean))
            if self.sd == 0
            else self._distribution.ppf(share)
        )


def per_class(value: object, kind: type, field_name: str) -> dict:
    """Return `value` as a mapping with one entry per class; a single value counts for both."""
    if not isinstance(value, Mapping):
        value = dict.fromkeys(CLASSES, value)
    if set(value) != set(CLASSES):
        raise SimbaError(field_name, dict(value), f"given for the classes {' and '.join(CLASSES)}")
    for name, entry in value.items():
        if not isinstance(entry, kind):
            raise SimbaError(
                f"{field_name}[{name!r}]", entry, f"of type {getattr(kind, '__name__', kind)}"
            )
    return {name: value[name] for name in CLASSES}


def _settle(effect: Effect) -> None:
    """Check and complete what all effects have: magnitudes and prevalences per class."""
    if effect.magnitude is not None:
        object.__setattr__(effect, "magnitude", per_class(effect.magnitude, Normal, "magnitude"))
    if effect.prevalence is not None:
        prevalence = per_class(effect.prevalence, int | float, "prevalence")
        for name, value in prevalence.items():
            if not 0 <= value <= 1:
                raise SimbaError(
                    f"prevalence[{name!r}]", value, "in [0, 1]", "It is P(bias group | class)."
                )
        object.__setattr__(effect, "prevalence", prevalence)


@dataclass(frozen=True)
class Morphology:
    """A region that grows, shrinks or changes shape, pushing its neighbourhood smoothly.

    By default the velocity is the downhill gradient of the smoothed region mask: it points outwards
    at the region's surface and vanishes far from it. With `mode`, it is one mode of the scenario's
    healthy variability, seen through the smoothed mask (Stanley et al. 2023 use the first mode of a
    principal component analysis).

    Parameters
    ----------
    region : str
        Name of the region in the template.
    amplitude_mm : float
        Peak displacement at magnitude 1; negative amplitudes shrink the region.
    magnitude : Normal or mapping of class to Normal, optional
        Distribution of the magnitude; by default N(+1, 1) and N(-1, 1) for disease and control if
        the effect is the disease of a scenario, and N(2, 1) if it is a bias (Stanley et al. 2023).
    prevalence : mapping of class to float, optional
        P(bias group | class); for a bias only. Half of either class by default, which is no bias at
        all.
    smoothness_mm : float
        Standard deviation of the Gaussian that smooths the mask.
    mode : int, optional
        Which mode of the variability, 1 for the one with most variance.
    """

    region: str
    amplitude_mm: float
    magnitude: Mapping[str, Normal] | Normal | None = None
    prevalence: Mapping[str, float] | None = None
    smoothness_mm: float = 5.0
    mode: int | None = None

    def __post_init__(self) -> None:
        if (
            not isinstance(self.amplitude_mm, int | float)
            or not 0 < abs(self.amplitude_mm) < np.inf
        ):
            raise SimbaError(
                "amplitude_mm",
                self.amplitude_mm,
                "a finite number of mm other than 0",
                "2.5 is moderate.",
            )
        if not isinstance(self.smoothness_mm, int | float) or not 2 <= self.smoothness_mm <= 20:
            raise SimbaError(
                "smoothness_mm", self.smoothness_mm, "from 2 to 20 (mm)", "5 suits most regions."
            )
        if self.mode is not None and (not isinstance(self.mode, int) or not 1 <= self.mode <= 100):
            raise SimbaError(
                "mode",
                self.mode,
                "an integer from 1 to 100, or left out",
                "1 is the mode with most variance.",
            )
        _settle(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def scaled(self, factor: float) -> Morphology:
        """Return the same effect with its amplitude multiplied."""
        return replace(self, amplitude_mm=self.amplitude_mm * float(factor))

    def matched_to(self, *, d_prime: float, scenario: Scenario) -> Morphology:
        """Return the same effect at the amplitude that an ideal linear observer detects with `d_prime` in a scenario."""
        from simba_lab.synthesis.observer import matched

        return matched(self, d_prime=d_prime, scenario=scenario)


# What `strength` is for each kind of intensity effect, and the range that it may have.
INTENSITIES = {
    "contrast": ("relative change of the distance from the mean tissue intensity", (-0.9, 4.0)),
    "gamma": ("relative change of the exponent of the intensity", (-0.9, 4.0)),
    "bias_field": ("standard deviation of the log of the field over the brain", (0.0, 1.0)),
    "noise": ("standard deviation of added Rician noise, as a share of white matter", (0.0, 1.0)),
    "blur": ("full width at half maximum of added blur, in mm", (0.0, 20.0)),
}


@dataclass(frozen=True)
class Intensity:
    """An effect of the scanner on the image, everywhere in the brain.

    At magnitude m, ``contrast`` multiplies the distance of each intensity from the template's mean
    by (1 + strength)^m; ``gamma`` raises intensities (white matter: 1) to the power (1 +
    strength)^m; ``bias_field`` multiplies the image by a smooth field whose log has the standard
    deviation m x strength; ``noise`` and ``blur`` add m x strength of themselves, in quadrature to
    what is there, and nothing where m is negative.

    Parameters
    ----------
    kind : {"contrast", "gamma", "bias_field", "noise", "blur"}
    strength : float
        Strength at magnitude 1: relative for contrast and gamma (0.2 is 20 % more), a share for
        bias field and noise, mm (full width at half maximum) for blur.
    magnitude, prevalence
        As for `Morphology`.

    References
    ----------
    Stanley et al. (2024), JAMIA 31:2613-2621 (contrast); Gudbjartsson and Patz (1995), MRM
    34:910-914, eq. 1 (noise).
    """

    kind: str
    strength: float
    magnitude: Mapping[str, Normal] | Normal | None = None
    prevalence: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in INTENSITIES:
            raise UnknownNameError.among("kind", self.kind, INTENSITIES)
        meaning, (low, high) = INTENSITIES[self.kind]
        if (
            not isinstance(self.strength, int | float)
            or not low <= self.strength <= high
            or self.strength == 0
        ):
            raise SimbaError(
                "strength",
                self.strength,
                f"from {low:g} to {high:g} and not 0 for {self.kind}",
                f"It is the {meaning}.",
            )
        _settle(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def scaled(self, factor: float) -> Intensity:
        """Return the same effect with its strength multiplied."""
        return replace(self, strength=self.strength * float(factor))

    def matched_to(self, *, d_prime: float, scenario: Scenario) -> Intensity:
        """Return the same effect at the strength that an ideal linear observer detects with `d_prime` in a scenario."""
        from simba_lab.synthesis.observer import matched

        return matched(self, d_prime=d_prime, scenario=scenario)


Effect = Morphology | Intensity
EXAMPLE = "an effect such as Morphology('Insula_L', amplitude_mm=2.5) or Intensity('contrast', 0.2)"
