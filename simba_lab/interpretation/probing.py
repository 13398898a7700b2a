"""Linear probes: what can be read from a layer, beside what can be read without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from simba_lab.errors import SimbaError
from simba_lab.rng import stream

PENALTIES = np.logspace(-4, 2, 7)
BOOTSTRAPS = 500


def probe(
    grams: Mapping[str, np.ndarray], target: np.ndarray, *, given: np.ndarray | None = None,
    floors: Mapping[str, Mapping[str, np.ndarray]] | None = None, folds: int | np.ndarray = 5, permutations: int = 50,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Return how well a linear probe reads a binary target from each layer, on held-out subjects.

    Probes are ridge regressions on exact kernel coordinates of the Gram matrix, which equal probes on the full features.
    Folds are held out; the penalty is chosen by leave-one-out inside the training folds.

    Parameters
    ----------
    grams : mapping of layer to ndarray, shape (n, n)
        From `record`.
    target : ndarray, shape (n,)
        0 or 1 for each subject, such as the bias group.
    given : ndarray, shape (n,), optional
        A variable that may leak the target, such as the label. The probe is then class-conditional: it is fitted to
        differences within each value of `given` (Frisch-Waugh-Lovell), and only subjects of equal `given` are compared.
    floors : mapping of name to grams, optional
        Gram matrices of other networks, such as ``{"untrained": record(SimBANet(seed=1), test)}``, probed in the same way.
    folds : int or ndarray, shape (n,)
        Number of random folds, or the fold of each subject. Subjects of a cohort are matched within the folds of their
        design: pass ``test["fold"]``, or the scores come out below chance where there is nothing to read.
    permutations : int
        Shuffles of the target, within `given`, for the null distribution.
    seed : int

    Returns
    -------
    pandas.DataFrame
        Indexed by layer: ``auc`` with its 95 % bootstrap interval ``auc_low``, ``auc_high`` (class-conditional if
        `given`); ``null_high``, the 95th percentile of the permutation null; ``auc_plain``, not conditioned on
        anything; ``auc_leak``, what knowing `given` alone would score there; and ``floor_<name>`` for each floor.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier probes"; Hewitt and Liang (2019),
    "Designing and interpreting probes with control tasks".
    """
    target = _binary(target, "target")
    context = np.zeros(len(target), int) if given is None else np.unique(np.asarray(given), return_inverse=True)[1]
    if len(context) != len(target):
        raise SimbaError("given", context.shape, f"of shape {target.shape}")
    split = _folds(folds, context * 2 + target, seed)
    generators = [stream(seed, number, "permutation") for number in range(permutations)]
    targets = np.stack([target, *(_shuffled(target, context, generator) for generator in generators)], axis=1)
    draws = stream(seed, "probe", "bootstrap").integers(0, len(target), (BOOTSTRAPS, len(target)))
    leak = roc_auc_score(target, context) if context.max() == 1 else 0.5

    def row(layer: str) -> dict[str, float]:
        scores = _held_out(grams[layer], split, targets, context, layer)
        spread = [conditional_auc(target[take], scores[take, 0], context[take]) for take in draws]
        null = [conditional_auc(targets[:, k], scores[:, k], context) for k in range(1, targets.shape[1])]
        low, high = np.nanquantile(spread, [0.025, 0.975])
        entry = {"auc": conditional_auc(target, scores[:, 0], context), "auc_low": low, "auc_high": high}
        entry["null_high"] = np.quantile(null, 0.95) if null else np.nan
        plain = scores[:, :1]
        if context.any():
            plain = _held_out(grams[layer], split, targets[:, :1], np.zeros_like(context), layer)
        entry |= {"auc_plain": roc_auc_score(target, plain[:, 0]), "auc_leak": max(leak, 1 - leak)}
        for name, other in (floors or {}).items():
            if layer in other:
                below = _held_out(other[layer], split, targets[:, :1], context, f"floors[{name!r}][{layer!r}]")
                entry[f"floor_{name}"] = conditional_auc(target, below[:, 0], context)
        return entry

    # Decompositions in one thread each: their rounding then does not depend on the machine's number of cores.
    with threadpool_limits(1):
        rows = Parallel(n_jobs=-1, prefer="threads")(delayed(row)(layer) for layer in grams)
    return pd.DataFrame(rows, index=pd.Index(list(grams), name="layer"))


