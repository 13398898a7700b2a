"""What a probe is asked, of whom, and on which folds: the design of a probing experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from simba_lab.core.errors import SimbaError, UnknownNameError

Grams = Mapping[str, np.ndarray]
Split = list[tuple[np.ndarray, np.ndarray]]
KINDS = ("auto", "binary", "classes", "regression")


@dataclass(frozen=True)
class Question:
    """What the probe has to read, and what is known beforehand."""

    kind: str
    target: np.ndarray
    context: np.ndarray

    @property
    def score_name(self) -> str:
        """``r2`` for numbers, else ``auc``."""
        return "r2" if self.kind == "regression" else "auc"

    @property
    def cells(self) -> np.ndarray:
        """A number for each combination of target and context that folds should share out evenly."""
        if self.kind == "regression":
            return self.context
        return self.context * (self.target.max() + 1) + self.target

    def without_context(self) -> Question:
        """Return the same question, conditioned on nothing."""
        return Question(self.kind, self.target, np.zeros_like(self.context))

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Return what is regressed: the numbers, the membership, or one for each of several classes."""
        if self.kind == "classes":
            return (values[:, None] == np.arange(self.target.max() + 1)).astype(float)
        return values[:, None].astype(float)

    def score(
        self, values: np.ndarray, scores: np.ndarray, counts: np.ndarray | None = None
    ) -> float | np.ndarray:
        """AUC or R2; scores have a column per regressand, and for numbers a second one with what context predicts.

        With `counts`, shape (draws, n), of how often each row occurs in each of several samples:
        one score per sample.
        """
        if counts is None:
            return float(self.score(values, scores, _once(len(values)))[0])
        if self.kind == "binary":
            return conditional_auc(values, scores[:, 0], self.context, counts)
        if self.kind == "classes":
            rests = [((values == k).astype(int), scores[:, k]) for k in range(scores.shape[1])]
            return _mean_of_known(
                [conditional_auc(one, of_rest, self.context, counts) for one, of_rest in rests]
            )
        wrong, spread = (counts @ (values[:, None] - scores[:, :2]) ** 2).T
        return 1 - _ratio(wrong, spread)

    def balanced_accuracy(
        self, decided: np.ndarray, counts: np.ndarray | None = None
    ) -> float | np.ndarray:
        """Mean over contexts of the mean over classes of the share decided rightly; `counts` as in `score`."""
        if counts is None:
            return float(self.balanced_accuracy(decided, _once(len(decided)))[0])
        members = self.cells[:, None] == np.unique(self.cells)
        right = (decided == self.target)[:, None] & members
        return _mean_of_known(_ratio(counts @ right, counts @ members).T)


@dataclass(frozen=True)
class Design:
    """A question, the subjects it is asked of, and the folds in which each of them is held out."""

    question: Question
    clusters: np.ndarray
    split: Split

    def __len__(self) -> int:
        return len(self.clusters)

    @cached_property
    def folds(self) -> np.ndarray:
        """The fold in which each row is held out."""
        return fold_numbers(self.split, len(self))

    def gram(self, grams: Grams, layer: str, name: str | None = None) -> np.ndarray:
        """Return the Gram matrix of a layer in float64, or raise an error if it is not one of these subjects."""
        return checked(grams[layer], len(self), name or f"grams[{layer!r}]")


