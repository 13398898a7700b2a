"""Concept activation vectors (TCAV) of a concept that is known exactly: an effect and its twins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradientXActivation

from simba_lab.core.checks import choice
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.compute import Compute
from simba_lab.core.intervals import ENDS, bootstrap_rows, columns_of_mean, wilson
from simba_lab.core.layer_naming import layers_by_name
from simba_lab.core.network_adapter import with_gradients
from simba_lab.core.rng import stream
from simba_lab.interpretation.interventions.twin_pairs import (
    check_disjoint,
    chosen_layers,
    noting,
    running,
    twins_of,
)
from simba_lab.interpretation.probes.kernel_ridge import fit_ridge
from simba_lab.interpretation.recording import record
from simba_lab.training.networks import logit

DIRECTIONS = ("pattern", "filter")
RANDOM_DIRECTIONS = 50


@with_gradients()
def tcav(
    model: torch.nn.Module,
    train: TwinCohort,
    test: TwinCohort,
    effect: str = "bias",
    *,
    layers: Sequence[str] | None = None,
    direction: str = "pattern",
    compute: Compute | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how the logit of the disease changes along the direction of an effect in each layer.

    The direction (concept activation vector) is fitted to volumes with the effect and their twins
    without it. For comparison 50 random directions are fitted to one random half of the subjects
    and the other, both twins of each.

    Parameters
    ----------
    model : torch.nn.Module
    train, test : TwinCohort
        Subjects that directions are fitted to, and subjects at whose activations the logit is
        differentiated.
    effect : str
        The effect that makes the concept.
    layers : sequence of str, optional
        Names or patterns; by default the network's blocks.
    direction : {"pattern", "filter"}
        The difference of the two means, or the weights of a linear probe between the two, as
        published: ridge regression with a penalty chosen on held-out subjects. Weights also turn
        away from whatever else varies in the layer (Haufe et al. 2014), so they may miss what a
        network reads although they separate all twins.
    compute : Compute, optional
        Device and memory (1 GB by default, which the activations of a layer for all twins must fit
        into).
    seed : int
        Of the halves and of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. ``told``, the share of test subjects whose twin with the effect lies
        further along the direction: a direction that separates no twins says nothing. ``score``
        (TCAV), the share of test subjects whose logit rises along it, with its Wilson interval;
        ``null_low``, ``null_high``, the central 95 % of random directions; ``p``, two-sided, of a
        score as far from one half among random directions. ``effect``, the slope of the logit along
        the direction times the distance of the twins along it: the twin effect (logits) of a linear
        network in which it passes this way, with bootstrap interval; ``effect_null``, the 95th
        percentile of its size along random directions; ``p_effect``. Intervals are over subjects,
        ``_low`` and ``_high``.

    Raises
    ------
    SimbaError
        If a subject is in both cohorts.

    Notes
    -----
    The score counts signs. In a network whose gradient points the same way in all subjects any
    direction scores 0 or 1, random ones too, and ``p`` is near one whatever the network does: look
    at ``effect`` then. A direction is not a cause (nothing is switched); `interchange` and
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

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, network = sb.synthesise(scenario), sb.SimBANet((4, 8), seed=0)
    >>> sb.interventions.tcav(network, cohort.train, cohort.test, "disease").index.tolist()
    ['block1', 'block2']
    """
    choice("direction", direction, DIRECTIONS)
    names = chosen_layers(model, layers, train)
    train_twins, test_twins = twins_of(train, effect), twins_of(test, effect)
    check_disjoint(train, test)
    generator = stream(seed, "tcav", "halves")
    halves = [generator.permutation(np.arange(len(train)) % 2) for _ in range(RANDOM_DIRECTIONS)]
    groups = [np.repeat([0, 1], len(train)), *(np.tile(half, 2) for half in halves)]
    targets = np.column_stack(groups).astype(float)
    bootstrap = bootstrap_rows(stream(seed, "tcav", "bootstrap"), len(test))
    rows = []
    for layer in names:
        twins = list(train_twins)
        recording = record(
            model, twins, layers=[layer], activations=[layer], pixels=False, compute=compute
        )
        vectors = _directions(recording[layer], recording.activations[layer], targets, direction)
        slopes, distances = _along(model, layer, vectors, (test, *test_twins), compute)
        rows.append(_row(slopes, distances, bootstrap))
    return pd.DataFrame(rows, index=pd.Index(names, name="layer"))


def _directions(
    gram: np.ndarray, activations: np.ndarray, targets: np.ndarray, direction: str
) -> np.ndarray:
    """Return unit directions, shape (p, k), along which targets of 0 and 1 rise."""
    count = len(gram)
    weights = targets - targets.mean(axis=0)
    if direction == "filter":
        # Twins are left out together when the penalty is chosen.
        weights = fit_ridge(
            gram, np.arange(count), targets, np.zeros(count, int), np.tile(np.arange(count // 2), 2)
        ).dual
    flat = activations.reshape(count, -1)
    vectors = (flat - flat.mean(axis=0)).T @ weights
    return vectors / np.maximum(np.linalg.norm(vectors, axis=0), 1e-30)


def _along(
    model: torch.nn.Module,
    layer: str,
    vectors: np.ndarray,
    cohorts: tuple[TwinCohort, ...],
    compute: Compute | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes of the logit and distances of twins along directions, shape (n, k) both.

    The cohorts are the subjects, and their twins without the effect and with it.
    """
    slopes, distances = [], []
    with running(model, compute) as network:
        size, _ = network.batch_size(cohorts[0], [layer])
        directions = torch.from_numpy(vectors).to(network.device, torch.float64)
        gradient = LayerGradientXActivation(
            lambda x: logit(network.model(x)),
            layers_by_name(network.model)[layer],
            multiply_by_inputs=False,
        )

        def along(values: torch.Tensor) -> np.ndarray:
            return (values.detach().flatten(1).double() @ directions).cpu().numpy()

        for batch in zip(*(cohort.batches(size) for cohort in cohorts), strict=True):
            volumes, *twins = (network.placed(values) for values in batch)
            with torch.enable_grad():
                slopes.append(along(gradient.attribute(volumes.requires_grad_())))
            ends = []
            for twin in twins:
                with noting(network.model, [layer]) as activations:
                    network.model(twin)
                ends.append(along(activations[layer]))
            distances.append(ends[1] - ends[0])
    return np.concatenate(slopes), np.concatenate(distances)


def _row(slopes: np.ndarray, distances: np.ndarray, bootstrap: np.ndarray) -> dict[str, float]:
    """Return the measures of one layer; the first direction is that of the concept."""
    scores, effects = (slopes > 0).mean(axis=0), slopes * distances
    interval = wilson(int((slopes[:, 0] > 0).sum()), len(slopes))
    sizes = np.abs(effects.mean(axis=0))
    null_low, null_high = np.quantile(scores[1:], ENDS)
    return {
        "told": (distances[:, 0] > 0).mean(),
        "score": scores[0],
        "score_low": interval.low,
        "score_high": interval.high,
        "null_low": null_low,
        "null_high": null_high,
        "p": _p_value(np.abs(scores - 0.5)),
        **columns_of_mean("effect", effects[:, 0], bootstrap),
        "effect_null": np.quantile(sizes[1:], 0.95),
        "p_effect": _p_value(sizes),
    }


def _p_value(sizes: np.ndarray) -> float:
    """Return how often random directions reach the size of the first one, which is counted too."""
    return float((sizes >= sizes[0] - 1e-12).sum() / len(sizes))
