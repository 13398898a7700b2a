"""Whether a network uses the bias: its logits for the same subjects without an effect and with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.training.metrics import BOOTSTRAPS, logits

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


def twin_effect(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    without: str = "bias",
    control: torch.nn.Module | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return what switching an effect on does to the prediction for the same subjects.

    Every subject is rendered twice, with the effect and without it; anatomy, noise and all other
    effects are equal. The mean difference is the average causal effect on the prediction, with no
    confounder left.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    without : str
        The effect to switch.
    control : torch.nn.Module, optional
        The network of the unbiased pair, judged on the same twins.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        One row, indexed by effect: ``logit`` (mean change), ``rate`` (by how much the share of
        subjects called diseased rises), both with 95 % intervals ``_low``, ``_high`` (by bootstrap,
        and by Wilson's intervals of paired shares); ``flips`` (share whose decision changes, Wilson
        interval); ``n``; and ``per_magnitude``: the change per unit of magnitude (least squares
        through zero), which compares effects whose magnitudes differ in sign, as those of the
        disease do. With a control also ``control`` (its change), ``excess`` (change minus control)
        and ``excess_rate`` (rate minus the control's), by paired bootstrap.
    """
    if len(cohort) < 2:
        raise SimbaError("cohort", f"{len(cohort)} subjects", "at least 2 subjects")
    if without not in cohort.effects:
        raise UnknownNameError.among("effect", without, cohort.effects)
    off, on = twin_logits(model, cohort, without=without)
    others = None if control is None else twin_logits(control, cohort, without=without)
    return twin_table(off, on, cohort, without=without, control=others, seed=seed)


def twin_table(
    off: np.ndarray,
    on: np.ndarray,
    cohort: Cohort,
    *,
    without: str = "bias",
    control: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the table of `twin_effect` from the logits of `twin_logits`: without the effect and with it."""
    magnitude, change, called = (
        cohort[f"{without}_magnitude"],
        on - off,
        (on > 0).astype(float) - (off > 0),
    )
    draws = stream(seed, "evaluation", f"twin effect/{without}").integers(
        0, len(change), (BOOTSTRAPS, len(change))
    )

    def interval(name: str, values: np.ndarray) -> dict[str, float]:
        low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
        return {name: values.mean(), f"{name}_low": low, f"{name}_high": high}

    # Where nobody flips a bootstrap sees no spread: the rate has an interval of its own, its excess
    # at least that width.
    never = binomtest(0, len(change)).proportion_ci(method="wilson").high
    rate, low, high = _paired_rate(int((called > 0).sum()), int((called < 0).sum()), len(change))
    flipped = int((called != 0).sum())
    flips = binomtest(flipped, len(change)).proportion_ci(method="wilson")
    row = {
        **interval("logit", change),
        "rate": rate,
        "rate_low": low,
        "rate_high": high,
        "flips": flipped / len(change),
        "flips_low": flips.low,
        "flips_high": flips.high,
        "n": len(change),
        "per_magnitude": float(magnitude @ change / (magnitude @ magnitude)),
    }
    if control is not None:
        other = control[1] - control[0]
        otherwise = (control[1] > 0).astype(float) - (control[0] > 0)
        row |= (
            {"control": other.mean()}
            | interval("excess", change - other)
            | interval("excess_rate", called - otherwise)
        )
        row["excess_rate_low"] = min(row["excess_rate_low"], row["excess_rate"] - never)
        row["excess_rate_high"] = max(row["excess_rate_high"], row["excess_rate"] + never)
    return pd.DataFrame([row], index=pd.Index([without], name="effect"))


def _paired_rate(up: int, down: int, count: int) -> tuple[float, float, float]:
    """Return the share of subjects that an effect turns one way less that of the other way, with its 95 % interval.

    Wilson intervals of both shares, combined for a difference of shares of one sample (Zou and
    Donner 2008, Stat. Med. 27:1693-1702, "Construction of confidence limits about effect measures",
    eq. 4 with a correlation).
    """
    one, other = up / count, down / count
    above, below = (
        binomtest(number, count).proportion_ci(method="wilson") for number in (up, down)
    )
    rest = (1 - one) * (1 - other)
    correlation = -np.sqrt(one * other / rest) if rest > 0 else 0.0

    def reach(first: float, second: float) -> float:
        return float(np.sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0)))

    low = one - other - reach(one - above.low, below.high - other)
    high = one - other + reach(above.high - one, other - below.low)
    return one - other, max(low, -1.0), min(high, 1.0)


def twin_logits(
    model: torch.nn.Module, cohort: Cohort, *, without: str = "bias"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of all subjects rendered without an effect, and rendered with it."""
    return logits(model, cohort.twin(without=without)), logits(model, cohort.twin(carrying=without))
