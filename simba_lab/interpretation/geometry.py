"""The shape of what a layer knows: its principal components, the directions of disease and bias, and where groups lie."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.kernel_ridge import fit_ridge, kernel_coordinates
from simba_lab.interpretation.probes.questions import (
    Grams,
    checked,
    design_of,
    groups_of_two,
    refuse_twins,
)
from simba_lab.interpretation.probes.resampling import interval, resampled

# Parts of the subjects that are left out one by one for intervals of angles.
JACKKNIFE_PARTS = 25


def components(
    grams: Grams,
    label: np.ndarray,
    bias: np.ndarray,
    *,
    count: int = 5,
    folds: int | np.ndarray = 5,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well single principal components of each layer tell the disease and the bias, held out.

    Parameters
    ----------
    grams : mapping of layer to ndarray, shape (n, n)
    label, bias : ndarray of 0 and 1, shape (n,)
    count : int
        Components, from the one with the largest variance on; a last row takes all of them
        together.
    folds, groups, seed
        As for `probe`. Components and classifiers are fitted to the training folds.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and component (``"PC1"`` to ``"PC1-5"``): ``variance_share``; accuracies
        ``disease`` and ``bias`` with 95 % bootstrap intervals; ``leak``, the accuracy for the bias
        of whoever takes the classifier of the disease for one of the bias; and ``bias_within``, the
        balanced accuracy for the bias among subjects of the same label, with its interval.

    References
    ----------
    Stanley et al. (2025), eBioMedicine (the analysis of components, not held out there).
    """
    disease, marked = groups_of_two(label, "label"), groups_of_two(bias, "bias")
    if not isinstance(count, int) or count < 1:
        raise SimbaError("count", count, "an integer of at least 1")
    design = design_of(grams, marked, disease, kind="binary", folds=folds, groups=groups, seed=seed)
    draws = resampled(design.clusters, stream(seed, "components", "bootstrap"))

    def rows(layer: str) -> list[dict[str, object]]:
        gram = design.gram(grams, layer)
        decided = {
            what: np.zeros((count + 1, len(marked)), int) for what in ("disease", "bias", "within")
        }
        shares = []
        for train, test in design.split:
            seen, unseen = kernel_coordinates(gram, train, test)
            if seen.shape[1] < count:
                raise SimbaError(
                    "count", count, f"at most {seen.shape[1]}, the components of {layer}"
                )
            variances = (seen**2).sum(axis=0)
            shares.append(np.append(variances[:count], variances[:count].sum()) / variances.sum())
            scale = np.sqrt(variances[:count] / len(train))
            seen, unseen = seen[:, :count] / scale, unseen[:, :count] / scale
            for number in range(count + 1):
                own = slice(number, number + 1) if number < count else slice(count)
                for what, values in (("disease", disease), ("bias", marked)):
                    found = LogisticRegression().fit(seen[:, own], values[train])
                    decided[what][number, test] = found.predict(unseen[:, own])
                for value in (0, 1):
                    few, here = disease[train] == value, disease[test] == value
                    found = LogisticRegression(class_weight="balanced").fit(
                        seen[few][:, own], marked[train][few]
                    )
                    decided["within"][number, test[here]] = found.predict(unseen[here][:, own])
        found = []
        for number, share in enumerate(np.mean(shares, axis=0)):
            name = f"PC{number + 1}" if number < count else f"PC1-{count}"
            entry: dict[str, object] = {"layer": layer, "component": name, "variance_share": share}
            for what, values in (("disease", disease), ("bias", marked)):
                right = decided[what][number] == values
                entry |= {what: right.mean()} | interval(
                    what, [right[take].mean() for take in draws]
                )
            entry["leak"] = (decided["disease"][number] == marked).mean()
            balanced = partial(design.question.balanced_accuracy, decided["within"][number])
            entry |= {"bias_within": balanced()} | interval(
                "bias_within", [balanced(take) for take in draws]
            )
            found.append(entry)
        return found

    parts = in_threads(rows, ((layer,) for layer in grams))
    return pd.DataFrame([one for part in parts for one in part]).set_index(["layer", "component"])


