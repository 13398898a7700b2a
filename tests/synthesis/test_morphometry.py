from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.ndimage import center_of_mass, label

import simba_lab as sb
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.pca import PCASubjects
from simba_lab.synthesis.morphometry import (
    POPULATION,
    STRUCTURES,
    lateral_ventricles,
    population_volumes,
    region_volumes,
    template_volumes,
)


def moved_cohort(scenario, template, matrix, shift=(0.0, 0.0, 0.0)):
    """A cohort in which everybody has the velocity matrix (x - centre) + shift, in mm."""
    lattice = subject_lattice(template)
    points = np.moveaxis(lattice.points_mm(), 0, -1)
    velocity = (points - points.mean(axis=(0, 1, 2))) @ np.transpose(matrix) + shift
    model = PCASubjects(velocity, np.zeros((0, *velocity.shape)), np.zeros(0), 0.0, 2, lattice)
    return sb.synthesise(scenario.replace(variability=model, subjects=16, bias=None), seed=0).where(
        np.arange(2)
    )


def test_linear_growth_multiplies_every_volume(scenario, template):
    """The flow of v = A x multiplies all volumes by exp(trace A) (Liouville)."""
    growth = np.array([[0.04, 0.02, 0.0], [-0.03, 0.05, 0.01], [0.0, 0.02, -0.02]])
    cohort = moved_cohort(scenario, template, growth, shift=(2.0, 0.0, -1.0))
    volumes, still = region_volumes(cohort), template_volumes(template)
    np.testing.assert_allclose(volumes / still, np.exp(np.trace(growth)), rtol=1e-3)
    motion = np.array([[0.0, -0.05, 0.0], [0.05, 0.0, 0.02], [0.0, -0.02, 0.0]])
    np.testing.assert_allclose(
        region_volumes(moved_cohort(scenario, template, motion)) / still, 1, rtol=1e-3
    )


def test_volumes_are_those_of_the_rendered_regions(scenario):
    """Masks rendered at 1 mm, voxels counted: the same volumes, to the error of counting."""
    cohort = (
        sb.synthesise(scenario.replace(spacing_mm=1.0), seed=1)
        .where(np.arange(4))
        .twin(without=("disease", "bias"))
    )
    regions = ["Putamen_L", "Cerebelum_6_R", "Frontal_Sup_2_L"]
    volumes = region_volumes(cohort, regions)
    counted = [
        [cohort.region(index, name).sum() / 1000 for name in regions]
        for index in range(len(cohort))
    ]
    np.testing.assert_allclose(volumes[regions], counted, rtol=0.015)
    assert volumes[regions].std().min() > 0.03 * volumes[regions].mean().min()


def test_sides_add_up_and_effects_do_not_count(cohort):
    subjects = cohort.where(np.arange(3))
    volumes = region_volumes(subjects, ["Putamen", "Putamen_L", "Putamen_R"])
    assert list(volumes.columns) == ["brain", "ventricles", "Putamen", "Putamen_L", "Putamen_R"]
    assert list(volumes.index) == list(subjects.table.index)
    np.testing.assert_allclose(
        volumes["Putamen_L"] + volumes["Putamen_R"], volumes["Putamen"], rtol=1e-5
    )
    twins = region_volumes(subjects.twin(carrying=("disease", "bias")), "Putamen")
    np.testing.assert_allclose(twins["Putamen"], volumes["Putamen"], rtol=1e-5)


@pytest.fixture(scope="module")
def spread():
    """Coefficients of variation among 120 subjects, in full and at half the variability."""
    scenario = sb.Scenario(
        subjects=120, spacing_mm=8, disease=sb.Morphology("Insula_L", amplitude_mm=2.5)
    )
    half = scenario.replace(variability=scenario.variability.scaled(0.5))
    volumes = [region_volumes(sb.synthesise(variant, seed=2)) for variant in (scenario, half)]
    return [table.std() / table.mean() for table in volumes]


def test_subjects_differ_as_much_as_people_do(spread):
    ratio = spread[0] / population_volumes()["cv"]
    assert ratio[["brain", *STRUCTURES]].between(0.75, 1.4).all()
    # A smooth field has no ageing in it: this is the known limit of the model.
    assert 0.1 < ratio["ventricles"] < 0.4


def test_half_the_variability_is_half_the_spread(spread):
    np.testing.assert_allclose(spread[1] / spread[0], 0.5, atol=0.06)


@pytest.mark.parametrize("name", ["icbm2009c", "mni152"])
def test_ventricles_are_two_dark_bodies_inside_the_brain(name):
    template = sb.load_template(name)
    mask = lateral_ventricles(template)
    bodies, count = label(mask)
    assert count == 2
    left, right = (
        bodies == body
        for body in np.argsort([center_of_mass(bodies == body)[0] for body in (1, 2)]) + 1
    )
    centres = [
        np.dot(template.lattice.affine, [*center_of_mass(side), 1])[:3] for side in (left, right)
    ]
    assert centres[0][0] < -8 < 8 < centres[1][0]
    np.testing.assert_allclose(centres[0][1:], centres[1][1:], atol=3)
    ml = [side.sum() * template.lattice.spacing_mm**3 / 1000 for side in (left, right)]
    assert 5 < min(ml) <= max(ml) < 12
    # Around thalamus and caudate nucleus, but not in them.
    nuclei = sum(
        template.region(f"{nucleus}_{side}") for nucleus in ("Thalamus", "Caudate") for side in "LR"
    )
    assert (mask & (nuclei > 0)).sum() < 0.25 * mask.sum()
    assert template.t1[mask].mean() < 0.5 * np.median(template.t1[nuclei > 0])


def test_a_template_without_dark_ventricles_is_refused(template):
    with pytest.raises(sb.SimbaError, match="dark lateral ventricles"):
        lateral_ventricles(
            replace(template, t1=np.where(template.brain, np.float32(1), np.float32(0)))
        )


def test_population_table():
    table = population_volumes()
    assert list(table.index) == list(POPULATION) == ["brain", "ventricles", *STRUCTURES]
    np.testing.assert_allclose(table["cv"], table["sd_ml"] / table["mean_ml"])
    assert table["cv"].drop("ventricles").between(0.08, 0.14).all()


def test_unknown_regions_are_refused(cohort):
    with pytest.raises(sb.SimbaError, match="Did you mean Putamen"):
        region_volumes(cohort, ["Putamen_l"])


def test_images_that_were_not_rendered_have_no_known_anatomy():
    with pytest.raises(sb.SimbaError, match="a cohort of a scenario"):
        region_volumes(Mock(spec=sb.Cohort))
