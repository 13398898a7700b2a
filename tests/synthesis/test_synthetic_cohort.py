import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import brentq

import simba_lab as sb
from simba_lab.core.rng import stream
from simba_lab.synthesis.rendering import deformation
from simba_lab.synthesis.rendering.flows import local_velocity
from simba_lab.synthesis.rendering.renderer import clear_cache

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def test_as_many_come_out_as_go_in(cohort, scenario):
    table = cohort.table
    assert len(table) == scenario.subjects == table.index.nunique()
    assert table["label"].mean() == 0.5
    assert [len(split) for split in (cohort.train, cohort.validation, cohort.test)] == [40, 20, 20]
    rates = table.groupby("label")["bias"].mean()
    assert rates[1] == pytest.approx(0.8) and rates[0] == pytest.approx(0.2)


def test_cells_are_matched_better_than_chance(scenario):
    """Means of magnitudes and modes over cells: random draws would miss by one standard error."""
    cohort = sb.synthesise(scenario.replace(subjects=800), seed=3)
    cells = cohort.table.groupby(["split", "label", "bias"])
    for column, offset in (
        ("disease_magnitude", True),
        ("bias_magnitude", None),
        ("anatomy_1", False),
        ("anatomy_9", False),
    ):
        mean = cells[column].mean()
        target = 2.0 if offset is None else (2 * mean.index.get_level_values("label") - 1) * offset
        assert np.sqrt((((mean - target) * np.sqrt(cells.size())) ** 2).mean()) < 0.5, column


def test_magnitudes_keep_their_distribution(scenario):
    table = sb.synthesise(scenario.replace(subjects=800), seed=4).table
    residual = table["disease_magnitude"] - (2 * table["label"] - 1)
    assert residual.std() == pytest.approx(1, abs=0.05)
    assert table["anatomy_3"].std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(table["anatomy_1"], table["anatomy_2"])[0, 1]) < 0.1
    assert abs(np.corrcoef(residual, table["anatomy_1"])[0, 1]) < 0.1


def test_bytes_depend_on_nothing_but_the_subject(cohort, scenario):
    straight = cohort.arrays(n_jobs=1)
    clear_cache()  # or the volumes of the first rendering would still be in memory
    again = sb.synthesise(scenario, seed=0)
    assert again.renderer is not cohort.renderer
    backwards = again.where(np.arange(len(again))[::-1])
    np.testing.assert_array_equal(np.stack(list(backwards.volumes(n_jobs=2)))[::-1], straight)
    assert not np.array_equal(sb.synthesise(scenario, seed=1).array(0), straight[0])


DIGEST = """
import hashlib, sys, simba_lab as sb
c = sb.synthesise(sb.Scenario.from_yaml(sys.argv[1]).replace(subjects=24, spacing_mm=8), seed=5)
volumes = c.arrays(n_jobs=int(sys.argv[2])).tobytes()
print(hashlib.sha256(volumes + c.table.to_csv().encode()).hexdigest())
"""


