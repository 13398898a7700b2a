import numpy as np
import pytest
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb
from simba_lab.interpretation.interventions.concept_activation import _directions, tcav


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(120), seed=0)


def planted(far, weights):
    return centred(Planted(masks_of(far.test), weights), far.test)


def test_a_reader_of_the_bias_is_told_from_a_reader_of_the_disease(far):
    reader = planted(far, [1.0, 0.0])
    on_bias, elsewhere = (
        tcav(model, far.train, far.test) for model in (reader, planted(far, [0.0, 1.0]))
    )
    effect = sb.twin_effect(reader, far.test).loc["bias", "logit"]
    for layer in ("block1", "block2"):
        assert (
            on_bias.loc[layer, "told"] > 0.9
            and on_bias.loc[layer, "told"] == elsewhere.loc[layer, "told"]
        )
        assert on_bias.loc[layer, "score"] == 1 and on_bias.loc[layer, "score_low"] < 1
        assert on_bias.loc[layer, "effect_low"] > on_bias.loc[layer, "effect_null"]
        assert on_bias.loc[layer, "effect"] <= 1.05 * effect
        assert on_bias.loc[layer, "p_effect"] == 1 / 51
        assert abs(elsewhere.loc[layer, "effect"]) < 0.1 * on_bias.loc[layer, "effect"]
    # Their gradients are the same in all subjects: every direction scores 0 or 1, and the score
    # tells nothing.
    assert (on_bias["p"] == 1).all() and set(on_bias["null_low"]) <= {0, 1}


def test_weights_of_a_probe_may_miss_what_the_network_reads(far):
    reader = planted(far, [1.0, 0.0])
    pattern, weights = (
        tcav(reader, far.train, far.test, layers=["block2"], direction=direction).loc["block2"]
        for direction in ("pattern", "filter")
    )
    assert pattern["told"] == weights["told"] == 1
    assert weights["effect"] < 0.3 * pattern["effect"]


def test_a_network_that_reads_the_bias_backwards_scores_zero(far):
    table = tcav(planted(far, [-1.0, 0.0]), far.train, far.test, layers=["block2"])
    assert table.loc["block2", "score"] == 0 and table.loc["block2", "effect_high"] < 0


def test_scores_lie_between_in_a_network_whose_gradients_differ(far):
    model = sb.SimBANet((4, 8), seed=1)
    table = tcav(model, far.train, far.test)
    assert table.index.tolist() == ["block1", "block2"]
    assert table["score"].between(0, 1).all() and table["p"].between(1 / 51, 1).all()
    assert (table["null_low"] <= table["null_high"]).all()
    assert model.training and not any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )
    again = tcav(model, far.train, far.test, compute=sb.Compute(memory_gb=0.003))
    np.testing.assert_allclose(again["effect"], table["effect"], atol=1e-6)


@pytest.mark.parametrize("direction", ["pattern", "filter"])
def test_the_direction_is_that_of_a_planted_difference(direction):
    rng = np.random.default_rng(0)
    activations = np.tile(rng.standard_normal((50, 30)), (2, 1))
    activations[50:, 3] += 2.0
    target = np.repeat([0.0, 1.0], 50)[:, None]
    (vector,) = _directions(activations @ activations.T, activations, target, direction).T
    assert (
        np.abs(vector).argmax() == 3
        and vector[3] > 0.9
        and np.linalg.norm(vector) == pytest.approx(1)
    )


def test_bad_concepts_are_refused(far):
    model = sb.SimBANet((4, 8), seed=0)
    with pytest.raises(sb.SimbaError, match="which is in both cohorts"):
        tcav(model, far, far.test)
    with pytest.raises(sb.core.UnknownNameError, match="bias"):
        tcav(model, far.train, far.test, "biass")
    with pytest.raises(sb.core.UnknownNameError, match="block2"):
        tcav(model, far.train, far.test, layers=["block3"])
    with pytest.raises(sb.core.UnknownNameError, match="pattern"):
        tcav(model, far.train, far.test, direction="weights")
