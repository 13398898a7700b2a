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
    with pytest.raises(sb.SimbaError, match=r"logits must be finite, got '\d+ of \d+ that are NaN"):
        verb(broken, cohort.test)


def test_given_logits_of_nan_are_refused(cohort):
    scores = np.zeros(len(cohort.test))
    scores[3] = np.nan
    with pytest.raises(sb.SimbaError, match=f"got '1 of {len(scores)} that are NaN"):
        sb.disparity(scores, cohort.test)
    with pytest.raises(sb.SimbaError, match="logits must be finite"):
        sb.training.twin_table(np.zeros(len(scores)), scores, cohort.test)


@pytest.mark.parametrize("verb", [sb.evaluate, sb.twin_effect, sb.interchange])
def test_probabilities_are_not_taken_for_logits(cohort, verb):
    model = nn.Sequential(sb.SimBANet((2, 4)), nn.Sigmoid())
    with pytest.raises(sb.SimbaError, match="got 'probabilities'"):
        verb(model, cohort.test)


def test_a_network_of_probabilities_is_not_trained(cohort):
    model = nn.Sequential(sb.SimBANet((2, 4)), nn.Sigmoid())
    with pytest.raises(sb.SimbaError, match="got 'probabilities'"):
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
