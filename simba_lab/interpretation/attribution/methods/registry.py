"""The methods by name."""

from __future__ import annotations

from simba_lab.core.checks import choice
from simba_lab.interpretation.attribution.methods.gradient_based import (
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from simba_lab.interpretation.attribution.methods.layer_based import (
    DeepLift,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
)
from simba_lab.interpretation.attribution.methods.method import Method
from simba_lab.interpretation.attribution.methods.perturbation_based import Occlusion, Shapley

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        IntegratedGradients,
        Saliency,
        InputXGradient,
        SmoothGrad,
        DeepLift,
        GuidedBackprop,
        GradCAM,
        GuidedGradCAM,
        Occlusion,
        Shapley,
    )
}


def method_of(method: str | Method) -> Method:
    """Return a method that was given by its name, with default settings, or with its settings."""
    return method if isinstance(method, Method) else METHODS[choice("method", method, METHODS)]()
