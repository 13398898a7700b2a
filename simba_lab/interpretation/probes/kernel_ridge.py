"""Ridge regression on Gram matrices: probes on full activations, from inner products alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone

from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.probes.designs import ProbeTarget
from simba_lab.interpretation.probes.folds import Split, fold_numbers

PENALTIES = np.logspace(-4, 2, 7)


class RidgeFit(NamedTuple):
    """Ridge regressions on training rows, activations centred within each value of `given`.

    Parameters
    ----------
    train : ndarray of int, shape (m,)
        Rows that were fitted.
    given : ndarray of int, shape (n,)
        Of all rows: activations and targets are taken less the mean of rows of equal `given`.
    means : ndarray, shape (m, m)
        ``means @ values`` gives each training row the mean of its value of `given`.
    spectrum, vectors : ndarray, shapes (r,) and (m, r)
        Eigenvalues and eigenvectors of the centred Gram matrix of the training rows.
    targets, fitted, left_out : ndarray, shape (m, k)
        Centred targets; their fitted values; and their predictions by the other inner folds.
    dual : ndarray, shape (m, k)
        Weights of the training rows: a prediction is its inner products with them times these.
    """

    train: np.ndarray
    given: np.ndarray
    means: np.ndarray
    spectrum: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    fitted: np.ndarray
    left_out: np.ndarray
    dual: np.ndarray

    @property
    def scale(self) -> np.ndarray:
        """Standard deviation of the fitted values, or 1: it makes folds comparable."""
        return _or_one(self.fitted.std(axis=0))

    @property
    def norm(self) -> np.ndarray:
        """Length of each probe's direction, or 1."""
        return _or_one(
            np.sqrt(((self.vectors.T @ self.dual) ** 2 * self.spectrum[:, None]).sum(axis=0))
        )

    def _across(self, gram: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Inner products of held-out and training rows, centred within `given`."""
        averaging = means_within(self.given[test], self.given[self.train])
        across = gram[np.ix_(test, self.train)] - averaging @ gram[np.ix_(self.train, self.train)]
        return across - across @ self.means.T

    def predict(self, gram: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Return the predictions for held-out rows, less the mean within `given`."""
        return self._across(gram, test) @ self.dual

    def coordinates(self, gram: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Return the coordinates of held-out rows on the principal components."""
        return self._across(gram, test) @ self.vectors / np.sqrt(self.spectrum)

    def residual(self, gram: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Squared distance of held-out rows from the training mean within `given`."""
        averaging = means_within(self.given[test], self.given[self.train])
        seen = gram[np.ix_(self.train, self.train)]
        cross = (averaging * gram[np.ix_(test, self.train)]).sum(axis=1)
        return np.diag(gram)[test] - 2 * cross + ((averaging @ seen) * averaging).sum(axis=1)


def _or_one(sizes: np.ndarray) -> np.ndarray:
    """Return sizes to divide by."""
    return np.where(sizes > 0, sizes, 1)


def means_within(given: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return A, shape (len(given), len(source)): ``A @ values`` are the means of equal `given`."""
    membership = (given[:, None] == source).astype(float)
    return membership / membership.sum(axis=1, keepdims=True)


def fit_ridge(
    gram: np.ndarray,
    train: np.ndarray,
    targets: np.ndarray,
    given: np.ndarray,
    inner: np.ndarray | None = None,
) -> RidgeFit:
    """Fit ridge regressions, each with the penalty and scale that predict inner folds best.

    Activations and targets are taken less the mean within `given`: what is left is the difference
    within it. One decomposition serves all penalties, all targets and all inner folds; a library's
    estimator would need one for each.

    Parameters
    ----------
    gram : ndarray, shape (n, n)
    train : ndarray of int
        Rows to fit.
    targets : ndarray, shape (len(train), k)
    given : ndarray of int, shape (n,)
    inner : ndarray of int, shape (len(train),), optional
        Inner fold of each training row; by default each row is one. Folds of a matched design must
        be kept: a row that is left out alone can be told from those that it was matched with.

    References
    ----------
    Rifkin and Lippert (2007), "Notes on regularized least squares", sec. 4.2 (leave-one-out error);
    its block form, for folds, follows from the same identity.
    """
    means = means_within(given[train], given[train])
    within = gram[np.ix_(train, train)]
    within = within - means @ within
    within -= within @ means.T
    targets = targets - means @ targets
    spectrum, vectors = np.linalg.eigh(within)
    kept = np.flatnonzero(spectrum > max(spectrum[-1] * 1e-10, 1e-30))[::-1]
    spectrum, vectors = spectrum[kept], vectors[:, kept]
    inner_rows = _inner_folds(inner, given[train])
    # The difference of a row from the mean within `given` without its fold: predictions are
    # compared with this.
    residual_targets = _without(inner_rows, means, targets)
    projected = vectors.T @ targets
    best = np.full(targets.shape[1], np.inf)
    fitted, left_out, dual = (np.zeros(targets.shape) for _ in range(3))
    # Penalties relative to the mean squared norm of the activations, so that one set suits every
    # layer.
    for penalty in PENALTIES * spectrum.sum() / len(train):
        shrunk = spectrum / (spectrum + penalty)
        fit = vectors @ (shrunk[:, None] * projected)
        predicted = residual_targets - _without(inner_rows, means, targets - fit, vectors, shrunk)
        size = (predicted**2).sum(axis=0)
        scale = np.maximum((residual_targets * predicted).sum(axis=0), 0) / _or_one(size)
        error = ((residual_targets - scale * predicted) ** 2).sum(axis=0)
        better = error < best
        best[better] = error[better]
        # A scale of zero says that nothing can be read; the direction is kept, for what does not
        # depend on it.
        scale = np.where(scale > 0, scale, 1e-6)[better]
        fitted[:, better] = fit[:, better] * scale
        left_out[:, better] = predicted[:, better] * scale
        dual[:, better] = (vectors @ (projected / (spectrum + penalty)[:, None]))[:, better] * scale
    return RidgeFit(train, given, means, spectrum, vectors, targets, fitted, left_out, dual)


def _inner_folds(inner: np.ndarray | None, given: np.ndarray) -> list[np.ndarray] | None:
    """Rows of each inner fold; None for single rows, or if one has all of a value of `given`."""
    if inner is None or len(np.unique(inner)) < 2:
        return None
    folds = [np.flatnonzero(inner == value) for value in np.unique(inner)]
    incomplete = any(set(np.delete(given, rows)) != set(given) for rows in folds)
    return None if incomplete else folds


def _without(
    folds: list[np.ndarray] | None,
    means: np.ndarray,
    residuals: np.ndarray,
    vectors: np.ndarray | None = None,
    shrunk: np.ndarray | None = None,
) -> np.ndarray:
    """Return residuals of rows that were not fitted, from the residuals of a fit to all rows.

    The fit has the means within `given` and, if given, the shrunken components as its smoother.
    """
    if folds is None:
        leverage = 1 - means.diagonal() - (0 if vectors is None else (vectors**2) @ shrunk)
        # A value of `given` with one member equals its mean: nothing is known without that member.
        return residuals / np.where(leverage > 1e-9, leverage, 1)[:, None]
    held_out_residuals = np.empty(residuals.shape)
    for rows in folds:
        complement = np.eye(len(rows)) - means[np.ix_(rows, rows)]
        if vectors is not None:
            complement -= (vectors[rows] * shrunk) @ vectors[rows].T
        held_out_residuals[rows] = np.linalg.solve(complement, residuals[rows])
    return held_out_residuals


def kernel_coordinates(
    gram: np.ndarray, train: np.ndarray, test: np.ndarray, given: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates on the principal components, of training and held-out subjects.

    They are exact: any linear estimator with a rotation-invariant penalty finds the same on them as
    on the activations.

    Parameters
    ----------
    gram : ndarray, shape (n, n)
    train, test : ndarray of int
        Rows to fit the components to, and rows to project on them.
    given : ndarray of int, shape (n,), optional
        Activations are centred within each value of it, by the means of the training rows.

    Returns
    -------
    tuple of ndarray, shapes (len(train), r) and (len(test), r)
        Components in decreasing order of variance.

    References
    ----------
    Schoelkopf et al. (1998), "Nonlinear component analysis as a kernel eigenvalue problem", eq. 16.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> activations = np.random.default_rng(0).standard_normal((20, 5))
    >>> train, test = np.arange(15), np.arange(15, 20)
    >>> seen, unseen = sb.probes.kernel_coordinates(activations @ activations.T, train, test)
    >>> seen.shape, unseen.shape
    ((15, 5), (5, 5))
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise SimbaError("gram", gram.shape, "of shape (n, n)")
    given = np.zeros(len(gram), int) if given is None else given
    of_shape("given", given, (len(gram),))
    for name, rows in (("train", train), ("test", test)):
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or not np.isin(rows, range(len(gram))).all()
        ):
            raise SimbaError(name, rows, f"an array of row numbers below {len(gram)}")
    fit = fit_ridge(gram, train, np.zeros((len(train), 1)), given)
    return fit.vectors * np.sqrt(fit.spectrum), fit.coordinates(gram, test)


def predict_held_out(
    gram: np.ndarray,
    split: Split,
    target: ProbeTarget,
    targets: Sequence[np.ndarray],
    estimator: BaseEstimator | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and decisions for each of several targets, by probes that did not see the row.

    Predictions of shape (n, columns) are standardised fold by fold so that folds compare; numbers
    are predicted as they are, with a second column from `given` alone. Decisions balance the
    classes within each value of `given` (an estimator's do not).
    """
    count, given, several = len(gram), target.given, len(targets)
    if estimator is not None:
        return [_estimated(gram, split, target, values, estimator) for values in targets]
    columns = np.concatenate([target.columns(values) for values in targets], axis=1)
    width = columns.shape[1] // several
    predictions, margins, known = (np.empty(columns.shape) for _ in range(3))
    inner = fold_numbers(split, count)
    for train, test in split:
        fit = fit_ridge(gram, train, columns[train], given, inner[train])
        predicted = fit.predict(gram, test)
        known[test] = means_within(given[test], given[train]) @ columns[train]
        if target.kind == "regression":
            predictions[test] = predicted + known[test]
            continue
        predictions[test] = predicted / fit.scale
        for value in np.unique(given):
            rows = np.flatnonzero(given[train] == value)
            members = columns[train][rows]
            non_members = 1 - members
            # Of rows that were left out: fitted values are pulled towards the row's own group.
            left_out = fit.left_out[rows]
            member_means = (left_out * members).sum(axis=0) / np.maximum(members.sum(axis=0), 1)
            non_member_means = (left_out * non_members).sum(axis=0) / np.maximum(
                non_members.sum(axis=0), 1
            )
            tested = given[test] == value
            margins[test[tested]] = predicted[tested] - (member_means + non_member_means) / 2
    answers = []
    for start in range(0, several * width, width):
        chosen = slice(start, start + width)
        if target.kind == "regression":
            both = np.concatenate([predictions[:, chosen], known[:, chosen]], axis=1)
            answers.append((both, np.empty(count)))
            continue
        decided = margins[:, chosen].argmax(axis=1) if width > 1 else margins[:, start] > 0
        answers.append((predictions[:, chosen], decided.astype(int)))
    return answers


def _wide(predictions: np.ndarray, width: int) -> np.ndarray:
    """Return predictions as columns, without that of the first of two classes."""
    predictions = np.asarray(predictions)
    return predictions[:, None] if predictions.ndim == 1 else predictions[:, -width:]


def _estimated(
    gram: np.ndarray,
    split: Split,
    target: ProbeTarget,
    values: np.ndarray,
    estimator: BaseEstimator,
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and decisions as in `predict_held_out`, by an estimator of scikit-learn.

    Decisions are the estimator's own. Numbers are regressed as what they differ from the mean
    within `given`.
    """
    width = 2 if target.kind == "regression" else target.columns(values).shape[1]
    predictions, decided = np.empty((len(gram), width)), np.empty(len(gram))
    for train, test in split:
        seen, unseen = kernel_coordinates(gram, train, test, target.given)
        if target.kind == "regression":
            known_train, known = (
                means_within(target.given[rows], target.given[train]) @ values[train]
                for rows in (train, test)
            )
            fitted = clone(estimator).fit(seen, values[train] - known_train)
            predictions[test] = np.stack([fitted.predict(unseen) + known, known], axis=1)
            continue
        fitted = clone(estimator).fit(seen, values[train])
        decided[test] = fitted.predict(unseen)
        methods = ("decision_function", "predict_proba")
        method = next((name for name in methods if hasattr(fitted, name)), None)
        if method is None:
            allowed = "one with decision_function or predict_proba"
            raise SimbaError("estimator", type(fitted).__name__, allowed)
        of_train, of_test = (_wide(getattr(fitted, method)(rows), width) for rows in (seen, unseen))
        # By the training rows: a fold may hold a single subject.
        predictions[test] = (of_test - of_train.mean(axis=0)) / _or_one(of_train.std(axis=0))
    return predictions, decided
