"""Best accuracy that a scenario allows, and accuracy of a probe that knows the disease alone."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from scipy.integrate import quad

from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError
from simba_lab.synthesis.effects import CLASSES, Normal, magnitude_in, prevalence_in

if TYPE_CHECKING:
    from simba_lab.synthesis.scenario import Scenario


def best_accuracy(scenario: Scenario, *, shortcut: bool = False) -> float:
    """Return the accuracy of the Bayes classifier of disease and, with `shortcut`, bias groups."""
    weights = [(0.5, 0.5)]
    if shortcut and scenario.biases:
        control, disease = (scenario.memberships(name) for name in CLASSES)
        weights = [
            (0.5 * control.get(pattern, 0.0), 0.5 * disease.get(pattern, 0.0))
            for pattern in dict.fromkeys([*control, *disease])
        ]
    control_magnitude, disease_magnitude = (
        magnitude_in(scenario.disease, name) for name in CLASSES
    )
    return float(sum(_bayes(control_magnitude, disease_magnitude, *pair) for pair in weights))


def leakage_floor(scenario: Scenario, accuracy: float, bias: str | None = None) -> float:
    """Return the accuracy, for a bias group, of a probe that knows only the disease."""
    if not scenario.biases:
        return 0.5
    if bias is None and len(scenario.biases) > 1:
        allowed = f"one of {', '.join(scenario.biases)}"
        raise SimbaError("bias", None, allowed, "The scenario has several.")
    name = choice("bias", bias or next(iter(scenario.biases)), scenario.biases)
    control, disease = (prevalence_in(scenario.biases[name], label) for label in CLASSES)
    agreement = (disease + 1 - control) / 2
    return float(accuracy * agreement + (1 - accuracy) * (1 - agreement))


@cache  # every evaluation asks for it
def _bayes(control: Normal, disease: Normal, control_weight: float, disease_weight: float) -> float:
    """Accuracy contributed by one group: integral of the larger of two weighted densities."""
    spread = 10 * max(control.sd, disease.sd)
    if spread == 0:  # two points: they are told apart unless they coincide
        separable = control.mean != disease.mean
        return control_weight + disease_weight if separable else max(control_weight, disease_weight)
    low, high = min(control.mean, disease.mean) - spread, max(control.mean, disease.mean) + spread

    def larger(magnitude: float) -> float:
        return max(control_weight * control.pdf(magnitude), disease_weight * disease.pdf(magnitude))

    return quad(larger, low, high, limit=400, points=[control.mean, disease.mean])[0]
