"""Which activations `interchange` exchanges at a time: whole blocks, channel groups, or regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import adaptive_max_pool3d, max_pool3d

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, whole_number
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.interpretation.layer_table import Activations

REST = "rest"

# The regions of some subjects (rows of a cohort): name to bool tensor, shape (N, X, Y, Z).
Voxels = dict[str, torch.Tensor]
# Which activations are exchanged: None for all, else bool and broadcast to (N, ...).
Masks = dict[str, torch.Tensor | None]


class Parts(ABC):
    """A way to divide a layer's activations into parts."""

    name: ClassVar[str]

    def check(self, layer: str, shape: tuple[int, ...]) -> None:
        """Refuse a layer whose activations, of this shape per volume, cannot be divided."""
        return

    def voxels_of(self, cohort: TwinCohort, effect: str) -> Callable[[slice], Voxels]:
        """Return a function that gives the regions of some subjects, if parts are regions."""
        return lambda rows: {}

    @abstractmethod
    def masks(self, shape: tuple[int, ...], voxels: Voxels) -> Masks:
        """Return the parts of a layer with activations of this shape per volume, channels first."""

    def masks_of(self, layer: Activations, voxels: Voxels) -> Masks:
        """Return the parts of a layer, for its activations as they are."""
        masks = self.masks(layer.shape, voxels)
        if not layer.channels_last:
            return masks
        return {name: None if mask is None else mask.movedim(1, -1) for name, mask in masks.items()}


@checks_arguments
@dataclass(frozen=True)
class Blocks(Parts):
    """Whole layers, and all of them at once.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.interventions.Blocks()
    Blocks()
    """

    name = "block"

    def masks(self, shape: tuple[int, ...], voxels: Voxels) -> Masks:
        """Return the whole layer."""
        return {"": None}


@checks_arguments
@dataclass(frozen=True)
class Channels(Parts):
    """Groups of neighbouring channels.

    Parameters
    ----------
    groups : int, optional
        Groups per layer, at most; None for each channel by itself.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.interventions.Channels(groups=4)
    Channels(groups=4)
    """

    name = "channels"
    groups: int | None = 8

    def __post_init__(self) -> None:
        if self.groups is not None:
            whole_number("groups", self.groups)

    def check(self, layer: str, shape: tuple[int, ...]) -> None:
        """Refuse a layer without channels."""
        if not shape:
            remedy = 'Use by="block" for it.'
            raise SimbaError(
                f"layer {layer}", Words("one number per volume"), "one with channels", remedy
            )

    def masks(self, shape: tuple[int, ...], voxels: Voxels) -> Masks:
        """Return masks of shape (1, C, 1, ...), named after the first and the last channel."""
        count = shape[0]
        masks: Masks = {}
        for channels in np.array_split(np.arange(count), min(self.groups or count, count)):
            mask = torch.zeros(1, count, *([1] * (len(shape) - 1)), dtype=torch.bool)
            mask[:, channels] = True
            first, last = channels[0], channels[-1]
            masks[str(first) if first == last else f"{first}-{last}"] = mask
        return masks


@checks_arguments
@dataclass(frozen=True, eq=False)
class Regions(Parts):
    """Cells of the layer's lattice that lie on a region.

    A cell belongs to the first region that it covers a voxel of, or to ``"rest"``.

    Parameters
    ----------
    regions : sequence of str, or mapping of name to bool ndarray, optional
        Names of the atlas; or masks, of shape (X, Y, Z) for all subjects or (n, X, Y, Z). By
        default the truth: the voxels that the effect changes in each subject, then those that the
        other effects change.
    margin : int
        Cells by which regions grow. Convolutions carry an effect into the neighbouring cells, which
        otherwise count as the rest.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.interventions.Regions(["Insula_L"], margin=1)
    Regions(regions=['Insula_L'], margin=1)
    """

    name = "region"
    regions: Sequence[str] | Mapping[str, np.ndarray] | None = None
    margin: int = 0

    def __post_init__(self) -> None:
        whole_number("margin", self.margin, least=0)

    def check(self, layer: str, shape: tuple[int, ...]) -> None:
        """Refuse a layer without a lattice."""
        if len(shape) != 4:
            remedy = "It has no lattice for regions: name a layer before it is flattened."
            name, allowed = f"the activations of layer {layer}", "of shape (channels, x, y, z)"
            raise SimbaError(name, shape, allowed, remedy)

    def voxels_of(self, cohort: TwinCohort, effect: str) -> Callable[[slice], Voxels]:
        """Return a function that gives the regions of some subjects."""
        makers = self._makers(cohort, effect)
        if not makers or REST in makers:
            allowed = f"at least one region, and none that is called {REST!r}"
            raise SimbaError("regions", list(makers), allowed)

        def voxels(rows: slice) -> Voxels:
            return {
                name: torch.from_numpy(
                    np.stack([make(index) for index in range(rows.start, rows.stop)])
                )
                for name, make in makers.items()
            }

        return voxels

    def _makers(self, cohort: TwinCohort, effect: str) -> dict[str, Callable[[int], np.ndarray]]:
        """Return a function for each region, which gives the mask of one subject."""
        if self.regions is None:
            names = [effect, *(name for name in cohort.effects if name != effect)]
            return {name: partial(cohort.changed, effect=name) for name in names}
        if isinstance(self.regions, Mapping):
            makers: dict[str, Callable[[int], np.ndarray]] = {}
            shape = cohort.lattice.shape
            for name, mask in self.regions.items():
                mask = np.asarray(mask)
                if mask.dtype != bool or mask.shape not in (shape, (len(cohort), *shape)):
                    value, allowed = f"{mask.dtype} of shape {mask.shape}", f"bool of shape {shape}"
                    raise SimbaError(f"regions[{name!r}]", Words(value), f"{allowed} or (n, ...)")
                makers[name] = partial(_mask_of, mask)
            return makers
        names = [self.regions] if isinstance(self.regions, str) else list(self.regions)
        for name in names:
            cohort.region(0, name)  # raises now if there is no such region
        return {name: partial(cohort.region, name=name) for name in names}

    def masks(self, shape: tuple[int, ...], voxels: Voxels) -> Masks:
        """Return masks of shape (N, 1, x, y, z): no cell is in two, and the last is the rest."""
        cells: Masks = {}
        free = torch.ones(1, dtype=torch.bool)
        for name, mask in voxels.items():
            covered = adaptive_max_pool3d(mask[:, None].float(), tuple(shape[1:]))
            covered = max_pool3d(covered, 2 * self.margin + 1, 1, self.margin) > 0
            cells[name] = covered & free
            free = ~covered & free
        return cells | {REST: free}


def _mask_of(masks: np.ndarray, index: int) -> np.ndarray:
    """Return the mask of a subject, of one for all subjects or one for each."""
    return masks if masks.ndim == 3 else masks[index]


PARTS: dict[str, type[Parts]] = {parts.name: parts for parts in (Blocks, Channels, Regions)}


def parts_of(by: str | Parts) -> Parts:
    """Return a division that was given by its name, with default settings, or with its settings."""
    return by if isinstance(by, Parts) else PARTS[choice("by", by, PARTS)]()
