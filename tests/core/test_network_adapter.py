"""Networks of others: wrapped, in other precisions, uncopyable, with answers of any form."""

import threading

import pytest
import torch
from torch import nn

import simba_lab as sb
from simba_lab.core.layer_naming import layers_by_name
from simba_lab.core.network_adapter import (
    answer_of,
    copied,
    refuse_probabilities,
    responded,
    trainable,
    unwrapped,
    with_gradients,
)
from simba_lab.interpretation.hooks import layer_names


class Prepared(nn.Module):
    """Scales its input, as Lightning modules and pipelines do."""

    def __init__(self, end=lambda y: y):
        super().__init__()
        self.net, self.loss, self.end = sb.SimBANet((2, 4)), nn.BCEWithLogitsLoss(), end

    def forward(self, x):
        return self.end(self.net(2 * x))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "both": lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off_and_layers_keep_their_names(wrapper):
    network = sb.SimBANet((2, 4))
    wrapped = WRAPPERS[wrapper](network)
    inner = unwrapped(wrapped)
    assert type(inner) is sb.SimBANet
    assert layer_names(wrapped) == ["block1", "block2"]
    assert layer_names(wrapped, ["block1.*"])[0] == "block1.conv"


def test_a_network_within_a_network_is_named_by_its_own_layers():
    model = Prepared()
    assert layer_names(model) == ["block1", "block2"]
    assert unwrapped(model) is model  # what it does to its input stays
    for name in ("block1", "net.block1"):
        assert layers_by_name(model)[name] is model.net.block1
        assert layer_names(model, [name]) == [name]
    nested = nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Conv3d(2, 1, 3)))
    modules = layers_by_name(nested)
    assert modules["0"] is nested[0]  # names that were always right stay right
    assert [modules[name] for name in layer_names(nested)] == [nested[0][0], nested[0][2]]


def test_lazy_layers_without_weights_are_named():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    with pytest.raises(sb.SimbaError, match=r"layer 1, which has no weights yet.*see a volume"):
        unwrapped(model)
    model(torch.zeros(1, 1, 2, 2, 2))
    assert unwrapped(model) is model


def test_an_attribute_called_eval_makes_no_program():
    model = Prepared()
    model.net.eval = lambda: "a measure of somebody"
    assert unwrapped(model) is model


def test_networks_that_keep_their_results_are_copied():
    model = sb.SimBANet((2, 4))
    model.last = model(torch.zeros(1, 1, 8, 8, 8))
    model.all = {"kept": [model.last]}
    again = copied(model)
    assert torch.equal(again.last, model.last)
    assert again.last is again.all["kept"][0] is not model.last
    normed = torch.nn.utils.weight_norm(nn.Linear(2, 1))
    x = torch.ones(1, 2)
    assert torch.equal(copied(normed)(x), normed(x))
    model.guard = threading.Lock()
    with pytest.raises(sb.SimbaError, match=r"attribute guard: .*works on a copy"):
        copied(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_trained_in_single_precision(dtype):
    model = sb.SimBANet((2, 4)).to(dtype)
    assert {value.dtype for value in trainable(model).parameters()} == {torch.float32}
    assert model.readout.weight.dtype == dtype
    plain = sb.SimBANet((2, 4))
    assert trainable(plain) is plain


ANSWERS = {
    "mapping": lambda y: {"logits": y, "features": y.repeat(1, 5)},
    "only tensor": lambda y: {"out": y, "name": "x"},
    "tuple": lambda y: (y, y.repeat(1, 5)),
    "no axis": torch.squeeze,
    "two columns": lambda y: torch.cat([torch.zeros_like(y), y], dim=1).squeeze(),
}


@pytest.mark.parametrize("form", ANSWERS)
def test_answers_of_any_form_are_taken(form):
    model, x = sb.SimBANet((2, 4)).eval(), torch.ones(1, 1, 8, 8, 8)
    answer = responded(Prepared(ANSWERS[form]).eval(), x)
    expected = responded(model, 2 * x)
    torch.testing.assert_close(sb.training.networks.logit(answer), expected[:, 0])


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda y: (y, y), "tuple of 2.*returns its logits alone"),
        (lambda y: {"a": y, "b": y}, "dict with a, b"),
        (lambda y: y > 0, "bool numbers"),
        (lambda y: None, "NoneType"),
        (lambda y: y.repeat(2, 1), r"one row for each of 3 volumes.*\(6, 1\)"),
        (lambda y: y + torch.rand_like(y), "draws random numbers"),
        (lambda y: y @ torch.ones(3, 1), "fails on volumes of shape .*: mat1 and mat2"),
    ],
)
def test_answers_that_cannot_be_taken_are_refused(end, says):
    with pytest.raises(sb.SimbaError, match=says):
        responded(Prepared(end).eval(), torch.ones(3, 1, 8, 8, 8))


PROBABILITIES = {
    "sigmoid": torch.sigmoid,
    "without its axis": lambda y: torch.sigmoid(y).squeeze(1).clamp(1e-6, 1 - 1e-6),
    "by hand": lambda y: 1 / (1 + torch.exp(-y)),
    "two columns": lambda y: torch.cat([1 - torch.sigmoid(y), torch.sigmoid(y)], dim=1),
    "softmax": lambda y: torch.softmax(torch.cat([-y, y], dim=1), dim=1),
    "ensemble": lambda y: torch.stack([torch.sigmoid(y), torch.sigmoid(2 * y)]).mean(dim=0),
    "out of autograd's sight": lambda y: torch.softmax(torch.cat([-y, y], 1), 1).detach(),
}


@pytest.mark.parametrize("end", PROBABILITIES)
def test_probabilities_are_refused(end):
    model, x = Prepared(PROBABILITIES[end]).eval(), torch.rand(3, 1, 8, 8, 8)
    with torch.no_grad(), pytest.raises(sb.SimbaError, match=r"logits.*got probabilities.*logit"):
        refuse_probabilities(model, x, answer_of(model(x)))


def test_logits_between_0_and_1_are_not_probabilities():
    for end in (lambda y: 0.01 * y + 0.5, lambda y: (0.01 * y + 0.5).clamp(-5, 5)):
        model, x = Prepared(end).eval(), torch.rand(3, 1, 8, 8, 8)
        answer = model(x)
        assert answer.min() >= 0
        assert answer.max() <= 1
        refuse_probabilities(model, x, answer)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_networks_made_without_gradients_are_trained(guard):
    with guard():
        model = sb.SimBANet((2, 4))
        with with_gradients():
            trainable(model)(torch.ones(2, 1, 8, 8, 8)).sum().backward()
