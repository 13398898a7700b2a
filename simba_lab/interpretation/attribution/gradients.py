"""Gradients of a score with respect to volumes: batched over subjects and steps of a path, in bounded memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.interpretation.recording import hooked
from simba_lab.training.networks import logit

# Activations of one forward pass on a processor: more of them leave its caches, which costs more
# than calls do.
GRAIN_BYTES = 24e6
# Copies of a volume that a method holds besides the activations: image, start, difference,
# gradient, map, noise.
COPIES = 8
# Gradients and reordered copies that a layer needs beside what is saved, in units of the largest
# saved activation.
WORKSPACE = 4


class Scorer(nn.Module):
    """A private copy of a network that gives one number per volume, the logit or one output, and wants no weight gradients.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes (N, 1, X, Y, Z). The copy is in evaluation mode; the network itself
        is left alone.
    target : int, optional
        The output to explain; by default the logit of the disease, see
        `simba_lab.training.networks.logit`.
    """

    def __init__(self, model: nn.Module, target: int | None = None) -> None:
        super().__init__()
        self.network, self.target = copy.deepcopy(model), target
        self.eval().requires_grad_(False)
        _simplify_norms(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):  # a third faster
                layer.to(memory_format=torch.channels_last_3d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score of each volume, shape (N,)."""
        output = self.network(x)
        if self.target is None:
            return logit(output)
        columns = output.shape[1] if output.ndim == 2 else 1
        if not 0 <= self.target < columns:
            raise SimbaError(
                "target",
                self.target,
                f"an integer from 0 to {columns - 1}, an output of the network",
            )
        return output[:, self.target] if output.ndim == 2 else output


