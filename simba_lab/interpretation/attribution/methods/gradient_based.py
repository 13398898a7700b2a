"""Methods that need the derivative of the output by the voxels, and nothing else of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, Positive, Seed, positive
from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.methods.method import Batch, Method


@checks_arguments
@dataclass(frozen=True)
class Saliency(Method):
    """The derivative of the output by each voxel, with its sign.

    References
    ----------
    Simonyan et al. (2014), "Deep inside convolutional networks", sec. 3.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.Saliency()
    Saliency()
    """

    name = "saliency"
    splits = True

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the derivative by each voxel, shape (N, 1, X, Y, Z)."""
        return _derivative(batch)


@checks_arguments
@dataclass(frozen=True)
class InputXGradient(Method):
    """The derivative of the output by each voxel, times the voxel.

    References
    ----------
    Shrikumar et al. (2016), "Not just a black box", arXiv:1605.01713.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.InputXGradient()
    InputXGradient()
    """

    name = "input_x_gradient"
    splits = True

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return derivatives times images, shape (N, 1, X, Y, Z)."""
        return batch.images * _derivative(batch)


def _derivative(batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        hidden = batch.network.first_layer(batch.images)
    return batch.network.to_voxels(batch.images, batch.network.gradient(hidden))


@checks_arguments
@dataclass(frozen=True)
class IntegratedGradients(Method):
    """The gradient along a straight path from the baseline, times the change of each voxel.

    Parameters
    ----------
    steps : int
        Points along the path, to begin with: midpoints of equal intervals. Gauss-Legendre's rule
        spreads points thinly in the middle, too thinly for gradients of networks with kinks.
    tolerance : float, optional
        Subjects whose completeness error is larger get three times the steps, up to three times.
        None: never.

    References
    ----------
    Sundararajan et al. (2017), "Axiomatic attribution for deep networks", eq. 1 and proposition 1
    (completeness).

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.IntegratedGradients(steps=16)
    IntegratedGradients(steps=16, tolerance=0.01)
    """

    name = "integrated_gradients"
    has_baseline = complete = splits = True
    steps: Count = 32
    tolerance: float | None = 0.01

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            positive("tolerance", self.tolerance, remedy="None refines no map.")

    @property
    def passes(self) -> int:
        """Gradients of each volume that go through the network together."""
        return self.steps

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return what each voxel contributes to the output, shape (N, 1, X, Y, Z)."""
        points = midpoints(self.steps) if batch.points is None else batch.points
        network, images, baselines = batch.network, batch.images, batch.starts
        positions = torch.from_numpy(points).float().to(images.device)
        with torch.no_grad():
            origin = network.first_layer(baselines)
            span = network.first_layer(images) - origin
        total = torch.zeros_like(span)
        axes = (1,) * (span.ndim - 1)
        for subject, step in _pairs(batch, len(points)):
            weights = positions[step].view(-1, *axes)
            hidden = torch.addcmul(origin[subject], weights, span[subject])
            total.index_add_(0, subject, network.gradient(hidden))
        return (images - baselines) * network.to_voxels(images, total / len(points))


def midpoints(intervals: int) -> np.ndarray:
    """Return the midpoints of equal intervals from 0 to 1, shape (intervals,)."""
    return (np.arange(intervals) + 0.5) / intervals


def _pairs(batch: Batch, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield all pairs of subject and step in chunks, the steps of a subject next to each other."""
    device, count = batch.images.device, len(batch.images) * steps
    for start in range(0, count, batch.chunk):
        pair = torch.arange(start, min(start + batch.chunk, count), device=device)
        yield torch.div(pair, steps, rounding_mode="floor"), pair % steps


@checks_arguments
@dataclass(frozen=True)
class SmoothGrad(Method):
    """The mean derivative over noisy copies of each volume.

    Noise comes in pairs of opposite sign, which saves half of the draws and cancels what is linear
    in it.

    Parameters
    ----------
    samples : int
        Noisy copies.
    noise : float
        Standard deviation of the noise, as a share of white matter.
    seed : int
        Of the noise; each subject has a stream of its own.

    References
    ----------
    Smilkov et al. (2017), "SmoothGrad: removing noise by adding noise", eq. 2 of section 3;
    antithetic variates as in Owen (2013), "Monte Carlo theory, methods and examples", section 8.2.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.SmoothGrad(samples=8)
    SmoothGrad(samples=8, noise=0.2, seed=0)
    """

    name = "smooth_grad"
    splits = True
    samples: Count = 20
    noise: Positive = 0.2
    seed: Seed = 0

    @property
    def passes(self) -> int:
        """Gradients of each volume that go through the network together."""
        return self.samples

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the mean derivative, shape (N, 1, X, Y, Z)."""
        network, images = batch.network, batch.images
        streams = [stream(self.seed, subject, "attribution noise") for subject in batch.subjects]
        with torch.no_grad():
            clean = network.first_layer(images)
        total = torch.zeros_like(clean)
        for subject, draw in _pairs(batch, math.ceil(self.samples / 2)):
            draws = [
                streams[number].standard_normal(images.shape[1:], np.float32)
                for number in subject.tolist()
            ]
            disturbance = torch.from_numpy(np.stack(draws)).to(images.device).mul_(self.noise)
            with torch.no_grad():
                noisy = network.first_layer(disturbance.add_(images[subject]))
            total.index_add_(0, subject, network.gradient(noisy))
            paired = draw < self.samples // 2  # the last of an odd number has no opposite
            if paired.any():
                subject, noisy = subject[paired], noisy[paired]
                total.index_add_(0, subject, network.gradient(2 * clean[subject] - noisy))
        return network.to_voxels(images, total / self.samples)
