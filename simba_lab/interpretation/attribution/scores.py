"""How much of an attribution map lies where an effect is known to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from simba_lab.synthesis.effects import Morphology

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

SCORES = ("mass", "enrichment", "auprc", "pointing", "rank", "region")
# Least difference, as a share of white matter, that counts as changed by an effect (as in
# `Cohort.changed`).
CHANGED = 0.02
# Share of the brain's voxels, those of largest attribution, that the published region score takes
# as salient.
SALIENT = 0.05


def difference(cohort: Cohort, index: int, effect: str) -> np.ndarray:
    """Return the true effect on the image of one subject: its noise-free twin with the effect less the one without.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z)
        In units of white matter.
    """
    on, off = cohort.twin(carrying=effect), cohort.twin(without=effect)
    return on.clean(index, keep=False) - off.clean(index, keep=False)


def truths(
    cohort: Cohort, index: int
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray | None]]]:
    """Return what the scores of one subject need: its brain mask, and for each effect difference and region.

    The region is None for effects of the whole image.
    """
    regions = {
        name: effect.region
        for name, effect in cohort.effects.items()
        if isinstance(effect, Morphology)
    }
    return cohort.brain(index), {
        name: (
            difference(cohort, index, name),
            cohort.region(index, regions[name]) if name in regions else None,
        )
        for name in cohort.effects
    }


def scores(
    values: np.ndarray, brain: np.ndarray, effects: dict[str, tuple[np.ndarray, np.ndarray | None]]
) -> dict[str, float]:
    """Return the scores of one map on each effect.

    With ``a`` the absolute attribution and ``C`` the voxels that the effect changes by more than 2
    % of white matter:

    ``mass_<effect>``
        Sum of a over C, as a share of its sum over all voxels.
    ``enrichment_<effect>``
        That share over the share of the brain's voxels that C holds: 1 by chance.
    ``auprc_<effect>``
        Average precision of a as a detector of C among the voxels of the brain and of C; by chance
        the share that C holds.
    ``pointing_<effect>``
        1 if the voxel with the largest a is in C, else 0; voxels that tie count by their share
        (pointing game; Zhang et al. 2018, "Top-down neural attention by excitation backprop", sec.
        5.1).
    ``rank_<effect>``
        Spearman's correlation of a with the absolute true difference over the voxels of the brain
        and of C.
    ``region_<effect>``
        The published score: percentage of the voxels of the region that are salient, times the mean
        of a, divided by its maximum, over the region. Salient are the 5 % of the brain's voxels
        with the largest a. (Percentage times normalised mean is from Stanley et al. 2022, J. Med.
        Imaging 9:061102; the quantile is ours.) Morphology effects alone have it.

    All are NaN for a map that is zero everywhere, and for an effect that changes nothing in this
    subject; mass is then 0.

    Parameters
    ----------
    values : ndarray, shape (X, Y, Z)
    brain : ndarray of bool, shape (X, Y, Z)
    effects : mapping of name to (difference, region)
        From `truths`.
    """
    size = np.abs(values, dtype=np.float64)
    total, row = size.sum(), {}
    for name, (change, region) in effects.items():
        change = np.abs(change)
        changed = change > CHANGED
        found = dict.fromkeys(SCORES if region is not None else SCORES[:-1], np.nan)
        if total:
            found["mass"] = size[changed].sum() / total
        if total and changed.any():
            seen = brain | changed
            inside, truth = size[seen], changed[seen]
            found["enrichment"] = found["mass"] / (changed.sum() / brain.sum())
            found["auprc"] = average_precision_score(truth, inside)
            found["pointing"] = changed[size == size.max()].mean()
            found["rank"] = _correlation(inside, change[seen])
        if total and region is not None and region.any():
            salient = size[region] >= max(
                np.quantile(size[brain], 1 - SALIENT), np.finfo(float).tiny
            )
            found["region"] = 100 * salient.mean() * size[region].mean() / size.max()
        row |= {f"{score}_{name}": float(value) for score, value in found.items()}
    return row


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation; NaN if either is constant."""
    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale else np.nan
