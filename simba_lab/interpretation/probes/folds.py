"""Folds of cross-validation: random and stratified, or those of a cohort's design."""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError

Split = list[tuple[np.ndarray, np.ndarray]]


def folds_of(folds: int | np.ndarray, cells: np.ndarray, clusters: np.ndarray, seed: int) -> Split:
    """Return train and test rows of each fold; every cell of target x given is in each train."""
    split = (
        _random_folds(folds, cells, clusters, seed)
        if np.ndim(folds) == 0
        else _given_folds(np.asarray(folds), cells)
    )
    for train, test in split:
        torn = np.intersect1d(clusters[train], clusters[test])
        if len(torn):
            rows = np.flatnonzero(clusters == torn[0]).tolist()
            problem = f"folds has volumes of one subject in several folds (rows {rows})."
            remedy = "Give them the same fold: no probe is tested on subjects that it has seen."
            raise SimbaError.problem(problem, remedy)
        if set(cells[train]) != set(cells):
            raise SimbaError.problem(
                "Without one of the folds, a group of target within given has no subjects left.",
                "Use more subjects, or a number of random folds such as folds=5.",
            )
    return split


def _random_folds(
    count: int | np.ndarray, cells: np.ndarray, clusters: np.ndarray, seed: int
) -> Split:
    smallest = min(len(np.unique(clusters[cells == cell])) for cell in np.unique(cells))
    if not isinstance(count, int | np.integer) or not 2 <= count <= smallest:
        allowed = f"from 2 to {smallest} (the smallest group of target within given)"
        raise SimbaError("folds", count, allowed, "Or add subjects.")
    settings = {"n_splits": int(count), "shuffle": True, "random_state": seed}
    if len(np.unique(clusters)) < len(clusters):
        return list(StratifiedGroupKFold(**settings).split(cells, cells, clusters))
    if len(np.unique(cells)) == 1:
        return list(KFold(**settings).split(cells))
    return list(StratifiedKFold(**settings).split(cells, cells))


def _given_folds(folds: np.ndarray, cells: np.ndarray) -> Split:
    of_shape("folds", folds, cells.shape, "Or pass a number of random folds.")
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise SimbaError("folds", numbers.tolist(), "of at least 2 values")
    return [(np.flatnonzero(folds != n), np.flatnonzero(folds == n)) for n in numbers]


def fold_numbers(split: Split, count: int) -> np.ndarray:
    """Return the fold in which each row is held out."""
    numbers = np.empty(count, int)
    for number, (_, test) in enumerate(split):
        numbers[test] = number
    return numbers
