import copy

import numpy as np
import pytest
import torch
from torch import nn

import simba_lab as sb

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
    start = sb.attribute(Linear(weights), carriers, baseline=twins, steps=2)
    np.testing.assert_allclose(start.maps, weights * (volumes - twins.arrays()), atol=1e-5)
    assert start.table["completeness_error"].abs().max() < 1e-3
    np.testing.assert_allclose(sb.attribute(Linear(weights), carriers, method="saliency").maps, [weights] * 3, atol=1e-6)
    np.testing.assert_allclose(
        sb.attribute(Linear(weights), carriers, method="input_x_gradient").maps, weights * volumes, atol=1e-5
    )


def test_sum_of_the_twin_attribution_is_the_twin_effect(carriers):
    model = copy.deepcopy(net()).eval()
    result = sb.attribute(model, carriers, baseline=carriers.twin(without="bias"), steps=64)
    change = sb.logits(model, carriers) - sb.logits(model, carriers.twin(without="bias"))
    np.testing.assert_allclose(result.table["logit_change"], change, atol=1e-5)
    assert result.table["completeness_error"].abs().max() < 0.01


def test_scores_tell_a_reader_of_the_bias_from_a_reader_of_elsewhere(carriers):
    near = np.any([carriers.changed(i, "bias") for i in range(len(carriers))], axis=0)
    far = (carriers.lattice.points_mm()[0] > 30) & (carriers.array(0) > 0.1)
    on_bias = sb.attribute(Linear(near.astype(np.float32)), carriers).table
    elsewhere = sb.attribute(Linear(far.astype(np.float32)), carriers).table
    assert on_bias["enrichment_bias"].mean() > 10
    assert elsewhere["mass_bias"].max() == 0 < on_bias["mass_bias"].max()


def test_bad_attributions_are_refused(carriers, cohort):
    with pytest.raises(sb.UnknownNameError, match="Did you mean integrated_gradients"):
        sb.attribute(net(), carriers, method="integrated_gradient")
    with pytest.raises(sb.SimbaError, match="baseline must be 3 volumes"):
        sb.attribute(net(), carriers, baseline=cohort)
    with pytest.raises(sb.SimbaError, match="baseline must be a number"):
        sb.attribute(net(), carriers, baseline=np.zeros((2, 2, 2)))
    with pytest.raises(sb.SimbaError, match="steps"):
        sb.attribute(net(), carriers, steps=0)
    with pytest.raises(sb.SimbaError, match="not empty"):
        sb.attribute(net(), carriers.where(np.array([], int)))
