"""Interchange on exact twins: which activations carry the effect of the bias to the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import adaptive_max_pool3d, max_pool3d

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.twin_pairs import (
    batch_that_fits,
    batches,
    chosen_layers,
    mean_with_interval,
    noting,
    ready,
    share_with_interval,
    twins_of,
)
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

WAYS = ("block", "channels", "region")
BOOTSTRAPS = 2000
ALL, REST = "all", "rest"

# Which activations are replaced: None for all of them, otherwise bool and broadcast to (N, ...).
Masks = dict[str, torch.Tensor | None]
Regions = Sequence[str] | Mapping[str, np.ndarray] | None


def interchange(
    model: torch.nn.Module,
    cohort: Cohort | Sequence[Cohort],
    *,
    without: str = "bias",
    layers: Sequence[str] | None = None,
    by: str = "block",
    groups: int | None = 8,
    regions: Regions = None,
    margin: int = 0,
    batch_size: int = 16,
    memory_gb: float = 1.0,
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of the effect of the bias on the prediction passes through each block, channel group or region.

    Each subject is rendered twice, without the effect and with it, and the network runs on both.
    Then a part of a layer's activations is exchanged, in both directions. *Putting in*: the twin
    without the effect gets the activations there of the twin with it ("denoising"; the natural
    indirect effect). *Taking out*: the twin with the effect gets those of the twin without it
    ("noising"); what is left is the natural direct effect. The two differ where the part and the
    rest of the layer interact. Their mean is the Shapley value of the part in a game of two
    players, the part and the rest: it is called the effect of the part, and those of a part and of
    the rest add up to the total.

    Where everything passes through a block, as in a network without shortcuts, the block as a whole
    carries all of the effect whatever it does, and only channels and regions tell blocks apart.
    Shares of three parts or more need not add up to one, unless the network is linear from there
    on.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort, or two of them
        Usually ``cohort.test``; or its twins, without the effect and with it.
    without : str
        The effect to switch.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    by : {"block", "channels", "region"}
        What is exchanged: whole layers, and all of them at once; groups of neighbouring channels;
        or the cells of the layer that lie on a region.
    groups : int, optional
        Channel groups per layer, at most; None for each channel by itself.
    regions : sequence of str, or mapping of name to bool ndarray of shape (X, Y, Z) or (n, X, Y, Z), optional
        Names of the atlas, or masks for everybody or for each subject. By default the truth: the
        voxels that the effect changes in each subject, then those that the other effects change. A
        cell belongs to the first region that it covers a voxel of, or to ``"rest"``.
    margin : int
        Cells by which regions grow. Convolutions carry an effect into the neighbouring cells, which
        count as the rest.
    batch_size : int
        Most subjects at a time; fewer where activations would not fit. Nothing is kept for the
        whole cohort.
    memory_gb : float
        Memory for volumes and activations.
    device : str
        Where the network runs; ``"auto"`` for a GPU if there is one.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer (and ``channels`` or ``region``; of blocks, the last row ``all`` exchanges
        all layers at once). ``effect`` (change of the logit, mean of both directions) and ``share``
        (of the total), with 95 % intervals ``_low``, ``_high``; ``indirect`` (put in), ``lost``
        (total less what is left after taking out), ``direct`` (what is left), ``interaction`` (lost
        less indirect); ``total``; ``miss``, the largest distance in any subject of the logit after
        the exchange from that of the twin, in both directions: 0 where the part carries everything;
        and ``cells``, the share of the layer's activations that are exchanged. ``share`` is NaN if
        there is no total effect, and its interval if the total may be zero.

    Raises
    ------
    SimbaError
        If twins differ in another effect, a layer has no channels or no lattice, or one subject
        does not fit in memory.

    References
    ----------
    Pearl (2001), "Direct and indirect effects", UAI, eq. 6 and 9; Vig et al. (2020), "Investigating
    gender bias in language models using causal mediation analysis", NeurIPS, sec. 3; Geiger et al.
    (2021), "Causal abstractions of neural networks", NeurIPS (interchange interventions); Shapley
    (1953).
    """
    if by not in WAYS:
        raise UnknownNameError.among("by", by, WAYS)
    for field, value, least in (("groups", groups, 1), ("margin", margin, 0)):
        if (value is not None or field == "margin") and (
            isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least
        ):
            raise SimbaError(field, value, f"an integer of at least {least}")
    off, on = twins_of(cohort, without)
    parts_of = _regions(off, without, regions) if by == "region" else None
    names = chosen_layers(model, layers)
    scores: dict[tuple[str, str], list] = {}
    plain = []
    with ready(model, device) as (there, where, kind):

        def run(x: torch.Tensor) -> np.ndarray:
            return logit(there(x)).double().cpu().numpy()

        volume = torch.from_numpy(off.array(0))[None, None].to(where, kind)
        size, shapes = batch_that_fits(there, volume, names, batch_size, memory_gb)
        for name in names:
            _check_layer(name, shapes[name], by)
        for rows, pair in batches(off, on, size=size):
            pair = tuple(volumes.to(where, kind) for volumes in pair)
            noted, own = [], []
            for volumes in pair:
                with noting(there, names) as found:
                    own.append(run(volumes))
                noted.append(found)
            if not np.isfinite(own).all():
                raise SimbaError(
                    "logits", "NaN or infinity", "finite", "Check weights and input volumes."
                )
            plain.append(np.stack(own))
            voxels = None if parts_of is None else parts_of(rows)
            for key, masks in _jobs(names, shapes, by, groups, voxels, margin, where):
                exchanged = []
                for volumes, others in ((pair[0], noted[1]), (pair[1], noted[0])):
                    with edit(
                        there,
                        {name: _exchanging(others[name], mask) for name, mask in masks.items()},
                    ):
                        exchanged.append(run(volumes))
                sizes = [
                    np.ones(len(own[0])) if mask is None else _size(mask, len(own[0]))
                    for mask in masks.values()
                ]
                scores.setdefault(key, []).append(np.stack([*exchanged, np.mean(sizes, axis=0)]))
    before = np.concatenate(plain, axis=1)
    draws = stream(seed, "interchange", without).integers(0, len(off), (BOOTSTRAPS, len(off)))
    table = [_row(before, np.concatenate(parts, axis=1), draws) for parts in scores.values()]
    if by == "block":
        return pd.DataFrame(table, index=pd.Index([name for name, _ in scores], name="layer"))
    return pd.DataFrame(table, index=pd.MultiIndex.from_tuples(list(scores), names=["layer", by]))


