"""3D convolutional networks with stable, named blocks, for any volumes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Seed, Share, choice, mapping
from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import answer_of

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm3d,
    "group": lambda width: nn.GroupNorm(min(8, width), width),
}


class BlockNetwork(nn.Module):
    """What the networks of the lab share: named blocks, an average over voxels, a linear read-out.

    A subclass registers its blocks as ``block1``, ``block2``, ... and then calls `_end_with`.
    """

    widths: tuple[int, ...]
    # In which the convolutions are fastest on a processor, see `evaluating`.
    layout = torch.channels_last_3d
    # Module that comes before the blocks, if any, and what to say about volumes that are too small.
    before: tuple[str, ...] = ()
    halving: str = ""

    def _end_with(self, widths: Sequence[int], dropout: float) -> None:
        self.average = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(widths[-1], 1)
        self.widths = tuple(widths)

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, from the input to the output."""
        return [f"block{number}" for number in range(1, len(self.widths) + 1)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the read-out sees, shape (N, channels of the last block)."""
        _check_volumes(x, 2 ** len(self.widths), self.halving)
        for name in (*self.before, *self.blocks):
            x = getattr(self, name)(x)
        return self.dropout(self.average(x).flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1), for volumes of shape (N, 1, X, Y, Z)."""
        return self.readout(self.features(x))


@checks_arguments
class SimBANet(BlockNetwork):
    """A small 3D CNN: blocks that each halve the volume, then a linear read-out.

    A block has a convolution, halving, normalisation and activation. The blocks are the submodules
    ``block1``, ``block2``, ...; the output of a block is what probes and interventions call its
    activations.

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

    Examples
    --------
    >>> import torch
    >>> import simba_lab as sb
    >>> model = sb.SimBANet((4, 8), seed=0)
    >>> model.blocks
    ['block1', 'block2']
    >>> model(torch.zeros(2, 1, 20, 24, 20)).shape
    torch.Size([2, 1])
    """

    halving = "Each block halves the volume; use fewer blocks or smaller voxels."

    def __init__(
        self,
        widths: tuple[int, ...] = (8, 16, 32, 64),
        *,
        activation: str = "relu",
        norm: str = "batch",
        stem: str = "stride",
        pool: str = "early",
        dropout: Share = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        choice("activation", activation, ACTIVATIONS)
        choice("norm", norm, NORMS)
        choice("stem", stem, ("stride", "pool"))
        choice("pool", pool, ("early", "late"))
        _check_widths(widths)
        with _seeded(seed):
            channels = 1
            for number, width in enumerate(widths, start=1):
                strided = number == 1 and stem == "stride"
                stride = 2 if strided else 1
                convolution = nn.Conv3d(channels, width, 3, stride, padding=1, bias=False)
                layers = OrderedDict[str, nn.Module](conv=convolution)
                if not strided and pool == "early":
                    layers["pool"] = nn.MaxPool3d(2)
                layers |= {"norm": NORMS[norm](width), "activation": ACTIVATIONS[activation]()}
                if not strided and pool == "late":
                    layers["pool"] = nn.MaxPool3d(2)
                self.add_module(f"block{number}", nn.Sequential(layers))
                channels = width
            self._end_with(widths, dropout)

    @classmethod
    def paper(cls, *, seed: int = 0) -> SimBANet:
        """Return the network of the published experiments.

        It has five blocks of 32 to 512 channels, sigmoid activations and max pooling last. It
        halves volumes five times (at least 32 voxels on each axis) and is made for 1 mm; train it
        with `FitConfig.paper`.

        References
        ----------
        Stanley et al. (2024), JAMIA 31:2613-2621, "Model architecture".
        """
        widths = (32, 64, 128, 256, 512)
        options: dict[str, Any] = {"activation": "sigmoid", "stem": "pool", "pool": "late"}
        return cls(widths, **options, dropout=0.2, seed=seed)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut past them; the block may halve the volume."""

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
            convolution = nn.Conv3d(channels, width, 1, stride, bias=False)
            self.skip = nn.Sequential(convolution, NORMS[norm](width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features, with `width` channels."""
        residual = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        return self.activation2(residual + self.skip(x))


@checks_arguments
class ResNet3D(BlockNetwork):
    """A 3D residual network: a strided stem, then residual blocks, then a linear read-out.

    Parameters
    ----------
    widths : tuple of int
        Channels of each residual block; the stem has as many as the first.
    norm : {"batch", "group"}
    dropout : float
        Share of the pooled features dropped in training.
    seed : int
        Seed of the initial weights.

    Notes
    -----
    Input, output, ``blocks``, ``features`` and ``readout`` are as in `SimBANet`.

    References
    ----------
    He et al. (2016), "Deep residual learning for image recognition", CVPR, 770-778, basic block of
    Figure 2.

    Examples
    --------
    >>> import torch
    >>> import simba_lab as sb
    >>> sb.training.ResNet3D((4, 8), seed=0)(torch.zeros(2, 1, 20, 24, 20)).shape
    torch.Size([2, 1])
    """

    before = ("stem",)
    halving = "The stem and all blocks but the first halve the volume."

    def __init__(
        self,
        widths: tuple[int, ...] = (8, 16, 32, 64),
        *,
        norm: str = "batch",
        dropout: Share = 0.0,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        choice("norm", norm, NORMS)
        _check_widths(widths)
        with _seeded(seed):
            channels = widths[0]
            convolution = nn.Conv3d(1, channels, 3, 2, padding=1, bias=False)
            layers = OrderedDict(conv=convolution, norm=NORMS[norm](channels), activation=nn.ReLU())
            self.stem = nn.Sequential(layers)
            for number, width in enumerate(widths, start=1):
                block = ResidualBlock(channels, width, 1 if number == 1 else 2, norm)
                self.add_module(f"block{number}", block)
                channels = width
            self._end_with(widths, dropout)


def logit(output: object) -> torch.Tensor:
    """Return the logit of the disease, shape (N,), from the output of any binary classifier.

    Parameters
    ----------
    output : tensor, shape (N,), (N, 1) or (N, 2)
        Two columns are for control and disease: their difference is the logit. A tuple or
        mapping with one such tensor, or with ``logits``, is taken too.
    """
    output = answer_of(output)
    if output.ndim == 1:
        return output
    if output.ndim == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.ndim == 2 and output.shape[1] == 2:
        return output[:, 1] - output[:, 0]
    allowed = "of shape (N,), (N, 1) or (N, 2)"
    raise SimbaError("output of the network", tuple(output.shape), allowed)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "SimBANet": SimBANet,
    "SimBANet.paper": SimBANet.paper,
    "ResNet3D": ResNet3D,
}


def network_from(
    options: Mapping[str, Any], *, seed: int | None = None, field: str = "network"
) -> nn.Module:
    """Return the network that a mapping describes, such as one read from YAML.

    Parameters
    ----------
    options : mapping
        ``name``, one of `NETWORKS` (``"SimBANet"`` by default), and its options; lists stand for
        tuples.
    seed : int, optional
        Of the initial weights; the options must then not name one.
    field : str
        How errors call the mapping.
    """
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in mapping(field, options).items()
    }
    name = choice(f"{field}.name", arguments.pop("name", "SimBANet"), NETWORKS)
    seeds = {} if seed is None else {"seed": seed}
    try:
        return NETWORKS[name](**arguments, **seeds)
    except SimbaError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise SimbaError(field, dict(options), f"options of {name}", f"{error}.") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed; PyTorch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_widths(widths: tuple[int, ...]) -> None:
    if not widths or not all(isinstance(width, int) for width in widths) or min(widths) < 1:
        raise SimbaError("widths", widths, "a tuple of positive integers, one per block")


def _check_volumes(x: torch.Tensor, least: int, remedy: str) -> None:
    shape = tuple(x.shape)
    if x.ndim != 5 or x.shape[1] != 1:
        allowed, remedy = "of shape (N, 1, X, Y, Z)", "Add the channel axis: x[:, None]."
        raise SimbaError("volumes", shape, allowed, remedy)
    if min(x.shape[2:]) < least:
        raise SimbaError("volumes", shape, f"at least {least} voxels on each axis", remedy)