def conditional_auc(target: np.ndarray, scores: np.ndarray, context: np.ndarray) -> float:
    """Return the area under the ROC curve over pairs of equal context, averaged over contexts."""
    areas = []
    for value in np.unique(context):
        inside = context == value
        positive = target[inside] == 1
        ones, zeros = positive.sum(), (~positive).sum()
        if ones and zeros:
            # Mann-Whitney: the mean rank of the positives, less what their own number contributes.
            areas.append((rankdata(scores[inside])[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
    return float(np.mean(areas)) if areas else np.nan


def _binary(target: np.ndarray, name: str) -> np.ndarray:
    target = np.asarray(target)
    if target.ndim != 1 or set(np.unique(target).tolist()) != {0, 1}:
        raise SimbaError(name, sorted(set(target.ravel().tolist()))[:5], "both 0 and 1, one per subject")
    return target.astype(int)


def _folds(folds: int | np.ndarray, cells: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test indices of each fold; every cell of target x given must occur in every training part."""
    if np.ndim(folds) == 0:
        smallest = int(min(np.unique(cells, return_counts=True)[1]))
        if not 2 <= int(folds) <= smallest:
            raise SimbaError(
                "folds", folds, f"from 2 to {smallest} (the smallest group of target within given)", "Or add subjects."
            )
        return list(StratifiedKFold(int(folds), shuffle=True, random_state=seed).split(cells, cells))
    folds = np.asarray(folds)
    if folds.shape != cells.shape or len(np.unique(folds)) < 2:
        raise SimbaError("folds", folds.shape, f"a number, or of shape {cells.shape} with at least 2 values")
    split = [(np.flatnonzero(folds != value), np.flatnonzero(folds == value)) for value in np.unique(folds)]
    for train, _ in split:
        if set(cells[train]) != set(cells):
            raise SimbaError("folds", "a training part that lacks a group", "with every group of target within given")
    return split


def _shuffled(target: np.ndarray, context: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    shuffled = target.copy()
    for value in np.unique(context):
        shuffled[context == value] = generator.permutation(target[context == value])
    return shuffled


def _means(context: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the matrix that takes values with contexts `of` to the mean of each of the contexts `context`."""
    same = (context[:, None] == of).astype(float)
    return same / same.sum(axis=1, keepdims=True)


def _held_out(gram: np.ndarray, split: list, targets: np.ndarray, context: np.ndarray, layer: str) -> np.ndarray:
    """Scores (n, targets) by probes that did not see the subject, standardised fold by fold so that folds compare."""
    gram = np.asarray(gram, np.float64)
    if gram.shape != (len(targets), len(targets)):
        raise SimbaError(f"grams[{layer!r}]", gram.shape, f"of shape {(len(targets), len(targets))}")
    if not np.isfinite(gram).all():
        raise SimbaError(f"grams[{layer!r}]", "NaN or infinity", "finite")
    scores = np.empty(targets.shape)
    for train, test in split:
        # Features less the training mean of their own context, on both sides: what is left is within-context difference.
        seen_gram = gram[np.ix_(train, train)]
        means = _means(context[train], context[train])
        within = seen_gram - means @ seen_gram
        within -= within @ means.T
        across = gram[np.ix_(test, train)] - _means(context[test], context[train]) @ seen_gram
        across -= across @ means.T
        centred = targets[train] - means @ targets[train]
        fitted, dual = _ridge(within, centred)
        scores[test] = across @ dual / fitted.std(axis=0)
    return scores


def _ridge(gram: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit dual ridge regressions, each with the penalty of least leave-one-out error.

    One decomposition serves all penalties and all targets; a library's estimator would decompose the same matrix again.

    Returns
    -------
    tuple of ndarray, each of shape (n, targets)
        Fitted values, and the dual coefficients.

    References
    ----------
    Rifkin and Lippert (2007), "Notes on regularized least squares", sec. 4.2 (leave-one-out error).
    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * 1e-10
    values, vectors = values[kept], vectors[:, kept]
    projected = vectors.T @ targets
    best = np.full(targets.shape[1], np.inf)
    fitted, dual = np.empty(targets.shape), np.empty(targets.shape)
    # Penalties relative to the mean squared norm of the features, so that one set suits every layer.
    for penalty in PENALTIES * values.sum() / len(gram):
        shrunk = values / (values + penalty)
        guess = vectors @ (shrunk[:, None] * projected)
        leverage = (vectors**2) @ shrunk
        error = (((targets - guess) / (1 - leverage)[:, None]) ** 2).sum(axis=0)
        better = error < best
        best[better] = error[better]
        fitted[:, better] = guess[:, better]
        dual[:, better] = (vectors @ (projected / (values + penalty)[:, None]))[:, better]
    return fitted, dual
