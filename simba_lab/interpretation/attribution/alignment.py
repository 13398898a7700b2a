"""Attribution maps of many subjects in one space: each voxel goes where its tissue came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from simba_lab.core.cohort import with_twins
from simba_lab.core.errors import SimbaError

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort
    from simba_lab.interpretation.attribution.maps import Attribution


def aligned(maps: Attribution | np.ndarray, cohort: Cohort) -> np.ndarray:
    """Return maps in the space of the template, by the warp with which each subject was made: nothing is registered.

    Each voxel of the template's lattice gets the mean over all voxels of the subject whose tissue
    came from there.

    Parameters
    ----------
    maps : Attribution, or ndarray of shape (n, X, Y, Z)
    cohort : Cohort
        The subjects, in the order of the maps.

    Returns
    -------
    ndarray of float32, shape (n, X, Y, Z)
        NaN where none of the subject's voxels came from.

    Raises
    ------
    SimbaError
        If numbers or shapes differ, or the subjects are imported images, whose warp nobody knows.
    """
    values = _checked(maps, cohort)
    return np.stack(
        [np.divide(*_gathered(values[index], cohort, index)) for index in range(len(cohort))]
    ).astype(np.float32)


def group_map(maps: Attribution | np.ndarray, cohort: Cohort) -> nib.Nifti1Image:
    """Return the mean map of a cohort in the space of the template: over all voxels of all subjects that came from there.

    Parameters are those of `aligned`. Voxels where nobody's came from are 0.
    """
    values, total, count = _checked(maps, cohort), 0.0, 0.0
    for index in range(len(cohort)):
        one, voxels = _gathered(values[index], cohort, index)
        total, count = total + np.where(voxels > 0, one, 0), count + np.nan_to_num(voxels)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return nib.Nifti1Image(mean.astype(np.float32), cohort.lattice.affine)


def _checked(maps: Attribution | np.ndarray, cohort: Cohort) -> np.ndarray:
    values = maps if isinstance(maps, np.ndarray) else maps.maps
    with_twins(cohort)
    if values.shape != (len(cohort), *cohort.lattice.shape):
        raise SimbaError(
            "maps", f"of shape {values.shape}", f"of shape {(len(cohort), *cohort.lattice.shape)}"
        )
    return values


def _gathered(values: np.ndarray, cohort: Cohort, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each voxel of the template's lattice the sum of the subject's values, and of how many (NaN if of none)."""
    lattice = cohort.lattice
    where = (
        np.moveaxis(cohort.positions_mm(index), 0, -1) - np.float32(lattice.origin_mm)
    ) / lattice.spacing_mm
    nearest = np.round(where).astype(int)
    inside = ((nearest >= 0) & (nearest < lattice.shape)).all(axis=-1)
    places = np.ravel_multi_index(tuple(nearest[inside].T), lattice.shape)
    size = int(np.prod(lattice.shape))
    total = np.bincount(places, weights=values[inside], minlength=size).reshape(lattice.shape)
    count = np.bincount(places, minlength=size).reshape(lattice.shape).astype(float)
    count[count == 0] = np.nan
    return total, count
