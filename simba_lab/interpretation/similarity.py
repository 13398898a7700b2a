"""Centred kernel alignment: whether two layers, networks or epochs see the same similarities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from simba_lab.core.checks import (
    MOST_PERMUTATIONS,
    choice,
    columns,
    of_shape,
    positive,
    whole_number,
)
from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import central, jackknife_of_correlation
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.columns import Column, Grams, gram_of, refuse_twins, values_of

KERNELS = ("linear", "rbf")


def cka(
    first: Grams,
    second: Grams | None = None,
    *,
    kernel: str = "linear",
    debiased: bool = True,
    bandwidth: float = 1.0,
    given: Column | None = None,
    permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the centred kernel alignment of each layer of one network with each of another.

    Parameters
    ----------
    first, second : Recording, or mapping of layer to ndarray, shape (n, n)
        From `record`, of the same subjects in the same order (or of their twins). By default a
        network with itself.
    kernel : {"linear", "rbf"}
        Of inner products, or of Gaussian similarities.
    debiased : bool
        Whether to use the unbiased estimator of the Hilbert-Schmidt criterion. Without it, random
        features that outnumber the subjects look alike.
    bandwidth : float
        Width of the Gaussian, as a share of the median distance of subjects.
    given : str or ndarray, shape (n,), optional
        Group of each subject, as a column of the table of `first` or as values: alignment within
        groups, averaged with their numbers of subjects as weights.
    permutations : int
        Shuffles of the subjects of the second network, for the null distribution of layers that
        have nothing in common; 0 for none.
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

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> first, second = (sb.record(sb.SimBANet((4, 8), seed=seed), cohort) for seed in (0, 1))
    >>> table = sb.cka(first, second, given="label")
    >>> float(table.loc[("pixels", "pixels"), "cka"].round(3))
    1.0
    """
    choice("kernel", kernel, KERNELS)
    positive("bandwidth", bandwidth)
    whole_number("permutations", permutations, least=0, most=MOST_PERMUTATIONS)
    networks = {"first": first} if second is None else {"first": first, "second": second}
    if not all(networks.values()):
        raise SimbaError("recording", Words("no layers"), "at least one layer")
    for network in networks.values():
        refuse_twins(network)
    count = len(next(iter(first.values())))
    groups = _groups(first, given, count)
    prepare = partial(
        _kernels, kernel=kernel, debiased=debiased, bandwidth=bandwidth, groups=groups
    )
    kernels = {
        (side, layer): prepare(gram_of(network, layer, count, side))
        for side, network in networks.items()
        for layer in network
    }
    norms = {key: _criterion(blocks, blocks, debiased) for key, blocks in kernels.items()}
    for (side, layer), norm_squared in norms.items():
        if not norm_squared.value > 0:
            problem = f"In {side}[{layer!r}] all subjects are the same, or differ by noise alone."
            raise SimbaError.problem(problem, "Choose a layer in which subjects differ.")
    orders = [
        [
            stream(seed, number, f"cka/{group}").permutation(len(rows))
            for group, rows in enumerate(groups)
        ]
        for number in range(permutations)
    ]
    last = list(networks)[-1]

    def row(layer: str, counterpart: str) -> dict[str, object]:
        left, right = kernels["first", layer], kernels[last, counterpart]
        sizes = norms["first", layer], norms[last, counterpart]
        product = _criterion(left, right, debiased)
        scale = np.sqrt(sizes[0].value * sizes[1].value)
        value = product.value / scale
        entry: dict[str, object] = {"first": layer, "second": counterpart, "cka": value}
        with np.errstate(invalid="ignore", divide="ignore"):
            without = product.without / np.sqrt(sizes[0].without * sizes[1].without)
        entry["low"], entry["high"] = jackknife_of_correlation(value, without)
        if orders:
            null = np.array([_shuffled(left, right, order, debiased) for order in orders])
            null /= scale
            entry["null_low"], entry["null_high"] = central(null)
            entry["p"] = (1 + (null >= value).sum()) / (1 + len(null))
        return entry

    pairs = ((layer, counterpart) for layer in first for counterpart in networks[last])
    return pd.DataFrame(in_threads(row, pairs)).set_index(["first", "second"])


# A sum over all subjects, or an array of such sums, each without one of the subjects.
Sums = TypeVar("Sums", float, np.ndarray)


class _Criterion(NamedTuple):
    """The Hilbert-Schmidt independence criterion, and its values without each of the subjects."""

    value: float
    without: np.ndarray


def _groups(recording: Grams, given: Column | None, count: int) -> list[np.ndarray]:
    """Return the rows of each group, or of everybody."""
    groups = [np.arange(count)]
    if given is not None:
        given = of_shape("given", values_of(recording, given, "given"), (count,))
        groups = [np.flatnonzero(given == value) for value in np.unique(given)]
    smallest = min(map(len, groups))
    if smallest < 5:
        raise SimbaError(
            "recording", Words(f"{smallest} subjects"), "of at least 5 subjects in each group"
        )
    return groups


