"""Captum's methods that need hooks or many evaluations, on batches of subjects, with what they cannot do refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from captum.attr import (
    DeepLift,
    GuidedBackprop,
    LayerAttribution,
    LayerGradCam,
    Occlusion,
    ShapleyValueSampling,
)
from torch import nn

from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.attribution.gradients import Scorer, seeded
from simba_lab.interpretation.recording import hooked, layer_names

# Methods that replace what happens in a layer's backward pass, or read a layer's output after the
# forward pass.
HOOKED = ("deep_lift", "guided_backprop", "grad_cam", "guided_grad_cam")
GRAD_CAM = ("grad_cam", "guided_grad_cam")


def check_layers(scorer: Scorer, method: str) -> None:
    """Refuse networks that a method would silently read wrongly, naming the layer.

    Raises
    ------
    SimbaError
        If a layer works in place, or guided backpropagation finds no ReLU that is a layer.
    """
    if method not in HOOKED:
        return
    modules = dict(scorer.network.named_modules())
    name = next(
        (name for name, module in modules.items() if getattr(module, "inplace", False)), None
    )
    if name is not None:
        raise SimbaError(
            "model",
            f"layer {name or type(scorer.network).__name__}, which works in place",
            f"without such layers for {method}",
            f"Set model.get_submodule({name!r}).inplace = False; its results stay the same.",
        )
    if method in ("guided_backprop", "guided_grad_cam") and not any(
        isinstance(m, nn.ReLU) for m in modules.values()
    ):
        raise SimbaError(
            "model",
            type(scorer.network).__name__,
            f"a network with nn.ReLU layers for {method}",
            "Without them guided backpropagation is the plain gradient: use saliency.",
        )


def grad_cam_layer(scorer: Scorer, layer: str | None, volume: torch.Tensor) -> str:
    """Return the layer that Grad-CAM looks at: the one given, or the last block.

    Raises
    ------
    UnknownNameError
        If there is no such layer.
    SimbaError
        If its activations are not maps of at least two voxels.
    """
    names = layer_names(scorer.network, None if layer is None else [layer])
    name, shapes = names[-1], []
    with (
        torch.no_grad(),
        hooked(scorer.network, [name], lambda _name, _inputs, output: shapes.append(output)),
    ):
        scorer(volume)
    shape = tuple(shapes[0].shape) if shapes and isinstance(shapes[0], torch.Tensor) else ()
    if len(shape) != 5 or np.prod(shape[2:]) < 2:
        raise SimbaError(
            "layer",
            f"{name}, whose output has the shape {shape}",
            "a layer with a spatial extent: (N, channels, X, Y, Z)",
            "Name a block before the volume is averaged away.",
        )
    return name


def deep_lift(scorer: Scorer, images: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return DeepLift's contributions (rescale rule), shape (N, 1, X, Y, Z).

    They add up to the change of the score from the start, as far as every non-linear layer is one
    that Captum has a rule for (ReLU, ELU, leaky ReLU, sigmoid, tanh, softplus, max pooling); others
    are taken as linear.

    References
    ----------
    Shrikumar et al. (2017), "Learning important features through propagating activation
    differences", eq. 1 and sec. 3.5.1.
    """
    with _quiet():
        return DeepLift(scorer).attribute(images, starts)


def guided_backprop(scorer: Scorer, images: torch.Tensor) -> torch.Tensor:
    """Return guided backpropagation: negative derivatives are dropped at each ReLU. Shape (N, 1, X, Y, Z).

    References
    ----------
    Springenberg et al. (2015), "Striving for simplicity: the all convolutional net", sec. 3.4.
    """
    with _quiet():
        return GuidedBackprop(scorer).attribute(images)


def grad_cam(scorer: Scorer, images: torch.Tensor, layer: str) -> torch.Tensor:
    """Return Grad-CAM of a layer, interpolated to the voxels, at least 0, shape (N, 1, X, Y, Z).

    References
    ----------
    Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks", eqs. 1 and 2.
    """
    module = scorer.network.get_submodule(layer)
    coarse = LayerGradCam(scorer, module).attribute(
        images.clone().requires_grad_(), relu_attributions=True
    )
    return LayerAttribution.interpolate(
        coarse.detach(), tuple(images.shape[2:]), interpolate_mode="trilinear"
    )


def guided_grad_cam(scorer: Scorer, images: torch.Tensor, layer: str) -> torch.Tensor:
    """Return the product of guided backpropagation and Grad-CAM, shape (N, 1, X, Y, Z).

    References
    ----------
    Selvaraju et al. (2017), sec. 3.2.
    """
    return guided_backprop(scorer, images) * grad_cam(scorer, images, layer)


def occlusion(
    scorer: Scorer, images: torch.Tensor, starts: torch.Tensor, *, window: int, chunk: int
) -> torch.Tensor:
    """Return by how much the score falls when a cube is replaced by the start, mean over the cubes that hold a voxel.

    Cubes of `window` voxels an axis overlap by half. Shape (N, 1, X, Y, Z).

    References
    ----------
    Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", sec. 4.2.
    """
    with torch.no_grad():
        return Occlusion(scorer).attribute(
            images,
            (1, window, window, window),
            strides=(1, *(max(1, window // 2),) * 3),
            baselines=starts,
            perturbations_per_eval=max(1, chunk // len(images)),
        )


def shapley(
    scorer: Scorer,
    image: torch.Tensor,
    start: torch.Tensor,
    labels: np.ndarray,
    *,
    samples: int,
    seed: int,
    subject: int | str,
    chunk: int,
) -> tuple[torch.Tensor, dict[int, float]]:
    """Return Shapley values of regions, spread evenly over their voxels, and by region number.

    The players are the regions; one that is absent shows the start. Values add up to the change of
    the score.

    Parameters
    ----------
    image, start : tensor, shape (1, 1, X, Y, Z)
    labels : ndarray of int, shape (X, Y, Z)
        Region number of each voxel of this subject; 0, what is in none, is a player too.
    samples : int
        Orders in which the regions are added.

    References
    ----------
    Castro et al. (2009), "Polynomial calculation of the Shapley value based on sampling", algorithm
    1.
    """
    numbers, players, counts = np.unique(labels, return_inverse=True, return_counts=True)
    mask = torch.from_numpy(players.reshape(labels.shape)).to(image.device)[None, None]
    with seeded(seed, subject, "shapley"), torch.no_grad():
        values = ShapleyValueSampling(scorer).attribute(
            image, start, feature_mask=mask, n_samples=samples, perturbations_per_eval=chunk
        )
    first = np.unique(players.ravel(), return_index=True)[1]
    regional = values[0, 0].flatten().cpu().numpy()[first]
    sizes = torch.from_numpy(counts).to(values)
    return values / sizes[mask], {
        int(number): float(value) for number, value in zip(numbers, regional, strict=True)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Captum warns that it sets hooks; it removes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
