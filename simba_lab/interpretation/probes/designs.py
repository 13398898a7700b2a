"""The design of a probing experiment: which target, of which subjects, on which folds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from simba_lab.core.checks import choice, of_shape
from simba_lab.core.errors import SimbaError, Words
from simba_lab.interpretation.probes.columns import (
    Column,
    Grams,
    clusters_of,
    folds_or_default,
    gram_of,
    values_of,
)
from simba_lab.interpretation.probes.folds import Split, fold_numbers, folds_of
from simba_lab.interpretation.probes.scores import conditional_auroc, mean_of_known, once, ratio

MOST_CLASSES = 10
KINDS = ("auto", "binary", "classes", "regression")


@dataclass(frozen=True)
class ProbeTarget:
    """What the probe has to read, and what is known beforehand.

    Parameters
    ----------
    kind : {"binary", "classes", "regression"}
    coded : ndarray, shape (n,)
        The numbers to read, or a number from 0 for the class of each row.
    given : ndarray of int, shape (n,)
        A number from 0 for the value of the known variable in each row; 0 throughout if none is.
    """

    kind: str
    coded: np.ndarray
    given: np.ndarray

    @property
    def score_name(self) -> str:
        """``r2`` for numbers, else ``auroc``."""
        return "r2" if self.kind == "regression" else "auroc"

    @property
    def cells(self) -> np.ndarray:
        """A number for each combination of target and given, for stratified folds."""
        if self.kind == "regression":
            return self.given
        return self.given * (self.coded.max() + 1) + self.coded

    def unconditional(self) -> ProbeTarget:
        """Return the same target, conditioned on nothing."""
        return ProbeTarget(self.kind, self.coded, np.zeros_like(self.given))

    def columns(self, values: np.ndarray) -> np.ndarray:
        """Return what is regressed: the numbers, the membership, or one column per class."""
        if self.kind == "classes":
            return (values[:, None] == np.arange(self.coded.max() + 1)).astype(float)
        return values[:, None].astype(float)

    @overload
    def score(self, values: np.ndarray, predictions: np.ndarray) -> float: ...

    @overload
    def score(
        self, values: np.ndarray, predictions: np.ndarray, counts: np.ndarray
    ) -> np.ndarray: ...

    def score(
        self, values: np.ndarray, predictions: np.ndarray, counts: np.ndarray | None = None
    ) -> float | np.ndarray:
        """Return the AUROC or R2.

        Predictions have a column per regressand, and for numbers a second one, of those from
        `given` alone. With `counts`, shape (samples, n), of how often each row occurs in each of
        several samples: one score per sample.
        """
        if counts is None:
            return float(self.score(values, predictions, once(len(values)))[0])
        if self.kind == "binary":
            return conditional_auroc(values, predictions[:, 0], self.given, counts)
        if self.kind == "classes":
            members = [(values == k).astype(int) for k in range(predictions.shape[1])]
            return mean_of_known(
                [
                    conditional_auroc(members[k], predictions[:, k], self.given, counts)
                    for k in range(predictions.shape[1])
                ]
            )
        errors, spread = (counts @ (values[:, None] - predictions[:, :2]) ** 2).T
        return 1 - ratio(errors, spread)

    @overload
    def balanced_accuracy(self, decided: np.ndarray) -> float: ...

    @overload
    def balanced_accuracy(self, decided: np.ndarray, counts: np.ndarray) -> np.ndarray: ...

    def balanced_accuracy(
        self, decided: np.ndarray, counts: np.ndarray | None = None
    ) -> float | np.ndarray:
        """Return the share of right decisions, averaged over classes and values of `given`.

        `counts` is that of `score`.
        """
        if counts is None:
            return float(self.balanced_accuracy(decided, once(len(decided)))[0])
        members = self.cells[:, None] == np.unique(self.cells)
        right = (decided == self.coded)[:, None] & members
        return mean_of_known(ratio(counts @ right, counts @ members).T)


@dataclass(frozen=True)
class ProbeDesign:
    """A target, the subject of each row, and the folds in which each of them is held out."""

    target: ProbeTarget
    clusters: np.ndarray
    split: Split

    def __len__(self) -> int:
        return len(self.clusters)

    @cached_property
    def folds(self) -> np.ndarray:
        """The fold in which each row is held out."""
        return fold_numbers(self.split, len(self))

    def gram(self, recording: Grams, layer: str, field: str = "recording") -> np.ndarray:
        """Return the Gram matrix of a layer in float64; an error if its shape does not fit."""
        return gram_of(recording, layer, len(self), field)


def probe_design(
    recording: Grams,
    target: Column,
    given: Column | None,
    folds: int | Column | None,
    *,
    kind: str = "binary",
    seed: int,
) -> ProbeDesign:
    """Return the design of a probing experiment; an error says what is wrong with its arguments."""
    known = None if given is None else values_of(recording, given, "given")
    folds = folds_or_default(recording, folds)
    probed = probe_target(values_of(recording, target, "target"), known, kind)
    clusters = clusters_of(recording, len(probed.coded))
    return ProbeDesign(probed, clusters, folds_of(folds, probed.cells, clusters, seed))


def probe_target(target: np.ndarray, given: np.ndarray | None, kind: str) -> ProbeTarget:
    """Return the target with values coded from 0; an error says what is wrong with the target."""
    choice("kind", kind, KINDS)
    if target.ndim != 1:
        raise SimbaError("target", Words(f"shape {target.shape}"), "one value per subject")
    remedy = "Leave out subjects without a value."
    numeric = np.issubdtype(target.dtype, np.number)
    if numeric and not np.isfinite(target).all():
        raise SimbaError("target", Words("NaN or infinity"), "finite", remedy)
    try:
        levels, coded = np.unique(target, return_inverse=True)
    except TypeError as error:
        types = sorted({type(value).__name__ for value in target})
        raise SimbaError("target", types, "of one type", remedy) from error
    if len(levels) < 2:
        value = f"{levels.tolist()} for everybody"
        raise SimbaError("target", Words(value), "of at least two different values")
    if kind == "auto":
        # Ages in whole years are measured; a few whole numbers are names of classes.
        measured = numeric and (
            len(levels) > MOST_CLASSES or np.any(target != np.round(target.astype(float)))
        )
        kind = "binary" if len(levels) == 2 else "regression" if measured else "classes"
    if kind == "binary" and len(levels) != 2:
        raise SimbaError("target", levels.tolist()[:5], "of two values")
    if kind == "regression" and not numeric:
        raise SimbaError("target", levels.tolist()[:3], "numbers")
    values = target.astype(float) if kind == "regression" else coded
    known = np.zeros(len(target), int)
    if given is not None:
        known = np.unique(of_shape("given", given, target.shape), return_inverse=True)[1]
    pairs = np.unique(np.stack([known, values]), axis=1).T
    if kind != "regression" and len(pairs) == len(np.unique(known)):
        raise SimbaError.problem(
            "The target follows from given, so nothing is left to read.",
            "Condition on a variable within which the target varies.",
        )
    return ProbeTarget(kind, values, known)


def octants(components: np.ndarray) -> np.ndarray:
    """Return a type for each subject from the signs of a few anatomical components.

    These are the types of the control task of `probe`.

    Parameters
    ----------
    components : ndarray, shape (n, k)
        Such as ``cohort.table[["anatomy_1", "anatomy_2", "anatomy_3"]]``.

    Returns
    -------
    ndarray of int, shape (n,)
        From 0 to 2**k - 1: the same anatomy, the same type.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.probes.octants([[-1.0, 2.0], [0.5, 1.0], [2.0, -3.0]])
    array([2, 0, 1])
    """
    components = np.asarray(components)
    if components.dtype.kind not in "biuf":
        raise SimbaError("components", components, "numbers")
    if components.ndim != 2:
        raise SimbaError("components", Words(f"shape {components.shape}"), "of shape (n, k)")
    signs = components > np.median(components, axis=0)
    return signs @ (1 << np.arange(signs.shape[1]))
