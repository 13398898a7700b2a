"""Methods that read layers, or replace what happens in their backward pass."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from captum import attr
from torch import nn

from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.attribution.methods.method import Batch, Method
from simba_lab.interpretation.attribution.scorer import Scorer
from simba_lab.interpretation.hooks import hooked, layer_names


@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT's contributions by the rescale rule.

    They add up to the change of the score from the baseline, as far as Captum has a rule for every
    non-linear layer (ReLU, ELU, leaky ReLU, sigmoid, tanh, softplus, max pooling); others are taken
    as linear.

    References
    ----------
    Shrikumar et al. (2017), "Learning important features through propagating activation
    differences", eq. 1 and sec. 3.5.1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.DeepLift()
    DeepLift()
    """

    name = "deep_lift"
    has_baseline = complete = hooks = True
    activations = 6  # the baseline runs as well, and inputs and outputs of layers are kept

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return what each voxel contributes to the score, shape (N, 1, X, Y, Z)."""
        with warnings.catch_warnings():  # Captum warns that it sets hooks; it removes them
            warnings.simplefilter("ignore")
            return attr.DeepLift(batch.scorer).attribute(batch.images, batch.baselines)


@dataclass(frozen=True)
class GuidedBackprop(Method):
    """The derivative of the score by each voxel, with negative derivatives dropped at each ReLU.

    References
    ----------
    Springenberg et al. (2015), "Striving for simplicity: the all convolutional net", sec. 3.4.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.GuidedBackprop()
    GuidedBackprop()
    """

    name = "guided_backprop"
    hooks = True
    activations = 2

    def check(self, scorer: Scorer, volume: torch.Tensor) -> None:
        """Refuse layers that work in place, and networks without a ReLU that is a layer."""
        super().check(scorer, volume)
        _check_relu(scorer, self.name)

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return guided derivatives, shape (N, 1, X, Y, Z)."""
        return _guided(batch)


def _check_relu(scorer: Scorer, method: str) -> None:
    if not any(isinstance(layer, nn.ReLU) for layer in scorer.network.modules()):
        raise SimbaError(
            "model",
            type(scorer.network).__name__,
            f"a network with nn.ReLU layers for {method}",
            "Without them guided backpropagation is the plain gradient: use saliency.",
        )


def _guided(batch: Batch) -> torch.Tensor:
    with warnings.catch_warnings():  # Captum warns that it sets hooks; it removes them
        warnings.simplefilter("ignore")
        return attr.GuidedBackprop(batch.scorer).attribute(batch.images)


@dataclass(frozen=True)
class GradCAM(Method):
    """The channels of a layer, weighted by their mean derivatives, interpolated to the voxels.

    Parameters
    ----------
    layer : str, optional
        A submodule with a spatial extent; by default the last block.

    References
    ----------
    Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks", eqs. 1 and 2.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.GradCAM(layer="block3")
    GradCAM(layer='block3')
    """

    name = "grad_cam"
    hooks = True
    activations = 2
    layer: str | None = None

    def check(self, scorer: Scorer, volume: torch.Tensor) -> None:
        """Refuse layers that work in place, and a layer without maps of at least two voxels."""
        super().check(scorer, volume)
        layer, outputs = self._layer(scorer), []
        with (
            torch.no_grad(),
            hooked(scorer.network, [layer], lambda _name, _inputs, output: outputs.append(output)),
        ):
            scorer(volume)
        shape = tuple(outputs[0].shape) if outputs and isinstance(outputs[0], torch.Tensor) else ()
        if len(shape) != 5 or np.prod(shape[2:]) < 2:
            raise SimbaError(
                "layer",
                f"{layer}, whose output has the shape {shape}",
                "a layer with a spatial extent: (N, channels, X, Y, Z)",
                "Name a block before the volume is averaged away.",
            )

    def _layer(self, scorer: Scorer) -> str:
        return layer_names(scorer.network, None if self.layer is None else [self.layer])[-1]

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the weighted channels, at least 0, shape (N, 1, X, Y, Z)."""
        module = batch.scorer.network.get_submodule(self._layer(batch.scorer))
        images = batch.images.clone().requires_grad_()
        coarse = attr.LayerGradCam(batch.scorer, module).attribute(images, relu_attributions=True)
        shape = tuple(images.shape[2:])
        return attr.LayerAttribution.interpolate(
            coarse.detach(), shape, interpolate_mode="trilinear"
        )


@dataclass(frozen=True)
class GuidedGradCAM(GradCAM):
    """The product of guided backpropagation and Grad-CAM.

    Parameters
    ----------
    layer : str, optional
        As for `GradCAM`.

    References
    ----------
    Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks", sec. 3.2.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.GuidedGradCAM()
    GuidedGradCAM(layer=None)
    """

    name = "guided_grad_cam"

    def check(self, scorer: Scorer, volume: torch.Tensor) -> None:
        """Refuse what `GuidedBackprop` and `GradCAM` refuse."""
        Method.check(self, scorer, volume)
        _check_relu(scorer, self.name)
        super().check(scorer, volume)

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the product, shape (N, 1, X, Y, Z)."""
        return _guided(batch) * super().maps(batch)
