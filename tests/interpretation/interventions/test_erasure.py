"""Erasure: what is erased can no longer be read, and what was not asked for stays."""

import numpy as np
import pytest
import torch
from concept_erasure import LeaceFitter
from planted import Planted, centred, far_scenario, masks_of
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

import simba_lab as sb
from simba_lab.interpretation.interventions.erasure import leaces


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(160), seed=0)


@pytest.fixture(scope="module")
def planted(far):
    masks = masks_of(far.where(range(40)))
    return {
        name: centred(Planted(masks, w), far)
        for name, w in (("bias", (1.0, 0.0)), ("disease", (0.0, 1.0)))
    }


def planted_features(count=300, size=12, seed=0):
    """Features in which one direction tells the concept."""
    draws = np.random.default_rng(seed)
    concept = draws.integers(0, 2, count)
    features = draws.standard_normal((count, size)) @ draws.standard_normal((size, size))
    direction = draws.standard_normal(size)
    return features + np.outer(concept, 3 * direction), concept, direction


def test_it_equals_the_library_on_the_features_themselves():
    features, concept, _ = planted_features()
    fitter = LeaceFitter(12, 1, dtype=torch.float64, shrinkage=False, constrain_cov_trace=False)
    theirs = fitter.update(
        torch.from_numpy(features), torch.from_numpy(concept[:, None].astype(float))
    ).eraser
    ours = sb.interventions.leace(features, concept, shrinkage=False)
    points = torch.from_numpy(planted_features(seed=1)[0])
    torch.testing.assert_close(ours(points), theirs(points), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("size", [12, 900])
def test_no_linear_probe_beats_a_constant_where_it_was_fitted(size):
    features, concept, _ = planted_features(size=size)
    erased = sb.interventions.leace(features, concept)(torch.from_numpy(features)).numpy()
    covariance = (erased - erased.mean(axis=0)).T @ (concept - concept.mean()) / len(concept)
    assert np.abs(covariance).max() < 1e-6 * np.abs(features).max()


def test_a_planted_direction_is_found_and_erased_on_others():
    features, concept, direction = planted_features(1000)
    unseen, truth, _ = features[500:], concept[500:], direction
    erasure = sb.interventions.leace(features[:500], concept[:500])

    def held_out(values):
        half = len(values) // 2
        fitted = LinearRegression().fit(values[:half], truth[:half])
        return roc_auc_score(truth[half:], fitted.predict(values[half:]))

    assert erasure.rank == 1
    assert held_out(unseen) > 0.95
    assert (
        abs(held_out(erasure(torch.from_numpy(unseen)).numpy()) - 0.5) < 0.12
    )  # 2.5 standard errors of 250 subjects
    moved = (unseen - erasure(torch.from_numpy(unseen)).numpy())[0]
    assert abs(moved @ direction) / np.linalg.norm(moved) / np.linalg.norm(direction) > 0.9


def test_what_is_known_from_another_variable_is_left():
    draws = np.random.default_rng(0)
    label = np.repeat([0, 1], 200)
    concept = (draws.uniform(size=400) < np.where(label, 0.8, 0.2)).astype(float)
    features = draws.standard_normal((400, 5))
    features[:, 0] += 4 * label
    features[:, 1] += 4 * concept
    conditional = sb.interventions.leace(features, concept, given=label)(
        torch.from_numpy(features)
    ).numpy()
    plain = sb.interventions.leace(features, concept)(torch.from_numpy(features)).numpy()
    assert (
        roc_auc_score(label, conditional[:, 0]) > 0.99 and roc_auc_score(label, plain[:, 0]) < 0.99
    )


def test_after_erasure_in_a_block_a_probe_there_is_at_its_floor_and_a_random_direction_leaves_it(
    far, planted
):
    model = planted["bias"]
    before = sb.record(model, far, layers=["block2"], pixels=False)
    settings = {"given": far["label"], "folds": 5, "permutations": 0}
    plain = sb.probe(before, far["bias"], **settings).loc["block2"]
    erased = {}
    for concept in (far["bias"], "random"):
        edits = sb.erase(
            model,
            far,
            concept,
            layers=["block2"],
            given=None if isinstance(concept, str) else "label",
        )
        with sb.edit(model, edits):
            gone = sb.record(model, far, layers=["block2"], pixels=False)
        erased[str(concept)[:6]] = sb.probe(gone, far["bias"], **settings).loc["block2"]
    bias, random = erased.values()
    assert plain["auroc_low"] > 0.5
    assert bias["auroc_low"] < 0.55
    assert random["auroc"] == pytest.approx(plain["auroc"], abs=0.05)


def test_erasing_the_bias_takes_its_effect_from_the_network_that_uses_it(far, planted):
    for name, model in planted.items():
        before = sb.twin_effect(model, far.test)["logit"].item()
        with sb.edit(model, sb.erase(model, far.train, layers=["block2"])):
            after = sb.twin_effect(model, far.test)["logit"].item()
        if name == "bias":
            assert abs(after) < 0.25 * abs(before)
        else:
            assert abs(before) < 0.02 and abs(after) < 0.02
    assert not any(module._forward_hooks for module in model.modules())


def test_several_concepts_at_once_equal_each_on_its_own():
    features, concept, _ = planted_features()
    random = np.random.default_rng(3).standard_normal(300)
    together = leaces(features, [concept, random])
    for erasure, alone in zip(together, (concept, random), strict=True):
        points = torch.from_numpy(features)
        torch.testing.assert_close(erasure(points), sb.interventions.leace(features, alone)(points))


def test_bad_requests_are_refused(far, planted):
    features, concept, _ = planted_features()
    with pytest.raises(sb.SimbaError, match="nothing to erase"):
        sb.interventions.leace(features, np.ones(300))
    with pytest.raises(sb.SimbaError, match="concept"):
        sb.interventions.leace(features, concept[:-1])
    with pytest.raises(sb.SimbaError, match="finite"):
        sb.interventions.leace(features, np.where(concept, np.nan, 0))
    with pytest.raises(sb.SimbaError, match="another layer"):
        sb.interventions.leace(features, concept)(torch.zeros(2, 5))
    with pytest.raises(sb.SimbaError, match="given"):
        sb.erase(planted["bias"], far.train, "bias", given="label")
    with pytest.raises(sb.core.UnknownNameError, match="block2"):
        sb.erase(planted["bias"], far.train, layers=["blck2"])
