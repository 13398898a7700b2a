import copy

import nibabel as nib
import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from torch import nn

import simba_lab as sb
from simba_lab.interpretation.attribution import IntegratedGradients

RNG = np.random.default_rng(0)


def net():
    return sb.SimBANet((4, 8), seed=0)


class Linear(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights))

    def forward(self, x):
        return (x[:, 0] * self.weights).sum((1, 2, 3))


@pytest.fixture(scope="module")
def carriers(cohort):
    return cohort.test.where(cohort.test["bias"] == 1).where(np.arange(3))


def test_attributions_of_a_linear_network_are_exact(carriers):
    weights = RNG.standard_normal(carriers.lattice.shape).astype(np.float32)
    volumes, twins = carriers.arrays(), carriers.twin(without="bias")
    start = sb.attribute(Linear(weights), carriers, baseline=twins, method=IntegratedGradients(2))
    np.testing.assert_allclose(start.maps, weights * (volumes - twins.arrays()), atol=1e-5)
    assert start.table["completeness_error"].abs().max() < 1e-3
    np.testing.assert_allclose(
        sb.attribute(Linear(weights), carriers, method="saliency").maps, [weights] * 3, atol=1e-6
    )
    np.testing.assert_allclose(
        sb.attribute(Linear(weights), carriers, method="input_x_gradient").maps,
        weights * volumes,
        atol=1e-5,
    )


def test_sum_of_the_twin_attribution_is_the_twin_effect(carriers):
    model = copy.deepcopy(net()).eval()
    attribution = sb.attribute(
        model, carriers, baseline=carriers.twin(without="bias"), method=IntegratedGradients(64)
    )
    change = sb.logits(model, carriers) - sb.logits(model, carriers.twin(without="bias"))
    np.testing.assert_allclose(attribution.table["logit_change"], change, atol=1e-5)
    assert attribution.table["completeness_error"].abs().max() < 0.01


def test_scores_tell_a_reader_of_the_bias_from_a_reader_of_elsewhere(carriers):
    near = np.any([carriers.changed(i, "bias") for i in range(len(carriers))], axis=0)
    far = (carriers.lattice.points_mm()[0] > 30) & (carriers.array(0) > 0.1)
    on_bias = sb.attribute(Linear(near.astype(np.float32)), carriers).table
    elsewhere = sb.attribute(Linear(far.astype(np.float32)), carriers).table
    assert on_bias["enrichment_bias"].mean() > 10
    assert elsewhere["mass_bias"].max() == 0 < on_bias["mass_bias"].max()


def test_bad_attributions_are_refused(carriers, cohort):
    with pytest.raises(sb.core.UnknownNameError, match="Did you mean integrated_gradients"):
        sb.attribute(net(), carriers, method="integrated_gradient")
    with pytest.raises(sb.SimbaError, match="baseline must be 3 volumes"):
        sb.attribute(net(), carriers, baseline=cohort)
    with pytest.raises(sb.SimbaError, match="baseline must be a number"):
        sb.attribute(net(), carriers, baseline=np.zeros((2, 2, 2)))
    with pytest.raises(sb.SimbaError, match="steps"):
        IntegratedGradients(steps=0)
    with pytest.raises(sb.SimbaError, match="not empty"):
        sb.attribute(net(), carriers.where(np.array([], int)))


def test_integrated_gradients_are_complete_and_equal_those_of_captum(carriers):
    model = net().eval()
    ours = sb.attribute(model, carriers, IntegratedGradients(50, tolerance=None))
    change = sb.logits(model, carriers) - sb.logits(
        model, [np.zeros(carriers.lattice.shape, np.float32)]
    )
    np.testing.assert_allclose(ours.table["logit_change"], change, atol=1e-5)
    assert sb.attribute(model, carriers).table["completeness_error"].abs().max() < 0.01
    for row, volume in enumerate(torch.from_numpy(carriers.arrays())[:, None, None]):
        explain = CaptumIntegratedGradients(lambda x: model(x)[:, 0]).attribute
        theirs = explain(volume, n_steps=50, method="riemann_middle")[0, 0].detach().numpy()
        np.testing.assert_allclose(ours.maps[row], theirs, atol=1e-4 * np.abs(theirs).max())


