"""Intervals: what an estimate says about the people, or the networks, that it was not measured on.

All are 95 % intervals. Reductions that return tables name their columns ``x``, ``x_low``,
``x_high``; a single number with its interval is an `Interval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm, rankdata, spearmanr
from scipy.stats import t as student_t

from simba_lab.core.errors import SimbaError, Words

# Bootstrap samples of an interval over people; of probes, which are scored anew in each, fewer.
BOOTSTRAPS, PROBE_BOOTSTRAPS = 2000, 500
ENDS = (0.025, 0.975)


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def bootstrap_rows(
    generator: np.random.Generator, count: int, samples: int = BOOTSTRAPS
) -> np.ndarray:
    """Return the rows of each bootstrap sample of `count` subjects, shape (samples, count)."""
    return generator.integers(0, count, (samples, count))


def central(draws: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the central 95 % of draws: low and high, along the first axis of the result."""
    draws = np.asarray(draws)
    quantile = np.nanquantile if np.isnan(draws).any() else np.quantile
    return np.asarray(quantile(draws, ENDS, axis=axis))


def columns_of_central(name: str, draws: Iterable[float]) -> dict[str, float]:
    """Return the central 95 % of draws as columns ``name_low`` and ``name_high``."""
    low, high = np.nanquantile(list(draws), ENDS)
    return {f"{name}_low": low, f"{name}_high": high}