def _kernels(
    gram: np.ndarray, *, kernel: str, debiased: bool, bandwidth: float, groups: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the kernel matrix of each group, without its diagonal or centred."""
    if kernel == "rbf":
        squares = np.diag(gram)
        distances = np.maximum(squares[:, None] + squares - 2 * gram, 0)
        median = np.median(distances[np.triu_indices(len(gram), 1)])
        if median == 0:
            raise SimbaError.problem(
                "Most subjects are the same in this layer.",
                "Choose a layer in which they differ, or kernel='linear'.",
            )
        gram = np.exp(-distances / (2 * bandwidth**2 * median))
    blocks = []
    for rows in groups:
        block = gram[np.ix_(rows, rows)].copy()
        # The mean of all pairs does not count in the result, but would cost digits.
        block -= block.mean()
        if debiased:
            np.fill_diagonal(block, 0)
        else:
            block -= block.mean(axis=0)
            block -= block.mean(axis=1)[:, None]
        blocks.append(block)
    return blocks


def _criterion(left: list[np.ndarray], right: list[np.ndarray], debiased: bool) -> _Criterion:
    """Sum over groups, each weighted by its number of subjects."""
    estimate = _unbiased if debiased else _biased
    groups = [estimate(*blocks) for blocks in zip(left, right, strict=True)]
    value = sum(group.value * len(group.without) for group in groups)
    without = []
    for group in groups:
        count = len(group.without)
        without.append(value - group.value * count + group.without * (count - 1))
    return _Criterion(value, np.concatenate(without))


def _u_statistic(n: int, trace: Sums, product: Sums, chain: Sums) -> Sums:
    """Return the unbiased criterion of n subjects from three sums: Song et al. (2012), eq. 5."""
    return (trace + product / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3))


def _unbiased(left: np.ndarray, right: np.ndarray) -> _Criterion:
    """For matrices with zero diagonal; leaving a subject out changes three sums."""
    n = len(left)
    pairs = np.einsum("ij,ij->i", left, right)
    rows, columns = left.sum(axis=0), right.sum(axis=0)
    trace, product, chain = pairs.sum(), rows.sum() * columns.sum(), rows @ columns
    traces = trace - 2 * pairs
    products = (rows.sum() - 2 * rows) * (columns.sum() - 2 * columns)
    chains = chain - rows * columns - left @ columns - right @ rows + pairs
    return _Criterion(
        _u_statistic(n, trace, product, chain), _u_statistic(n - 1, traces, products, chains)
    )


def _biased(left: np.ndarray, right: np.ndarray) -> _Criterion:
    """Gretton et al. (2005) for centred matrices, which are centred anew without each subject."""
    n = len(left)
    pairs = np.einsum("ij,ij->i", left, right)
    trace = pairs.sum()
    # Without subject i the rows sum to minus its entries; centring that remainder again takes these
    # terms away.
    m = n - 1
    diagonals = np.diag(left) * np.diag(right)
    traces = trace - 2 * pairs + diagonals
    # Row sums of the remainder are -K[:, i] without entry i, and its total is K[i, i].
    cross = pairs - diagonals
    without = (traces - 2 * cross / m + diagonals / m**2) / (m - 1) ** 2
    return _Criterion(trace / (n - 1) ** 2, without)


def _shuffled(
    left: list[np.ndarray], right: list[np.ndarray], orders: list[np.ndarray], debiased: bool
) -> float:
    """Return the criterion after the subjects of the right network are reordered within groups."""
    total = 0.0
    for first, second, order in zip(left, right, orders, strict=True):
        n = len(first)
        trace = np.einsum("ij,ij->", first, second[np.ix_(order, order)])
        if debiased:
            rows, columns = first.sum(axis=0), second.sum(axis=0)
            product, chain = rows.sum() * columns.sum(), rows @ columns[order]
            total += _u_statistic(n, trace, product, chain) * n
        else:
            total += trace / (n - 1) ** 2 * n
    return total


def cka_matrix(
    table: Annotated[pd.DataFrame, columns("first", "second")], column: str = "cka"
) -> pd.DataFrame:
    """Return a column of the table of `cka` as a matrix: first network by second network.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> activations = np.random.default_rng(0).standard_normal((20, 5))
    >>> grams = {"a": activations @ activations.T, "b": activations[:, :2] @ activations[:, :2].T}
    >>> sb.interpretation.cka_matrix(sb.cka(grams)).shape
    (2, 2)
    """
    wide = table[choice("column", column, table.columns)].unstack("second")
    rows = table.index.get_level_values("first").unique()
    return wide.loc[rows, table.index.get_level_values("second").unique()]
