import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from torch import nn

import simba_lab as sb
from simba_lab.interpretation import probing
from simba_lab.interpretation.activations import layer_names

RNG = np.random.default_rng(0)


def net():
    return sb.SimBANet((4, 8), seed=0)


def gram(features):
    return features @ features.T


# -- activations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
def test_gram_matrices_equal_those_of_the_explicit_features(cohort, memory_gb):
    model, volumes = net().eval(), cohort.test.arrays()
    grams = sb.record(model, cohort.test, memory_gb=memory_gb, batch_size=7)
    with torch.no_grad():
        x = torch.from_numpy(volumes)[:, None]
        features = {"pixels": x, "block1": model.block1(x), "block2": model.block2(model.block1(x))}
    assert list(grams) == list(features)
    for name, value in features.items():
        flat = value.flatten(1).double().numpy()
        np.testing.assert_allclose(grams[name], flat @ flat.T, rtol=1e-4)


def test_hooks_are_removed_also_after_an_error(cohort):
    model = net()
    sb.record(model, cohort.test)
    with pytest.raises(sb.SimbaError):
        sb.record(model, [np.zeros((2, 2, 2), np.float32)] * 3)
    assert all(not module._forward_hooks for module in model.modules())


def test_only_one_module_registers_hooks():
    package = Path(sb.__file__).parent
    found = [
        path.name for path in package.rglob("*.py") if re.search(r"register_\w*hook", path.read_text(encoding="utf-8"))
    ]
    assert found == ["activations.py"]


def test_any_network_and_any_layer():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    volumes = list(RNG.random((4, 6, 6, 6), dtype=np.float32))
    model(torch.from_numpy(volumes[0])[None, None])
    assert list(sb.record(model, volumes)) == ["pixels", "0", "3"]
    assert list(sb.record(model, volumes, layers=["1", "[23]"], pixels=False)) == ["1", "2", "3"]