def test_volumes_and_tables_are_equal_with_one_and_two_threads(tmp_path, scenario):
    scenario.to_yaml(tmp_path / "scenario.yaml")
    digests = set()
    for threads in ("1", "2"):
        variables = dict.fromkeys(THREAD_VARIABLES, threads)
        result = subprocess.run(
            [sys.executable, "-c", DIGEST, str(tmp_path / "scenario.yaml"), threads],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(result.stdout.strip())
    cohort = sb.synthesise(scenario.replace(subjects=24), seed=5)
    digests.add(
        hashlib.sha256(cohort.arrays().tobytes() + cohort.table.to_csv().encode()).hexdigest()
    )
    assert len(digests) == 1


def moved(points, displacement, lattice):
    voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
    return points + np.stack(
        [map_coordinates(displacement[..., d], voxels, order=1, mode="nearest") for d in range(3)]
    )


@pytest.mark.parametrize("spacing", [8, 2])
def test_rendering_equals_a_slow_and_obvious_reference(scenario, spacing):
    """Compose the maps point by point with scipy in float64, and interpolate the template once."""
    plain = sb.synthesise(scenario.replace(spacing_mm=spacing, bias_field=0), seed=0)
    index = int(np.flatnonzero(plain["bias"])[0])
    renderer = plain.renderer
    points = plain.lattice.points_mm()
    row = plain.table.iloc[index]
    pull = deformation.chord_corrected(renderer.displacement(plain.subject(index)))
    points = moved(points, pull.astype(float), renderer.subject_lattice)
    for effect in ("bias", "disease"):
        flow = renderer.flows[effect]
        within = np.all(
            [
                (points[d] > flow.lattice.axis_mm(d)[0]) & (points[d] < flow.lattice.axis_mm(d)[-1])
                for d in range(3)
            ],
            axis=0,
        )
        displaced = moved(points, flow.at(row[f"{effect}_magnitude"]).astype(float), flow.lattice)
        points = np.where(within, displaced, points)
    image, lattice = plain.template.antialiased(spacing)
    voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
    expected = map_coordinates(image.astype(float), voxels, order=1, mode="nearest")
    np.testing.assert_allclose(plain.clean(index), expected, atol=4e-4)


def test_what_is_cut_off_is_background(scenario):
    """Rows cut to the reach of the brain give the same bytes as whole rows."""
    fine = sb.synthesise(scenario.replace(spacing_mm=2), seed=1)
    renderer, image = fine.renderer, fine.template.antialiased(2.0)
    for index in range(3):
        subject = fine.subject(index)
        uncut = renderer.warped(*image, subject)
        np.testing.assert_array_equal(renderer.tissue(subject), uncut)
    assert renderer.near_brain.mean() < 0.8


def test_noise_is_rician_and_only_in_the_brain(scenario):
    noisy = sb.synthesise(scenario.replace(noise=0.1, bias_field=0), seed=0)
    clean = noisy.clean(0)
    volume = noisy.array(0)
    np.testing.assert_array_equal(volume[clean <= 0.02], clean[clean <= 0.02])
    bright = clean > 0.5
    assert (volume - clean)[bright].std() == pytest.approx(0.1, rel=0.05)
    excess = (volume[bright] ** 2).mean() - (clean[bright] ** 2).mean()
    assert excess == pytest.approx(2 * 0.1**2, rel=0.25)  # E[M^2] = A^2 + 2 sigma^2


def test_twins_differ_in_carriers_only_and_near_the_region_only(cohort, template):
    difference = np.abs(cohort.arrays() - cohort.twin(without="bias").arrays())
    touched = difference.reshape(len(cohort), -1).max(axis=1) > 0
    np.testing.assert_array_equal(touched, cohort["bias"] == 1)
    centre = np.argwhere(template.region("Putamen_L")).mean(axis=0) + template.lattice.origin_mm
    far = np.linalg.norm(cohort.lattice.points_mm() - centre[:, None, None, None], axis=0) > 70
    assert difference[:, far].max() == 0


def test_twins_keep_their_table_and_can_carry(cohort):
    twin = cohort.twin(without="bias")
    assert twin.table is cohort.table
    np.testing.assert_array_equal(
        twin.twin(carrying="bias").arrays(), cohort.twin(carrying="bias").arrays()
    )
    carriers = cohort.where(cohort["bias"] == 1)
    np.testing.assert_array_equal(carriers.arrays(), carriers.twin(carrying="bias").arrays())
    without_effects = cohort.twin(without=("bias", "disease"))
    assert set(without_effects.magnitudes(3).values()) == {0.0}


def test_changed_voxels_hold_the_twin_difference(scenario):
    quiet = sb.synthesise(scenario.replace(noise=0), seed=0)
    index = int(np.flatnonzero(quiet["bias"])[0])
    difference = np.abs(quiet.array(index) - quiet.twin(without="bias").array(index))
    np.testing.assert_array_equal(quiet.changed(index, "bias"), difference > 0.02)
    assert quiet.changed(index, "bias").any()


def test_region_follows_the_subject(cohort, scenario):
    """In carriers the putamen is larger than in their twins, by roughly what the magnitude says."""
    fine = sb.synthesise(scenario.replace(spacing_mm=2), seed=0)
    index = int(np.flatnonzero(fine["bias"])[0])
    twin = fine.twin(without="bias")
    assert fine.region(index, "Putamen_L").sum() > 1.2 * twin.region(index, "Putamen_L").sum()


def test_volume_is_a_nifti_in_template_space(cohort):
    image = cohort.volume(0)
    assert image.shape == cohort.lattice.shape == (20, 24, 20)
    np.testing.assert_allclose(image.affine, cohort.lattice.affine)
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), cohort.array(0))


