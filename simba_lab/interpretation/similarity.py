"""Centred kernel alignment: whether two layers, networks or epochs see the same likenesses between subjects."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.questions import Grams, checked, refuse_twins

KERNELS = ("linear", "rbf")


def cka(
    first: Grams,
    second: Grams | None = None,
    *,
    kernel: str = "linear",
    debiased: bool = True,
    bandwidth: float = 1.0,
    given: np.ndarray | None = None,
    permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the centred kernel alignment of each layer of one network with each layer of another.

    Parameters
    ----------
    first, second : mapping of layer to ndarray, shape (n, n)
        From `record`, of the same subjects in the same order (or of their twins). By default a
        network with itself.
    kernel : {"linear", "rbf"}
        Of inner products, or of Gaussian similarities.
    debiased : bool
        Whether to use the unbiased estimator of the Hilbert-Schmidt criterion. Without it, random
        features that outnumber the subjects look alike.
    bandwidth : float
        Width of the Gaussian, as a share of the median distance of subjects.
    given : ndarray, shape (n,), optional
        Group of each subject: alignment within groups, averaged with their numbers of subjects as
        weights.
    permutations : int
        Shuffles of the subjects of the second network for the null distribution (what layers share
        that have nothing in common); 0 for none.
    seed : int

    Returns
    -------
    pandas.DataFrame
        Indexed by ``first`` and ``second`` layer: ``cka`` with its 95 % interval ``low``, ``high``
        (jackknife over subjects); and with permutations ``null_low``, ``null_high`` (their central
        95 %) and ``p``.

    Raises
    ------
    SimbaError
        If matrices differ in shape, hold NaN or are constant, or if there are fewer than 5 subjects
        (in a group).

    Notes
    -----
    A bootstrap would draw subjects twice, and a subject is unusually like itself; the jackknife
    leaves subjects out, which an estimator made of pairs of different subjects takes without bias
    (Arvesen 1969).

    References
    ----------
    Kornblith et al. (2019), ICML, eq. 2 and 3 (CKA); Song et al. (2012), J. Mach. Learn. Res.
    13:1393-1434, eq. 5 (unbiased criterion); Murphy et al. (2024), "Correcting biased centered
    kernel alignment measures in biological and artificial neural networks"; Arvesen (1969), Ann.
    Math. Stat. 40:2076-2100 (jackknife of U-statistics).
    """
    if kernel not in KERNELS:
        raise UnknownNameError.among("kernel", kernel, KERNELS)
    if not bandwidth > 0:
        raise SimbaError("bandwidth", bandwidth, "above 0")
    same = second is None
    second = first if same else second
    if not first or not second:
        raise SimbaError("grams", "no layers", "at least one layer")
    refuse_twins(first)
    refuse_twins(second)
    count = len(next(iter(first.values())))
    groups = [np.arange(count)]
    if given is not None:
        given = np.asarray(given)
        if given.shape != (count,):
            raise SimbaError("given", given.shape, f"of shape ({count},)")
        groups = [np.flatnonzero(given == value) for value in np.unique(given)]
    if min(map(len, groups)) < 5:
        raise SimbaError(
            "grams", f"{min(map(len, groups))} subjects", "of at least 5 subjects in each group"
        )
    ready = partial(_ready, kernel=kernel, debiased=debiased, bandwidth=bandwidth, groups=groups)
    prepared = {
        ("first", name): ready(checked(gram, count, f"first[{name!r}]"))
        for name, gram in first.items()
    }
    if not same:
        prepared |= {
            ("second", name): ready(checked(gram, count, f"second[{name!r}]"))
            for name, gram in second.items()
        }
    orders = [
        [
            stream(seed, number, f"cka/{group}").permutation(len(rows))
            for group, rows in enumerate(groups)
        ]
        for number in range(permutations)
    ]
    side = "first" if same else "second"
    own = {key: _criterion(parts, parts, debiased) for key, parts in prepared.items()}
    flat = [f"{place}[{name!r}]" for (place, name), one in own.items() if not one.value > 0]
    if flat:
        raise SimbaError(
            flat[0], "the same for all subjects, or noise alone", "a layer in which subjects differ"
        )

    def row(one: str, other: str) -> dict[str, float]:
        left, right = prepared["first", one], prepared[side, other]
        mine, theirs = own["first", one], own[side, other]
        both = _criterion(left, right, debiased)
        value = both.value / np.sqrt(mine.value * theirs.value)
        found = {"first": one, "second": other, "cka": value}
        found["low"], found["high"] = _jackknifed(both, mine, theirs, value)
        if orders:
            null = np.array([_shuffled(left, right, order, debiased) for order in orders])
            null /= np.sqrt(mine.value * theirs.value)
            found["null_low"], found["null_high"] = np.quantile(null, [0.025, 0.975])
            found["p"] = (1 + (null >= value).sum()) / (1 + len(null))
        return found

    return pd.DataFrame(
        in_threads(row, ((one, other) for one in first for other in second))
    ).set_index(["first", "second"])


class _Criterion(NamedTuple):
    """The Hilbert-Schmidt independence criterion, and what it is without each of the subjects."""

    value: float
    without: np.ndarray


