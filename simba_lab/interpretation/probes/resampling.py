"""Random draws that intervals, null distributions and control tasks are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.probes.questions import Split

BOOTSTRAPS = 500
# Random labellings of the types in a control task.
LABELLINGS = 10


def resampled(clusters: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Rows of each bootstrap sample of subjects."""
    count = clusters.max() + 1
    drawn = generator.integers(0, count, (BOOTSTRAPS, count))
    if count == len(clusters):
        return list(np.argsort(clusters)[drawn])
    members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
    return [np.concatenate([members[number] for number in one]) for one in drawn]


def counts_of(draws: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return how often each of `count` rows occurs in each sample, shape (draws, count), from the rows of the samples."""
    return np.stack([np.bincount(rows, minlength=count) for rows in draws])


def interval(name: str, draws: Iterable[float]) -> dict[str, float]:
    """Return the central 95 % of bootstrap draws, as columns ``name_low`` and ``name_high``."""
    low, high = np.nanquantile(list(draws), [0.025, 0.975])
    return {f"{name}_low": low, f"{name}_high": high}


def labellings_of(
    types: np.ndarray, split: Split, generator: np.random.Generator
) -> list[np.ndarray]:
    """Random labels, equal within a type, for half of the types each."""
    known, coded = np.unique(np.asarray(types), return_inverse=True)
    if len(coded) != sum(len(test) for _, test in split):
        raise SimbaError("types", f"{len(coded)} values", "one per volume")
    if len(known) < 4 or any(set(coded[train]) != set(coded) for train, _ in split):
        raise SimbaError(
            "types",
            f"{len(known)} types",
            "at least 4 types that occur in every training part",
            "Use fewer components.",
        )
    halves = [generator.permutation(np.arange(len(known)) % 2) for _ in range(LABELLINGS)]
    return [half[coded] for half in halves]


def shuffled_within(
    values: np.ndarray, context: np.ndarray, clusters: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return the values in another order within each context.

    Volumes of one subject keep together: whole subjects change places if all volumes of each have
    the same value, otherwise volumes change places within their subject.
    """
    shuffled = values.copy()
    first = np.unique(clusters, return_index=True)[1]
    alike = all(np.array_equal(one, one[first][clusters]) for one in (values, context))
    if alike:
        own, inside = values[first], context[first]
        for value in np.unique(inside):
            own[inside == value] = generator.permutation(own[inside == value])
        return own[clusters]
    for value in np.unique(np.stack([context, clusters]), axis=1).T:
        here = (context == value[0]) & (clusters == value[1])
        shuffled[here] = generator.permutation(values[here])
    return shuffled
