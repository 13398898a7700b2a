"""3D convolutional networks with stable, named blocks. They work on any volumes, not only on those of this lab."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from simba_lab.core.errors import SimbaError

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
NORMS = {"batch": nn.BatchNorm3d, "group": lambda width: nn.GroupNorm(min(8, width), width)}


class SimBANet(nn.Module):
    """A small 3D CNN: blocks of convolution, halving, normalisation and activation, then a linear read-out.

    The blocks are the submodules ``block1``, ``block2``, ...; the output of a block is what probes
    and interventions call its activations.

    Parameters
    ----------
    widths : tuple of int
        Channels of each block.
    activation : {"relu", "gelu", "sigmoid"}
    norm : {"batch", "group"}
    stem : {"stride", "pool"}
        How the first block halves the volume: its convolution moves in steps of two voxels, or max
        pooling follows it as in the other blocks. The first block is the most expensive, and
        strides make training twice as fast.
    pool : {"early", "late"}
        Whether max pooling comes right after the convolution, so that normalisation and activation
        work on an eighth of the voxels, or last in the block.
    dropout : float
        Share of the pooled features dropped in training.
    seed : int
        Seed of the initial weights: networks with the same seed start equal.

    Notes
    -----
    Input: float tensor (N, 1, X, Y, Z). Output: the logit of the disease, shape (N, 1).
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (8, 16, 32, 64),
        *,
        activation: str = "relu",
        norm: str = "batch",
        stem: str = "stride",
        pool: str = "early",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("norm", norm, NORMS)
        _check_choice("stem", stem, ("stride", "pool"))
        _check_choice("pool", pool, ("early", "late"))
        _check_widths(widths)
        with _seeded(seed):
            channels = 1
            for number, width in enumerate(widths, start=1):
                strided = number == 1 and stem == "stride"
                layers = OrderedDict(
                    conv=nn.Conv3d(channels, width, 3, 2 if strided else 1, padding=1, bias=False)
                )
                if not strided and pool == "early":
                    layers["pool"] = nn.MaxPool3d(2)
                layers |= {"norm": NORMS[norm](width), "activation": ACTIVATIONS[activation]()}
                if not strided and pool == "late":
                    layers["pool"] = nn.MaxPool3d(2)
                self.add_module(f"block{number}", nn.Sequential(layers))
                channels = width
            self.average = nn.AdaptiveAvgPool3d(1)
            self.dropout = nn.Dropout(dropout)
            self.readout = nn.Linear(channels, 1)
        self.widths = tuple(widths)

    @classmethod
    def paper(cls, *, seed: int = 0) -> SimBANet:
        """Return the network of the published experiments: five blocks of 32 to 512 channels, sigmoid, max pooling last.

        It halves volumes five times (at least 32 voxels an axis) and is made for 1 mm; train it
        with `FitConfig.paper`.

        References
        ----------
        Stanley et al. (2024), JAMIA 31:2613-2621, "Model architecture".
        """
        return cls(
            (32, 64, 128, 256, 512),
            activation="sigmoid",
            stem="pool",
            pool="late",
            dropout=0.2,
            seed=seed,
        )

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, from the input to the output."""
        return [f"block{number}" for number in range(1, len(self.widths) + 1)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the read-out sees, shape (N, channels of the last block)."""
        _check_volumes(
            x,
            2 ** len(self.widths),
            "Each block halves the volume; use fewer blocks or smaller voxels.",
        )
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.dropout(self.average(x).flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1), for volumes of shape (N, 1, X, Y, Z)."""
        return self.readout(self.features(x))


class ResidualBlock(nn.Module):
    """Two convolutions, and a shortcut past them; the first one, and the shortcut, may halve the volume."""

    def __init__(self, channels: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = NORMS[norm](width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm2 = NORMS[norm](width)
        # Separate modules: one that ran twice could not be recorded by name.
        self.activation1, self.activation2 = nn.ReLU(), nn.ReLU()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.skip = nn.Sequential(
                nn.Conv3d(channels, width, 1, stride, bias=False), NORMS[norm](width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features, with `width` channels."""
        inner = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(inner + self.skip(x))


