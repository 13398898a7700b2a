"""How well a network does, and for whom."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from fairlearn.metrics import MetricFrame
from scipy.special import expit
from scipy.stats import binomtest, rankdata
from sklearn.metrics import brier_score_loss, roc_auc_score

from simba_lab.core.compute import deterministic, evaluating
from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.training.networks import GroupRouted, logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

BOOTSTRAPS = 2000
# Bins of equal size of predicted probability for the calibration error.
BINS = 10
# The disparity that networks have without a bias (Stanley et al. 2023): what counts as none.
BOUND = 0.05


def logits(
    model: torch.nn.Module,
    volumes: Iterable[np.ndarray] | Cohort,
    *,
    groups: np.ndarray | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> np.ndarray:
    """Return the logit of the disease for each volume, float64, shape (n,).

    Parameters
    ----------
    model : torch.nn.Module
    volumes : Cohort or iterable of ndarray
        Volumes of shape (X, Y, Z), or anything with a method ``volumes()`` that yields them.
    groups : ndarray, shape (n,), optional
        Group of each volume, for networks with one part per group; of a cohort it is known.
    batch_size : int
    device : str
        Where the network runs, and volumes are rendered; ``"auto"`` for a GPU if there is one.
    """
    where = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    there = model if where.type == "cpu" else copy.deepcopy(model).to(where)
    places = _places(model, volumes, groups)
    scores, batch = [], []

    def flush() -> None:
        if batch:
            x = torch.from_numpy(np.stack(batch))[:, None].to(where)
            start = sum(map(len, scores))
            more = (
                ()
                if places is None
                else (torch.from_numpy(places[start : start + len(batch)]).to(where),)
            )
            with torch.no_grad():
                scores.append(logit(there(x, *more)).double().cpu().numpy())
            batch.clear()

    if hasattr(volumes, "volumes"):
        volumes = volumes.volumes() if where.type == "cpu" else volumes.volumes(device=str(where))
    with evaluating(there), deterministic():
        for volume in volumes:
            batch.append(volume)
            if len(batch) == batch_size:
                flush()
        flush()
    found = np.concatenate(scores) if scores else np.zeros(0)
    if places is not None and len(places) != len(found):
        raise SimbaError(
            "groups", f"{len(places)} values", f"one for each of the {len(found)} volumes"
        )
    return found


def _places(
    model: torch.nn.Module, volumes: object, groups: np.ndarray | None
) -> np.ndarray | None:
    """Return which network of a `GroupRouted` judges each volume."""
    if not isinstance(model, GroupRouted):
        return None
    groups = np.asarray(rendered_groups(model.by, volumes) if groups is None else groups)
    if hasattr(volumes, "__len__") and len(groups) != len(volumes):
        raise SimbaError(
            "groups", f"{len(groups)} values", f"one for each of the {len(volumes)} volumes"
        )
    known = {group: place for place, group in enumerate(model.groups)}
    strange = [group for group in np.unique(groups).tolist() if group not in known]
    if strange:
        raise SimbaError(
            "groups",
            strange[0],
            f"one of {', '.join(map(str, known))}",
            "No network was fitted for it.",
        )
    return np.array([known[group] for group in groups.tolist()], int)


def _scores(model: torch.nn.Module | np.ndarray, cohort: Cohort) -> np.ndarray:
    """Return the logits of a cohort, which the caller may have already."""
    if not isinstance(model, np.ndarray):
        return logits(model, cohort)
    if model.shape != (len(cohort),):
        raise SimbaError("logits", model.shape, f"of shape ({len(cohort)},), one per subject")
    return model


def rendered_groups(by: str, cohort: Cohort) -> np.ndarray:
    """Return the group of each subject as its volume shows it: in twins, who shows the bias."""
    if not hasattr(cohort, "table"):
        raise SimbaError(
            "groups", None, f"the {by} of each volume", "A bare list of volumes does not say it."
        )
    return cohort.carriers(by).astype(int) if by in cohort.biases else cohort[by]


def _share(of: str, truth: np.ndarray, decision: np.ndarray) -> tuple[int, int]:
    """Successes and trials of a rate."""
    if of == "accuracy":
        return int((truth == decision).sum()), len(truth)
    positives = truth == (1 if of == "tpr" else 0)
    return int(decision[positives].sum()), int(positives.sum())


def _rate(truth: np.ndarray, scores: np.ndarray, *, of: str, end: str, threshold: float) -> float:
    successes, trials = _share(of, np.asarray(truth), (np.asarray(scores) > threshold).astype(int))
    if trials == 0:
        return np.nan
    if end == "estimate":
        return successes / trials
    return getattr(binomtest(successes, trials).proportion_ci(method="wilson"), end)


def calibration(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    by: str | Sequence[str] | None = "bias",
    bins: int = BINS,
) -> pd.DataFrame:
    """Return predicted against observed frequency of the disease, in bins of equal size, per group.

    Returns
    -------
    pandas.DataFrame
        Indexed by group and bin: ``predicted`` (mean probability), ``observed`` (share of
        diseased), its Wilson interval ``observed_low``, ``observed_high``, and ``n``.
    """
    probability, truth = expit(_scores(model, cohort)), cohort["label"]
    names, groups = _groups(cohort, by)
    rows = []
    for value, name in enumerate(names):
        for number, part in enumerate(_bins(probability[groups == value], bins)):
            members = np.flatnonzero(groups == value)[part]
            interval = binomtest(int(truth[members].sum()), len(members)).proportion_ci(
                method="wilson"
            )
            rows.append(
                {
                    "group": name,
                    "bin": number,
                    "predicted": probability[members].mean(),
                    "observed": truth[members].mean(),
                    "observed_low": interval.low,
                    "observed_high": interval.high,
                    "n": len(members),
                }
            )
    return pd.DataFrame(rows).set_index(["group", "bin"])


def _bins(probability: np.ndarray, bins: int) -> list[np.ndarray]:
    return [
        part for part in np.array_split(np.argsort(probability, kind="stable"), bins) if len(part)
    ]


def _calibration_error(truth: np.ndarray, scores: np.ndarray) -> float:
    probability, truth = expit(np.asarray(scores)), np.asarray(truth, float)
    # Equal predictions may fall into different bins: each gets their mean, so that their order does
    # not matter.
    _, ties = np.unique(probability, return_inverse=True)
    truth = (np.bincount(ties, truth) / np.bincount(ties))[ties]
    gaps = [
        len(part) * abs(probability[part].mean() - truth[part].mean())
        for part in _bins(probability, BINS)
    ]
    return float(sum(gaps) / len(truth))


def _auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    return (
        float(roc_auc_score(truth, scores)) if len(set(np.asarray(truth).tolist())) == 2 else np.nan
    )


def _auroc_end(truth: np.ndarray, scores: np.ndarray, *, end: int) -> float:
    """Return an end of the 95 % interval after DeLong et al. (1988), Biometrics 44:837-845."""
    truth, scores = np.asarray(truth), np.asarray(scores)
    sick, well = scores[truth == 1], scores[truth == 0]
    if min(len(sick), len(well)) < 2:
        return np.nan
    ranks = rankdata(np.concatenate([sick, well]))
    above_well = (ranks[: len(sick)] - rankdata(sick)) / len(well)
    below_sick = 1 - (ranks[len(sick) :] - rankdata(well)) / len(sick)
    error = np.sqrt(above_well.var(ddof=1) / len(sick) + below_sick.var(ddof=1) / len(well))
    return float(np.clip(above_well.mean() + end * 1.959964 * error, 0, 1))


def evaluate(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    by: str | Sequence[str] | None = "bias",
    threshold: float = 0.0,
) -> pd.DataFrame:
    """Return accuracy, true and false positive rate, AUROC and calibration, overall and per group, with intervals.

    Parameters
    ----------
    model : torch.nn.Module or ndarray
        A network, or its logits for this cohort.
    cohort : Cohort
        Usually ``cohort.test``.
    by : str or sequence of str, optional
        Column of the design table that names the groups; several for their intersections; None for
        no groups.
    threshold : float
        Logit from which a subject is called diseased. Choose it on validation data.

    Returns
    -------
    pandas.DataFrame
        Indexed by group (``all`` first), with ``n``; ``auroc`` (interval of DeLong), ``accuracy``,
        ``tpr`` and ``fpr`` (Wilson intervals), each with ``_low`` and ``_high`` at 95 %;
        ``balanced_accuracy``; ``brier`` (mean squared error of the probability);
        ``calibration_error`` (mean distance of predicted and observed frequency over ten bins of
        equal size); and ``ceiling``: the best accuracy that the overlap of the classes allows to a
        reader of the disease alone.

    Raises
    ------
    SimbaError
        If a group has no members.

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22:209-212; DeLong et al. (1988), Biometrics 44:837-845;
    Naeini et al. (2015), AAAI, eq. 3 (calibration error). Group metrics by fairlearn's MetricFrame.
    """
    scores, truth = _scores(model, cohort), cohort["label"]
    names, groups = _groups(cohort, by)
    rates = {
        f"{rate}{suffix}": partial(_rate, of=rate, end=end, threshold=threshold)
        for rate in ("accuracy", "tpr", "fpr")
        for suffix, end in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    }
    metrics: dict[str, Callable[..., Any]] = {
        "n": lambda truth, scores: len(truth),
        "auroc": _auroc,
        "auroc_low": partial(_auroc_end, end=-1),
        "auroc_high": partial(_auroc_end, end=1),
        **rates,
        "brier": lambda truth, scores: brier_score_loss(truth, expit(scores), pos_label=1),
        "calibration_error": _calibration_error,
    }
    frame = MetricFrame(metrics=metrics, y_true=truth, y_pred=scores, sensitive_features=groups)
    rows = (
        pd.concat([frame.overall.to_frame("all").T, frame.by_group])
        if by
        else frame.overall.to_frame("all").T
    )
    rows.insert(4, "balanced_accuracy", (rows["tpr"] + 1 - rows["fpr"]) / 2)
    rows["ceiling"] = cohort.ceiling
    title = "group" if by is None else by if isinstance(by, str) else " x ".join(by)
    rows.index = pd.Index(["all", *(names if by else [])], name=title)
    return rows.astype({"n": int} | {name: float for name in rows.columns if name != "n"})


def _groups(cohort: Cohort, by: str | Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Return the names of the groups and the number of each subject's group; every group has members."""
    if by is None:
        return ["all"], np.zeros(len(cohort), int)
    columns = [by] if isinstance(by, str) else list(by)
    if not columns:
        raise SimbaError("by", by, "a column, several, or None")
    words = []
    for column in columns:
        member = {0: "NB", 1: "B"} if column in cohort.biases else {}
        values = sorted(set(cohort[column].tolist()) | set(member))
        words.append({value: str(member.get(value, value)) for value in values})
    index = pd.MultiIndex.from_product([list(one) for one in words])
    places = pd.MultiIndex.from_arrays([cohort[column] for column in columns])
    numbers = index.get_indexer(places)
    if len(columns) == 1:
        names = list(words[0].values())
    else:
        parts = [
            [f"{column} {word}" for word in one.values()]
            for column, one in zip(columns, words, strict=True)
        ]
        names = [", ".join(combination) for combination in product(*parts)]
    empty = [names[number] for number in range(len(names)) if not (numbers == number).any()]
    if empty:
        raise SimbaError(
            f"cohort[{by!r}]",
            f"no members of group {empty[0]!r}",
            "with members in all groups",
            "Evaluate a larger cohort or fewer columns at once; biases of membership='joint' fill some groups alone.",
        )
    return names, numbers