def _ready(
    gram: np.ndarray, *, kernel: str, debiased: bool, bandwidth: float, groups: list
) -> list[np.ndarray]:
    """Return the kernel matrix of each group, without its diagonal or centred."""
    if kernel == "rbf":
        size = np.diag(gram)
        apart = np.maximum(size[:, None] + size - 2 * gram, 0)
        middle = np.median(apart[np.triu_indices(len(gram), 1)])
        if middle == 0:
            raise SimbaError(
                "grams",
                "the same for most subjects",
                "a layer in which subjects differ",
                "Or kernel='linear'.",
            )
        gram = np.exp(-apart / (2 * bandwidth**2 * middle))
    parts = []
    for rows in groups:
        part = gram[np.ix_(rows, rows)].copy()
        # The mean of all pairs has no part in the result, but would cost digits.
        part -= part.mean()
        if debiased:
            np.fill_diagonal(part, 0)
        else:
            part -= part.mean(axis=0)
            part -= part.mean(axis=1)[:, None]
        parts.append(part)
    return parts


def _criterion(left: list[np.ndarray], right: list[np.ndarray], debiased: bool) -> _Criterion:
    """Sum over groups, each weighted by its number of pairs."""
    value, without = 0.0, []
    parts = [
        _unbiased(one, other) if debiased else _biased(one, other)
        for one, other in zip(left, right, strict=True)
    ]
    value = sum(part.value * len(part.without) for part in parts)
    for part in parts:
        count = len(part.without)
        without.append(value - part.value * count + part.without * (count - 1))
    return _Criterion(value, np.concatenate(without))


def _unbiased(left: np.ndarray, right: np.ndarray) -> _Criterion:
    """Song et al. (2012), eq. 5, for matrices with zero diagonal; leaving a subject out changes three sums."""
    n = len(left)
    pairs = np.einsum("ij,ij->i", left, right)
    rows, columns = left.sum(axis=0), right.sum(axis=0)
    trace, totals, chain = pairs.sum(), rows.sum() * columns.sum(), rows @ columns
    traces = trace - 2 * pairs
    products = (rows.sum() - 2 * rows) * (columns.sum() - 2 * columns)
    chains = chain - rows * columns - left @ columns - right @ rows + pairs

    def combine(m: int, trace: np.ndarray, product: np.ndarray, chain: np.ndarray) -> np.ndarray:
        return (trace + product / ((m - 1) * (m - 2)) - 2 * chain / (m - 2)) / (m * (m - 3))

    return _Criterion(combine(n, trace, totals, chain), combine(n - 1, traces, products, chains))


def _biased(left: np.ndarray, right: np.ndarray) -> _Criterion:
    """Gretton et al. (2005) for centred matrices; what is left without a subject is centred anew."""
    n = len(left)
    pairs = np.einsum("ij,ij->i", left, right)
    trace = pairs.sum()
    # Without subject i the rows sum to minus its entries; centring that remainder again takes these
    # terms away.
    m = n - 1
    own_left, own_right = np.diag(left), np.diag(right)
    traces = trace - 2 * pairs + own_left * own_right
    # Row sums of the remainder are -K[:, i] without entry i, and its total is K[i, i].
    cross = pairs - own_left * own_right
    without = (traces - 2 * cross / m + own_left * own_right / m**2) / (m - 1) ** 2
    return _Criterion(trace / (n - 1) ** 2, without)


def _shuffled(
    left: list[np.ndarray], right: list[np.ndarray], orders: list[np.ndarray], debiased: bool
) -> float:
    """Return the criterion after another order of the subjects of the right network, within groups."""
    total = 0.0
    for one, other, order in zip(left, right, orders, strict=True):
        n = len(one)
        trace = np.einsum("ij,ij->", one, other[np.ix_(order, order)])
        if debiased:
            rows, columns = one.sum(axis=0), other.sum(axis=0)
            product, chain = rows.sum() * columns.sum(), rows @ columns[order]
            total += (
                (trace + product / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3)) * n
            )
        else:
            total += trace / (n - 1) ** 2 * n
    return total


def _jackknifed(
    both: _Criterion, mine: _Criterion, theirs: _Criterion, value: float
) -> tuple[float, float]:
    """95 % interval on the scale of the inverse hyperbolic tangent, where values near one spread evenly."""
    with np.errstate(invalid="ignore", divide="ignore"):
        without = both.without / np.sqrt(mine.without * theirs.without)
    if not np.isfinite(without).all():
        return np.nan, np.nan
    if value >= 1 - 1e-12:
        return value, value
    bent = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
    n = len(bent)
    error = np.sqrt((n - 1) / n * ((bent - bent.mean()) ** 2).sum())
    reach = norm.ppf(0.975) * error
    return float(np.tanh(np.arctanh(value) - reach)), float(np.tanh(np.arctanh(value) + reach))


def cka_matrix(table: pd.DataFrame, column: str = "cka") -> pd.DataFrame:
    """Return a column of the table of `cka` as a matrix: layers of the first network by layers of the second."""
    wide = table[column].unstack("second")
    rows = table.index.get_level_values("first").unique()
    return wide.loc[rows, table.index.get_level_values("second").unique()]
