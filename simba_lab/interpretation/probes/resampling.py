"""Random draws that intervals, null distributions and control tasks of probes are made of."""

from __future__ import annotations

import numpy as np

from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import PROBE_BOOTSTRAPS
from simba_lab.interpretation.probes.folds import Split

# Random labellings of the types in a control task.
LABELLINGS = 10


def resampled(clusters: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Return the rows of each bootstrap sample of subjects."""
    count = clusters.max() + 1
    samples = generator.integers(0, count, (PROBE_BOOTSTRAPS, count))
    if count == len(clusters):
        return list(np.argsort(clusters)[samples])
    members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
    return [np.concatenate([members[subject] for subject in sample]) for sample in samples]


def labellings_of(
    types: np.ndarray, split: Split, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return random labels, equal within a type, for half of the types each."""
    levels, coded = np.unique(np.atleast_1d(types), return_inverse=True)
    if len(coded) != sum(len(test) for _, test in split):
        raise SimbaError("types", Words(f"{len(coded)} values"), "one per volume")
    if len(levels) < 4 or any(set(coded[train]) != set(coded) for train, _ in split):
        allowed = "at least 4 types that occur in every training fold"
        raise SimbaError("types", Words(f"{len(levels)} types"), allowed, "Use fewer components.")
    halves = [generator.permutation(np.arange(len(levels)) % 2) for _ in range(LABELLINGS)]
    return [half[coded] for half in halves]


def shuffled_within(
    values: np.ndarray, given: np.ndarray, clusters: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return the values in another order within each value of `given`.

    Volumes of one subject keep together: whole subjects change places if all volumes of each have
    the same value, otherwise volumes change places within their subject.
    """
    first_rows = np.unique(clusters, return_index=True)[1]
    if all(np.array_equal(column, column[first_rows][clusters]) for column in (values, given)):
        per_subject, known = values[first_rows], given[first_rows]
        for value in np.unique(known):
            members = known == value
            per_subject[members] = generator.permutation(per_subject[members])
        return per_subject[clusters]
    shuffled = values.copy()
    for value, cluster in np.unique(np.stack([given, clusters]), axis=1).T:
        members = (given == value) & (clusters == cluster)
        shuffled[members] = generator.permutation(values[members])
    return shuffled