class ResNet3D(nn.Module):
    """A 3D residual network: a strided stem, then residual blocks that each halve the volume, then a linear read-out.

    Parameters
    ----------
    widths : tuple of int
        Channels of each residual block; the stem has as many as the first.
    norm : {"batch", "group"}
    dropout : float
    seed : int

    Notes
    -----
    Input, output, ``blocks``, ``features`` and ``readout`` are as in `SimBANet`.

    References
    ----------
    He et al. (2016), "Deep residual learning for image recognition", CVPR, 770-778, basic block of
    Figure 2.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (8, 16, 32, 64),
        *,
        norm: str = "batch",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choice("norm", norm, NORMS)
        _check_widths(widths)
        with _seeded(seed):
            stem = nn.Conv3d(1, widths[0], 3, 2, padding=1, bias=False)
            self.stem = nn.Sequential(
                OrderedDict(conv=stem, norm=NORMS[norm](widths[0]), activation=nn.ReLU())
            )
            channels = widths[0]
            for number, width in enumerate(widths, start=1):
                self.add_module(
                    f"block{number}", ResidualBlock(channels, width, 1 if number == 1 else 2, norm)
                )
                channels = width
            self.average = nn.AdaptiveAvgPool3d(1)
            self.dropout = nn.Dropout(dropout)
            self.readout = nn.Linear(channels, 1)
        self.widths = tuple(widths)

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, from the input to the output."""
        return [f"block{number}" for number in range(1, len(self.widths) + 1)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the read-out sees, shape (N, channels of the last block)."""
        _check_volumes(
            x, 2 ** len(self.widths), "The stem and all blocks but the first halve the volume."
        )
        x = self.stem(x)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.dropout(self.average(x).flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1), for volumes of shape (N, 1, X, Y, Z)."""
        return self.readout(self.features(x))


class GroupRouted(nn.Module):
    """One network per group; each subject is judged by the network of its group.

    Parameters
    ----------
    networks : sequence of nn.Module
        In the order of `groups`.
    by : str
        Column of the design table that names the groups.
    groups : sequence of int or str
        The values of that column.
    """

    def __init__(self, networks: Sequence[nn.Module], by: str, groups: Sequence[int | str]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.by, self.groups = by, list(groups)

    def forward(self, x: torch.Tensor, group: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1), given the position of each subject's group in `groups`."""
        if group is None:
            raise SimbaError(
                "group",
                None,
                f"the group ({self.by}) of each subject",
                "Each group has a network of its own.",
            )
        out = x.new_zeros(len(x), 1)
        for number, network in enumerate(self.networks):
            members = group == number
            if members.any():
                out[members, 0] = logit(network(x[members])).to(out.dtype)
        return out


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed. Modules use the global generator: it is forked, so that nobody else's stream moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise SimbaError(field, value, f"one of {', '.join(choices)}")


def _check_widths(widths: tuple[int, ...]) -> None:
    if not widths or not all(isinstance(width, int) for width in widths) or min(widths) < 1:
        raise SimbaError("widths", widths, "a tuple of positive integers, one per block")


def _check_volumes(x: torch.Tensor, least: int, why: str) -> None:
    if x.ndim != 5 or x.shape[1] != 1:
        raise SimbaError(
            "volumes",
            tuple(x.shape),
            "of shape (N, 1, X, Y, Z)",
            "Add the channel axis: x[:, None].",
        )
    if min(x.shape[2:]) < least:
        raise SimbaError("volumes", tuple(x.shape), f"at least {least} voxels on each axis", why)


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
    raise SimbaError(
        "output of the network", tuple(output.shape), "of shape (N,), (N, 1) or (N, 2)"
    )
