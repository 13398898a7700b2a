"""Question B: whether a recipe of training learns a shortcut, whatever network comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from simba_lab.auditing.answers import LEAST_SCANS, Difference, spread_of
from simba_lab.core.checks import Positive, share, whole_number
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.fingerprint import fingerprint
from simba_lab.core.remember import remembered
from simba_lab.core.source_code import NotFingerprintable
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.verb import plant
from simba_lab.synthesis.effects import Effect
from simba_lab.training.predictions import logits

Train = Callable[[Cohort, int], torch.nn.Module]
MOST_PAIRS = 500
WORDS = {"used": "learns it", "not used": "does not learn it", "cannot tell": "cannot tell"}


def audit_recipe(
    train: Train,
    scans: Cohort,
    effects: Mapping[str, Effect],
    *,
    prevalence: float = 0.9,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    bound: Positive = 0.5,
    cache: bool = True,
    progress: bool = False,
) -> pd.DataFrame:
    """Tell whether a recipe of training learns each mark where it goes with the disease.

    For each mark and seed two networks are trained on the same people: one where the mark goes with
    the disease, one where it is as common in both classes. Then the mark is switched in people that
    neither has seen. What the first answers to it beyond the second was learned as a shortcut. The
    network is the unit: intervals are over seeds, which draw carriers, first weights and batches
    anew, as far as the recipe heeds its seed.

    Parameters
    ----------
    train : callable
        ``train(cohort, seed)`` returns a network that answers with logits, trained on a cohort with
        labels: ``cohort.array(i)``, ``cohort["label"]``.
    scans : ScanCohort
        From `read_bids`, with labels, and at least 16 people in the split ``test``.
    effects : mapping of name to effect
        Marks, each planted and judged by itself; their own prevalence does not count.
    prevalence : float
        Of a mark among the diseased; among the others it is what is left of 1.
    seeds : sequence of int
        At least three.
    bound : float
        As for `audit`, in spreads of each network's own answers.
    cache : bool
        Whether to keep what each pair of networks answered, so that an interrupted call resumes.
        A recipe that does not show its code is computed every time.
    progress : bool

    Returns
    -------
    pandas.DataFrame
        Indexed by mark: ``excess``, the effect of the mark on the first network less that on the
        second, in spreads, mean over seeds with a 95 % interval that holds for all marks at once;
        ``marked``, ``balanced``, the two means; ``networks``, pairs; ``verdict`` ("learns it",
        "does not learn it", "cannot tell") and ``needs``.

    Raises
    ------
    SimbaError
        If there are too few people or seeds, no labels, or the recipe returns no network.

    Notes
    -----
    Effects are in spreads of each network's own answers. A network that follows nothing but the
    mark moves by as many of them however little it learned, in both arms: then there is no excess,
    and ``balanced`` beyond the bound shows it.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.auditing.audit_recipe(lambda cohort, seed: None, None, {})
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: scans must be ...
    """
    share("prevalence", prevalence)
    people = _people(scans)
    for seed in seeds:
        whole_number("seeds", seed, least=0)
    if len(set(seeds)) < 3 or len(set(seeds)) < len(seeds):
        raise SimbaError("seeds", list(seeds), "at least 3 different numbers")
    if not effects:
        raise SimbaError("effects", Words("no marks"), "at least one")
    bar = tqdm(total=len(effects) * len(seeds), unit="pair", disable=not progress)
    rows = {}
    for name, effect in effects.items():
        pairs = []
        for seed in seeds:
            pairs.append(_pair(train, people, name, effect, (prevalence, seed), cache))
            bar.update()
        rows[name] = _row(np.array(pairs), 0.05 / len(effects), bound)
    bar.close()
    return pd.DataFrame(rows.values(), index=pd.Index(list(rows), name="mark"))


def _people(scans: Cohort) -> tuple[Cohort, Cohort]:
    """Return those to train on and those to judge on."""
    if not isinstance(scans, Cohort) or "label" not in scans.table:
        raise SimbaError("scans", type(scans).__name__, "a cohort with labels, from read_bids")
    train, test = scans.train, scans.test
    for field, cohort in (("scans.train", train), ("scans.test", test)):
        if len(cohort) < LEAST_SCANS or set(cohort["label"]) != {0, 1}:
            value = Words(f"{len(cohort)} people")
            raise SimbaError(field, value, f"at least {LEAST_SCANS}, of both classes")
    return train, test


def _pair(
    train: Train,
    people: tuple[Cohort, Cohort],
    name: str,
    effect: Effect,
    draw: tuple[float, int],
    cache: bool,
) -> list[float]:
    """Return the effect of a mark on both networks of a seed, in spreads of their own answers."""
    (prevalence, seed), arms = draw, []
    unequal = {"disease": prevalence, "control": 1 - prevalence}
    test = plant(people[1], {name: replace(effect, prevalence=None)}, seed=seed)
    for among in (unequal, {"disease": 0.5, "control": 0.5}):
        marked = plant(people[0], {name: replace(effect, prevalence=among)}, seed=seed)
        try:
            key = fingerprint(train, marked.identity, marked.table, test.identity, test.table, seed)
        except NotFingerprintable:
            key = None
        arms.append(
            remembered(
                "recipes",
                key,
                partial(_trained_effect, train, marked, seed, test, name),
                cache=cache,
            )
        )
    return arms


def _trained_effect(
    train: Train, marked: PlantedCohort, seed: int, test: PlantedCohort, name: str, _: object
) -> float:
    """Return the mean effect of a mark on the answers of a network trained here, in spreads."""
    network = train(marked, seed)
    if not isinstance(network, torch.nn.Module):
        value = Words(f"one that returns {type(network).__name__}")
        raise SimbaError("train", value, "a function that returns a torch.nn.Module")
    off, on = (
        logits(network, cohort) for cohort in (test.twin(without=name), test.twin(carrying=name))
    )
    return float((on - off).mean() / spread_of(off))


def _row(pairs: np.ndarray, alpha: float, bound: float) -> dict[str, object]:
    excess = Difference(pairs[:, 0] - pairs[:, 1], alpha)
    verdict, needs = excess.verdict(bound), ""
    if verdict == "cannot tell":
        pairs_needed = excess.units(bound)
        needs = "far more pairs"
        if pairs_needed < MOST_PAIRS:
            needs = f"about {int(np.ceil(pairs_needed))} pairs"
    return {
        **excess.columns("excess"),
        "marked": float(pairs[:, 0].mean()),
        "balanced": float(pairs[:, 1].mean()),
        "networks": len(pairs),
        "bound": bound,
        "verdict": WORDS[verdict],
        "needs": needs,
    }