class _Affine(nn.Module):
    """What batch normalisation does when its statistics are fixed; its derivative needs no activations."""

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        scale = torch.rsqrt(norm.running_var + norm.eps)
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        self.register_buffer("scale", scale.detach().view(-1, 1, 1, 1))
        self.register_buffer("shift", shift.detach().view(-1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def _simplify_norms(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        watched = child._forward_hooks or child._forward_pre_hooks
        if type(child) is nn.BatchNorm3d and child.running_var is not None and not watched:
            parent._modules[name] = _Affine(child)
        else:
            _simplify_norms(child)


class _StandIn(nn.Module):
    """Stands where the first layer was and gives out what is put into it, whatever it is asked."""

    value: torch.Tensor

    def forward(self, _x: torch.Tensor) -> torch.Tensor:
        return self.value


@dataclass(frozen=True, eq=False)
class Reader:
    """A scorer in two parts: an affine first layer (`head`), and all that follows.

    A path from a start to an image is a straight line after an affine layer too: the layer is
    evaluated at both ends alone, and since gradients add up before it as well as after it, the sum
    over the path is taken through it once.

    Parameters
    ----------
    scorer : Scorer
    head : torch.nn.Module
        The identity if the network has no such layer.
    stand_in : _StandIn or None
    """

    scorer: Scorer
    head: nn.Module
    stand_in: _StandIn | None
    place: tuple[nn.Module, str] | None
    blank: torch.Tensor

    def rest(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the score, shape (N,), given what the first layer gave."""
        if self.stand_in is None:
            return self.scorer(hidden)
        parent, name = self.place
        self.stand_in.value = hidden
        parent._modules[name] = self.stand_in
        try:
            return self.scorer(self.blank.expand(len(hidden), *self.blank.shape[1:]))
        finally:
            parent._modules[name] = self.head
            del self.stand_in.value

    def gradient(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the derivative of each score by what the first layer gave, in its shape."""
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            # A copy, because layers that work in place may not write to a leaf.
            score = self.rest(hidden.clone())
            return torch.autograd.grad(
                score.sum(), hidden, allow_unused=True, materialize_grads=True
            )[0]

    def back(self, image: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Take a derivative by what the first layer gave back to the voxels."""
        if self.stand_in is None:
            return gradient
        image = image.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.head(image), image, gradient)[0]


def reader_of(scorer: Scorer, volume: torch.Tensor, *, split: bool = True) -> Reader:
    """Return a scorer with its first layer taken apart, if that is affine and all that looks at the volume.

    The second part is checked to give the same score without the volume (it sees NaN in its place)
    for arbitrary numbers.

    Parameters
    ----------
    scorer : Scorer
    volume : tensor, shape (1, 1, X, Y, Z)
    split : bool
    """
    whole = Reader(scorer, nn.Identity(), None, None, volume)
    places = {
        id(module): (parent, name)
        for parent in scorer.modules()
        for name, module in parent.named_children()
    }
    first = next(
        (m for m in scorer.modules() if isinstance(m, nn.Conv3d) and m.in_channels == 1), None
    )
    if first is None or not split or first._forward_hooks or first._forward_pre_hooks:
        return whole
    blank = torch.full((1, 1, 1, 1, 1), torch.nan, device=volume.device, dtype=volume.dtype).expand(
        volume.shape
    )
    parts = Reader(scorer, first, _StandIn(), places[id(first)], blank)
    noise = stream(0, "attribution", "first layer").standard_normal(volume.shape, np.float32)
    trial = 3 * torch.from_numpy(noise).to(volume)
    with torch.no_grad():
        expected = scorer(trial)
        try:
            found = parts.rest(first(trial))
        except (
            RuntimeError,
            ValueError,
            AssertionError,
        ):  # networks that look at their input before they use it
            return whole
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    return parts if same else whole


def costs(scorer: Scorer, volume: torch.Tensor) -> tuple[float, float]:
    """Return the bytes of all activations that a gradient keeps for one volume, and those of the largest of them.

    The shapes are worked out without numbers (on PyTorch's device ``meta``), so that nothing large
    is ever allocated; a network whose flow depends on numbers is run.
    """
    try:
        return _saved(copy.deepcopy(scorer).to("meta"), volume.to("meta"))
    except (RuntimeError, NotImplementedError):
        return _saved(scorer, volume)


def _saved(scorer: Scorer, volume: torch.Tensor) -> tuple[float, float]:
    kept: dict[int, torch.UntypedStorage] = {}
    own = {
        parameter.untyped_storage()._cdata
        for parameter in (*scorer.parameters(), *scorer.buffers())
    }

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scorer(volume.detach().requires_grad_())
    sizes = [storage.nbytes() for storage in kept.values()]
    return float(sum(sizes)), float(max([*sizes, volume.nbytes]))


def check_differentiable(scorer: Scorer, volume: torch.Tensor) -> None:
    """Refuse a network through which no derivative reaches the voxels, and say at which layer it ends.

    Raises
    ------
    SimbaError
        If a layer gives a result without a derivative, or one of zero although its result changes.
    """
    ran: list[tuple[str, torch.Tensor]] = []
    leaves = [
        name
        for name, module in scorer.named_modules()
        if name and not any(True for _ in module.children())
    ]

    def note(name: str, _inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                output.retain_grad()
            ran.append((name.removeprefix("network."), output))

    x = volume.detach().requires_grad_()
    with torch.enable_grad(), hooked(scorer, leaves, note):
        score = scorer(x.clone())
    if score.requires_grad:
        score.sum().backward()
        if x.grad is not None and x.grad.abs().max() > 0:
            return
        with torch.no_grad():
            other = scorer(2 * volume + 1)
        if torch.equal(other, score):
            return  # a constant
        # The derivative is lost in the layer after the last one whose output does not matter any
        # more.
        silent = [
            place
            for place, (_, output) in enumerate(ran)
            if output.grad is None or not output.grad.any()
        ]
        layer = ran[min(max(silent, default=-1) + 1, len(ran) - 1)][0] if ran else "forward"
    else:
        layer = next(
            (name for name, output in ran if not output.requires_grad), "after the last layer"
        )
    raise SimbaError(
        "model",
        f"no derivative at layer {layer}",
        "differentiable from the score to the voxels",
        "Put a smooth layer (a sigmoid, say) in its place, or use occlusion or shapley, which need no derivative.",
    )


@contextmanager
def seeded(seed: int, subject: int | str, purpose: str) -> Iterator[None]:
    """Let Captum, which draws from the global generator, draw from a stream of its own; nobody else's stream moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, subject, purpose).integers(0, 2**62)))
        yield


def saliency(reader: Reader, images: torch.Tensor) -> torch.Tensor:
    """Return the derivative of the score by each voxel, shape (N, 1, X, Y, Z)."""
    with torch.no_grad():
        hidden = reader.head(images)
    return reader.back(images, reader.gradient(hidden))


def integrated_gradients(
    reader: Reader, images: torch.Tensor, starts: torch.Tensor, *, points: np.ndarray, chunk: int
) -> torch.Tensor:
    """Return the mean of integrated gradients over points of the path, shape (N, 1, X, Y, Z).

    Parameters
    ----------
    reader : Reader
    images, starts : tensor, shape (N, 1, X, Y, Z)
    points : ndarray, shape (steps,)
        From 0 at the start to 1 at the image. The middles of equal parts give the integral by the
        midpoint rule; gradients of networks with kinks are too rough for Gauss-Legendre's, which
        spreads points thinly in the middle, to pay.
    chunk : int
        Gradients in one pass.

    References
    ----------
    Sundararajan et al. (2017), "Axiomatic attribution for deep networks", eq. 1.
    """
    places = torch.from_numpy(points).float().to(images.device)
    with torch.no_grad():
        low = reader.head(starts)
        span = reader.head(images) - low
    total = torch.zeros_like(span)
    axes = (1,) * (span.ndim - 1)
    for subject, step in _pairs(len(images), len(points), chunk, images.device):
        gradient = reader.gradient(
            torch.addcmul(low[subject], places[step].view(-1, *axes), span[subject])
        )
        total.index_add_(0, subject, gradient)
    return (images - starts) * reader.back(images, total / len(points))


def smooth_gradients(
    reader: Reader,
    images: torch.Tensor,
    subjects: list[int | str],
    *,
    samples: int,
    noise: float,
    seed: int,
    chunk: int,
) -> torch.Tensor:
    """Return the mean derivative over noisy copies of each volume, shape (N, 1, X, Y, Z).

    Noise comes in pairs of opposite sign, which saves half of the draws and averages out what is
    linear in it. That of a subject comes from its own stream, whatever else is in the batch.

    References
    ----------
    Smilkov et al. (2017), "SmoothGrad: removing noise by adding noise", eq. 2 of section 3;
    antithetic variates as in Owen (2013), "Monte Carlo theory, methods and examples", section 8.2.
    """
    drawn = [stream(seed, subject, "attribution noise") for subject in subjects]
    with torch.no_grad():
        clean = reader.head(images)
    total = torch.zeros_like(clean)
    for subject, draw in _pairs(len(images), math.ceil(samples / 2), chunk, images.device):
        added = np.stack(
            [
                drawn[number].standard_normal(images.shape[1:], np.float32)
                for number in subject.tolist()
            ]
        )
        with torch.no_grad():
            noisy = reader.head(
                torch.from_numpy(added).to(images.device).mul_(noise).add_(images[subject])
            )
        total.index_add_(0, subject, reader.gradient(noisy))
        paired = draw < samples // 2  # the last of an odd number has no opposite
        if paired.any():
            subject, noisy = subject[paired], noisy[paired]
            total.index_add_(0, subject, reader.gradient(2 * clean[subject] - noisy))
    return reader.back(images, total / samples)


def _pairs(
    count: int, steps: int, chunk: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield all pairs of subject and step in pieces, the steps of a subject next to each other."""
    for start in range(0, count * steps, chunk):
        pair = torch.arange(start, min(start + chunk, count * steps), device=device)
        yield torch.div(pair, steps, rounding_mode="floor"), pair % steps
