"""How well a network does, for whom, and whether it uses the bias."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from fairlearn.metrics import MetricFrame
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from simba_lab.errors import SimbaError
from simba_lab.rng import stream
from simba_lab.training.fitting import deterministic
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simba_lab.synthesis import Cohort

BOOTSTRAPS = 2000


def logits(model: torch.nn.Module, volumes: Iterable[np.ndarray] | Cohort, *, batch_size: int = 32) -> np.ndarray:
    """Return the logit of the disease for each volume, float64, shape (n,).

    Parameters
    ----------
    model : torch.nn.Module
    volumes : Cohort or iterable of ndarray
        Volumes of shape (X, Y, Z), or anything with a method ``volumes()`` that yields them.
    """
    scores, batch = [], []

    def flush() -> None:
        if batch:
            with torch.no_grad():
                scores.append(logit(model(torch.from_numpy(np.stack(batch))[:, None])).double().numpy())
            batch.clear()

    training = model.training
    model.eval()
    try:
        with deterministic():
            for volume in volumes.volumes() if hasattr(volumes, "volumes") else volumes:
                batch.append(volume)
                if len(batch) == batch_size:
                    flush()
            flush()
    finally:
        model.train(training)
    return np.concatenate(scores) if scores else np.zeros(0)


def _share(of: str, truth: np.ndarray, decision: np.ndarray) -> tuple[int, int]:
    """Successes and trials of a rate."""
    if of == "accuracy":
        return int((truth == decision).sum()), len(truth)
    positives = truth == (1 if of == "tpr" else 0)
    return int(decision[positives].sum()), int(positives.sum())


def _rate(truth: np.ndarray, decision: np.ndarray, *, of: str, end: str) -> float:
    successes, trials = _share(of, np.asarray(truth), np.asarray(decision))
    if trials == 0:
        return np.nan
    if end == "estimate":
        return successes / trials
    return getattr(binomtest(successes, trials).proportion_ci(method="wilson"), end)


RATES = {
    f"{rate}{suffix}": partial(_rate, of=rate, end=end)
    for rate in ("accuracy", "tpr", "fpr")
    for suffix, end in (("", "estimate"), ("_low", "low"), ("_high", "high"))
}


def evaluate(model: torch.nn.Module, cohort: Cohort, *, by: str | None = "bias", threshold: float = 0.0) -> pd.DataFrame:
    """Return accuracy, true and false positive rate, overall and per group, with 95 % Wilson intervals.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
        Usually ``cohort.test``.
    by : str, optional
        Column of the design table that names the groups; None for no groups.
    threshold : float
        Logit from which a subject is called diseased.

    Returns
    -------
    pandas.DataFrame
        Indexed by group (``all`` first), with ``n``, ``auroc``, each rate with ``_low`` and ``_high``, and ``ceiling``:
        the best accuracy that the overlap of the classes allows to a reader of the disease alone.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22.
    """
    scores, truth = logits(model, cohort), cohort["label"]
    decision = (scores > threshold).astype(int)
    groups = cohort[by] if by else np.zeros(len(cohort), int)
    frame = MetricFrame(
        metrics={"n": lambda truth, decision: len(truth)} | RATES, y_true=truth, y_pred=decision, sensitive_features=groups
    )
    rows = pd.concat([frame.overall.to_frame("all").T, frame.by_group]) if by else frame.overall.to_frame("all").T
    aurocs = [_auroc(truth, scores)]
    if by:
        aurocs += [_auroc(truth[groups == value], scores[groups == value]) for value in frame.by_group.index]
    rows.insert(1, "auroc", aurocs)
    rows["ceiling"] = cohort.ceiling
    names = {0: "NB", 1: "B"} if by in cohort.biases else {}
    rows.index = pd.Index([names.get(value, value) for value in rows.index], name=by or "group")
    return rows.astype({"n": int} | {name: float for name in rows.columns if name != "n"})


def _auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(truth, scores)) if len(set(truth.tolist())) == 2 else np.nan


def disparity(model: torch.nn.Module, cohort: Cohort, *, seed: int = 0) -> pd.DataFrame:
    """Return how much more often bias-group members are called diseased: TPR and FPR of B minus NB.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``tpr`` and ``fpr``, with ``difference`` and its 95 % bootstrap interval ``low``, ``high``; subjects
        are resampled within class and group.
    """
    decision = (logits(model, cohort) > 0).astype(float)
    truth, group = cohort["label"], cohort["bias"]
    rows = {}
    for rate, label in (("tpr", 1), ("fpr", 0)):
        cells = [decision[(truth == label) & (group == value)] for value in (1, 0)]
        if min(map(len, cells)) == 0:
            raise SimbaError("cohort", f"a {rate} cell without members", "with both groups in both classes")
        draws = stream(seed, "evaluation", f"disparity/{rate}")
        means = [cell[draws.integers(0, len(cell), (BOOTSTRAPS, len(cell)))].mean(axis=1) for cell in cells]
        low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
        rows[rate] = {"difference": cells[0].mean() - cells[1].mean(), "low": low, "high": high}
    return pd.DataFrame(rows).T.rename_axis("rate")


def twin_effect(model: torch.nn.Module, cohort: Cohort, *, without: str = "bias", seed: int = 0) -> pd.DataFrame:
    """Return what switching an effect on does to the prediction for the same subjects.

    Every subject is rendered twice, with the effect and without it; anatomy, noise and all other effects are equal. The
    mean difference is the average causal effect on the prediction, with no confounder left.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    without : str
        The effect to switch.

    Returns
    -------
    pandas.DataFrame
        One row, indexed by effect: ``logit`` (mean change), ``logit_low``, ``logit_high`` (95 % bootstrap interval over
        subjects), ``flips`` (share of subjects whose decision changes), ``flips_low``, ``flips_high`` (Wilson), ``n``, and
        ``per_magnitude``: the change per unit of magnitude (least squares through zero), which compares effects whose
        magnitudes differ in sign, as those of the disease do.
    """
    if len(cohort) < 2:
        raise SimbaError("cohort", f"{len(cohort)} subjects", "at least 2 subjects")
    off = logits(model, cohort.twin(without=without))
    on = logits(model, cohort.twin(carrying=without))
    magnitude = cohort[f"{without}_magnitude"]
    change, flipped = on - off, int(((on > 0) != (off > 0)).sum())
    draws = stream(seed, "evaluation", f"twin effect/{without}").integers(0, len(change), (BOOTSTRAPS, len(change)))
    low, high = np.quantile(change[draws].mean(axis=1), [0.025, 0.975])
    flips = binomtest(flipped, len(change)).proportion_ci(method="wilson")
    row = {
        "logit": change.mean(), "logit_low": low, "logit_high": high,
        "flips": flipped / len(change), "flips_low": flips.low, "flips_high": flips.high, "n": len(change),
        "per_magnitude": float(magnitude @ change / (magnitude @ magnitude)),
    }  # fmt: skip
    return pd.DataFrame([row], index=pd.Index([without], name="effect"))
