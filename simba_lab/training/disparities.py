"""How differently a network treats two groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from simba_lab.core.checks import below_one
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import BOOTSTRAPS, central
from simba_lab.core.rng import stream
from simba_lab.training.classed import Classed
from simba_lab.training.groups import groups_of
from simba_lab.training.predictions import logits_of

# The disparity that networks have without a bias (Stanley et al. 2023): what counts as none.
BOUND = 0.05
RATES = ("tpr", "fpr", "accuracy", "auroc")


def disparity(
    model: torch.nn.Module | np.ndarray,
    cohort: Classed,
    *,
    by: str = "bias",
    control: torch.nn.Module | np.ndarray | None = None,
    threshold: float = 0.0,
    bound: float = BOUND,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the rates of the bias group minus those of the others, with tests of equivalence.

    Parameters
    ----------
    model : torch.nn.Module or ndarray
        A network, or its logits for this cohort.
    cohort : Cohort
    by : str
        A bias, or another column with two values.
    control : torch.nn.Module or ndarray, optional
        The network of the unbiased pair: it is judged on the same subjects, resampled together.
    threshold : float
        A subject is called diseased above this logit.
    bound : float
        Differences within plus or minus this count as none.
    seed : int
        Of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``tpr``, ``fpr``, ``accuracy`` and ``auroc``, with ``difference`` and its 95 %
        interval ``low``, ``high`` (bootstrap within class and group), ``p_equivalent`` (two
        one-sided tests against `bound`) and ``equivalent`` (p below 0.05). With a control also
        ``control`` (its difference), ``excess`` (difference minus control), ``excess_low``,
        ``excess_high`` (paired bootstrap), ``excess_p_equivalent`` and ``excess_equivalent``.

    Raises
    ------
    SimbaError
        If there are not two groups, or if one of them lacks a class.

    References
    ----------
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657-680 (two one-sided tests); Efron and
    Tibshirani (1993), "An introduction to the bootstrap", chapter 13.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> logits = cohort.test["bias"] - 0.5  # these call the bias group diseased
    >>> table = sb.disparity(logits, cohort.test)
    >>> table.loc[["tpr", "fpr"], "difference"].tolist()
    [1.0, 1.0]
    """
    below_one("bound", bound, remedy=f"{BOUND} is usual.")
    cells = _cells(cohort, by)
    counts = {
        cell: _resamples(stream(seed, "evaluation", f"disparity/{cell}"), len(subjects))
        for cell, subjects in cells.items()
    }
    smallest = min(map(len, cells.values()))
    gaps = _gaps(logits_of(model, cohort) - threshold, cells, counts)
    control_gaps = None
    if control is not None:
        control_gaps = _gaps(logits_of(control, cohort) - threshold, cells, counts)
    table = {}
    for rate in RATES:
        gap = gaps[rate]
        row = {"difference": gap.difference, **_judged(gap.draws, bound, smallest)}
        if control_gaps is not None:
            reference = control_gaps[rate]
            excess = _judged(gap.draws - reference.draws, bound, smallest)
            row |= {
                "control": reference.difference,
                "excess": gap.difference - reference.difference,
            }
            row |= {f"excess_{name}": value for name, value in excess.items()}
        table[rate] = row
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("rate")


class _Gap(NamedTuple):
    """The difference of a rate between two groups, and in bootstrap samples, shape (samples,)."""

    difference: float
    draws: np.ndarray


# Subjects of each cell of class x group, such as (1, 0).
_Cells = dict[tuple[int, int], np.ndarray]


def _cells(cohort: Cohort, by: str) -> _Cells:
    names, groups = groups_of(cohort, by)
    if len(names) != 2:
        raise SimbaError(f"cohort[{by!r}]", Words(f"{len(names)} groups"), "of two groups")
    cells = {}
    for label in (0, 1):
        for group in (0, 1):
            subjects = np.flatnonzero((cohort["label"] == label) & (groups == group))
            if len(subjects) == 0:
                value = f"no members of class {label} in group {names[group]!r}"
                raise SimbaError("cohort", Words(value), "one with both groups in both classes")
            cells[label, group] = subjects
    return cells


def _resamples(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return how often each subject is in each bootstrap sample; in the first row once each."""
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAPS)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float32)


def _gaps(logits: np.ndarray, cells: _Cells, counts: _Cells) -> dict[str, _Gap]:
    """Return the difference of each rate between the groups."""
    reference, bias_group = (_rates(logits, cells, counts, group) for group in (0, 1))
    gaps = {}
    for rate in RATES:
        differences = bias_group[rate].astype(float) - reference[rate]
        gaps[rate] = _Gap(float(differences[0]), differences[1:])
    return gaps


def _rates(logits: np.ndarray, cells: _Cells, counts: _Cells, group: int) -> dict[str, np.ndarray]:
    """Return the rates of a group: of the sample, then of its bootstrap samples."""
    healthy, diseased = (logits[cells[label, group]] for label in (0, 1))
    healthy_counts, diseased_counts = (counts[label, group] for label in (0, 1))
    fpr = healthy_counts @ (healthy > 0).astype(np.float32) / len(healthy)
    tpr = diseased_counts @ (diseased > 0).astype(np.float32) / len(diseased)
    correct = len(diseased) * tpr + len(healthy) * (1 - fpr)
    above = np.sign(diseased[:, None] - healthy[None, :]).astype(np.float32)
    pairs = len(diseased) * len(healthy)
    won = ((diseased_counts @ above) * healthy_counts).sum(axis=1) / pairs
    accuracy = correct / (len(diseased) + len(healthy))
    return {"tpr": tpr, "fpr": fpr, "accuracy": accuracy, "auroc": (won + 1) / 2}


def _judged(draws: np.ndarray, bound: float, smallest: int) -> dict[str, float]:
    """Return the interval of a difference, and two one-sided bootstrap tests of its equivalence.

    The p-value is at least the chance that the smallest cell shows nothing although its rate is off
    by the bound: where all of a few subjects are judged alike, a bootstrap sees no spread.
    """
    low, high = central(draws)
    beyond_bound = max(int((draws <= -bound).sum()), int((draws >= bound).sum()))
    p_value = max((1 + beyond_bound) / (1 + len(draws)), (1 - bound) ** smallest)
    return {"low": low, "high": high, "p_equivalent": p_value, "equivalent": p_value < 0.05}
