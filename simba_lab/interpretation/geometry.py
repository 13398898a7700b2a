"""The shape of what a layer knows: components, directions of factors, positions of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from simba_lab.core.checks import whole_number
from simba_lab.core.compute import in_threads
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import central, columns_of_central, counts_of
from simba_lab.core.rng import stream
from simba_lab.interpretation.probes.columns import (
    Column,
    Grams,
    gram_of,
    groups_of_two,
    refuse_twins,
    values_of,
)
from simba_lab.interpretation.probes.designs import ProbeDesign, probe_design
from simba_lab.interpretation.probes.kernel_ridge import fit_ridge, kernel_coordinates
from simba_lab.interpretation.probes.resampling import resampled

# Parts of the subjects that are left out one by one for intervals of angles.
JACKKNIFE_PARTS = 25


def components(
    recording: Grams,
    label: Column = "label",
    bias: Column = "bias",
    *,
    count: int = 5,
    folds: int | Column | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how well single principal components tell the disease and the bias, held out.

    Parameters
    ----------
    recording : Recording, or mapping of layer to ndarray, shape (n, n)
    label, bias : str or ndarray of 0 and 1, shape (n,)
        Columns of the recording's table, or values.
    count : int
        Components, from that of largest variance on; a last row takes all of them together.
    folds
        As for `probe`. Components and classifiers are fitted to the training folds.
    seed : int
        Of random folds and of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and component (``"PC1"`` to ``"PC1-5"``): ``variance_share``; accuracies
        ``disease`` and ``bias`` with 95 % bootstrap intervals; ``leak``, the accuracy for the bias
        if the classifier of the disease is taken for one of the bias; and ``bias_within``, the
        balanced accuracy for the bias among subjects of the same label, with its interval.

    References
    ----------
    Stanley et al. (2025), eBioMedicine (the analysis of components, not held out there).

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> table = sb.components(sb.record(sb.SimBANet((4, 8), seed=0), cohort), count=2)
    >>> table.loc["block2"].index.tolist()
    ['PC1', 'PC2', 'PC1-2']
    """
    disease = groups_of_two(recording, label, "label")
    carriers = groups_of_two(recording, bias, "bias")
    whole_number("count", count)
    design = probe_design(recording, carriers, disease, folds, seed=seed)
    samples = resampled(design.clusters, stream(seed, "components", "bootstrap"))
    counts = counts_of(samples, len(design))
    targets = {"disease": disease, "bias": carriers}

    def rows(layer: str) -> list[dict[str, object]]:
        decided, shares = _decisions(design.gram(recording, layer), design, targets, count, layer)
        table = []
        for number, share in enumerate(shares):
            name = f"PC{number + 1}" if number < count else f"PC1-{count}"
            entry: dict[str, object] = {"layer": layer, "component": name, "variance_share": share}
            for target, values in targets.items():
                right = decided[target][number] == values
                entry[target] = right.mean()
                entry |= columns_of_central(target, [right[sample].mean() for sample in samples])
            entry["leak"] = (decided["disease"][number] == carriers).mean()
            within = decided["within"][number]
            entry["bias_within"] = design.target.balanced_accuracy(within)
            drawn = design.target.balanced_accuracy(within, counts)
            entry |= columns_of_central("bias_within", np.asarray(drawn))
            table.append(entry)
        return table

    tables = in_threads(rows, ((layer,) for layer in recording))
    table = pd.DataFrame([row for table in tables for row in table])
    return table.set_index(["layer", "component"])