def test_a_refined_map_is_that_of_as_many_steps_at_once(carriers):
    model = net().eval()
    refined = sb.attribute(model, carriers, IntegratedGradients(2, tolerance=1e-9))
    assert (refined.table["steps"] == 54).all()
    at_once = sb.attribute(model, carriers, IntegratedGradients(54, tolerance=None))
    np.testing.assert_allclose(refined.maps, at_once.maps, atol=1e-5 * np.abs(at_once.maps).max())


def test_the_zero_start_equals_no_start_and_the_mean_is_another(carriers):
    zero = sb.attribute(net(), carriers, baseline="zero").maps
    np.testing.assert_array_equal(zero, sb.attribute(net(), carriers).maps)
    assert not np.allclose(zero, sb.attribute(net(), carriers, baseline="mean").maps)


def test_noise_belongs_to_the_subject_and_not_to_the_batch(carriers):
    method = sb.attribution.SmoothGrad(samples=4)
    together = sb.attribute(net(), carriers, method).maps
    one_by_one = sb.attribute(net(), carriers, method, compute=sb.Compute(memory_gb=0.0085))
    np.testing.assert_allclose(together, one_by_one.maps, atol=1e-6)
    alone = sb.attribute(net(), carriers.where([2]), method).maps[0]
    np.testing.assert_allclose(together[2], alone, atol=1e-6)
    reseeded = sb.attribute(net(), carriers, sb.attribution.SmoothGrad(samples=4, seed=1)).maps
    assert not np.allclose(together, reseeded, atol=1e-6)


def test_shapley_values_add_up_to_the_change(carriers):
    attribution = sb.attribute(net(), carriers.where([0]), sb.attribution.Shapley(samples=1))
    assert attribution.table["completeness_error"].abs().max() < 1e-3
    assert attribution.regions.sum(axis=1).iloc[0] == pytest.approx(
        attribution.table["logit_change"].iloc[0], rel=1e-3
    )


@pytest.mark.parametrize(
    "method",
    [
        "deep_lift",
        "guided_backprop",
        sb.attribution.GradCAM("block1"),
        sb.attribution.GuidedGradCAM("block1"),
        sb.attribution.Occlusion(window_mm=48),
    ],
)
def test_every_method_gives_finite_maps_and_leaves_the_network(carriers, method):
    model = net()
    before = sb.logits(model, carriers)
    attribution = sb.attribute(model, carriers, method)
    assert (
        attribution.maps.shape == (3, *carriers.lattice.shape)
        and np.isfinite(attribution.maps).all()
    )
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    np.testing.assert_array_equal(sb.logits(model, carriers), before)


def test_images_are_written_whole_or_not_at_all(carriers, tmp_path):
    attribution = sb.attribute(net(), carriers, method="saliency")
    attribution.save(tmp_path / "maps")
    subject = carriers.table.index[0]
    image = nib.load(tmp_path / "maps" / f"sub-{subject}_attribution.nii.gz")
    np.testing.assert_allclose(image.get_fdata(), attribution.maps[0], rtol=1e-6)
    np.testing.assert_array_equal(image.affine, carriers.lattice.affine)
    with pytest.raises(sb.SimbaError, match="folder"):
        attribution.save(tmp_path / "maps")


class Stepped(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return (x.detach().sum((1, 2, 3, 4)) > 0).float() * 1.0 + 0 * self.scale


def test_networks_that_a_method_cannot_read_are_refused(carriers, cohort):
    with pytest.raises(sb.SimbaError, match=r"deriv|differentiable|gradient"):
        sb.attribute(Stepped(), carriers, method="saliency")
    with pytest.raises(sb.SimbaError, match="spatial extent"):
        sb.attribute(net(), carriers, sb.attribution.GradCAM("readout"))
    with pytest.raises(sb.core.UnknownNameError, match="block2"):
        sb.attribute(net(), carriers, sb.attribution.GradCAM("blok2"))
    with pytest.raises(sb.SimbaError, match="target"):
        sb.attribute(net(), carriers, target=1)
    with pytest.raises(sb.SimbaError, match=r"memory_gb.*at least"):
        sb.attribute(net(), carriers, compute=sb.Compute(memory_gb=1e-6))
    baseline_twins = carriers.twin(without="bias").twin(without="disease")
    with pytest.raises(sb.SimbaError, match="twins that differ in"):
        sb.attribute(
            net(), carriers.where(carriers.table["disease_magnitude"] != 0), baseline=baseline_twins
        )
    with pytest.raises(sb.core.UnknownNameError, match="bias"):
        sb.attribute(net(), carriers, baseline=carriers.twin(without="bias"), effect="bais")