def _row(before: np.ndarray, exchanged: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Return the measures of one part.

    Parameters
    ----------
    before : ndarray, shape (2, n)
        Logits without the effect and with it.
    exchanged : ndarray, shape (3, n)
        Logits after putting in and after taking out, and the share of the activations that this
        was.
    draws : ndarray of int, shape (b, n)
    """
    (off, on), (put_in, taken_out, sizes) = before, exchanged
    total, indirect, lost = on - off, put_in - off, on - taken_out
    effect = (indirect + lost) / 2
    return {
        **mean_with_interval("effect", effect, draws),
        **share_with_interval(effect, total, draws),
        "indirect": indirect.mean(),
        "lost": lost.mean(),
        "direct": (total - lost).mean(),
        "interaction": (lost - indirect).mean(),
        "total": total.mean(),
        "miss": max(np.abs(put_in - on).max(), np.abs(taken_out - off).max()),
        "cells": sizes.mean(),
    }


def _exchanging(
    values: torch.Tensor, mask: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    # A copy: layers that work in place would write over the activations of the twin.
    return lambda output: values.clone() if mask is None else torch.where(mask, values, output)


def _size(mask: torch.Tensor, count: int) -> np.ndarray:
    return np.broadcast_to(mask.flatten(1).float().mean(dim=1).cpu().numpy(), count)


def _check_layer(name: str, shape: tuple[int, ...], by: str) -> None:
    if by == "channels" and not shape:
        raise SimbaError(
            f"layer {name}",
            "one number per volume",
            "a layer with channels",
            'Use by="block" there.',
        )
    if by == "region" and len(shape) != 4:
        raise SimbaError(
            f"layer {name}",
            f"activations of shape {shape}",
            "of shape (channels, x, y, z)",
            "It has no lattice that regions could lie on: name a layer before it is flattened.",
        )


def _jobs(
    names: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    by: str,
    groups: int | None,
    voxels: Mapping[str, torch.Tensor] | None,
    margin: int,
    where: torch.device,
) -> list[tuple[tuple[str, str], Masks]]:
    """Return what is exchanged at a time: the name of the row, and which activations of which layers."""
    if by == "block":
        return [((name, ""), {name: None}) for name in names] + [((ALL, ""), dict.fromkeys(names))]
    jobs: list[tuple[tuple[str, str], Masks]] = []
    for name in names:
        masks = (
            _channel_groups(shapes[name], groups)
            if voxels is None
            else on_lattice(voxels, shapes[name][1:], margin)
        )
        jobs += [((name, part), {name: mask.to(where)}) for part, mask in masks.items()]
    return jobs


def _channel_groups(shape: tuple[int, ...], groups: int | None) -> dict[str, torch.Tensor]:
    """Masks of shape (1, C, 1, ...) of groups of neighbouring channels, named after the first and the last."""
    masks = {}
    for part in np.array_split(np.arange(shape[0]), min(groups or shape[0], shape[0])):
        mask = torch.zeros(1, *shape[:1], *([1] * (len(shape) - 1)), dtype=torch.bool)
        mask[:, part] = True
        masks[str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}"] = mask
    return masks


def on_lattice(
    voxels: Mapping[str, torch.Tensor], shape: Sequence[int], margin: int = 0
) -> dict[str, torch.Tensor]:
    """Return which cells of a layer's lattice belong to which region, none to two, and the rest.

    Parameters
    ----------
    voxels : mapping of name to bool tensor, shape (N, X, Y, Z)
        Earlier regions take precedence.
    shape : sequence of three int
        The lattice of the layer.
    margin : int
        Cells by which each region grows.

    Returns
    -------
    dict of str to bool tensor, shape (N, 1, x, y, z)
    """
    cells: dict[str, torch.Tensor] = {}
    free: torch.Tensor | None = None
    for name, mask in voxels.items():
        covered = adaptive_max_pool3d(mask[:, None].float(), tuple(shape))
        covered = max_pool3d(covered, 2 * margin + 1, 1, margin) > 0
        free = torch.ones_like(covered) if free is None else free
        cells[name] = covered & free
        free = free & ~covered
    return cells | ({} if free is None else {REST: free})


def _regions(
    cohort: Cohort, without: str, regions: Regions
) -> Callable[[slice], dict[str, torch.Tensor]]:
    """Return a function that gives the masks of some subjects, shape (N, X, Y, Z) each."""

    def stacked(of: Callable[[int], np.ndarray]) -> Callable[[slice], torch.Tensor]:
        return lambda rows: torch.from_numpy(
            np.stack([of(index) for index in range(rows.start, rows.stop)])
        )

    if isinstance(regions, str):
        regions = [regions]
    makers: dict[str, Callable[[slice], torch.Tensor]] = {}
    shape = cohort.lattice.shape
    if regions is None:
        for name in [without, *(name for name in cohort.effects if name != without)]:
            makers[name] = stacked(lambda index, name=name: cohort.changed(index, name))
    elif isinstance(regions, Mapping):
        for name, mask in regions.items():
            mask = np.asarray(mask)
            if mask.dtype != bool or mask.shape not in (shape, (len(cohort), *shape)):
                given = f"{mask.dtype} of shape {mask.shape}"
                raise SimbaError(
                    f"regions[{name!r}]", given, f"bool of shape {shape} or {(len(cohort), *shape)}"
                )
            makers[name] = stacked(lambda index, mask=mask: mask if mask.ndim == 3 else mask[index])
    else:
        for name in regions:
            cohort.region(0, name)  # raises now if there is no such region
            makers[name] = stacked(lambda index, name=name: cohort.region(index, name))
    if not makers or REST in makers:
        raise SimbaError(
            "regions", list(makers), f"at least one region, and none that is called {REST!r}"
        )
    return lambda rows: {name: make(rows) for name, make in makers.items()}
