"""Judging: what a sweep measures on a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from simba_lab.synthesis.effects import CLASSES
from simba_lab.training.disparities import disparity
from simba_lab.training.metrics import evaluate
from simba_lab.training.predictions import logits
from simba_lab.training.twin_effects import twin_logits, twin_table

if TYPE_CHECKING:
    from simba_lab.core.cohort import TwinCohort

# Test subjects on whom the response to the disease itself is measured, for scale.
DISEASE_TWINS = 50
# Columns of `evaluate` that a row keeps.
PERFORMANCE = (
    *("accuracy", "balanced_accuracy", "auroc", "brier", "calibration_error"),
    *("tpr", "fpr", "ceiling"),
)


def judge(model: torch.nn.Module, test: TwinCohort) -> dict[str, float]:
    """Return performance, disparity and twin effects of a network on test subjects.

    Parameters
    ----------
    model : torch.nn.Module
    test : TwinCohort

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy``, ``auroc``, ``brier``, ``calibration_error``, ``tpr``,
        ``fpr`` and ``ceiling`` (see `evaluate`); ``disease_logit``, the response per unit of the
        disease; and for each bias, after its name and a dot (a single bias called ``bias`` needs no
        name):

        - ``tpr_gap`` and ``fpr_gap`` with ``_low`` and ``_high``: the disparity, measurable
          without twins (`disparity`);
        - ``twin_logit`` and ``twin_rate`` with intervals, and ``twin_flips``: what the bias does
          (`twin_effect`);
        - ``twin_tpr`` and ``twin_fpr``: the rise of both rates when all subjects of a class get the
          bias: the disparity without the noise of comparing different people;
        - ``expected_accuracy`` and ``fair_accuracy``: accuracy over both twins of everybody,
          weighted by the prevalence of the bias in each class, or equally.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5)
    >>> scenario = sb.Scenario(64, disease, bias, spacing_mm=8)
    >>> row = sb.experiments.judge(sb.SimBANet((2, 2)), sb.synthesise(scenario).test)
    >>> "fair_accuracy" in row
    True
    """
    biases, labels = list(test.biases), test["label"]
    twins = {bias: twin_logits(model, test, effect=bias) for bias in biases}
    if len(biases) == 1:
        # Every subject is one of the two twins: no volume is rendered a third time.
        test_logits = np.where(test.carriers(biases[0]), twins[biases[0]][1], twins[biases[0]][0])
    else:
        test_logits = logits(model, test)
    overall = evaluate(test_logits, test, by=None).loc["all"]
    row = {name: float(overall[name]) for name in PERFORMANCE}
    subset = test.where(np.arange(min(DISEASE_TWINS, len(test))))
    effect = twin_table(*twin_logits(model, subset, effect="disease"), subset, effect="disease")
    row["disease_logit"] = float(effect["per_magnitude"].iloc[0])
    for bias in biases:
        prefix = "" if biases == ["bias"] else f"{bias}."
        gaps = disparity(test_logits, test, by=bias)
        for rate in ("tpr", "fpr"):
            row[f"{prefix}{rate}_gap"] = float(gaps.loc[rate, "difference"])
            row |= {
                f"{prefix}{rate}_gap_{end}": float(gaps.loc[rate, end]) for end in ("low", "high")
            }
        effect = twin_table(*twins[bias], test, effect=bias).iloc[0]
        for name in ("logit", "logit_low", "logit_high", "rate", "rate_low", "rate_high", "flips"):
            row[f"{prefix}twin_{name}"] = float(effect[name])
        off, on = (values > 0 for values in twins[bias])
        for rate, label in (("tpr", 1), ("fpr", 0)):
            row[f"{prefix}twin_{rate}"] = float(
                on[labels == label].mean() - off[labels == label].mean()
            )
        rates = np.array([test.biases[bias].prevalence[name] for name in CLASSES])[labels]
        for name, carrying in (("expected_accuracy", rates), ("fair_accuracy", 0.5)):
            right = carrying * (on == labels) + (1 - carrying) * (off == labels)
            row[f"{prefix}{name}"] = float(
                np.mean([right[labels == label].mean() for label in (0, 1)])
            )
    return row
