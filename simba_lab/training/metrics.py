"""How well a network does, overall and in each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from fairlearn.metrics import MetricFrame
from scipy.special import expit
from sklearn.metrics import brier_score_loss, roc_auc_score

from simba_lab.core.checks import Count
from simba_lab.core.intervals import delong, wilson
from simba_lab.training.classed import Classed
from simba_lab.training.groups import groups_of
from simba_lab.training.predictions import logits_of

# Bins of equal size of predicted probability for the calibration error.
BINS = 10


def evaluate(
    model: torch.nn.Module | np.ndarray,
    cohort: Classed,
    *,
    by: str | Sequence[str] | None = "bias",
    threshold: float = 0.0,
) -> pd.DataFrame:
    """Return accuracy, error rates, AUROC and calibration, overall and per group, with intervals.

    Parameters
    ----------
    model : torch.nn.Module or ndarray
        A network, or its logits for this cohort.
    cohort : Cohort
        Usually ``cohort.test``.
    by : str or sequence of str, optional
        Column of the table that names the groups; several for their intersections; None for no
        groups.
    threshold : float
        A subject is called diseased above this logit. Choose it on validation data.

    Returns
    -------
    pandas.DataFrame
        Indexed by group (``all`` first), with ``n``; ``auroc`` (interval of DeLong), ``accuracy``,
        ``tpr`` and ``fpr`` (Wilson intervals), each with ``_low`` and ``_high`` at 95 %;
        ``balanced_accuracy``; ``brier`` (mean squared error of the probability);
        ``calibration_error`` (mean distance of predicted and observed frequency over ten bins of
        equal size); and ``ceiling``: the best accuracy that the overlap of the classes allows to a
        classifier that sees only the disease.

    Raises
    ------
    SimbaError
        If a group has no members.

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22:209-212; DeLong et al. (1988), Biometrics 44:837-845;
    Naeini et al. (2015), AAAI, eq. 3 (calibration error). Groups by fairlearn's MetricFrame.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> sb.evaluate(sb.SimBANet((4, 8)), cohort.test)["n"].to_dict()
    {'all': 16, 'NB': 8, 'B': 8}
    """
    logits, truth = logits_of(model, cohort), cohort["label"]
    names, groups = groups_of(cohort, by)
    rates = {
        f"{rate}{suffix}": partial(_rate, rate=rate, end=end, threshold=threshold)
        for rate in ("accuracy", "tpr", "fpr")
        for suffix, end in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    }
    metrics: dict[str, Callable[..., Any]] = {
        "n": lambda truth, logits: len(truth),
        "auroc": _auroc,
        "auroc_low": lambda truth, logits: delong(truth, logits).low,
        "auroc_high": lambda truth, logits: delong(truth, logits).high,
        **rates,
        "brier": lambda truth, logits: brier_score_loss(truth, expit(logits), pos_label=1),
        "calibration_error": _calibration_error,
    }
    frame = MetricFrame(metrics=metrics, y_true=truth, y_pred=logits, sensitive_features=groups)
    table = pd.concat([frame.overall.to_frame("all").T, *([frame.by_group] if by else [])])
    table.insert(4, "balanced_accuracy", (table["tpr"] + 1 - table["fpr"]) / 2)
    table["ceiling"] = cohort.ceiling
    title = by if isinstance(by, str) else " x ".join(by or ["group"])
    table.index = pd.Index(["all", *(names if by else [])], name=title)
    return table.astype({"n": int} | {name: float for name in table.columns if name != "n"})


def _rate(truth: np.ndarray, logits: np.ndarray, *, rate: str, end: str, threshold: float) -> float:
    """Return a rate, or an end of its interval; NaN if no subject counts."""
    truth, decisions = np.asarray(truth), np.asarray(logits) > threshold
    if rate == "accuracy":
        hits = decisions == (truth == 1)
    else:
        hits = decisions[truth == (1 if rate == "tpr" else 0)]
    return getattr(wilson(int(hits.sum()), len(hits)), end) if len(hits) else np.nan


def _auroc(truth: np.ndarray, logits: np.ndarray) -> float:
    return float(roc_auc_score(truth, logits)) if len(np.unique(truth)) == 2 else np.nan


def calibration(
    model: torch.nn.Module | np.ndarray,
    cohort: Classed,
    *,
    by: str | Sequence[str] | None = "bias",
    bins: Count = BINS,
) -> pd.DataFrame:
    """Return predicted and observed frequency of the disease, in bins of equal size, per group.

    Parameters
    ----------
    model, cohort, by
        As for `evaluate`.
    bins : int

    Returns
    -------
    pandas.DataFrame
        Indexed by group and bin: ``predicted`` (mean probability), ``observed`` (share of
        diseased), its Wilson interval ``observed_low``, ``observed_high``, and ``n``.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> sb.training.calibration(sb.SimBANet((4, 8)), cohort.test, bins=2)["n"].tolist()
    [4, 4, 4, 4]
    """
    probability, truth = expit(logits_of(model, cohort)), cohort["label"]
    names, groups = groups_of(cohort, by)
    rows = []
    for number, name in enumerate(names):
        group = np.flatnonzero(groups == number)
        for bin_number, members in enumerate(_bins(probability[group], bins)):
            subjects = group[members]
            observed = wilson(int(truth[subjects].sum()), len(subjects))
            rows.append(
                {
                    "group": name,
                    "bin": bin_number,
                    "predicted": probability[subjects].mean(),
                    "observed": observed.estimate,
                    "observed_low": observed.low,
                    "observed_high": observed.high,
                    "n": len(subjects),
                }
            )
    return pd.DataFrame(rows).set_index(["group", "bin"])


def _bins(probability: np.ndarray, bins: int) -> list[np.ndarray]:
    order = np.argsort(probability, kind="stable")
    return [members for members in np.array_split(order, bins) if len(members)]


def _calibration_error(truth: np.ndarray, logits: np.ndarray) -> float:
    probability, truth = expit(np.asarray(logits)), np.asarray(truth, float)
    # Equal predictions may fall into different bins: each gets their mean, so that their order does
    # not matter.
    _, ties = np.unique(probability, return_inverse=True)
    truth = (np.bincount(ties, truth) / np.bincount(ties))[ties]
    gaps = [
        len(members) * abs(probability[members].mean() - truth[members].mean())
        for members in _bins(probability, BINS)
    ]
    return float(sum(gaps) / len(truth))
