"""The design table of a cohort: split, class, bias groups and fold of each subject, matched."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import ndtri

from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import CLASSES, magnitude_in
from simba_lab.synthesis.scenario import SPLITS, Scenario

# Number of subject coefficients, those with most variance, that are matched across bias groups and
# splits.
MATCHED_MODES = 16
MODES = [f"anatomy_{mode}" for mode in range(1, MATCHED_MODES + 1)]
# Folds for cross-validation; each is matched by itself.
FOLDS = 5


def design_table(scenario: Scenario, seed: int) -> pd.DataFrame:
    """Return the design of a cohort: one row per subject, cells in random order.

    Parameters
    ----------
    scenario : Scenario
    seed : int

    Returns
    -------
    pandas.DataFrame
        Indexed by the subject's number, with the columns ``split``, ``label`` (1: disease), one per
        bias (1: in its group), ``fold``, ``NAME_magnitude`` for each effect, and ``anatomy_1`` and
        so on, the matched coefficients of the anatomy.

    References
    ----------
    McKay, Beckman, Conover (1979), "A comparison of three methods for selecting values of input
    variables", Technometrics 21(2) (Latin hypercube sampling).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> sb.synthesis.design_table(scenario, seed=0)["split"].value_counts().to_dict()
    {'train': 32, 'validation': 16, 'test': 16}
    """
    return _design(scenario, seed).copy()


@lru_cache(maxsize=8)  # a cohort and its renderer need the same table
def _design(scenario: Scenario, seed: int) -> pd.DataFrame:
    lattice = subject_lattice(load_template(scenario.template))
    modes = len(scenario.variability.leading(lattice, MATCHED_MODES))
    order = stream(seed, "cohort", "order").permutation(scenario.subjects)
    frames, start = [], 0
    for (split, label, groups, size), fold in product(_cells(scenario), range(FOLDS)):
        count = len(range(fold, size, FOLDS))
        subjects = np.sort(order[start : start + count])
        start += count
        cell = f"{split}/{label}/{groups}/{fold}"
        columns = {"split": split, "label": label}
        columns |= dict(zip(scenario.biases, groups, strict=True)) | {"fold": fold}
        for name, effect in scenario.effects.items():
            ranks = _stratified(seed, f"{cell}/{name}", subjects)
            columns[f"{name}_magnitude"] = magnitude_in(effect, CLASSES[label]).ppf(ranks)
        for mode in range(1, modes + 1):
            ranks = _stratified(seed, f"{cell}/anatomy_{mode}", subjects)
            columns[f"anatomy_{mode}"] = ndtri(ranks)
        frames.append(pd.DataFrame(columns, index=pd.Index(subjects, name="subject")))
    return pd.concat([frame for frame in frames if len(frame)]).sort_index()


def _cells(scenario: Scenario) -> list[tuple[str, int, tuple[int, ...], int]]:
    """Return split, label, bias groups and number of subjects of each cell of the design."""
    cells = []
    for label, name in enumerate(CLASSES):
        in_class = scenario.subjects // 2 + (scenario.subjects % 2 if label else 0)
        memberships = scenario.memberships(name)
        for split, count in zip(SPLITS, _apportioned(in_class, scenario.split), strict=True):
            sizes = _apportioned(count, tuple(memberships.values()))
            cells += [
                (split, label, groups, size)
                for groups, size in zip(memberships, sizes, strict=True)
            ]
    return cells


def _apportioned(total: int, shares: tuple[float, ...]) -> list[int]:
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
