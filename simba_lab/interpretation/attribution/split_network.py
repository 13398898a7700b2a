"""A network in two parts: sums of gradients are taken through its first layer only once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.explained_network import ExplainedNetwork


class _StandIn(nn.Module):
    """Takes the place of the first layer and returns a given output, whatever its input is."""

    value: torch.Tensor

    def forward(self, _x: torch.Tensor) -> torch.Tensor:
        return self.value


@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """An explained network in two parts: an affine first layer, and all that follows.

    A path from a baseline to an image is a straight line after an affine layer too. The layer is
    therefore evaluated at both ends alone, and since gradients add up before it as well as after
    it, the sum over the path is taken through it once.

    Parameters
    ----------
    explained : ExplainedNetwork
    first_layer : torch.nn.Module
        The identity if the network has no such layer.
    stand_in : _StandIn or None
        What replaces the first layer while the rest of the network runs.
    place : (torch.nn.Module, str) or None
        The parent of the first layer, and its name there.
    blank : tensor, shape (1, 1, X, Y, Z)
        What the rest of the network is given in place of a volume.
    """

    explained: ExplainedNetwork
    first_layer: nn.Module
    stand_in: _StandIn | None
    place: tuple[nn.Module, str] | None
    blank: torch.Tensor

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output, shape (N,), given the output of the first layer."""
        if self.stand_in is None or self.place is None:
            return self.explained(hidden)
        parent, name = self.place
        self.stand_in.value = hidden
        parent._modules[name] = self.stand_in
        try:
            return self.explained(self.blank.expand(len(hidden), *self.blank.shape[1:]))
        finally:
            parent._modules[name] = self.first_layer
            del self.stand_in.value

    def gradient(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the derivative of each output by the output of the first layer, in its shape."""
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            # A copy, because layers that work in place may not write to a leaf.
            output = self.output(hidden.clone()).sum()
            (gradient,) = torch.autograd.grad(
                output, hidden, allow_unused=True, materialize_grads=True
            )
        return gradient

    def to_voxels(self, images: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Take a derivative by the output of the first layer back to the voxels."""
        if self.stand_in is None:
            return gradient
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.first_layer(images), images, gradient)[0]


def split_network(
    explained: ExplainedNetwork, volume: torch.Tensor, *, split: bool = True
) -> SplitNetwork:
    """Return an explained network with its first layer split off, if only that looks at the volume.

    The second part is checked to give the same output without the volume (it sees NaN in its place)
    for arbitrary numbers.

    Parameters
    ----------
    explained : ExplainedNetwork
    volume : tensor, shape (1, 1, X, Y, Z)
    split : bool
        False: leave it whole.
    """
    undivided = SplitNetwork(explained, nn.Identity(), None, None, volume)
    places = {
        id(module): (parent, name)
        for parent in explained.modules()
        for name, module in parent.named_children()
    }
    convolutions = (layer for layer in explained.modules() if isinstance(layer, nn.Conv3d))
    first_layer = next((layer for layer in convolutions if layer.in_channels == 1), None)
    if (
        first_layer is None
        or not split
        or first_layer._forward_hooks
        or first_layer._forward_pre_hooks
    ):
        return undivided
    blank = volume.new_full((1, 1, 1, 1, 1), torch.nan).expand(volume.shape)
    halves = SplitNetwork(explained, first_layer, _StandIn(), places[id(first_layer)], blank)
    noise = stream(0, "attribution", "first layer").standard_normal(volume.shape, np.float32)
    trial = 3 * torch.from_numpy(noise).to(volume)
    with torch.no_grad():
        expected = explained(trial)
        try:
            output = halves.output(first_layer(trial))
        except (RuntimeError, ValueError, AssertionError):
            return undivided  # the network looks at its input before it uses it
    equal = output.shape == expected.shape and torch.allclose(
        output, expected, rtol=1e-4, atol=1e-5
    )
    return halves if equal else undivided
