"""Concept activation vectors (TCAV) of a concept that is known exactly: volumes with the bias against their twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradientXActivation
from scipy.stats import binomtest

from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.intervals import BOOTSTRAPS
from simba_lab.core.rng import stream
from simba_lab.interpretation.interventions.twin_pairs import (
    batch_that_fits,
    batches,
    chosen_layers,
    mean_with_interval,
    noting,
    ready,
    twins_of,
)
from simba_lab.interpretation.probes.kernel_ridge import fit_ridge
from simba_lab.interpretation.recording import record
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

DIRECTIONS = ("pattern", "filter")


def tcav(
    model: torch.nn.Module,
    train: Cohort,
    test: Cohort,
    concept: str = "bias",
    *,
    layers: Sequence[str] | None = None,
    direction: str = "pattern",
    random: int = 50,
    batch_size: int = 16,
    memory_gb: float = 1.0,
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Return how the logit of the disease changes along the direction of the bias in each layer, beside random directions.

    The direction (concept activation vector) is fitted to volumes with the bias and their twins
    without it; random directions to one random half of the subjects and the other, both twins of
    each.

    Parameters
    ----------
    model : torch.nn.Module
    train, test : Cohort
        Subjects that directions are fitted to, and subjects at whose activations the logit is
        differentiated.
    concept : str
        The effect that makes the concept.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    direction : {"pattern", "filter"}
        The difference of the means of the two, or the weights of a linear probe that tells them
        apart, as published: ridge regression with a penalty chosen on held-out subjects. Weights
        also turn away from whatever else varies in the layer (Haufe et al. 2014), so they may miss
        what a network reads although they tell all twins apart.
    random : int
        Number of random directions.
    batch_size, memory_gb, device
        As for `record`; the features of a layer for all twins must fit into `memory_gb`.
    seed : int
        Of the halves and of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. ``told``, the share of test subjects whose twin with the bias lies further
        along the direction: a direction that tells no twins apart says nothing. ``score`` (TCAV),
        the share of test subjects whose logit rises along it, with its Wilson interval;
        ``null_low``, ``null_high``, the central 95 % of random directions; ``p``, two-sided, of a
        score as far from one half among random directions. ``effect``, the slope of the logit along
        the direction times the distance of the twins along it: what the twin effect (logits) would
        be if it went this way and the network were linear, with bootstrap interval;
        ``effect_null``, the 95th percentile of its size along random directions; ``p_effect``.
        Intervals are over subjects, ``_low`` and ``_high``.

    Notes
    -----
    The score counts signs. In a network whose gradient points the same way in all subjects any
    direction scores 0 or 1, random ones too, and ``p`` is near one whatever the network does: look
    at ``effect`` then. A direction is not a cause (nothing is switched here); `interchange` and
    `twin_effect` are.

    Captum differentiates. Its own class for TCAV is not used, since that keeps pickled activations
    on disk.

    References
    ----------
    Kim et al. (2018), "Interpretability beyond feature attribution: quantitative testing with
    concept activation vectors (TCAV)", ICML, eq. 1 and 2 and sec. 3.5 (test against random
    concepts); Haufe et al. (2014), "On the interpretation of weight vectors of linear models in
    multivariate neuroimaging", NeuroImage 87:96-110; Pahde et al. (2022), "Navigating neural space:
    revisiting concept activation vectors to overcome directional divergence" (directions of
    patterns).
    """
    if isinstance(random, bool) or not isinstance(random, int | np.integer) or random < 1:
        raise SimbaError("random", random, "an integer of at least 1")
    if direction not in DIRECTIONS:
        raise UnknownNameError.among("direction", direction, DIRECTIONS)
    names = chosen_layers(model, layers)
    seen, unseen = twins_of(train, concept), twins_of(test, concept)
    shared = train.shared_subjects(test)
    if len(shared):
        raise SimbaError(
            "test", f"subject {shared[0]}, who is in train too", "other subjects than train"
        )
    generator = stream(seed, "tcav", "halves")
    halves = [generator.permutation(np.arange(len(train)) % 2) for _ in range(random)]
    targets = np.column_stack(
        [np.repeat([0, 1], len(train)), *(np.tile(half, 2) for half in halves)]
    ).astype(float)
    draws = stream(seed, "tcav", "bootstrap").integers(0, len(test), (BOOTSTRAPS, len(test)))
    rows = []
    for name in names:
        found = record(
            model,
            list(seen),
            layers=[name],
            features=[name],
            pixels=False,
            batch_size=batch_size,
            compute=Compute(device, memory_gb=memory_gb),
        )
        vectors = _directions(found[name], found.features[name], targets, direction)
        slopes, gaps = _along(model, name, vectors, test, unseen, batch_size, memory_gb, device)
        rows.append(_row(slopes, gaps, draws))
    return pd.DataFrame(rows, index=pd.Index(names, name="layer"))


