"""Whether a network uses an effect: its logits for subjects and for their twins."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from simba_lab.core.checks import Numbers
from simba_lab.core.cohort import TwinCohort, effect_of
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import bootstrap_rows, columns_of_mean, paired_share, wilson
from simba_lab.core.rng import stream
from simba_lab.training.predictions import finite, gives_numbers, logits


def twin_effect(
    model: torch.nn.Module,
    cohort: TwinCohort,
    *,
    effect: str = "bias",
    control: torch.nn.Module | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how the prediction for the same subjects changes when an effect is switched on.

    Every subject is rendered twice, with the effect and without it; anatomy, noise and all other
    effects are equal. So the mean difference is the average causal effect on the prediction, and
    nothing confounds it.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : TwinCohort
    effect : str
        The effect to switch: a bias, or ``"disease"``.
    control : torch.nn.Module, optional
        The network of the unbiased pair, judged on the same twins.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        One row, indexed by effect, with 95 % intervals ``_low``, ``_high``: ``logit`` (mean change,
        bootstrap); ``rate`` (share of subjects called diseased with the effect minus that without
        it, Wilson intervals of paired shares); ``flips`` (share whose decision changes, Wilson
        interval). Also ``n`` and ``per_magnitude``: the change per unit of magnitude (least squares
        through zero), which suits effects whose magnitude may be negative, such as the disease.
        A network that gives numbers (see `adapt`) has ``number``, the mean change in its unit, in
        the place of ``logit``, and neither rates nor flips.
        With a control also ``control`` (its change), ``excess`` (change minus that of the control)
        and ``excess_rate`` (rate minus that of the control), by paired bootstrap.

    Raises
    ------
    SimbaError
        If the cohort has no twins, no such effect, or fewer than two subjects.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> table = sb.twin_effect(sb.SimBANet((4, 8)), cohort.test, effect="bias")
    >>> list(table.columns[:4]), len(table)
    (['logit', 'logit_low', 'logit_high', 'rate'], 1)
    """
    if len(cohort) < 2:
        raise SimbaError("cohort", Words(f"{len(cohort)} subjects"), "at least 2 subjects")
    off, on = twin_logits(model, cohort, effect=effect)
    control_logits = None if control is None else twin_logits(control, cohort, effect=effect)
    numbers = gives_numbers(model)
    if control is not None and gives_numbers(control) != numbers:
        allowed = "of the kind of the network, which gives a number or decides"
        raise SimbaError("control", Words("the other kind"), allowed)
    table = twin_table(off, on, cohort, effect=effect, control=control_logits, seed=seed)
    return _in_its_unit(table) if numbers else table


def _in_its_unit(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of a network of numbers: changes in their unit, and no rates."""
    rates = [name for name in table if name.startswith(("rate", "flips", "excess_rate"))]
    return table.drop(columns=rates).rename(columns=lambda name: name.replace("logit", "number"))


def twin_table(
    off: Numbers,
    on: Numbers,
    cohort: TwinCohort,
    *,
    effect: str = "bias",
    control: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the table of `twin_effect` from logits that `twin_logits` returned.

    Parameters
    ----------
    off, on : ndarray, shape (n,)
        Logits of the subjects without the effect and with it.
    cohort, effect, seed
        As for `twin_effect`.
    control : tuple of two ndarrays, optional
        Logits of the control network, without the effect and with it.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> off, on = sb.training.twin_logits(sb.SimBANet((4, 8)), cohort.test)
    >>> table = sb.training.twin_table(off, on, cohort.test, control=(off, on))
    >>> table.loc["bias", ["n", "excess"]].tolist()
    [16.0, 0.0]
    """
    for values in (off, on, *(control or ())):
        if finite(values).shape != (len(cohort),):
            allowed = f"one for each of the {len(cohort)} subjects"
            raise SimbaError("logits", Words(f"an array of shape {values.shape}"), allowed)
    magnitude, change, turned = cohort[f"{effect}_magnitude"], on - off, _turned(off, on)
    count = len(change)
    rows = bootstrap_rows(stream(seed, "evaluation", f"twin effect/{effect}"), count)
    rate = paired_share(int((turned > 0).sum()), int((turned < 0).sum()), count)
    flips = wilson(int((turned != 0).sum()), count)
    columns = {
        **columns_of_mean("logit", change, rows),
        **dict(zip(("rate", "rate_low", "rate_high"), rate, strict=True)),
        **dict(zip(("flips", "flips_low", "flips_high"), flips, strict=True)),
        "n": count,
        "per_magnitude": float(magnitude @ change / (magnitude @ magnitude)),
    }
    if control is not None:
        control_change = control[1] - control[0]
        columns["control"] = control_change.mean()
        columns |= columns_of_mean("excess", change - control_change, rows)
        columns |= columns_of_mean("excess_rate", turned - _turned(*control), rows)
        # A bootstrap sees no spread if no decision changes: the interval is then as wide as that of
        # a share of zero.
        excess, least = columns["excess_rate"], wilson(0, count).high
        columns["excess_rate_low"] = min(columns["excess_rate_low"], excess - least)
        columns["excess_rate_high"] = max(columns["excess_rate_high"], excess + least)
    return pd.DataFrame([columns], index=pd.Index([effect], name="effect"))


def _turned(off: np.ndarray, on: np.ndarray) -> np.ndarray:
    """Return 1 where an effect turns a decision to diseased, -1 where to healthy, else 0."""
    return (on > 0).astype(float) - (off > 0)


def twin_logits(
    model: torch.nn.Module, cohort: TwinCohort, *, effect: str = "bias"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of all subjects without an effect, and with it: two arrays of shape (n,).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> off, on = sb.training.twin_logits(sb.SimBANet((4, 8)), cohort.test, effect="disease")
    >>> off.shape, on.shape
    ((16,), (16,))
    """
    twins = effect_of(cohort, effect)
    return logits(model, twins.twin(without=effect)), logits(model, twins.twin(carrying=effect))
