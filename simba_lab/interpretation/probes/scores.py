"""Class-conditional scores of held-out subjects, for one sample or many at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

import numpy as np


@overload
def conditional_auroc(target: np.ndarray, predictions: np.ndarray, given: np.ndarray) -> float: ...


@overload
def conditional_auroc(
    target: np.ndarray, predictions: np.ndarray, given: np.ndarray, counts: np.ndarray
) -> np.ndarray: ...


def conditional_auroc(
    target: np.ndarray, predictions: np.ndarray, given: np.ndarray, counts: np.ndarray | None = None
) -> float | np.ndarray:
    """Return the area under the ROC curve over pairs of equal `given`, averaged over its values.

    NaN if no value of `given` has both groups, or a prediction is NaN. With `counts`, shape
    (samples, n), of how often each subject occurs in each of several samples: one area per sample.
    """
    if counts is None:
        return float(conditional_auroc(target, predictions, given, once(len(target)))[0])
    if np.isnan(predictions).any():  # what has no order has no area
        return np.full(len(counts), np.nan)
    areas = []
    for value in np.unique(given):
        rows = np.flatnonzero(given == value)
        ordered = rows[np.argsort(predictions[rows])]
        ranked, positive = predictions[ordered], target[ordered] == 1
        ties = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        positives, negatives = (
            np.add.reduceat(counts[:, ordered] * members, ties, axis=1)
            for members in (positive, ~positive)
        )
        # Mann-Whitney: a positive beats each negative below it, and half of those that tie with it.
        wins = (positives * (negatives.cumsum(axis=1) - negatives / 2)).sum(axis=1)
        areas.append(ratio(wins, positives.sum(axis=1) * negatives.sum(axis=1)))
    return mean_of_known(areas)


def once(count: int) -> np.ndarray:
    """Return the sample that has every row once, as counts of shape (1, count)."""
    return np.ones((1, count), int)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    undefined = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def mean_of_known(values: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN; NaN where all is."""
    stacked = np.stack(list(values))
    return ratio(np.nansum(stacked, axis=0), np.isfinite(stacked).sum(axis=0))
