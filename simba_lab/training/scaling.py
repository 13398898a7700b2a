"""How a network wants its intensities: z-scores, a range, percentiles, or as a function says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError, Words

METHODS = ("zscore", "minmax", "percentile")


@checks_arguments
@dataclass(frozen=True)
class Scaling:
    """How the intensities of each volume are scaled, by that volume alone.

    Parameters
    ----------
    method : {"zscore", "minmax", "percentile"}
        Mean 0 and standard deviation 1; smallest and largest value onto `onto`; or two percentiles
        onto `onto`, with what lies beyond clipped.
    over : {"brain", "volume"}, optional
        Which voxels count: those that are not 0, while the others stay 0; or all. By default the
        brain for z-scores, and the volume for the others.
    percentiles : tuple of float
        From 0 to 100, for ``"percentile"``.
    onto : tuple of float
        For ``"minmax"`` and ``"percentile"``.

    Examples
    --------
    >>> import simba_lab as sb
    >>> import torch
    >>> scaling = sb.training.Scaling("minmax", onto=(-1, 1))
    >>> scaling(torch.tensor([0.0, 1.0, 4.0]).reshape(1, 1, 3, 1, 1)).flatten().tolist()
    [-1.0, -0.5, 1.0]
    """

    method: str = "zscore"
    over: str | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    onto: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        choice("method", self.method, METHODS)
        if self.over is not None:
            choice("over", self.over, ("brain", "volume"))
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise SimbaError("percentiles", self.percentiles, "two numbers, 0 <= low < high <= 100")
        if not self.onto[0] < self.onto[1]:
            raise SimbaError("onto", self.onto, "two numbers, the smaller first")

    def __call__(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return scaled volumes, shape (N, C, X, Y, Z)."""
        rows = volumes.flatten(1)
        over = self.over or ("brain" if self.method == "zscore" else "volume")
        counted = rows != 0 if over == "brain" else torch.ones_like(rows, dtype=torch.bool)
        scale = self._zscores if self.method == "zscore" else self._ranged
        scaled = scale(rows, counted)
        # An image without any voxel that counts has no scale either.
        rest = torch.where(counted.any(1, keepdim=True), 0.0, torch.nan).to(rows)
        return torch.where(counted, scaled, rest).reshape(volumes.shape)

    def _zscores(self, rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        count = counted.sum(1, keepdim=True)
        mean = torch.where(counted, rows, 0).sum(1, keepdim=True) / count
        distance = torch.where(counted, rows - mean, 0)
        return distance / (distance.square().sum(1, keepdim=True) / count).sqrt()

    def _ranged(self, rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        percentiles = self.percentiles if self.method == "percentile" else (0.0, 100.0)
        ordered = torch.where(counted, rows, torch.inf).sort(1).values
        last = counted.sum(1, keepdim=True) - 1
        low, high = (_quantile(ordered, last, value / 100) for value in percentiles)
        share = (rows - low) / (high - low)
        if self.method == "percentile":
            share = share.clamp(0, 1)
        return self.onto[0] + (self.onto[1] - self.onto[0]) * share


def _quantile(ordered: torch.Tensor, last: torch.Tensor, share: float) -> torch.Tensor:
    """Return a quantile of each row, shape (N, 1), as `numpy.quantile` interpolates it."""
    position = last.clamp(min=0).double() * share
    below, above = position.floor().long(), position.ceil().long()
    weight = (position - below).to(ordered)
    low = ordered.gather(1, below)
    return low + weight * (ordered.gather(1, above) - low)


@dataclass(frozen=True)
class OwnFunction:
    """A function of somebody's that scales one volume, a tensor of shape (X, Y, Z), at a time."""

    function: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return scaled volumes, shape (N, 1, X, Y, Z)."""
        return torch.stack([self._scaled(volume) for volume in volumes[:, 0]])[:, None]

    def _scaled(self, volume: torch.Tensor) -> torch.Tensor:
        allowed = f"a function that returns a tensor of the shape it is given, {[*volume.shape]}"
        remedy = "It is given one volume at a time, a tensor of shape (X, Y, Z)."
        try:
            scaled = self.function(volume)
        except Exception as error:  # whatever a function of others raises
            if volume.is_meta:
                raise
            value = f"one that fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
            raise SimbaError("intensity", Words(value), allowed, remedy) from error
        if not isinstance(scaled, torch.Tensor):
            raise SimbaError(
                "intensity", Words(f"one that gives {type(scaled).__name__}"), allowed, remedy
            )
        if scaled.shape != volume.shape:
            value = f"one that gives the shape {[*scaled.shape]}"
            raise SimbaError("intensity", Words(value), allowed, remedy)
        return scaled.to(volume.dtype)


def scaled(scaling: Scaling | OwnFunction | None, volumes: torch.Tensor) -> torch.Tensor:
    """Return volumes (N, 1, X, Y, Z) as a scaling makes them.

    Raises
    ------
    SimbaError
        If finite volumes become NaN or infinite.
    """
    if scaling is None:
        return volumes
    result = scaling(volumes)
    if result.is_meta or torch.isfinite(result).all() or not torch.isfinite(volumes).all():
        return result
    if isinstance(scaling, OwnFunction):
        allowed = "a function that gives finite numbers for every volume"
        raise SimbaError("intensity", Words("one that gives NaN or infinity"), allowed)
    bad = int((~torch.isfinite(result).flatten(1).all(1)).nonzero()[0, 0])
    value = f"volume {bad} of the batch, the same number everywhere"
    remedy = "An empty image has no scale."
    raise SimbaError("volumes", Words(value), f"images that vary, for {scaling.method!r}", remedy)


def scaling_of(intensity: str | Scaling | Callable | None) -> Scaling | OwnFunction | None:
    """Return what was given by its name, with its settings, or as a function."""
    if intensity is None or isinstance(intensity, Scaling):
        return intensity
    if isinstance(intensity, str):
        return Scaling(choice("intensity", intensity, METHODS))
    if callable(intensity):
        return OwnFunction(intensity)
    allowed = f"None, one of {', '.join(METHODS)}, a Scaling or a function"
    raise SimbaError("intensity", intensity, allowed)
