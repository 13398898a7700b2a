"""The design table of a cohort: who is in which split, class, bias group and fold, matched by construction."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from scipy.special import ndtri

from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import CLASSES
from simba_lab.synthesis.scenario import SPLITS, Scenario

# So many of the subject coefficients with most variance are matched across bias groups and splits.
MATCHED_MODES = 16
# Folds for cross-validation, each of them matched by itself.
FOLDS = 5


def design(scenario: Scenario, seed: int) -> pd.DataFrame:
    """Return the design table of a scenario: one row per subject, in random order of cells."""
    biases = list(scenario.biases)
    cells = []
    for label, name in enumerate(CLASSES):
        in_class = scenario.subjects // 2 + (scenario.subjects % 2 if label else 0)
        memberships = scenario.memberships(name)
        for split, count in zip(SPLITS, _shared_out(in_class, scenario.split), strict=True):
            sizes = _shared_out(count, tuple(memberships.values()))
            cells += [
                (split, label, groups, size)
                for groups, size in zip(memberships, sizes, strict=True)
            ]
    lattice = subject_lattice(load_template(scenario.template))
    modes = len(scenario.variability.leading(lattice, MATCHED_MODES))
    order = stream(seed, "cohort", "order").permutation(scenario.subjects)
    frames, start = [], 0
    for (split, label, groups, size), fold in product(cells, range(FOLDS)):
        count = len(range(fold, size, FOLDS))
        subjects = np.sort(order[start : start + count])
        start += count
        columns = {
            "split": split,
            "label": label,
            **dict(zip(biases, groups, strict=True)),
            "fold": fold,
        }
        where = f"{split}/{label}/{groups}/{fold}"
        for effect_name, effect in scenario.effects.items():
            ranks = _stratified(seed, f"{where}/{effect_name}", subjects)
            columns[f"{effect_name}_magnitude"] = effect.magnitude[CLASSES[label]].ppf(ranks)
        for mode in range(1, modes + 1):
            columns[f"anatomy_{mode}"] = ndtri(
                _stratified(seed, f"{where}/anatomy_{mode}", subjects)
            )
        frames.append(pd.DataFrame(columns, index=pd.Index(subjects, name="subject")))
    return pd.concat([frame for frame in frames if len(frame)]).sort_index()


def _shared_out(total: int, shares: tuple[float, ...]) -> list[int]:
    """Whole numbers near total x shares that add up to total (largest remainder)."""
    exact = np.asarray(shares) * total
    counts = np.floor(exact).astype(int)
    for position in np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]:
        counts[position] += 1
    return counts.tolist()


def _stratified(seed: int, purpose: str, subjects: np.ndarray) -> np.ndarray:
    """One uniform draw from each of n strata of equal probability, in random order."""
    generator = stream(seed, "cohort", purpose)
    strata = generator.permutation(len(subjects))
    return (strata + generator.uniform(1e-9, 1 - 1e-9, len(subjects))) / max(1, len(subjects))