def columns_of_mean(name: str, values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the mean of some values with its bootstrap interval over subjects, as three columns.

    Parameters
    ----------
    values : ndarray, shape (n,)
    rows : ndarray of int, shape (samples, n)
        From `bootstrap_rows`.
    """
    low, high = np.quantile(values[rows].mean(axis=1), ENDS)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def columns_of_share(values: np.ndarray, total: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return mean(values) / mean(total) with its bootstrap interval; NaN where there is no total.

    A ratio whose denominator may be zero has no bounded interval (Fieller 1954, J. R. Stat. Soc. B
    16:175-185): where the interval of the total contains zero, the ends are NaN.

    Parameters
    ----------
    values, total : ndarray, shape (n,)
    rows : ndarray of int, shape (samples, n)
        From `bootstrap_rows`.
    """
    columns = {"share": np.nan, "share_low": np.nan, "share_high": np.nan}
    if abs(total.mean()) <= 1e-6:
        return columns
    denominators = total[rows].mean(axis=1)
    low, high = np.quantile(denominators, ENDS)
    columns["share"] = float(values.mean() / total.mean())
    if low * high > 0:
        shares = values[rows].mean(axis=1) / denominators
        columns["share_low"], columns["share_high"] = np.quantile(shares, ENDS)
    return columns


def wilson(successes: int, trials: int) -> Interval:
    """Return a share and its interval after Wilson (1927), J. Am. Stat. Assoc. 22:209-212."""
    ends = binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(successes / trials, ends.low, ends.high)


def paired_share(up: int, down: int, count: int) -> Interval:
    """Return the share of subjects that change one way, less the share that change the other way.

    Wilson intervals of both shares, combined for a difference of shares of one sample (Zou and
    Donner 2008, "Construction of confidence limits about effect measures", Stat. Med. 27:1693-1702,
    eq. 4 with a correlation).
    """
    rising, falling = wilson(up, count), wilson(down, count)
    unchanged = (1 - rising.estimate) * (1 - falling.estimate)
    product = rising.estimate * falling.estimate
    correlation = -np.sqrt(product / unchanged) if unchanged > 0 else 0.0

    def reach(first: float, second: float) -> float:
        squares = first**2 + second**2 - 2 * correlation * first * second
        return float(np.sqrt(max(squares, 0.0)))

    difference = rising.estimate - falling.estimate
    below = reach(rising.estimate - rising.low, falling.high - falling.estimate)
    above = reach(rising.high - rising.estimate, falling.estimate - falling.low)
    return Interval(difference, max(difference - below, -1.0), min(difference + above, 1.0))


def delong(truth: np.ndarray, scores: np.ndarray) -> Interval:
    """Return the area under the ROC curve and its interval; NaN with fewer than two of a class.

    DeLong et al. (1988), Biometrics 44:837-845.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    diseased, healthy = scores[truth == 1], scores[truth == 0]
    if min(len(diseased), len(healthy)) < 2:
        return Interval(np.nan, np.nan, np.nan)
    ranks = rankdata(np.concatenate([diseased, healthy]))
    above_healthy = (ranks[: len(diseased)] - rankdata(diseased)) / len(healthy)
    below_diseased = 1 - (ranks[len(diseased) :] - rankdata(healthy)) / len(diseased)
    variances = above_healthy.var(ddof=1) / len(diseased), below_diseased.var(ddof=1) / len(healthy)
    error, area = np.sqrt(sum(variances)), above_healthy.mean()
    low, high = (float(np.clip(area + end * 1.959964 * error, 0, 1)) for end in (-1, 1))
    return Interval(float(area), low, high)


def over_seeds(values: Iterable[float]) -> Interval:
    """Return the mean over networks with different seeds, and its interval (Student's t).

    Raises
    ------
    SimbaError
        If there are fewer than two networks: one says nothing about the spread.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.core.over_seeds([1.0, 2.0, 3.0]).estimate
    2.0
    """
    values = np.asarray(list(values), float)
    if len(values) < 2:
        raise SimbaError("values", Words(f"{len(values)} networks"), "at least 2 networks")
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, float(values.mean() - half), float(values.mean() + half))


def jackknife_of_correlation(value: float, without: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval of a correlation, or of an alignment from 0 to 1.

    On the scale of the inverse hyperbolic tangent, where values near 1 spread evenly; NaN if it is
    not known without one of the subjects.

    Parameters
    ----------
    value : float
    without : ndarray, shape (n,)
        The same without each of the subjects (jackknife: Tukey 1958, Ann. Math. Stat. 29:614).
    """
    if not np.isfinite(without).all():
        return np.nan, np.nan
    if value >= 1 - 1e-12:
        return value, value
    bent = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
    n = len(bent)
    error = np.sqrt((n - 1) / n * ((bent - bent.mean()) ** 2).sum())
    reach = norm.ppf(0.975) * error
    return float(np.tanh(np.arctanh(value) - reach)), float(np.tanh(np.arctanh(value) + reach))


def rank_correlation(first: Iterable[float], second: Iterable[float]) -> Interval:
    """Return Spearman's rank correlation over networks, and its interval.

    Raises
    ------
    SimbaError
        If the two differ in length, if there are fewer than four networks, or if one of them is the
        same for all.

    References
    ----------
    Bonett and Wright (2000), "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations", Psychometrika 65:23-28 (standard error on the scale of the inverse hyperbolic
    tangent).
    """
    first, second = (np.asarray(list(values), float) for values in (first, second))
    if first.shape != second.shape or len(first) < 4:
        counts = f"{len(first)} and {len(second)} networks"
        raise SimbaError(
            "values", Words(counts), "as many of the first as of the second, at least 4"
        )
    if min(np.ptp(first), np.ptp(second)) == 0:
        raise SimbaError(
            "values", Words("the same for all networks"), "of at least two different numbers"
        )
    value = float(spearmanr(first, second).statistic)
    if abs(value) == 1:
        return Interval(value, value, value)
    reach = norm.ppf(0.975) * np.sqrt((1 + value**2 / 2) / (len(first) - 3))
    low, high = (float(np.tanh(np.arctanh(value) + end * reach)) for end in (-1, 1))
    return Interval(value, low, high)


def counts_of(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return how often each row occurs in each bootstrap sample, shape (samples, count)."""
    return np.stack([np.bincount(sample, minlength=count) for sample in rows])