def test_volumes_of_callers_are_their_own(cohort):
    first = cohort.array(0)
    first[:] = 7
    assert cohort.array(0).max() < 2


def test_scenario_without_bias():
    plain = sb.synthesise(
        sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5))
    )
    assert "bias" not in plain.table
    assert plain.scenario.memberships("disease") == {(): 1.0}
    with pytest.raises(sb.core.UnknownNameError, match="disease"):
        plain.twin(without="bias")
    assert plain.array(0).max() > 0.5


def test_folding_anatomy_is_refused_and_says_what_works(scenario):
    wild = scenario.replace(variability=sb.synthesis.GaussianProcessSubjects((20.0,), (14.0,)))
    with pytest.raises(sb.core.FoldingError, match="would fold") as caught:
        sb.synthesise(wild, seed=0).array(0)
    share = float(caught.value.allowed.split()[2])
    assert 0 < share < 1
    sb.synthesise(wild.replace(variability=wild.variability.scaled(share)), seed=0).array(0)


def test_bad_requests(cohort, scenario):
    with pytest.raises(sb.core.UnknownNameError, match="Did you mean label"):
        cohort["labels"]
    with pytest.raises(sb.SimbaError, match="mask must be of shape"):
        cohort.where(np.ones(3, bool))
    with pytest.raises(sb.SimbaError, match="seed must be"):
        sb.synthesise(scenario, seed=-1)


def test_streams_are_named():
    draws = {
        stream(seed, subject, purpose).random()
        for seed in (0, 1)
        for subject in (0, 1, "x")
        for purpose in "ab"
    }
    assert len(draws) == 12
    assert stream(3, 4, "noise").random() == stream(3, 4, "noise").random()


def test_displacements_stay_close_to_a_dense_integration(cohort, template):
    """All effects on: 95 % of the brain within 0.05 mm of Runge-Kutta on quintic splines."""
    carriers = cohort.where(cohort["bias"] == 1)
    renderer, index = carriers.renderer, 0
    model, lattice = carriers.scenario.variability, renderer.subject_lattice
    points = sb.core.Lattice(
        lattice.shape, 4.0, tuple(o + 1.3 for o in lattice.origin_mm)
    ).points_mm()  # between the nodes
    fast = moved(
        points,
        deformation.chord_corrected(renderer.displacement(carriers.subject(index))).astype(float),
        lattice,
    )
    dense = flowed(points, -model.velocity(carriers.coefficients(index), lattice), lattice, 1.0)
    for name in ("bias", "disease"):
        flow, magnitude = renderer.flows[name], carriers.magnitudes(index)[name]
        fast = moved(fast, flow.at(magnitude).astype(float), flow.lattice)
        velocity, box = local_velocity(carriers.scenario.effects[name], template)
        # The amplitude is a promise about the displacement at magnitude 1: find the flow time that
        # keeps it.
        time = brentq(lambda t, v=velocity, b=box: peak(v, b, t) - 2.5, 2.0, 6.0, xtol=1e-3)
        dense = flowed(dense, velocity, box, -time * magnitude)
    error = np.linalg.norm(fast - dense, axis=0)[3:-3, 3:-3, 3:-3]
    assert np.quantile(error, 0.95) < 0.05
    assert (
        deformation.least_jacobian(
            np.moveaxis(renderer.displacement(carriers.subject(index)), -1, 0), lattice
        )
        > 0
    )


def flowed(points, velocity, lattice, time, steps=8):
    """Points after classical Runge-Kutta in float64; the velocity is 0 outside its lattice."""
    splines = [
        spline_filter(velocity[..., d].astype(float), order=5, mode="nearest") for d in range(3)
    ]

    def at(points):
        voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
        return np.stack(
            [
                map_coordinates(spline, voxels, order=5, mode="nearest", prefilter=False)
                for spline in splines
            ]
        )

    h = time / steps
    for _ in range(steps):
        first = at(points)
        second = at(points + h / 2 * first)
        third = at(points + h / 2 * second)
        points = points + h / 6 * (first + 2 * second + 2 * third + at(points + h * third))
    return points


def peak(velocity, lattice, time):
    moved_by = deformation.flow(velocity, lattice.spacing_mm, time)
    return float(np.linalg.norm(moved_by, axis=-1).max())
