"""Attribution maps of many subjects in the space of the template, where they can be averaged."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from simba_lab.core.checks import of_shape
from simba_lab.core.cohort import TwinCohort, with_twins
from simba_lab.interpretation.attribution.maps import Attribution


def aligned(maps: Attribution | np.ndarray, cohort: TwinCohort) -> np.ndarray:
    """Return maps in the space of the template, by the warp with which each subject was made.

    Each voxel of the template's lattice gets the mean over all voxels of the subject whose tissue
    came from it. Nothing is registered.

    Parameters
    ----------
    maps : Attribution, or ndarray of shape (n, X, Y, Z)
    cohort : TwinCohort
        The subjects, in the order of the maps.

    Returns
    -------
    ndarray of float32, shape (n, X, Y, Z)
        NaN for voxels that no voxel of the subject maps to.

    Raises
    ------
    SimbaError
        If numbers or shapes differ, or the warp of the subjects is not known.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> sb.attribution.aligned(test.arrays(), test).shape
    (2, 20, 24, 20)
    """
    values = _checked(maps, cohort)
    means = [np.divide(*_sums(values[index], cohort, index)) for index in range(len(cohort))]
    return np.stack(means).astype(np.float32)


def group_map(maps: Attribution | np.ndarray, cohort: TwinCohort) -> nib.Nifti1Image:
    """Return the mean map of a cohort in the space of the template, as a NIfTI image.

    The mean is over all voxels of all subjects that map to a voxel of the template. Voxels that no
    subject maps to are 0. Parameters are those of `aligned`.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> sb.attribution.group_map(test.arrays(), test).shape
    (20, 24, 20)
    """
    values = _checked(maps, cohort)
    total, count = (np.zeros(cohort.lattice.shape) for _ in range(2))
    for index in range(len(cohort)):
        sums, voxels = _sums(values[index], cohort, index)
        total, count = total + np.where(voxels > 0, sums, 0), count + np.nan_to_num(voxels)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return nib.Nifti1Image(mean.astype(np.float32), cohort.lattice.affine)


def _checked(maps: Attribution | np.ndarray, cohort: TwinCohort) -> np.ndarray:
    values = maps.maps if isinstance(maps, Attribution) else maps
    return of_shape("maps", values, (len(with_twins(cohort)), *cohort.lattice.shape))


def _sums(values: np.ndarray, cohort: TwinCohort, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of a subject's values that map to each voxel of the template.

    The number is NaN where there are none.
    """
    lattice = cohort.lattice
    positions = np.moveaxis(cohort.positions_mm(index), 0, -1) - np.array(
        lattice.origin_mm, np.float32
    )
    nearest = np.round(positions / lattice.spacing_mm).astype(int)
    within = ((nearest >= 0) & (nearest < lattice.shape)).all(axis=-1)
    voxels = np.ravel_multi_index(tuple(nearest[within].T), lattice.shape)
    size = int(np.prod(lattice.shape))
    total = np.bincount(voxels, weights=values[within], minlength=size).reshape(lattice.shape)
    count = np.bincount(voxels, minlength=size).reshape(lattice.shape).astype(float)
    count[count == 0] = np.nan
    return total, count
