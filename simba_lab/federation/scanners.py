"""Scanners: effects on the image that differ between sites, as biases of the scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from simba_lab.core.errors import SimbaError
from simba_lab.synthesis.effects import CLASSES, Intensity
from simba_lab.synthesis.scenario import Scenario

UNIVERSAL = dict.fromkeys(CLASSES, 1.0)
# What a scanner does at magnitude 1. A site has one magnitude of each. Noise and blur can only
# degrade an image, so their magnitudes are not negative.
SCANNER = {
    "scanner_contrast": Intensity("contrast", 0.1, prevalence=UNIVERSAL),
    "scanner_field": Intensity("bias_field", 0.1, prevalence=UNIVERSAL),
    "scanner_noise": Intensity("noise", 0.03, prevalence=UNIVERSAL),
    "scanner_blur": Intensity("blur", 3.0, prevalence=UNIVERSAL),
}
ONE_SIDED = ("noise", "blur")


def with_scanners(scenario: Scenario, effects: Mapping[str, Intensity] | None = None) -> Scenario:
    """Return a scenario whose images also show the scanner of their site.

    The effects are biases of the scenario like any other. Everybody has them, and `hospitals` sets
    their magnitudes site by site. Twins without them (`TwinCohort.twin`) are the same subjects
    without any scanner effects.

    Parameters
    ----------
    scenario : Scenario
    effects : mapping of name to Intensity, optional
        By default `SCANNER`: contrast (10 % at magnitude 1), receive field (10 %), noise (3 %) and
        blur (3 mm).

    Raises
    ------
    SimbaError
        If an effect is not an intensity effect, or has the name of a bias of the scenario.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5))
    >>> list(sb.federation.with_scanners(scenario).biases)
    ['scanner_contrast', 'scanner_field', 'scanner_noise', 'scanner_blur']
    """
    effects = SCANNER if effects is None else effects
    for name, effect in effects.items():
        if not isinstance(effect, Intensity):
            remedy = "Scanners do not move tissue here."
            raise SimbaError(f"effects[{name!r}]", effect, "an Intensity", remedy)
    shared_names = set(effects) & set(scenario.biases)
    if shared_names:
        raise SimbaError(
            "effects", sorted(shared_names)[0], "a name that no bias of the scenario has"
        )
    universal = {name: replace(effect, prevalence=UNIVERSAL) for name, effect in effects.items()}
    return scenario.replace(bias=scenario.biases | universal)


def drawn_scanner(draws: np.random.Generator, spread: float) -> dict[str, float]:
    """Return random magnitudes of the scanner of one site, with this standard deviation."""
    values = spread * draws.standard_normal(len(SCANNER))
    return {
        name: float(abs(value) if effect.kind in ONE_SIDED else value)
        for (name, effect), value in zip(SCANNER.items(), values, strict=True)
    }