def _decisions(
    gram: np.ndarray, design: ProbeDesign, targets: dict[str, np.ndarray], count: int, layer: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return held-out decisions of each component and of all together, and shares of variance.

    Decisions have shape (count + 1, n): for the disease, the bias, and the bias ``within`` the
    label; shares have shape (count + 1,).
    """
    disease, carriers = targets["disease"], targets["bias"]
    decided = {name: np.zeros((count + 1, len(disease)), int) for name in (*targets, "within")}
    shares = []
    for train, test in design.split:
        seen, unseen = kernel_coordinates(gram, train, test)
        if seen.shape[1] < count:
            allowed = f"at most {seen.shape[1]}, the components of {layer}"
            raise SimbaError("count", count, allowed)
        variances = (seen**2).sum(axis=0)
        shares.append(np.append(variances[:count], variances[:count].sum()) / variances.sum())
        scale = np.sqrt(variances[:count] / len(train))
        seen, unseen = seen[:, :count] / scale, unseen[:, :count] / scale
        for number in range(count + 1):
            chosen = slice(number, number + 1) if number < count else slice(count)
            for name, values in targets.items():
                classifier = LogisticRegression().fit(seen[:, chosen], values[train])
                decided[name][number, test] = classifier.predict(unseen[:, chosen])
            for value in (0, 1):
                train_group, test_group = disease[train] == value, disease[test] == value
                classifier = LogisticRegression(class_weight="balanced").fit(
                    seen[train_group][:, chosen], carriers[train][train_group]
                )
                answers = classifier.predict(unseen[test_group][:, chosen])
                decided["within"][number, test[test_group]] = answers
    return decided, np.mean(shares, axis=0)


def angles(
    recording: Grams, factors: Mapping[str, Column] | Sequence[str], *, seed: int = 0
) -> pd.DataFrame:
    """Return the lengths of the directions of several factors in each layer, and their cosines.

    The direction of a factor is the change of the mean activations that goes with it while the
    other factors stay: its coefficient in a linear regression of the full activations.

    Parameters
    ----------
    recording : Recording, or mapping of layer to ndarray, shape (n, n)
    factors : sequence of str, or mapping of name to str or ndarray, shape (n,)
        Columns of the recording's table, or ``{"disease": "label", "bias": values}``.
    seed : int
        Of the parts that the jackknife leaves out.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer. For each factor ``length_<factor>``, relative to the standard deviation of
        the residuals (all activations together); for each pair ``cosine_<first>_<second>``; all
        less what chance adds, and with 95 % jackknife intervals ``_low`` and ``_high``. A cosine is
        NaN where the estimate of a squared length is not above zero, and means little where the
        interval of a length reaches zero.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), cohort)
    >>> table = sb.interpretation.angles(recording, ["label", "bias"])
    >>> [name for name in table.columns if not name.endswith(("_low", "_high"))]
    ['length_label', 'length_bias', 'cosine_label_bias']
    """
    refuse_twins(recording)
    names, design = _regressors(recording, factors)
    count = len(design)
    order = stream(seed, "angles", "jackknife").permutation(count)
    left_out = np.array_split(order, JACKKNIFE_PARTS)
    remaining = [np.setdiff1d(np.arange(count), rows) for rows in left_out]

    def row(layer: str) -> dict[str, float]:
        gram = gram_of(recording, layer, count)
        estimate = _directions(gram, design, names, np.arange(count))
        without = pd.DataFrame([_directions(gram, design, names, rows) for rows in remaining])
        squares = ((without - without.mean()) ** 2).sum(skipna=False)
        error = np.sqrt((JACKKNIFE_PARTS - 1) / JACKKNIFE_PARTS * squares)
        entry: dict[str, float] = {}
        for name, value in estimate.items():
            half = norm.ppf(0.975) * error[name]
            entry |= {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
        return entry

    rows = in_threads(row, ((layer,) for layer in recording))
    return pd.DataFrame(rows, index=pd.Index(list(recording), name="layer"))


def _regressors(
    recording: Grams, factors: Mapping[str, Column] | Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Return the names of the factors, and the design matrix with intercept, (n, 1 + factors)."""
    if not isinstance(factors, Mapping):
        factors = {name: name for name in factors}
    columns = []
    for name, values in factors.items():
        try:
            columns.append(values_of(recording, values, f"factors[{name!r}]").astype(float))
        except (TypeError, ValueError) as error:
            if isinstance(error, SimbaError):
                raise
            raise SimbaError(f"factors[{name!r}]", values, "numbers") from error
    if not all(np.isfinite(column).all() for column in columns):
        remedy = "Leave out subjects without a value."
        raise SimbaError("factors", Words("NaN or infinity"), "finite", remedy)
    if not columns or any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise SimbaError("factors", [column.shape for column in columns], "of one shape (n,)")
    count = len(columns[0])
    design = np.column_stack([np.ones(count), *columns])
    least = 2 * JACKKNIFE_PARTS
    if np.linalg.matrix_rank(design) < design.shape[1] or count < least:
        allowed = f"linearly independent, not constant, and over at least {least} subjects"
        raise SimbaError("factors", Words(f"{list(factors)} of {count} subjects"), allowed)
    return list(factors), design


