"""DeepLIFT and guided methods where their rules hold, and errors that name the layer elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn

import simba_lab as sb


@pytest.fixture(scope="module")
def subjects(cohort):
    return cohort.test.where(np.arange(3))


class Layers(nn.Module):
    """Convolution, activation, pooling, convolution, activation and read-out."""

    def __init__(self, pool=None, activation=None, second=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv3d(1, 4, 3, 2, 1), nn.Conv3d(4, 4, 3, 2, 1)
        self.activation, self.pool = activation or nn.ReLU(), pool or nn.Identity()
        self.second, self.readout = second or nn.Identity(), nn.Linear(4, 1)

    def forward(self, x):
        x = self.pool(self.activation(self.first(x)))
        return self.readout(self.second(self.last(x)).mean((2, 3, 4)))


def error_of(model, subjects, method="deep_lift"):
    sums = sb.attribute(model, subjects, method, baseline="mean").sums
    return sums["completeness_error"].abs().max()


def test_deep_lift_adds_up_beside_pooling_and_where_activations_are_used_twice(subjects):
    twice = Layers()
    twice.second = twice.activation
    models = {
        "ReLU beside max pooling": Layers(pool=nn.MaxPool3d(2)),
        "pooling last": sb.SimBANet((4, 8), pool="late"),
        "the same ReLU twice": twice,
        "in place": Layers(activation=nn.ReLU(inplace=True), second=nn.ReLU(inplace=True)),
    }
    errors = {name: error_of(model, subjects) for name, model in models.items()}
    assert max(errors.values()) < 1e-3, errors


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pool": nn.MaxPool3d(3, 2, 1)}, r"layer pool \(MaxPool3d whose windows overlap\)"),
        ({"activation": nn.GELU()}, r"layer activation \(GELU\)"),
    ],
)
def test_deep_lift_refuses_maps_that_do_not_add_up(subjects, changes, says):
    model = Layers(**changes)
    with pytest.raises(sb.SimbaError, match=rf"completeness error of deep_lift.*{says}"):
        sb.attribute(model, subjects, "deep_lift", baseline="mean")
    assert error_of(model, subjects, sb.attribution.DeepLift(tolerance=None)) > 0.05
    assert error_of(model, subjects, sb.attribution.DeepLift(tolerance=1e3)) > 0.05


class Functional(Layers):
    def forward(self, x):
        x = self.activation(self.first(x))
        return self.readout(torch.relu(self.last(x)).mean((2, 3, 4)))


def test_activations_that_are_functions_are_named(subjects):
    with pytest.raises(sb.SimbaError, match="relu as a function, after layer last"):
        sb.attribute(Functional(), subjects, sb.attribution.DeepLift(1e-3), baseline="mean")
    with pytest.raises(sb.SimbaError, match="ReLU as a function, after layer last"):
        sb.attribute(Functional(), subjects, "guided_backprop")


def test_deep_lift_runs_where_only_deterministic_operations_are_allowed(subjects):
    model = sb.SimBANet((4, 8))
    plain = sb.attribute(model, subjects, "deep_lift").maps
    torch.use_deterministic_algorithms(True)
    try:
        assert np.array_equal(sb.attribute(model, subjects, "deep_lift").maps, plain)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class ZScored(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = sb.SimBANet((2, 4))

    def forward(self, x):
        axes = (1, 2, 3, 4)
        return self.net((x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True))


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "occlusion"])
def test_a_baseline_that_gives_nan_is_refused(subjects, method):
    with pytest.raises(sb.SimbaError, match=r"baseline.*try baseline='mean'"):
        sb.attribute(ZScored(), subjects, method)


def test_networks_without_logits_are_not_explained(subjects):
    with pytest.raises(sb.SimbaError, match="got probabilities"):
        sb.attribute(nn.Sequential(sb.SimBANet((2, 4)), nn.Sigmoid()), subjects)
    broken = sb.SimBANet((2, 4))
    broken.readout.bias.data.fill_(float("nan"))
    with pytest.raises(sb.SimbaError, match="logits must be finite"):
        sb.attribute(broken, subjects, "saliency")
