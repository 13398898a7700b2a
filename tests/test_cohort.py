import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import simba_lab as sb
from simba_lab.rng import stream
from simba_lab.synthesis import deformation
from simba_lab.synthesis.cohort import subject_displacement

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def test_as_many_come_out_as_go_in(cohort, scenario):
    table = cohort.table
    assert len(table) == scenario.subjects == table.index.nunique()
    assert table["label"].mean() == 0.5
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [40, 20, 20]
    rates = table.groupby("label")["bias"].mean()
    assert rates[1] == pytest.approx(0.8) and rates[0] == pytest.approx(0.2)


def test_cells_are_matched_better_than_chance(scenario):
    """Means of magnitudes and modes over cells: random draws would miss by one standard error (rms)."""
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
    again = sb.synthesise(scenario, seed=0)
    backwards = again.where(np.arange(len(again))[::-1])
    np.testing.assert_array_equal(np.stack(list(backwards.volumes(n_jobs=2)))[::-1], straight)
    assert not np.array_equal(sb.synthesise(scenario, seed=1).array(0), straight[0])


DIGEST = """
import hashlib, sys, simba_lab as sb
c = sb.synthesise(sb.Scenario.from_yaml(sys.argv[1]).replace(subjects=24, spacing_mm=8), seed=5)
print(hashlib.sha256(c.arrays(n_jobs=int(sys.argv[2])).tobytes() + c.table.to_csv().encode()).hexdigest())
"""


def test_volumes_and_tables_are_equal_with_one_and_two_threads(tmp_path, scenario):
    scenario.to_yaml(tmp_path / "scenario.yaml")
    digests = set()
    for threads in ("1", "2"):
        variables = dict.fromkeys(THREAD_VARIABLES, threads)
        result = subprocess.run(
            [sys.executable, "-c", DIGEST, str(tmp_path / "scenario.yaml"), threads],
            env=os.environ | variables, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(result.stdout.strip())
    here = sb.synthesise(scenario.replace(subjects=24), seed=5)
    digests.add(hashlib.sha256(here.arrays().tobytes() + here.table.to_csv().encode()).hexdigest())
    assert len(digests) == 1


def test_rendering_equals_a_slow_and_obvious_reference(cohort, scenario):
    """Compose the maps point by point with scipy in float64 and interpolate the template once."""
    index = int(np.flatnonzero(cohort["bias"])[0])
    studio = cohort._studio
    points = cohort.lattice.points_mm()

    def moved(points, displacement, lattice):
        voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
        return points + np.stack([map_coordinates(displacement[..., d], voxels, order=1, mode="nearest") for d in range(3)])

    row = cohort.table.iloc[index]
    pull = subject_displacement(scenario, 0, int(cohort.table.index[index]), row, studio.subject)
    points = moved(points, pull.astype(float), studio.subject)
    for effect in ("bias", "disease"):
        flow = studio.flows[effect]
        inside = np.all([
            (points[d] > flow.lattice.axis_mm(d)[0]) & (points[d] < flow.lattice.axis_mm(d)[-1]) for d in range(3)
        ], axis=0)  # fmt: skip
        there = moved(points, flow.at(row[f"{effect}_magnitude"]).astype(float), flow.lattice)
        points = np.where(inside, there, points)
    image, lattice = cohort.template.antialiased(scenario.spacing_mm)
    voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
    expected = map_coordinates(image.astype(float), voxels, order=1, mode="nearest")
    np.testing.assert_allclose(cohort._clean(index), expected, atol=2e-4)


def test_noise_is_rician_and_only_in_the_brain(scenario):
    noisy = sb.synthesise(scenario.replace(noise=0.1), seed=0)
    clean = noisy._clean(0)
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
    np.testing.assert_array_equal(twin.twin(carrying="bias").arrays(), cohort.twin(carrying="bias").arrays())
    carriers = cohort.where(cohort["bias"] == 1)
    np.testing.assert_array_equal(carriers.arrays(), carriers.twin(carrying="bias").arrays())
    bare = cohort.twin(without=("bias", "disease"))
    assert set(bare.magnitudes(3).values()) == {0.0}


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
    plain = sb.synthesise(sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5)))
    assert "bias" not in plain.table
    with pytest.raises(sb.UnknownNameError, match="disease"):
        plain.twin(without="bias")
    assert plain.array(0).max() > 0.5


def test_folding_anatomy_is_refused_and_says_what_works(scenario):
    wild = scenario.replace(variability=sb.GaussianProcessSubjects((20.0,), (14.0,)))
    with pytest.raises(sb.FoldingError, match="would fold") as caught:
        sb.synthesise(wild, seed=0).array(0)
    limit = float(caught.value.allowed.split("(")[1].split(",")[0])
    assert 0 < limit < 14


def test_bad_requests(cohort, scenario):
    with pytest.raises(sb.UnknownNameError, match="Did you mean label"):
        cohort["labels"]
    with pytest.raises(sb.SimbaError, match="mask must be of shape"):
        cohort.where(np.ones(3, bool))
    with pytest.raises(sb.SimbaError, match="seed must be"):
        sb.synthesise(scenario, seed=-1)


def test_streams_are_named():
    draws = {stream(seed, subject, purpose).random() for seed in (0, 1) for subject in (0, 1, "x") for purpose in "ab"}
    assert len(draws) == 12
    assert stream(3, 4, "noise").random() == stream(3, 4, "noise").random()


def test_displacements_stay_close_to_a_dense_integration(cohort, scenario):
    """95 % of the subject's displacement within 0.12 mm of Runge-Kutta on a lattice twice as fine."""
    from scipy.ndimage import zoom

    from simba_lab.synthesis import _kernels

    studio = cohort._studio
    row, subject = cohort.table.iloc[0], int(cohort.table.index[0])
    pull = subject_displacement(scenario, 0, subject, row, studio.subject)
    model = scenario.variability
    coefficients = stream(0, subject, "anatomy").standard_normal(model.coefficient_count(studio.subject))
    leading = model.leading(studio.subject, 16)
    coefficients[leading] = [row[f"anatomy_{mode}"] for mode in range(1, 17)]
    velocity = -model.velocity(coefficients, studio.subject)
    fine_shape = [2 * n - 1 for n in velocity.shape[:3]]
    fine = zoom(velocity.astype(float), [f / n for f, n in zip(fine_shape, velocity.shape[:3], strict=True)] + [1], order=3)
    fine = np.ascontiguousarray(fine, dtype=np.float32)
    dense = np.zeros_like(fine)
    _kernels.flow(fine, np.float32(1 / 2), dense, 1.0, 16, dense)
    error = np.linalg.norm(dense[::2, ::2, ::2] - pull, axis=-1)
    assert np.quantile(error, 0.95) < 0.12
    assert deformation.least_jacobian(np.moveaxis(pull, -1, 0), studio.subject) > 0
