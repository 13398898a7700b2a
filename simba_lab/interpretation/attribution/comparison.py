"""Methods of attribution side by side on the same subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.intervals import ENDS, PROBE_BOOTSTRAPS, bootstrap_rows
from simba_lab.core.rng import stream
from simba_lab.interpretation.attribution.maps import attribute
from simba_lab.interpretation.attribution.methods.method import Method
from simba_lab.interpretation.attribution.methods.registry import METHODS, method_of

# A method, or a method with other options of `attribute`.
Choice = str | Method | Mapping[str, Any]


def compare(
    model: torch.nn.Module,
    cohort: Cohort,
    methods: Sequence[str | Method] | Mapping[str, Choice] = tuple(METHODS),
    *,
    control: torch.nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Return the scores of several methods on the same subjects, each with its interval.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    methods : sequence of str or Method, or mapping
        Of a name to a method, or to options of `attribute`, such as
        ``{"twin": {"method": "integrated_gradients", "baseline": twins}}``.
    control : torch.nn.Module, optional
        A network that ignores the bias, of the same accuracy: methods that point at the bias in it
        too give false positives.
    seed : int
        Of the bootstrap over subjects.
    **options
        Of `attribute`, for all methods.

    Returns
    -------
    pandas.DataFrame
        Indexed by method and score (``enrichment_bias``, ...): ``mean`` over subjects, ``low`` and
        ``high`` (95 % bootstrap interval over subjects), and with a control ``control``,
        ``control_low``, ``control_high``, and the paired difference ``excess``, ``excess_low``,
        ``excess_high``.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> table = sb.attribution.compare(sb.SimBANet((4, 8), seed=0), test, ["saliency"])
    >>> table.columns.tolist()
    ['mean', 'low', 'high']
    """
    if not methods:
        raise SimbaError("methods", methods, "at least one")
    if not cohort.effects:
        remedy = "Maps are scored against what is known to differ: put an effect into the scans."
        raise SimbaError.problem("The cohort has no known effects.", remedy)
    if not isinstance(methods, Mapping):
        methods = {method_of(method).name: method for method in methods}
    rows = bootstrap_rows(
        stream(seed, "subjects", "compare attributions"), len(cohort), PROBE_BOOTSTRAPS
    )
    measures = {}
    for name, setting in methods.items():
        settings = setting if isinstance(setting, Mapping) else {"method": setting}
        tables = {"mean": _scores(model, cohort, {**options, **settings})}
        if control is not None:
            tables["control"] = _scores(control, cohort, {**options, **settings})
            tables["excess"] = tables["mean"] - tables["control"]
        for score in tables["mean"]:
            measures[name, score] = {
                column: value
                for network, table in tables.items()
                for column, value in columns_of_known_mean(
                    network, table[score].to_numpy(), rows
                ).items()
            }
    table = pd.DataFrame(measures).T.rename_axis(["method", "score"])
    return table.rename(columns={"mean_low": "low", "mean_high": "high"})


def _scores(model: torch.nn.Module, cohort: Cohort, options: Mapping[str, Any]) -> pd.DataFrame:
    attribution = attribute(model, cohort, **options)
    return attribution.table.drop(columns=attribution.sums.columns)


def columns_of_known_mean(name: str, values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the mean and its bootstrap interval of values that may be NaN for some subjects.

    Parameters
    ----------
    values : ndarray, shape (n,)
    rows : ndarray of int, shape (samples, n)
        From `bootstrap_rows`.
    """
    columns = (name, f"{name}_low", f"{name}_high")
    if np.isnan(values).all():
        return dict.fromkeys(columns, np.nan)
    known, count = np.nan_to_num(values), (~np.isnan(values)).astype(float)
    with np.errstate(invalid="ignore"):
        means = known[rows].sum(axis=1) / count[rows].sum(axis=1)
    interval = np.nanmean(values), *np.nanquantile(means, ENDS)
    return {column: float(value) for column, value in zip(columns, interval, strict=True)}
