"""Interchange on exact twins: which activations carry the effect of the bias to the prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute
from simba_lab.core.intervals import bootstrap_rows, columns_of_mean, columns_of_share
from simba_lab.core.layer_naming import layers_by_name
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import editing
from simba_lab.interpretation.interventions.exchanged_parts import Blocks, Masks, Parts, parts_of
from simba_lab.interpretation.interventions.twin_pairs import (
    Network,
    chosen_layers,
    noting,
    running,
    twins_of,
)
from simba_lab.interpretation.layer_table import Activations

ALL = "all"


def interchange(
    model: torch.nn.Module,
    cohort: Cohort | Sequence[Cohort],
    *,
    effect: str = "bias",
    layers: Sequence[str] | None = None,
    by: str | Parts = "block",
    compute: Compute | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of an effect on the prediction passes through each part of each layer.

    Each subject is rendered twice, without the effect and with it, and the network runs on both.
    Then a part of a layer's activations is exchanged, in both directions. *Putting in*: the twin
    without the effect gets the activations of the twin with it ("denoising"; the natural indirect
    effect). *Taking out*: the twin with the effect gets those of the twin without it ("noising");
    what is left is the natural direct effect. The two differ if the part and the rest of the layer
    interact. Their mean is the Shapley value of the part in a game of two players, the part and the
    rest: it is called the effect of the part. The effects of a part and of the rest add up to the
    total.

    In a network without shortcut connections everything passes through each block. A whole block
    then carries all of the effect whatever it does, and only channels and regions differ between
    blocks. Shares of three parts or more need not add up to one, unless the network is linear from
    that layer on.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort, or two of them
        Usually ``cohort.test``; or its twins, without the effect and with it.
    effect : str
        The effect to switch.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    by : {"block", "channels", "region"}, or Channels or Regions
        What is exchanged: whole layers, and all of them at once; groups of neighbouring channels;
        or the cells of the layer that lie on a region. With settings:
        ``sb.interventions.Channels(groups=4)``, ``sb.interventions.Regions(["Insula_L"])``.
    compute : Compute, optional
        Device and memory (1 GB by default). Nothing is kept for the whole cohort.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer (and ``channels`` or ``region``; of blocks, the last row ``all`` exchanges
        all layers at once). ``effect`` (change of the logit, mean of both directions) and ``share``
        (of the total), with 95 % intervals ``_low``, ``_high``; ``indirect`` (put in), ``lost``
        (total less what is left after taking out), ``direct`` (what is left), ``interaction`` (lost
        less indirect); ``total``; ``miss``, the largest distance in any subject between the logit
        after the exchange and that of the twin: 0 if the part carries everything; and ``cells``,
        the share of the layer's activations that are exchanged. ``share`` is NaN if there is no
        total effect, and its interval if the total may be zero.

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

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> table = sb.interchange(sb.SimBANet((4, 8), seed=0), test, effect="disease")
    >>> table["share"].round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    division = parts_of(by)
    off, on = twins_of(cohort, effect)
    voxels_of = division.voxels_of(off, effect)
    names = chosen_layers(model, layers, off)
    logits: list[np.ndarray] = []
    exchanged: dict[tuple[str, str], list[np.ndarray]] = {}
    with running(model, compute) as network:
        size, shapes = network.batch_size(off, names)
        modules = layers_by_name(network.model)
        shown = {name: Activations.of(modules[name], shapes[name]) for name in names}
        for name in names:
            division.check(name, shown[name].shape)
        start = 0
        for volumes in zip(off.batches(size), on.batches(size), strict=True):
            pair = tuple(map(network.placed, volumes))
            batch_logits, activations = _noted(network, pair, names)
            logits.append(batch_logits)
            voxels = network.as_seen(voxels_of(slice(start, start + len(pair[0]))))
            jobs = {
                (name, cells): {name: mask}
                for name in names
                for cells, mask in division.masks_of(shown[name], voxels).items()
            }
            if isinstance(division, Blocks):
                jobs[ALL, ""] = dict.fromkeys(names)
            for key, masks in jobs.items():
                measured = _exchanged(network, pair, activations, masks)
                exchanged.setdefault(key, []).append(measured)
            start += len(pair[0])
    before = np.concatenate(logits, axis=1)
    rows = bootstrap_rows(stream(seed, "interchange", effect), len(off))
    table = [_row(before, np.concatenate(after, axis=1), rows) for after in exchanged.values()]
    if isinstance(division, Blocks):
        return pd.DataFrame(table, index=pd.Index([name for name, _ in exchanged], name="layer"))
    index = pd.MultiIndex.from_tuples(list(exchanged), names=["layer", division.name])
    return pd.DataFrame(table, index=index)


def _noted(
    network: Network, pair: tuple[torch.Tensor, ...], layers: Sequence[str]
) -> tuple[np.ndarray, list[dict[str, torch.Tensor]]]:
    """Return the logits of both twins, shape (2, N), and their activations."""
    logits, activations = [], []
    for volumes in pair:
        with noting(network.model, layers) as noted:
            logits.append(network.logits(volumes))
        activations.append(noted)
    return np.stack(logits), activations


def _exchanged(
    network: Network,
    pair: tuple[torch.Tensor, ...],
    activations: list[dict[str, torch.Tensor]],
    masks: Masks,
) -> np.ndarray:
    """Return logits after putting in and after taking out, and the share exchanged: (3, N)."""
    masks = {
        name: None if mask is None else mask.to(network.device) for name, mask in masks.items()
    }
    measured = []
    for volumes, twins in zip(pair, reversed(activations), strict=True):
        edits = {name: _exchanging(twins[name], mask) for name, mask in masks.items()}
        with editing(network.model, edits):
            measured.append(network.logits(volumes))
    sizes = [_size(mask, len(measured[0])) for mask in masks.values()]
    return np.stack([*measured, np.mean(sizes, axis=0)])


def _exchanging(
    values: torch.Tensor, mask: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    # A copy: layers that work in place would write over the activations of the twin.
    return lambda output: values.clone() if mask is None else torch.where(mask, values, output)


def _size(mask: torch.Tensor | None, count: int) -> np.ndarray:
    if mask is None:
        return np.ones(count)
    return np.broadcast_to(mask.flatten(1).float().mean(dim=1).cpu().numpy(), count)


def _row(logits: np.ndarray, exchanged: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the measures of one part.

    Parameters
    ----------
    logits : ndarray, shape (2, n)
        Without the effect and with it.
    exchanged : ndarray, shape (3, n)
        Logits after putting in and after taking out, and the share of the activations exchanged.
    rows : ndarray of int, shape (samples, n)
        From `bootstrap_rows`.
    """
    (off, on), (put_in, taken_out, sizes) = logits, exchanged
    total, indirect, lost = on - off, put_in - off, on - taken_out
    effect = (indirect + lost) / 2
    return {
        **columns_of_mean("effect", effect, rows),
        **columns_of_share(effect, total, rows),
        "indirect": indirect.mean(),
        "lost": lost.mean(),
        "direct": (total - lost).mean(),
        "interaction": (lost - indirect).mean(),
        "total": total.mean(),
        "miss": max(np.abs(put_in - on).max(), np.abs(taken_out - off).max()),
        "cells": sizes.mean(),
    }