def design_of(
    grams: Grams,
    target: np.ndarray,
    given: np.ndarray | None,
    *,
    kind: str,
    folds: int | np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> Design:
    """Return the design of a probing experiment; an error says what is wrong with its arguments."""
    question = question_of(target, given, kind)
    clusters = clusters_of(groups, grams, len(question.target))
    return Design(question, clusters, folds_of(folds, question.cells, clusters, seed))


def question_of(target: np.ndarray, given: np.ndarray | None, kind: str) -> Question:
    """Return the question after the target, with values coded from 0; an error says what is wrong with it."""
    target = np.asarray(target)
    if kind not in KINDS:
        raise UnknownNameError.among("kind", kind, KINDS)
    if target.ndim != 1:
        raise SimbaError("target", f"shape {target.shape}", "one value per subject")
    numbers = np.issubdtype(target.dtype, np.number)
    if numbers and not np.isfinite(target).all():
        raise SimbaError(
            "target", "NaN or infinity", "finite", "Leave out subjects without a value."
        )
    try:
        known, coded = np.unique(target, return_inverse=True)
    except TypeError as error:
        raise SimbaError(
            "target", str(error), "of one type", "Leave out subjects without a value."
        ) from error
    if len(known) < 2:
        raise SimbaError(
            "target", f"{known.tolist()} for everybody", "of at least two different values"
        )
    if kind == "auto":
        fractions = numbers and np.any(target != np.round(target.astype(float)))
        kind = "binary" if len(known) == 2 else "regression" if fractions else "classes"
    if kind == "binary" and len(known) != 2:
        raise SimbaError("target", known.tolist()[:5], "of two values")
    if kind == "regression" and not numbers:
        raise SimbaError("target", known.tolist()[:3], "numbers")
    values = target.astype(float) if kind == "regression" else coded
    context = (
        np.zeros(len(target), int)
        if given is None
        else np.unique(np.asarray(given), return_inverse=True)[1]
    )
    if context.shape != target.shape:
        raise SimbaError("given", context.shape, f"of shape {target.shape}")
    if kind != "regression" and len(np.unique(np.stack([context, values]), axis=1).T) == len(
        np.unique(context)
    ):
        raise SimbaError(
            "given", "what tells the target", "such that some value of it goes with several targets"
        )
    return Question(kind, values, context)


def groups_of_two(values: np.ndarray, name: str) -> np.ndarray:
    """Return 0 and 1 as integers, or raise an error that names the variable."""
    values = np.asarray(values)
    if (
        values.ndim != 1
        or values.dtype.kind not in "biuf"
        or set(np.unique(values).tolist()) != {0, 1}
    ):
        found = np.unique(values.astype(str))[:5].tolist()
        raise SimbaError(name, found, "of two values, 0 and 1, one per subject")
    return values.astype(int)


def clusters_of(groups: np.ndarray | None, grams: Grams, count: int) -> np.ndarray:
    """Return a number for each volume, equal for volumes of the same subject."""
    subjects = getattr(grams, "subjects", None) if groups is None else np.asarray(groups)
    if subjects is None:
        return np.arange(count)
    if subjects.shape != (count,):
        raise SimbaError("groups", subjects.shape, f"of shape ({count},), one per volume")
    return np.unique(subjects, return_inverse=True)[1]


def refuse_twins(grams: Grams) -> None:
    """Raise an error if a recording holds several volumes of one subject, which are not independent of each other."""
    subjects = getattr(grams, "subjects", None)
    if subjects is not None and len(np.unique(subjects)) < len(subjects):
        raise SimbaError(
            "grams",
            "several volumes of one subject",
            "of different subjects",
            "Record the twins by themselves: two recordings can be compared.",
        )


def folds_of(folds: int | np.ndarray, cells: np.ndarray, clusters: np.ndarray, seed: int) -> Split:
    """Train and test indices of each fold; every cell of target x given must occur in every training part."""
    if np.ndim(folds) == 0:
        smallest = min(len(np.unique(clusters[cells == cell])) for cell in np.unique(cells))
        if not isinstance(folds, int | np.integer) or not 2 <= folds <= smallest:
            raise SimbaError(
                "folds",
                folds,
                f"from 2 to {smallest} (the smallest group of target within given)",
                "Or add subjects.",
            )
        if len(np.unique(clusters)) < len(clusters):
            split = list(
                StratifiedGroupKFold(int(folds), shuffle=True, random_state=seed).split(
                    cells, cells, clusters
                )
            )
        elif len(np.unique(cells)) == 1:
            split = list(KFold(int(folds), shuffle=True, random_state=seed).split(cells))
        else:
            split = list(
                StratifiedKFold(int(folds), shuffle=True, random_state=seed).split(cells, cells)
            )
    else:
        folds = np.asarray(folds)
        if folds.shape != cells.shape or len(np.unique(folds)) < 2:
            raise SimbaError(
                "folds", folds.shape, f"a number, or of shape {cells.shape} with at least 2 values"
            )
        split = [
            (np.flatnonzero(folds != value), np.flatnonzero(folds == value))
            for value in np.unique(folds)
        ]
    for train, test in split:
        torn = np.intersect1d(clusters[train], clusters[test])
        if len(torn):
            raise SimbaError(
                "folds",
                f"volumes of one subject in several folds (rows {np.flatnonzero(clusters == torn[0]).tolist()})",
                "the same for all volumes of a subject",
                "A probe would be tested on subjects that it has seen.",
            )
        if set(cells[train]) != set(cells):
            raise SimbaError(
                "folds",
                "a training part that lacks a group",
                "with every group of target within given",
            )
    return split


def fold_numbers(split: Split, count: int) -> np.ndarray:
    """Return the fold in which each row is held out."""
    numbers = np.empty(count, int)
    for number, (_, test) in enumerate(split):
        numbers[test] = number
    return numbers


def octants(components: np.ndarray) -> np.ndarray:
    """Return a type for each subject from the signs of a few anatomical components, for the control task of `probe`.

    Parameters
    ----------
    components : ndarray, shape (n, k)
        Such as ``cohort.table[["anatomy_1", "anatomy_2", "anatomy_3"]]``.

    Returns
    -------
    ndarray of int, shape (n,)
        From 0 to 2**k - 1: the same anatomy, the same type.
    """
    components = np.asarray(components, float)
    if components.ndim != 2:
        raise SimbaError("components", f"shape {components.shape}", "of shape (n, k)")
    signs = components > np.median(components, axis=0)
    return signs @ (1 << np.arange(signs.shape[1]))


def conditional_auc(
    target: np.ndarray, scores: np.ndarray, context: np.ndarray, counts: np.ndarray | None = None
) -> float | np.ndarray:
    """Return the area under the ROC curve over pairs of equal context, averaged over contexts.

    NaN if no context has subjects of both kinds, or a score is NaN. With `counts`, shape (draws,
    n), of how often each subject occurs in each of several samples: one area per sample.
    """
    if counts is None:
        return float(conditional_auc(target, scores, context, _once(len(target)))[0])
    if np.isnan(scores).any():  # what has no order has no area
        return np.full(len(counts), np.nan)
    areas = []
    for value in np.unique(context):
        inside = np.flatnonzero(context == value)
        ordered = inside[np.argsort(scores[inside])]
        ranked, positive = scores[ordered], target[ordered] == 1
        tied = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        ones, zeros = (
            np.add.reduceat(counts[:, ordered] * kind, tied, axis=1)
            for kind in (positive, ~positive)
        )
        # Mann-Whitney: a positive beats each negative below it, and half of those that tie with it.
        wins = (ones * (zeros.cumsum(axis=1) - zeros / 2)).sum(axis=1)
        areas.append(_ratio(wins, ones.sum(axis=1) * zeros.sum(axis=1)))
    return _mean_of_known(areas)


def _once(count: int) -> np.ndarray:
    """Return the sample that has every row once, as `counts`."""
    return np.ones((1, count), int)


def _ratio(share: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN where the whole is nothing."""
    return np.divide(share, whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)


def _mean_of_known(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    rows = np.stack(list(rows))
    return _ratio(np.nansum(rows, axis=0), np.isfinite(rows).sum(axis=0))


def checked(gram: np.ndarray, count: int, name: str) -> np.ndarray:
    """Return a Gram matrix in float64, or raise an error that names it."""
    gram = np.asarray(gram, np.float64)
    if gram.shape != (count, count):
        raise SimbaError(name, gram.shape, f"of shape {(count, count)}")
    if not np.isfinite(gram).all():
        raise SimbaError(name, "NaN or infinity", "finite")
    return gram