def test_unknown_layers_suggest_the_nearest():
    with pytest.raises(sb.UnknownNameError, match=r"block1"):
        layer_names(net(), ["blok1"])


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return self.layer(self.layer(x)).mean((1, 2, 3, 4))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return x.mean((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("model", "layers", "says"),
    [
        (nn.Sequential(Pair()), ["0"], "must be a tensor, got 'tuple'"),
        (Twice(), None, "once per volume"),
        (Unused(), None, "ran for 0 volumes"),
    ],
)
def test_layers_that_cannot_be_recorded_are_refused(model, layers, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.record(model, list(np.ones((3, 4, 4, 4), np.float32)), layers=layers)


def test_nan_activations_are_refused():
    with pytest.raises(sb.SimbaError, match="finite"):
        sb.record(Unused(), list(np.full((3, 4, 4, 4), np.nan, np.float32)))


# -- probing -------------------------------------------------------------------------------------------------------------


def planted(n=120, p=400, strength=1.0, leak=0.0, seed=0):
    """Features in which a direction tells the target, and another one the label that leaks it."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    target = np.where(rng.random(n) < 0.85, label, 1 - label) if leak else rng.integers(0, 2, n)
    features = rng.standard_normal((n, p))
    features[:, 0] += strength * (2 * target - 1)
    features[:, 1] += leak * (2 * label - 1)
    return features, target, label


def test_dual_ridge_equals_primal_ridge_of_a_library():
    features, target, _ = planted()
    features -= features.mean(axis=0)
    goal = target - target.mean()
    fitted, dual = probing._ridge(gram(features), goal[:, None])
    penalties = probing.PENALTIES * (features**2).sum() / len(features)
    primal = RidgeCV(penalties, fit_intercept=False).fit(features, goal)
    np.testing.assert_allclose(fitted[:, 0], primal.predict(features), atol=1e-6)
    np.testing.assert_allclose(features.T @ dual[:, 0], primal.coef_, atol=1e-6)


def test_a_planted_direction_is_found_and_its_removal_hides_it():
    features, target, _ = planted(strength=2.0)
    found = sb.probe({"layer": gram(features)}, target).loc["layer"]
    assert found["auc"] > 0.9 and found["auc_low"] > found["null_high"]
    features[:, 0] = 0
    gone = sb.probe({"layer": gram(features)}, target).loc["layer"]
    assert gone["auc_low"] < 0.5 < gone["auc_high"]


def test_shuffled_targets_sit_at_chance():
    scores = []
    for seed in range(20):
        features, target, _ = planted(strength=2.0, seed=seed)
        shuffled = np.random.default_rng(seed).permutation(target)
        scores.append(sb.probe({"layer": gram(features)}, shuffled, permutations=0).loc["layer", "auc"])
    assert abs(np.mean(scores) - 0.5) < 3 * np.std(scores) / np.sqrt(20)


def test_given_removes_the_leak_that_fools_the_plain_probe():
    """Features know the label and nothing about the target beyond it."""
    rows = []
    for seed in range(10):
        features, target, label = planted(n=400, p=40, strength=0.0, leak=3.0, seed=seed)
        rows.append(sb.probe({"layer": gram(features)}, target, given=label, permutations=0).loc["layer"])
    scores = np.array([row["auc"] for row in rows])
    assert min(row["auc_plain"] for row in rows) > 0.75
    assert min(row["auc_leak"] for row in rows) > 0.75
    assert abs(scores.mean() - 0.5) < 3 * scores.std() / np.sqrt(10)


def test_given_keeps_what_is_not_a_leak():
    features, target, label = planted(n=400, p=40, strength=2.0, leak=3.0)
    assert sb.probe({"layer": gram(features)}, target, given=label, permutations=0).loc["layer", "auc"] > 0.9


def test_floors_are_probed_in_the_same_way():
    features, target, _ = planted(strength=2.0)
    noise = RNG.standard_normal(features.shape)
    row = sb.probe(
        {"layer": gram(features)}, target, floors={"same": {"layer": gram(features)}, "noise": {"layer": gram(noise)}}
    )
    assert row.loc["layer", "floor_same"] == row.loc["layer", "auc"] > 0.9 > 0.7 > row.loc["layer", "floor_noise"]


def test_scale_and_rotation_of_the_features_do_not_matter():
    features, target, _ = planted()
    turned = 1e3 * features @ np.linalg.qr(RNG.standard_normal((400, 400)))[0]
    table = sb.probe({"plain": gram(features), "turned": gram(turned)}, target, permutations=0)
    assert table["auc"]["plain"] == pytest.approx(table["auc"]["turned"], abs=1e-9)


def test_folds_of_the_design_avoid_below_chance_scores(scenario):
    """Pixels of healthy twins hold nothing about the group: random folds learn the matching backwards."""
    cohort = sb.synthesise(scenario.replace(subjects=400).unbiased(), seed=2).twin(without=("bias", "disease"))
    modes = cohort.table[[f"anatomy_{k}" for k in range(1, 17)]].to_numpy()
    grams = {"anatomy": gram(modes)}
    designed = sb.probe(grams, cohort["bias"], given=cohort["label"], folds=cohort["fold"], permutations=0).loc["anatomy"]
    assert designed["auc_low"] < 0.5 < designed["auc_high"]


def test_conditional_auc_by_hand():
    target, scores, context = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 5.0, 4.0]), np.array([0, 0, 1, 1])
    assert probing.conditional_auc(target, scores, context) == 0.5
    assert probing.conditional_auc(target, np.array([1.0, 1.0, 0.0, 3.0]), context) == 0.75  # a tie counts half


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": np.zeros(6)}, "both 0 and 1"),
        ({"target": np.array([0, 1, 2, 0, 1, 2])}, "both 0 and 1"),
        ({"given": np.zeros(3)}, "given must be of shape"),
        ({"folds": 5}, "from 2 to 3"),
        ({"folds": np.array([0, 0, 0, 1, 1, 1]), "target": np.array([0, 0, 0, 1, 1, 1])}, "lacks a group"),
        ({"folds": np.zeros(6)}, "at least 2 values"),
        ({"grams": {"layer": np.eye(5)}, "folds": 2}, r"of shape \(6, 6\)"),
        ({"grams": {"layer": np.full((6, 6), np.nan)}, "folds": 2}, "finite"),
    ],
)
def test_bad_probes_are_refused(arguments, says):
    arguments = {"grams": {"layer": np.eye(6)}, "target": np.array([0, 1, 0, 1, 0, 1])} | arguments
    with pytest.raises(sb.SimbaError, match=says):
        sb.probe(arguments.pop("grams"), arguments.pop("target"), **arguments)


# -- attribution ---------------------------------------------------------------------------------------------------------


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
