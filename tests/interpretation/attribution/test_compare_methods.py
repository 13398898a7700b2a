"""Methods side by side, sanity checks, alignment."""

import nibabel as nib
import numpy as np
import pytest
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb
from simba_lab.interpretation.attribution.randomisation import randomise

METHODS = (
    "saliency",
    "input_x_gradient",
    sb.attribution.SmoothGrad(samples=4),
    "integrated_gradients",
    "deep_lift",
    sb.attribution.Occlusion(window_mm=16),
)


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(80), seed=0)


@pytest.fixture(scope="module")
def planted(far):
    masks = masks_of(far.where(range(40)))
    return {
        name: centred(Planted(masks, w), far)
        for name, w in (("bias", (1.0, 0.0)), ("disease", (0.0, 1.0)))
    }


@pytest.fixture(scope="module")
def subjects(far):
    return far.test.where(range(6))


@pytest.mark.parametrize("method", METHODS)
def test_methods_tell_a_reader_of_the_bias_from_a_reader_of_the_disease(planted, subjects, method):
    table = sb.attribution.compare(
        planted["bias"], subjects, {"method": method}, control=planted["disease"]
    )
    row = table.loc[("method", "mass_bias")]
    assert row["excess_low"] > 0
    assert row["low"] <= row["mean"] <= row["high"]
    assert row["excess"] == pytest.approx(row["mean"] - row["control"])


def test_the_sum_with_the_twin_as_start_tells_them_apart_exactly(planted, subjects):
    on, off = subjects.twin(carrying="bias"), subjects.twin(without="bias")
    sums = {
        name: sb.attribute(model, on, baseline=off, effect="bias").table["total"].abs().mean()
        for name, model in planted.items()
    }
    assert sums["disease"] < 0.05 * sums["bias"]


def test_random_weights_change_the_maps_of_a_network_from_the_output_down(cohort):
    model, subjects = sb.SimBANet((4, 8), seed=0), cohort.test.where(range(3))
    table = sb.attribution.sanity_checks(model, subjects, "saliency", others={"itself": model})
    assert list(table.index) == ["readout", "block2", "block1", "itself"]
    assert table.loc["itself", "correlation"] == pytest.approx(1)
    assert table.loc["block1", "correlation"] < 0.9
    before = sb.logits(model, subjects)
    randomise(model.get_submodule("block2"))
    assert not np.array_equal(sb.logits(model, subjects), before)


def test_gradients_of_a_linear_network_are_faithful_and_constant(planted, subjects):
    table = sb.attribution.faithfulness(
        planted["bias"], subjects.where(range(2)), method="saliency", draws=4
    )
    assert table["infidelity"].max() < 1e-3
    assert table["sensitivity"].max() < 1e-3
    with pytest.raises(sb.SimbaError, match="shapley"):
        sb.attribution.faithfulness(planted["bias"], subjects, method="shapley")
    with pytest.raises(sb.SimbaError, match="draws"):
        sb.attribution.faithfulness(planted["bias"], subjects, draws=0)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_a_region_of_each_subject_lands_in_one_place():
    subjects = sb.synthesise(far_scenario(16).replace(spacing_mm=3), seed=0).where(range(4))
    masks = np.stack([subjects.region(index, "Putamen_L") for index in range(4)]).astype(np.float32)
    home = np.nan_to_num(sb.attribution.aligned(masks, subjects)) > 0.5
    between = [dice(home[i], home[j]) for i in range(4) for j in range(i)]
    before = [dice(masks[i] > 0.5, masks[j] > 0.5) for i in range(4) for j in range(i)]
    assert np.mean(between) > np.mean(before) + 0.2
    assert np.mean(between) > 0.7  # a few voxels thick: the nearest voxel is often the next one
    mean = sb.attribution.group_map(masks, subjects)
    assert isinstance(mean, nib.Nifti1Image)
    values = mean.get_fdata()
    assert values.min() >= 0 and 0.9 < values.max() <= 1
    # The mean of the aligned masks is most of 1 where the template has the region.
    lattice, template = subjects.lattice, subjects.template
    centre = np.array(
        nib.affines.apply_affine(lattice.affine, np.argwhere(values > 0.5).mean(axis=0))
    )
    truth = np.array(
        [axis[template.region("Putamen_L")].mean() for axis in template.lattice.points_mm()]
    )
    assert np.abs(centre - truth).max() < 1.5


def test_a_constant_stays_constant_and_bad_maps_are_refused(cohort):
    subjects = cohort.where(range(2))
    constant = np.full((2, *subjects.lattice.shape), 3, np.float32)
    means = sb.attribution.aligned(constant, subjects)
    np.testing.assert_allclose(means[np.isfinite(means)], 3, rtol=1e-6)
    with pytest.raises(sb.SimbaError, match="maps"):
        sb.attribution.aligned(constant[:1], subjects)