def _directions(
    gram: np.ndarray, features: np.ndarray, targets: np.ndarray, direction: str
) -> np.ndarray:
    """Return unit directions, shape (p, k), along which targets of 0 and 1 rise."""
    count = len(gram)
    weights = targets - targets.mean(axis=0)
    if direction == "filter":
        # Twins are left out together when the penalty is chosen.
        weights = fit_ridge(
            gram, np.arange(count), targets, np.zeros(count, int), np.tile(np.arange(count // 2), 2)
        ).dual
    flat = features.reshape(count, -1)
    vectors = (flat - flat.mean(axis=0)).T @ weights
    return vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-30)


def _along(
    model: torch.nn.Module,
    layer: str,
    vectors: np.ndarray,
    test: Cohort,
    twins: tuple[Cohort, Cohort],
    batch_size: int,
    memory_gb: float,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes of the logit along directions and the distances of twins along them, shape (n, k) both."""
    slopes, gaps = [], []
    with ready(model, device) as (there, where, kind):
        size, _ = batch_that_fits(
            there,
            torch.from_numpy(test.array(0))[None, None].to(where, kind),
            [layer],
            batch_size,
            memory_gb,
        )
        directions = torch.from_numpy(vectors).to(where, torch.float64)
        gradient = LayerGradientXActivation(
            lambda x: logit(there(x)), there.get_submodule(layer), multiply_by_inputs=False
        )

        def along(values: torch.Tensor) -> np.ndarray:
            return (values.detach().flatten(1).double() @ directions).cpu().numpy()

        for _, (volumes, off, on) in batches(test, *twins, size=size):
            with torch.enable_grad():
                slopes.append(along(gradient.attribute(volumes.to(where, kind).requires_grad_())))
            ends = []
            for twin in (off, on):
                with noting(there, [layer]) as found:
                    there(twin.to(where, kind))
                ends.append(along(found[layer]))
            gaps.append(ends[1] - ends[0])
    return np.concatenate(slopes), np.concatenate(gaps)


def _row(slopes: np.ndarray, gaps: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Return the measures of one layer; the first direction is that of the concept."""
    scores, effects = (slopes > 0).mean(axis=0), slopes * gaps
    interval = binomtest(int((slopes[:, 0] > 0).sum()), len(slopes)).proportion_ci(method="wilson")
    sizes = np.abs(effects.mean(axis=0))
    null_low, null_high = np.quantile(scores[1:], [0.025, 0.975])
    return {
        "told": (gaps[:, 0] > 0).mean(),
        "score": scores[0],
        "score_low": interval.low,
        "score_high": interval.high,
        "null_low": null_low,
        "null_high": null_high,
        "p": _p_value(np.abs(scores - 0.5)),
        **mean_with_interval("effect", effects[:, 0], draws),
        "effect_null": np.quantile(sizes[1:], 0.95),
        "p_effect": _p_value(sizes),
    }


def _p_value(sizes: np.ndarray) -> float:
    """Return how often random directions reach the size of the first one, counting it among them."""
    return float((sizes >= sizes[0] - 1e-12).sum() / len(sizes))
