"""Region volumes of the healthy anatomy of a cohort, from its deformations, and those of people."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.ndimage import center_of_mass, distance_transform_edt, label
from tqdm.auto import tqdm

from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.rendering.deformation import series_flow
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort

STRUCTURES = ("Hippocampus", "Putamen", "Thalamus", "Caudate")
# Lateral ventricles are darker than half of white matter, half-way between fluid and grey matter,
# deeper below the surface than sulci reach, and off the midline, where the third and fourth
# ventricle and the cisterns are.
FLUID, DEPTH_MM, ASIDE_MM = 0.5, 20.0, (5.0, 30.0)
# Bilateral mean and SD in ml, number of people, source.
POPULATION = {
    "brain": (1100.3, 113.3, 133, "Yamada et al. (2023), table 1"),
    "ventricles": (22.6, 11.6, 133, "Yamada et al. (2023), table 1"),
    "Hippocampus": (6.8, 0.7, 133, "Yamada et al. (2023), table 1"),
    "Putamen": (10.41, 0.98, 53, "Raz et al. (2003), first occasion"),
    "Thalamus": (13.120, 1.319, 40, "Price et al. (2016), table 4, controls"),
    "Caudate": (9.42, 1.14, 53, "Raz et al. (2003), first occasion, head alone"),
}


def region_volumes(
    cohort: SyntheticCohort, regions: Iterable[str] = STRUCTURES, *, progress: bool = False
) -> pd.DataFrame:
    """Return the region volumes of each subject's healthy anatomy, without effects.

    Nothing is rendered. Tissue at x comes to lie at ``exp(v)(x)``, so a region has the volume of
    its template mask weighed with the Jacobian determinant of ``exp(v)``. The determinant is as
    smooth as the velocity: it is computed on the 4 mm lattice of the subjects and interpolated
    linearly, with the masks summed per point of it beforehand.

    Parameters
    ----------
    cohort : SyntheticCohort
    regions : iterable of str
        Names of the template's regions. ``"Putamen"`` stands for ``"Putamen_L"`` and
        ``"Putamen_R"`` together.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        One row per subject; the columns are ``brain`` (the whole brain mask, fluid included),
        ``ventricles`` (lateral) and the regions, in ml.

    Raises
    ------
    UnknownNameError
        If the template has no such region.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario).where([0, 1])
    >>> list(sb.synthesis.region_volumes(cohort, ["Putamen"]).columns)
    ['brain', 'ventricles', 'Putamen']
    """
    if not isinstance(cohort, SyntheticCohort):
        raise SimbaError("cohort", type(cohort).__name__, "a cohort of a scenario")
    regions = [regions] if isinstance(regions, str) else regions
    names = list(dict.fromkeys(["brain", "ventricles", *regions]))
    template, model = cohort.template, cohort.scenario.variability
    lattice = subject_lattice(template)
    weights = np.stack([_weights(template, name).ravel() for name in names], axis=1)
    volumes = np.empty((len(cohort), len(names)))
    for index in tqdm(range(len(cohort)), disable=not progress, desc="volumes"):
        velocity = model.velocity(cohort.coefficients(index), lattice)
        forward = series_flow(velocity, lattice.spacing_mm)
        volumes[index] = _determinant(forward, lattice.spacing_mm).ravel() @ weights
    return pd.DataFrame(volumes, index=cohort.table.index, columns=names)


def template_volumes(template: Template, regions: Iterable[str] = STRUCTURES) -> pd.Series:
    """Return the region volumes of the template in ml, named as by `region_volumes`."""
    names = ("brain", "ventricles", *regions)
    return pd.Series({name: float(_weights(template, name).sum()) for name in names})


def population_volumes() -> pd.DataFrame:
    """Return published volumes of healthy adults, left and right together.

    Methods and age groups differ between the studies, and so do their means: compare coefficients
    of variation. The spread of ventricles among people is mostly due to age; the template has the
    ventricles of young people.

    Returns
    -------
    pandas.DataFrame
        Indexed like the columns of `region_volumes`; columns ``mean_ml``, ``sd_ml``, ``cv`` (their
        ratio), ``people`` and ``source``.

    References
    ----------
    Yamada et al. (2023), "Aging-related volume changes in the brain and cerebrospinal fluid using
    artificial intelligence-automated segmentation", European Radiology 33, 7099-7112 (133
    volunteers, 21 to 92 years); Raz et al. (2003), "Differential aging of the human striatum:
    longitudinal evidence", American Journal of Neuroradiology 24(9), 1849-1856 (53 people, 20 to 77
    years; of the caudate nucleus the head); Price et al. (2016), "Gray and white matter
    contributions to cognitive frontostriatal deficits in non-demented Parkinson's disease", PLoS
    ONE 11(1), e0147332 (the 40 people without the disease). For the brain, Whitwell et al. (2001),
    "Normalization of cerebral volumes by use of intracranial volume", American Journal of
    Neuroradiology 22(8), 1483-1489, give the same coefficient of variation, 10.0 %, in 55 controls.

    Examples
    --------
    >>> import simba_lab as sb
    >>> round(float(sb.synthesis.population_volumes().loc["Putamen", "cv"]), 3)
    0.094
    """
    table = pd.DataFrame.from_dict(
        POPULATION, orient="index", columns=["mean_ml", "sd_ml", "people", "source"]
    )
    table.insert(2, "cv", table["sd_ml"] / table["mean_ml"])
    return table.rename_axis("region")


def lateral_ventricles(template: Template) -> np.ndarray:
    """Return the mask of both lateral ventricles as far as the T1 shows them, bool, (X, Y, Z).

    On each side this is the largest connected dark body deep in the brain and off the midline. The
    temporal horns, too thin to be seen in an average brain, are missing.

    Raises
    ------
    SimbaError
        If one of the sides has no such body.
    """
    spacing = template.lattice.spacing_mm
    middle = center_of_mass(template.brain)[0]
    deep = distance_transform_edt(template.brain, sampling=spacing) > DEPTH_MM
    bodies, count = label((template.t1 < FLUID) & deep)
    sizes = np.bincount(bodies.ravel(), minlength=count + 1)
    centres = center_of_mass(bodies > 0, bodies, np.arange(1, count + 1))
    aside_mm = np.array([centre[0] - middle for centre in centres]) * spacing
    mask = np.zeros(template.lattice.shape, bool)
    for side in (-1, 1):
        off_midline = (side * aside_mm > ASIDE_MM[0]) & (side * aside_mm < ASIDE_MM[1])
        candidates = np.flatnonzero(off_midline) + 1
        if candidates.size == 0:
            allowed, remedy = "a T1 with dark lateral ventricles", "Use a T1 such as icbm2009c."
            raise SimbaError("template", template.name, allowed, remedy)
        mask |= bodies == candidates[np.argmax(sizes[candidates])]
    return mask


def _mask(template: Template, name: str) -> np.ndarray:
    if name == "brain":
        return template.brain
    if name == "ventricles":
        return lateral_ventricles(template)
    sides = [f"{name}_{side}" for side in "LR"]
    if name not in template.regions and all(side in template.regions for side in sides):
        return template.region(sides[0]) | template.region(sides[1])
    return template.region(name, field="regions")


@lru_cache(maxsize=128)
def _weights(template: Template, name: str) -> np.ndarray:
    """Volume in ml of each point of the subject lattice: the mask summed with hat functions."""
    coarse, fine = subject_lattice(template), template.lattice
    weights = _mask(template, name).astype(np.float32) * np.float32(fine.spacing_mm**3 / 1000)
    for axis in range(3):  # the hats are products over the axes
        weights = np.moveaxis(
            np.tensordot(_hats(coarse, fine, axis), weights, axes=(1, axis)), 0, axis
        )
    weights.setflags(write=False)
    return weights


def _hats(coarse: Lattice, fine: Lattice, axis: int) -> np.ndarray:
    """Linear interpolation from one axis to another, (coarse points, fine points): float32."""
    distance = np.abs(coarse.axis_mm(axis)[:, None] - fine.axis_mm(axis)) / coarse.spacing_mm
    return np.maximum(0, 1 - distance).astype(np.float32)


def _determinant(displacement: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Jacobian determinant of x + u(x), interleaved u in, (X, Y, Z) out.

    Differences of fourth order: on a 4 mm lattice those of second order would lose 1 % of what a
    field with a length scale of 20 mm does to a volume.
    """
    columns = []
    for axis in range(3):
        u = np.moveaxis(displacement, axis, 0)
        slope = np.gradient(u, axis=0)
        slope[2:-2] = (8 * (u[3:-1] - u[1:-3]) - (u[4:] - u[:-4])) / 12
        slope /= np.float32(spacing_mm)
        slope[..., axis] += 1
        columns.append(np.moveaxis(slope, 0, axis))
    return np.einsum("...i,...i->...", columns[0], np.cross(columns[1], columns[2]))
