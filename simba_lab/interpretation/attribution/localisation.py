"""How much of an attribution map lies where an effect is known to be."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from simba_lab.core.cohort import TwinCohort

# Least difference, as a share of white matter, that counts as changed by an effect (as in
# `TwinCohort.changed`).
CHANGED = 0.02
# Share of the brain's voxels, those of largest attribution, that the published region score takes
# as salient.
SALIENT = 0.05


def localisation(values: np.ndarray, cohort: TwinCohort, index: int) -> dict[str, float]:
    """Return the scores of the map of one subject on each effect of its cohort.

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
        of a over the region, divided by its maximum. Salient are the 5 % of the brain's voxels with
        the largest a. (Percentage times normalised mean is from Stanley et al. 2022, J. Med.
        Imaging 9:061102; the quantile is ours.) Only effects of a region have it.

    All are NaN for a map that is zero everywhere, and for an effect that changes nothing in this
    subject; mass is then 0.

    Parameters
    ----------
    values : ndarray, shape (X, Y, Z)
        The map.
    cohort : TwinCohort
    index : int
        The position of the subject in the cohort.
    """
    scores: dict[str, float] = {}
    size, brain = np.abs(values, dtype=np.float64), cohort.brain(index)
    for effect in cohort.effects:
        difference = np.abs(cohort.difference(index, effect))
        region = cohort.region_of(index, effect)
        for name, score in _scores(size, brain, difference, region).items():
            scores[f"{name}_{effect}"] = float(score)
    return scores


def _scores(
    size: np.ndarray, brain: np.ndarray, difference: np.ndarray, region: np.ndarray | None
) -> dict[str, float]:
    """Return the scores on one effect, of the size of a map; all arrays of shape (X, Y, Z)."""
    changed, total = difference > CHANGED, size.sum()
    scores = dict.fromkeys(("mass", "enrichment", "auprc", "pointing", "rank"), np.nan)
    if total:
        scores["mass"] = size[changed].sum() / total
    if total and changed.any():
        voxels = brain | changed
        scores["enrichment"] = scores["mass"] / (changed.sum() / brain.sum())
        scores["auprc"] = average_precision_score(changed[voxels], size[voxels])
        scores["pointing"] = changed[size == size.max()].mean()
        scores["rank"] = spearman(size[voxels], difference[voxels])
    if region is not None:
        scores["region"] = np.nan
        if total and region.any():
            least = max(np.quantile(size[brain], 1 - SALIENT), np.finfo(float).tiny)
            salient = (size[region] >= least).mean()
            scores["region"] = 100 * salient * size[region].mean() / size.max()
    return scores


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN if either is constant."""
    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale else np.nan
