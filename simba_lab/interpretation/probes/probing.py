"""Linear probes: what can be read from a layer, beside what can be read without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_auc_score

from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.kernel_ridge import held_out, means_within
from simba_lab.interpretation.probes.questions import Grams, Question, Split, design_of
from simba_lab.interpretation.probes.resampling import (
    counts_of,
    interval,
    labellings_of,
    resampled,
    shuffled_within,
)


def probe(
    grams: Grams,
    target: np.ndarray,
    *,
    given: np.ndarray | None = None,
    floors: Mapping[str, Grams | Sequence[Grams]] | None = None,
    types: np.ndarray | None = None,
    folds: int | np.ndarray = 5,
    groups: np.ndarray | None = None,
    kind: str = "auto",
    estimator: BaseEstimator | None = None,
    permutations: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well a linear probe reads a target from each layer, on held-out subjects.

    Probes are ridge regressions on exact kernel coordinates of the Gram matrix, which equal probes
    on the full features. Folds are held out; the penalty is chosen by holding out each of the
    training folds in turn (nested cross-validation).

    Parameters
    ----------
    grams : mapping of layer to ndarray, shape (n, n)
        From `record`.
    target : ndarray, shape (n,)
        What to read: a group of two (the bias, the disease), several classes (the site), or numbers
        (a component of the anatomy).
    given : ndarray, shape (n,), optional
        A variable that may leak the target, such as the label. The probe is then class-conditional:
        it is fitted to differences within each value of `given` (Frisch-Waugh-Lovell), and only
        subjects of equal `given` are compared.
    floors : mapping of name to grams, or to a sequence of grams, optional
        Gram matrices of other networks, such as ``{"untrained": [record(SimBANet(seed=s), test) for
        s in range(3)]}``, probed in the same way.
    types : ndarray, shape (n,), optional
        A type for each subject, for the control task: types get random labels, and the same probe
        learns those. `octants` makes types from anatomical components.
    folds : int or ndarray, shape (n,)
        Number of random folds, or the fold of each subject. Subjects of a cohort are matched within
        the folds of their design: pass ``test["fold"]``, or the scores come out below chance where
        there is nothing to read.
    groups : ndarray, shape (n,), optional
        Whose volume each is, where some are of the same subject (twins): they are held out
        together. Known by itself for recordings of cohorts.
    kind : {"auto", "binary", "classes", "regression"}
        By default two values are told apart whatever they are, other numbers with a fraction are
        regressed, and anything else is classes.
    estimator : scikit-learn estimator, optional
        Another probe, such as ``LogisticRegressionCV()``; it is fitted to the kernel coordinates.
    permutations : int
        Shuffles of the target, within `given`, for the null distribution.
    seed : int

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. With SCORE being ``auc`` (mean over one-against-rest for several classes)
        or ``r2``: ``SCORE`` (class-conditional if `given`) with its 95 % interval ``SCORE_low``,
        ``SCORE_high`` (bootstrap over subjects); ``null_high``, the 95th percentile of the
        permutation null, and ``p``; ``balanced_accuracy`` with interval (not for numbers);
        ``SCORE_plain``, not conditioned on anything; ``SCORE_leak``, what knowing `given` alone
        would score there; ``auc_leak_here``, what this layer scores there through what it knows of
        `given` (both of two groups); ``control`` and ``selectivity`` (score less control) with
        `types`; ``floor_<name>`` for each floor, with ``_min`` and ``_max`` for several networks;
        and ``floor_pixels`` if pixels were recorded.

    Raises
    ------
    SimbaError
        If the target is constant, a group is smaller than the number of folds, a subject lies in
        two folds, or shapes differ.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier probes";
    Hewitt and Liang (2019), "Designing and interpreting probes with control tasks", sec. 2 (control
    task, selectivity).
    """
    if not grams:
        raise SimbaError("grams", "no layers", "at least one layer")
    design = design_of(grams, target, given, kind=kind, folds=folds, groups=groups, seed=seed)
    question, clusters, split = design.question, design.clusters, design.split
    labellings = (
        [] if types is None else labellings_of(types, split, stream(seed, "probe", "types"))
    )
    generators = [stream(seed, number, "permutation") for number in range(permutations)]
    shuffled = [
        shuffled_within(question.target, question.context, clusters, generator)
        for generator in generators
    ]
    counts = counts_of(resampled(clusters, stream(seed, "probe", "bootstrap")), len(clusters))
    name = question.score_name
    plainly = question.without_context()

    def row(layer: str) -> dict[str, float]:
        gram = design.gram(grams, layer)
        (found, decided), *null = held_out(
            gram, split, question, [question.target, *shuffled], estimator
        )
        entry = {name: question.score(question.target, found)}
        entry |= interval(name, question.score(question.target, found, counts))
        chance = np.array(
            [
                question.score(values, scores)
                for values, (scores, _) in zip(shuffled, null, strict=True)
            ]
        )
        entry["null_high"] = np.quantile(chance, 0.95) if permutations else np.nan
        entry["p"] = (
            (1 + (chance >= entry[name]).sum()) / (1 + permutations) if permutations else np.nan
        )
        if question.kind != "regression":
            entry["balanced_accuracy"] = question.balanced_accuracy(decided)
            entry |= interval("balanced_accuracy", question.balanced_accuracy(decided, counts))
        entry |= _leaks(gram, split, question, plainly, estimator, entry[name])
        if labellings:
            task = Question("binary", labellings[0], np.zeros(len(labellings[0]), int))
            answers = held_out(gram, split, task, labellings, estimator)
            entry["control"] = np.mean(
                [task.score(v, s) for v, (s, _) in zip(labellings, answers, strict=True)]
            )
            entry["selectivity"] = entry[name] - entry["control"]
        for floor, others in (floors or {}).items():
            several = [others] if isinstance(others, Mapping) else list(others)
            below = []
            for number, other in enumerate(several):
                if layer in other:
                    there = design.gram(other, layer, f"floors[{floor!r}][{number}][{layer!r}]")
                    ((scores, _),) = held_out(there, split, question, [question.target], estimator)
                    below.append(question.score(question.target, scores))
            entry[f"floor_{floor}"] = np.mean(below) if below else np.nan
            if len(several) > 1:
                entry[f"floor_{floor}_min"] = min(below, default=np.nan)
                entry[f"floor_{floor}_max"] = max(below, default=np.nan)
        return entry

    table = pd.DataFrame(
        in_threads(row, ((layer,) for layer in grams)), index=pd.Index(list(grams), name="layer")
    )
    if "pixels" in table.index and len(table) > 1:
        table["floor_pixels"] = table.loc["pixels", name]
    return table


def _leaks(
    gram: np.ndarray,
    split: Split,
    question: Question,
    plainly: Question,
    estimator: BaseEstimator | None,
    score: float,
) -> dict[str, float]:
    """Return what an unconditional probe scores, and what knowledge of the context alone would score there."""
    name, values, context = question.score_name, question.target, question.context
    if not context.any():
        return {
            f"{name}_plain": score,
            f"{name}_leak": 0.0 if question.kind == "regression" else 0.5,
        }
    ((plain, _),) = held_out(gram, split, plainly, [values], estimator)
    entry = {f"{name}_plain": plainly.score(values, plain)}
    if question.kind == "regression":
        own = means_within(context, context) @ values
        return entry | {
            "r2_leak": 1 - ((values - own) ** 2).sum() / ((values - values.mean()) ** 2).sum()
        }
    if question.kind == "binary" and context.max() == 1:
        known = roc_auc_score(values, context)
        reader = Question("binary", context, np.zeros_like(context))
        ((through, _),) = held_out(gram, split, reader, [context], estimator)
        here = roc_auc_score(values, through[:, 0] * (1 if known >= 0.5 else -1))
        return entry | {"auc_leak": max(known, 1 - known), "auc_leak_here": here}
    return entry
