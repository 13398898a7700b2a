"""What networks say is judged only if it is a finite logit, and fits refuse what cannot train."""

import numpy as np
import pytest
import torch
from torch import nn

import simba_lab as sb

CONFIG = sb.FitConfig(epochs=1, threads=1)


@pytest.fixture(scope="module")
def broken():
    model = sb.SimBANet((2, 4))
    model.readout.bias.data.fill_(float("nan"))
    return model


@pytest.mark.parametrize("verb", [sb.disparity, sb.twin_effect, sb.evaluate, sb.interchange])
def test_logits_of_nan_are_no_gap_of_zero(cohort, broken, verb):
    with pytest.raises(sb.SimbaError, match=r"logits must be finite, got \d+ of \d+ that are NaN"):
        verb(broken, cohort.test)


def test_given_logits_of_nan_are_refused(cohort):
    scores = np.zeros(len(cohort.test))
    scores[3] = np.nan
    with pytest.raises(sb.SimbaError, match=f"got 1 of {len(scores)} that are NaN"):
        sb.disparity(scores, cohort.test)
    with pytest.raises(sb.SimbaError, match="logits must be finite"):
        sb.training.twin_table(np.zeros(len(scores)), scores, cohort.test)


@pytest.mark.parametrize("verb", [sb.evaluate, sb.twin_effect, sb.interchange])
def test_probabilities_are_not_taken_for_logits(cohort, verb):
    model = nn.Sequential(sb.SimBANet((2, 4)), nn.Sigmoid())
    with pytest.raises(sb.SimbaError, match="got probabilities"):
        verb(model, cohort.test)


PROGRAMS = {
    "traced": lambda model, x: torch.jit.trace(model, x),
    "scripted": lambda model, x: torch.jit.script(model),
}
VERBS = {
    "record": lambda model, cohort: sb.record(model, cohort),
    "edit": lambda model, cohort: sb.edit(model, {"0": torch.zeros_like}).__enter__(),
    "attribute": lambda model, cohort: sb.attribute(model, cohort, method="saliency"),
    "fit": lambda model, cohort: sb.fit(model, cohort, CONFIG),
    "interchange": lambda model, cohort: sb.interchange(model, cohort),
}


def program(cohort, make):
    x = torch.from_numpy(cohort.array(0))[None, None]
    layers = nn.Conv3d(1, 2, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    return make(nn.Sequential(*layers, nn.Linear(2, 1)).eval(), x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_torchscript_is_called_so(cohort, name, verb):
    model = program(cohort, PROGRAMS[name])
    assert np.isfinite(sb.logits(model, cohort.test)).all()  # all that it can be asked
    with pytest.raises(sb.SimbaError, match="got a program that TorchScript made of one"):
        VERBS[verb](model, cohort.test)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("verb", [sb.logits, *VERBS.values()])
@pytest.mark.parametrize(
    "make",
    [
        lambda model, x: torch.jit.freeze(torch.jit.script(model)),
        lambda model, x: torch.export.export(model, (x,)).module(),
    ],
    ids=["frozen", "exported"],
)
def test_a_program_without_modes_is_refused(cohort, make, verb):
    with pytest.raises(sb.SimbaError, match="Give the network that it was made from"):
        verb(program(cohort, make), cohort.test)


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(dim=1)], ids=["sigmoid", "softmax"])
def test_one_of_several_routed_networks_may_not_give_probabilities(cohort, end):
    """The others give logits, so that the answers are on both sides of 0."""
    of_probabilities = nn.Sequential(
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 1 + isinstance(end, nn.Softmax)), end
    )
    networks = [sb.SimBANet((2, 4)), of_probabilities]
    model = sb.training.GroupRouted(networks, "bias", [0, 1])
    with pytest.raises(sb.SimbaError, match="got probabilities"):
        sb.logits(model, cohort.test, batch_size=2)
    sb.logits(model, cohort.test.where(cohort.test["bias"] == 0))  # the network is not asked


def test_a_network_of_probabilities_is_not_trained(cohort):
    model = nn.Sequential(sb.SimBANet((2, 4)), nn.Sigmoid())
    with pytest.raises(sb.SimbaError, match="got probabilities"):
        sb.fit(model, cohort, CONFIG, cache=False)


def test_a_wrapped_network_gives_the_run_of_the_network(cohort):
    runs = [
        sb.fit(model, cohort, CONFIG)
        for model in (sb.SimBANet((2, 4)), nn.DataParallel(sb.SimBANet((2, 4))))
    ]
    weights = [run.model.state_dict() for run in runs]
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_single_last_subject_is_refused_before_training_if_the_network_normalises(cohort):
    train = np.flatnonzero(cohort["split"] == "train")[:17]
    odd = cohort.where(np.r_[train, np.flatnonzero(cohort["split"] == "validation")])
    with pytest.raises(sb.SimbaError, match=r"batch_size.*single subject of 17.*got 8"):
        sb.fit(sb.SimBANet((2, 2, 2, 4)), odd, CONFIG, cache=False)


def test_a_cohort_without_a_bias_has_no_control(monkeypatch):
    scenario = sb.Scenario(48, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    monkeypatch.setattr("simba_lab.training.trainer.train", None)  # nothing may be trained
    with pytest.raises(sb.SimbaError, match="a cohort that has a control"):
        sb.fit_pair(sb.SimBANet((2, 4)), sb.synthesise(scenario), CONFIG, cache=False)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_verbs_that_need_gradients_make_them(cohort, guard):
    with guard():
        model, subjects = sb.SimBANet((2, 4)), cohort.test.where(np.arange(2))
        sb.fit(model, cohort, CONFIG, cache=False)
        for method in ("saliency", "deep_lift"):
            assert np.abs(sb.attribute(model, subjects, method).maps).max() > 0
