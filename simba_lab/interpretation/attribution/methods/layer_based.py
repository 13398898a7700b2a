"""Methods that read layers, or replace what happens in their backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from captum import attr
from torch import nn

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import positive
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.layer_naming import core_of, has_blocks, layers_by_name
from simba_lab.core.network_adapter import Adapter
from simba_lab.interpretation.attribution.explained_network import ExplainedNetwork
from simba_lab.interpretation.attribution.methods.method import Batch, Method
from simba_lab.interpretation.attribution.separation import (
    graph_of,
    layer_before,
    operation,
    separate,
    without_rule,
)
from simba_lab.interpretation.hooks import hooked, layer_names
from simba_lab.interpretation.layer_table import Activations, last_maps


@checks_arguments
@dataclass(frozen=True)
class DeepLift(Method):
    """DeepLIFT's contributions by the rescale rule.

    They add up to the change of the output from the baseline if every non-linear operation is a
    layer that Captum has a rule for (ReLU, ELU, leaky ReLU, sigmoid, tanh, softplus, softmax, max
    pooling whose windows do not overlap). A network with others is refused.

    Parameters
    ----------
    tolerance : float, optional
        Largest completeness error of a subject, as a share of the mean change of the output. None:
        any, as the column ``completeness_error`` says.

    References
    ----------
    Shrikumar et al. (2017), "Learning important features through propagating activation
    differences", eq. 1 and sec. 3.5.1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.DeepLift()
    DeepLift(tolerance=0.05)
    """

    name = "deep_lift"
    has_baseline = complete = hooks = True
    activations = 6  # the baseline runs as well, and inputs and outputs of layers are kept
    tolerance: float | None = 0.05

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            positive("tolerance", self.tolerance, remedy="None accepts any.")

    def check(self, explained: ExplainedNetwork, volume: torch.Tensor) -> None:
        """Give each call of an activation a module of its own, so that its rule holds."""
        super().check(explained, volume)
        separate(explained, volume)

    def check_sums(
        self, error: np.ndarray, explained: ExplainedNetwork, volume: torch.Tensor
    ) -> None:
        """Refuse maps that do not add up, naming the layer that the rules do not fit."""
        largest = float(np.abs(error).max())
        if self.tolerance is None or largest <= self.tolerance:
            return
        value = f"{largest:.3g}, with {without_rule(explained, volume)}"
        remedy = (
            "DeepLIFT has no rule for it: take integrated_gradients, or give DeepLift a larger "
            "tolerance, and read the maps with it."
        )
        allowed = f"at most the tolerance of {self.tolerance}"
        raise SimbaError("completeness error of deep_lift", Words(value), allowed, remedy)

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return what each voxel contributes to the output, shape (N, 1, X, Y, Z)."""
        with warnings.catch_warnings(), _any_operation():
            warnings.simplefilter("ignore")  # Captum warns that it sets hooks; it removes them
            return attr.DeepLift(batch.explained).attribute(batch.images, batch.baselines)


@contextmanager
def _any_operation() -> Iterator[None]:
    """Allow Captum to undo max pooling, which PyTorch does not call deterministic."""
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)


@checks_arguments
@dataclass(frozen=True)
class GuidedBackprop(Method):
    """The derivative of the output by each voxel, with negative derivatives dropped at each ReLU.

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

    def check(self, explained: ExplainedNetwork, volume: torch.Tensor) -> None:
        """Refuse layers that work in place, and networks without a ReLU that is a layer."""
        super().check(explained, volume)
        _check_relu(explained, volume, self.name)

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return guided derivatives, shape (N, 1, X, Y, Z)."""
        return _guided(batch)


def _check_relu(explained: ExplainedNetwork, volume: torch.Tensor, method: str) -> None:
    if not any(isinstance(layer, nn.ReLU) for layer in explained.network.modules()):
        raise SimbaError(
            "model",
            type(explained.network).__name__,
            f"a network with nn.ReLU layers for {method}",
            "Without them guided backpropagation is the plain gradient: use saliency.",
        )
    ends, operations = graph_of(explained, volume)
    for node in operations:
        if operation(node) == "Relu" and node not in ends:
            problem = f"The network has a ReLU as a function, {layer_before(node, ends)}."
            remedy = f"For {method} write it as a layer, nn.ReLU(): others alone would be guided."
            raise SimbaError.problem(problem, remedy)


def _guided(batch: Batch) -> torch.Tensor:
    with warnings.catch_warnings():  # Captum warns that it sets hooks; it removes them
        warnings.simplefilter("ignore")
        return attr.GuidedBackprop(batch.explained).attribute(batch.images)


@checks_arguments
@dataclass(frozen=True)
class GradCAM(Method):
    """The channels of a layer, weighted by their mean derivatives, interpolated to the voxels.

    Parameters
    ----------
    layer : str, optional
        A submodule with a spatial extent; by default the last block. Of a network without blocks
        the last such layer of those that verbs look at by default.

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

    def check(self, explained: ExplainedNetwork, volume: torch.Tensor) -> None:
        """Refuse layers that work in place, and a layer without maps of at least two voxels."""
        super().check(explained, volume)
        layer, outputs = self._layer(explained, volume), []
        with (
            torch.no_grad(),
            hooked(
                explained.network, [layer], lambda _name, _inputs, output: outputs.append(output)
            ),
        ):
            explained(volume)
        shape = tuple(outputs[0].shape) if outputs and isinstance(outputs[0], torch.Tensor) else ()
        maps = len(shape) == 5 and np.prod(shape[2:]) > 1
        module = layers_by_name(explained.network)[layer]
        if not maps or Activations.of(module, shape[1:]).channels_last:
            raise SimbaError(
                "layer",
                Words(f"{layer}, whose output has the shape {shape}"),
                "a layer with a spatial extent: (N, channels, X, Y, Z)",
                "Name a block before the volume is averaged away.",
            )

    def _layer(self, explained: ExplainedNetwork, volume: torch.Tensor) -> str:
        if self.layer is not None:
            return layer_names(explained.network, [self.layer])[-1]
        if has_blocks(core_of(explained.network)[1]):
            return layer_names(explained.network)[-1]
        layer = last_maps(explained.network, volume)
        if layer is None:
            allowed = f"a network with a layer of maps, (N, channels, X, Y, Z), for {self.name}"
            remedy = "Use integrated_gradients, saliency or occlusion, or name a layer of maps."
            raise SimbaError("model", Words("one without"), allowed, remedy)
        return layer

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the weighted channels, at least 0, shape (N, 1, X, Y, Z)."""
        network = batch.explained.network
        module = layers_by_name(network)[self._layer(batch.explained, batch.images[:1])]
        images = batch.images.clone().requires_grad_()
        cam = attr.LayerGradCam(batch.explained, module).attribute(images, relu_attributions=True)
        shape = tuple(images.shape[2:])
        seen = network.as_seen(images[:1]).shape[2:] if isinstance(network, Adapter) else shape
        maps = attr.LayerAttribution.interpolate(
            cam.detach(), tuple(seen), interpolate_mode="trilinear"
        )
        return network.as_scanned(maps, shape) if isinstance(network, Adapter) else maps


@checks_arguments
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

    def check(self, explained: ExplainedNetwork, volume: torch.Tensor) -> None:
        """Refuse what `GuidedBackprop` and `GradCAM` refuse."""
        Method.check(self, explained, volume)
        _check_relu(explained, volume, self.name)
        super().check(explained, volume)

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the product, shape (N, 1, X, Y, Z)."""
        return _guided(batch) * super().maps(batch)