def angles(grams: Grams, factors: Mapping[str, np.ndarray], *, seed: int = 0) -> pd.DataFrame:
    """Return how long the directions of several factors are in each layer, and the cosines between them.

    The direction of a factor is the change of the mean activations that goes with it while the
    other factors stay: its coefficient in a linear regression of the full features.

    Parameters
    ----------
    grams : mapping of layer to ndarray, shape (n, n)
    factors : mapping of name to ndarray, shape (n,)
        Such as ``{"disease": label, "bias": bias}``.
    seed : int
        Of the parts that the jackknife leaves out.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. For each factor ``length_<factor>``, relative to the standard deviation of
        what is left (all features together); for each pair ``cosine_<one>_<other>``; all less what
        chance adds, and with 95 % jackknife intervals ``_low`` and ``_high``. A cosine is missing
        where the estimate of a squared length is not above zero, and means little where the
        interval of a length reaches zero.
    """
    names = list(factors)
    try:
        columns = [np.asarray(factors[name], float) for name in names]
    except (TypeError, ValueError) as error:
        raise SimbaError("factors", str(error), "numbers") from error
    if not all(np.isfinite(column).all() for column in columns):
        raise SimbaError(
            "factors", "NaN or infinity", "finite", "Leave out subjects without a value."
        )
    refuse_twins(grams)
    if not columns or any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise SimbaError("factors", [column.shape for column in columns], "of one shape (n,)")
    count = len(columns[0])
    design = np.column_stack([np.ones(count), *columns])
    if np.linalg.matrix_rank(design) < design.shape[1] or count < 2 * JACKKNIFE_PARTS:
        raise SimbaError(
            "factors",
            f"{count} subjects",
            f"linearly independent, not constant, of at least {2 * JACKKNIFE_PARTS}",
        )
    parts = np.array_split(stream(seed, "angles", "jackknife").permutation(count), JACKKNIFE_PARTS)

    def measured(gram: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        own = design[rows]
        solve = np.linalg.pinv(own)
        inner = gram[np.ix_(rows, rows)]
        # Unbiased total variance of the residuals; noise adds it to squared lengths, in proportion
        # to solve @ solve.T.
        fitted = own @ (solve @ inner)
        noise = (np.trace(inner) - np.trace(fitted)) / (len(rows) - own.shape[1])
        products = (solve @ inner @ solve.T - noise * (solve @ solve.T))[1:, 1:]
        squares = np.diag(products)
        found = {
            f"length_{name}": np.sqrt(max(square, 0) / noise)
            for name, square in zip(names, squares, strict=True)
        }
        for i, one in enumerate(names):
            for j in range(i + 1, len(names)):
                reach = squares[i] * squares[j] if min(squares[i], squares[j]) > 0 else np.nan
                found[f"cosine_{one}_{names[j]}"] = products[i, j] / np.sqrt(reach)
        return found

    def row(layer: str) -> dict[str, float]:
        gram = checked(grams[layer], count, f"grams[{layer!r}]")
        whole = measured(gram, np.arange(count))
        less = pd.DataFrame(
            [measured(gram, np.setdiff1d(np.arange(count), part)) for part in parts]
        )
        error = np.sqrt(
            (JACKKNIFE_PARTS - 1) / JACKKNIFE_PARTS * ((less - less.mean()) ** 2).sum(skipna=False)
        )
        entry = {}
        for name, value in whole.items():
            reach = norm.ppf(0.975) * error[name]
            entry |= {name: value, f"{name}_low": value - reach, f"{name}_high": value + reach}
        return entry

    rows = in_threads(row, ((layer,) for layer in grams))
    return pd.DataFrame(rows, index=pd.Index(list(grams), name="layer"))


def projections(
    grams: Grams,
    label: np.ndarray,
    bias: np.ndarray,
    *,
    folds: int | np.ndarray = 5,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return where patients and controls with and without the bias lie on the disease axis of each layer, held out.

    Parameters
    ----------
    grams, label, bias, folds, groups, seed
        As for `components`.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and group (``"patients, B"`` ...): ``position`` of the group's mean on the
        axis of a disease probe, in standard deviations within groups, 0 being the middle between
        patients and controls; its 95 % bootstrap interval ``low``, ``high``; and ``n``.
    """
    disease, marked = groups_of_two(label, "label"), groups_of_two(bias, "bias")
    design = design_of(grams, marked, disease, kind="binary", folds=folds, groups=groups, seed=seed)
    draws = resampled(design.clusters, stream(seed, "projections", "bootstrap"))
    where = {
        f"{one}, {other}": (disease == value) & (marked == group)
        for value, one in ((1, "patients"), (0, "controls"))
        for group, other in ((1, "B"), (0, "NB"))
    }

    def rows(layer: str) -> list[dict[str, object]]:
        gram = design.gram(grams, layer)
        scores = np.zeros(len(marked))
        for train, test in design.split:
            fit = fit_ridge(
                gram,
                train,
                disease[train, None].astype(float),
                np.zeros_like(disease),
                design.folds[train],
            )
            scores[test] = fit.predict(gram, test)[:, 0] / fit.scale[0]
        spread = np.sqrt(np.mean([scores[inside].var(ddof=1) for inside in where.values()]))

        def positions(take: np.ndarray) -> list[float]:
            means = [
                scores[take][inside[take]].mean() if inside[take].any() else np.nan
                for inside in where.values()
            ]
            return [(mean - np.mean(means)) / spread for mean in means]

        middle = positions(np.arange(len(scores)))
        low, high = np.nanquantile([positions(take) for take in draws], [0.025, 0.975], axis=0)
        return [
            {
                "layer": layer,
                "group": name,
                "position": middle[k],
                "low": low[k],
                "high": high[k],
                "n": int(inside.sum()),
            }
            for k, (name, inside) in enumerate(where.items())
        ]

    parts = in_threads(rows, ((layer,) for layer in grams))
    return pd.DataFrame([one for part in parts for one in part]).set_index(["layer", "group"])