def disparity(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    by: str = "bias",
    control: torch.nn.Module | None = None,
    threshold: float = 0.0,
    bound: float = BOUND,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how differently a network treats the bias group: rates of B minus NB, and whether that is nothing.

    Parameters
    ----------
    model : torch.nn.Module or ndarray
        A network, or its logits for this cohort.
    cohort : Cohort
    by : str
        Which bias, or another column with two values.
    control : torch.nn.Module, optional
        The network of the unbiased pair: it is judged on the same subjects, resampled together.
    threshold : float
        Logit from which a subject is called diseased.
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

    References
    ----------
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657-680 (two one-sided tests); Efron and
    Tibshirani (1993), "An introduction to the bootstrap", chapter 13.
    """
    if not 0 < bound < 1:
        raise SimbaError("bound", bound, "above 0 and below 1", f"{BOUND} is usual.")
    names, groups = _groups(cohort, by)
    if len(names) != 2:
        raise SimbaError(f"cohort[{by!r}]", f"{len(names)} groups", "of two groups")
    truth = cohort["label"]
    cells = {
        (label, group): np.flatnonzero((truth == label) & (groups == group))
        for label in (0, 1)
        for group in (0, 1)
    }
    for (label, group), members in cells.items():
        if len(members) == 0:
            raise SimbaError(
                "cohort",
                f"no members of class {label} in group {names[group]!r}",
                "with both groups in both classes",
            )
    counts = {
        key: _resamples(stream(seed, "evaluation", f"disparity/{key}"), len(rows))
        for key, rows in cells.items()
    }
    scores = {"": _scores(model, cohort)} | (
        {} if control is None else {"control": _scores(control, cohort)}
    )
    gaps = {name: _gaps(values - threshold, cells, counts) for name, values in scores.items()}
    smallest = min(map(len, cells.values()))
    table = {}
    for rate, (difference, draws) in gaps[""].items():
        low, high = np.quantile(draws, [0.025, 0.975])
        p_value = _equivalence(draws, bound, smallest)
        row = {
            "difference": difference,
            "low": low,
            "high": high,
            "p_equivalent": p_value,
            "equivalent": p_value < 0.05,
        }
        if control is not None:
            other, other_draws = gaps["control"][rate]
            low, high = np.quantile(draws - other_draws, [0.025, 0.975])
            p_value = _equivalence(draws - other_draws, bound, smallest)
            row |= {
                "control": other,
                "excess": difference - other,
                "excess_low": low,
                "excess_high": high,
                "excess_p_equivalent": p_value,
                "excess_equivalent": p_value < 0.05,
            }
        table[rate] = row
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("rate")


def _resamples(draws: np.random.Generator, count: int) -> np.ndarray:
    """How often each of n subjects comes in each bootstrap sample; the first row is the sample itself."""
    drawn = draws.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAPS)
    return np.concatenate([np.ones((1, count)), drawn]).astype(np.float32)


def _gaps(scores: np.ndarray, cells: dict, counts: dict) -> dict[str, tuple[float, np.ndarray]]:
    """Differences of the rates between groups: of the sample, and of its bootstrap resamples."""
    called = {
        key: counts[key] @ (scores[rows] > 0).astype(np.float32) / len(rows)
        for key, rows in cells.items()
    }
    sizes = {key: len(rows) for key, rows in cells.items()}
    of_group: dict[str, list[np.ndarray]] = {"tpr": [], "fpr": [], "accuracy": [], "auroc": []}
    for group in (0, 1):
        tpr, fpr = called[1, group], called[0, group]
        sick, well = sizes[1, group], sizes[0, group]
        above = np.sign(scores[cells[1, group]][:, None] - scores[cells[0, group]][None, :]).astype(
            np.float32
        )
        won = ((counts[1, group] @ above) * counts[0, group]).sum(axis=1) / (sick * well)
        of_group["tpr"].append(tpr)
        of_group["fpr"].append(fpr)
        of_group["accuracy"].append((sick * tpr + well * (1 - fpr)) / (sick + well))
        of_group["auroc"].append((won + 1) / 2)
    differences = {
        rate: inside.astype(float) - outside for rate, (outside, inside) in of_group.items()
    }
    return {rate: (float(values[0]), values[1:]) for rate, values in differences.items()}


def _equivalence(draws: np.ndarray, bound: float, smallest: int) -> float:
    """Return the p-value of two one-sided bootstrap tests of a difference within plus or minus `bound`.

    It is at least the chance that the smallest cell shows nothing although its rate is off by the
    bound: where all subjects of a few are judged alike, a bootstrap sees no spread.
    """
    outside = max(int((draws <= -bound).sum()), int((draws >= bound).sum()))
    return max((1 + outside) / (1 + len(draws)), (1 - bound) ** smallest)
