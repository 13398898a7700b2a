"""3D convolutional networks with stable, named blocks. They work on any volumes, not only on those of this lab."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from simba_lab.errors import SimbaError

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
NORMS = {"batch": nn.BatchNorm3d, "group": lambda width: nn.GroupNorm(min(8, width), width)}


class SimBANet(nn.Module):
    """A small 3D CNN: blocks of convolution, halving, normalisation and activation, then a linear read-out.

    The blocks are the submodules ``block1``, ``block2``, ...; the output of a block is what probes and interventions call
    its activations.

    Parameters
    ----------
    widths : tuple of int
        Channels of each block.
    activation : {"relu", "gelu", "sigmoid"}
    norm : {"batch", "group"}
    stem : {"stride", "pool"}
        How the first block halves the volume: its convolution moves in steps of two voxels, or max pooling follows it as
        in the other blocks. The first block is the most expensive, and strides make training twice as fast.
    dropout : float
        Share of the pooled features dropped in training.
    seed : int
        Seed of the initial weights: networks with the same seed start equal.

    Notes
    -----
    Input: float tensor (N, 1, X, Y, Z). Output: the logit of the disease, shape (N, 1).
    """

    def __init__(
        self, widths: tuple[int, ...] = (8, 16, 32, 64), *, activation: str = "relu", norm: str = "batch",
        stem: str = "stride", dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if activation not in ACTIVATIONS:
            raise SimbaError("activation", activation, f"one of {', '.join(ACTIVATIONS)}")
        if norm not in NORMS:
            raise SimbaError("norm", norm, f"one of {', '.join(NORMS)}")
        if stem not in ("stride", "pool"):
            raise SimbaError("stem", stem, "one of stride, pool")
        if not widths or min(widths) < 1:
            raise SimbaError("widths", widths, "a tuple of positive integers, one per block")
        # Modules draw their weights from the global generator: fork it, so that nobody else's stream moves.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            channels = 1
            for number, width in enumerate(widths, start=1):
                strided = number == 1 and stem == "stride"
                layers = OrderedDict(conv=nn.Conv3d(channels, width, 3, 2 if strided else 1, padding=1, bias=False))
                if not strided:
                    # Before the normalisation and activation, which then work on an eighth of the voxels.
                    layers["pool"] = nn.MaxPool3d(2)
                layers |= {"norm": NORMS[norm](width), "activation": ACTIVATIONS[activation]()}
                block = nn.Sequential(layers)
                self.add_module(f"block{number}", block)
                channels = width
            self.average = nn.AdaptiveAvgPool3d(1)
            self.dropout = nn.Dropout(dropout)
            self.readout = nn.Linear(channels, 1)
        self.widths = tuple(widths)

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, from the input to the output."""
        return [f"block{number}" for number in range(1, len(self.widths) + 1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1), for volumes of shape (N, 1, X, Y, Z)."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise SimbaError("volumes", tuple(x.shape), "of shape (N, 1, X, Y, Z)", "Add the channel axis: x[:, None].")
        if min(x.shape[2:]) < 2 ** len(self.widths):
            raise SimbaError(
                "volumes", tuple(x.shape), f"at least {2 ** len(self.widths)} voxels on each axis",
                f"Each of the {len(self.widths)} blocks halves the volume; use fewer blocks or smaller voxels.",
            )  # fmt: skip
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.readout(self.dropout(self.average(x).flatten(1)))


def logit(output: torch.Tensor) -> torch.Tensor:
    """Return the logit of the disease, shape (N,), from the output of any binary classifier.

    Parameters
    ----------
    output : tensor, shape (N,), (N, 1) or (N, 2)
        Two columns are scores of control and disease: their difference is the logit.
    """
    if output.ndim == 1:
        return output
    if output.ndim == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.ndim == 2 and output.shape[1] == 2:
        return output[:, 1] - output[:, 0]
    raise SimbaError("output of the network", tuple(output.shape), "of shape (N,), (N, 1) or (N, 2)")