def _directions(
    gram: np.ndarray, design: np.ndarray, names: Sequence[str], rows: np.ndarray
) -> dict[str, float]:
    """Return lengths and cosines of the directions of the factors, from some of the subjects."""
    regressors = design[rows]
    solve = np.linalg.pinv(regressors)
    products = gram[np.ix_(rows, rows)]
    # Unbiased total variance of the residuals; noise adds it to squared lengths, in proportion
    # to solve @ solve.T.
    fitted = regressors @ (solve @ products)
    noise = (np.trace(products) - np.trace(fitted)) / (len(rows) - regressors.shape[1])
    inner = (solve @ products @ solve.T - noise * (solve @ solve.T))[1:, 1:]
    squares = np.diag(inner)
    entry = {
        f"length_{name}": np.sqrt(max(square, 0) / noise)
        for name, square in zip(names, squares, strict=True)
    }
    for i, name in enumerate(names):
        for j in range(i + 1, len(names)):
            product = squares[i] * squares[j] if min(squares[i], squares[j]) > 0 else np.nan
            entry[f"cosine_{name}_{names[j]}"] = inner[i, j] / np.sqrt(product)
    return entry


def projections(
    recording: Grams,
    label: Column = "label",
    bias: Column = "bias",
    *,
    folds: int | Column | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return where patients and controls with and without the bias lie on the disease axis.

    Positions are held out.

    Parameters
    ----------
    recording, label, bias, folds, seed
        As for `components`.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer and group (``"patients, B"`` ...): ``position`` of the group's mean on the
        axis of a disease probe, in standard deviations within groups, 0 being the middle between
        patients and controls; its 95 % bootstrap interval ``low``, ``high``; and ``n``.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), cohort, pixels=False)
    >>> sb.interpretation.projections(recording).loc["block1"].index.tolist()
    ['patients, B', 'patients, NB', 'controls, B', 'controls, NB']
    """
    disease = groups_of_two(recording, label, "label")
    carriers = groups_of_two(recording, bias, "bias")
    design = probe_design(recording, carriers, disease, folds, seed=seed)
    samples = resampled(design.clusters, stream(seed, "projections", "bootstrap"))
    groups = {
        f"{people}, {group}": (disease == value) & (carriers == carries)
        for value, people in ((1, "patients"), (0, "controls"))
        for carries, group in ((1, "B"), (0, "NB"))
    }

    def rows(layer: str) -> list[dict[str, object]]:
        predictions = _along_the_disease(design.gram(recording, layer), design, disease)
        spread = np.sqrt(np.mean([predictions[members].var(ddof=1) for members in groups.values()]))

        def positions(sample: np.ndarray) -> list[float]:
            drawn = [predictions[sample][members[sample]] for members in groups.values()]
            means = [values.mean() if len(values) else np.nan for values in drawn]
            return [(mean - np.mean(means)) / spread for mean in means]

        estimates = positions(np.arange(len(predictions)))
        drawn = np.array([positions(sample) for sample in samples])
        low, high = central(drawn, axis=0)
        return [
            {
                "layer": layer,
                "group": name,
                "position": estimates[k],
                "low": low[k],
                "high": high[k],
                "n": int(members.sum()),
            }
            for k, (name, members) in enumerate(groups.items())
        ]

    tables = in_threads(rows, ((layer,) for layer in recording))
    return pd.DataFrame([row for table in tables for row in table]).set_index(["layer", "group"])


def _along_the_disease(gram: np.ndarray, design: ProbeDesign, disease: np.ndarray) -> np.ndarray:
    """Return the held-out predictions of an unconditional probe of the disease, shape (n,)."""
    predictions, flat = np.zeros(len(disease)), np.zeros_like(disease)
    for train, test in design.split:
        goal = disease[train, None].astype(float)
        fit = fit_ridge(gram, train, goal, flat, design.folds[train])
        predictions[test] = fit.predict(gram, test)[:, 0] / fit.scale[0]
    return predictions
