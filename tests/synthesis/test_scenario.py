from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import simba_lab as sb

DISEASE = sb.Morphology("Insula_L", 2.5)
SCENARIOS = Path(__file__).parents[2] / "data" / "scenarios"


def biased(p, q):
    bias = sb.Morphology("Putamen_L", 2.5, prevalence={"disease": p, "control": q})
    return sb.Scenario(subjects=100, disease=DISEASE, bias=bias)


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_round_trip(path, tmp_path):
    scenario = sb.Scenario.from_yaml(path)
    scenario.to_yaml(tmp_path / "copy.yaml")
    assert sb.Scenario.from_yaml(tmp_path / "copy.yaml") == scenario
    assert sb.Scenario.from_yaml(scenario.to_yaml()) == scenario


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_scenarios_that_come_with_the_lab_work(path):
    """All deformations of their subjects are possible; a volume is rendered if that is quick."""
    cohort = sb.synthesise(sb.Scenario.from_yaml(path), seed=0)
    assert cohort.scenario.spacing_mm == 1 or cohort.array(0).max() > 0.5


def test_ceiling_is_phi_of_one():
    assert biased(0.8, 0.2).ceiling() == pytest.approx(norm.cdf(1), abs=1e-6)


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.2), (0.95, 0.3), (0.5, 0.5)])
def test_shortcut_ceiling_equals_simulation(p, q):
    rng = np.random.default_rng(0)
    n = 400_000
    label = rng.integers(0, 2, n)
    magnitude = rng.normal(2 * label - 1, 1)
    group = rng.random(n) < np.where(label == 1, p, q)
    rates = np.where(group, p / q, (1 - p) / (1 - q))
    decision = (
        2 * magnitude + np.log(rates) > 0
    )  # log-likelihood ratio of N(1, 1) against N(-1, 1) is 2m
    assert biased(p, q).ceiling(shortcut=True) == pytest.approx(
        (decision == label).mean(), abs=0.003
    )


def test_leakage_floor_is_the_published_one():
    assert biased(0.7, 0.3).leakage_floor(0.86) == pytest.approx(0.644)
    assert biased(0.5, 0.5).leakage_floor(0.86) == pytest.approx(0.5)


def test_unbiased_control_has_the_same_effects():
    control = biased(0.8, 0.2).unbiased()
    assert control.bias.prevalence == {"control": 0.5, "disease": 0.5}
    assert control.replace(bias=biased(0.8, 0.2).bias) == biased(0.8, 0.2)


def two(membership, first=(0.8, 0.2), second=(0.6, 0.3)):
    rates = [dict(zip(("disease", "control"), pair, strict=True)) for pair in (first, second)]
    biases = {
        "near": sb.Morphology("Putamen_L", 2.5, prevalence=rates[0]),
        "contrast": sb.Intensity("contrast", 0.2, prevalence=rates[1]),
    }
    return sb.Scenario(
        subjects=400, spacing_mm=8, disease=DISEASE, bias=biases, membership=membership
    )


def test_several_biases_have_groups_of_their_own():
    scenario = two("independent")
    table = sb.synthesise(scenario, seed=0).table
    rates = table.groupby("label")[["near", "contrast"]].mean()
    np.testing.assert_allclose(rates.to_numpy(), [[0.2, 0.3], [0.8, 0.6]], atol=0.02)
    within = [part["near"].corr(part["contrast"]) for _, part in table.groupby("label")]
    assert np.abs(within).max() < 0.06
    assert {"near_magnitude", "contrast_magnitude"} <= set(table)


def test_joint_groups_are_nested():
    table = sb.synthesise(two("joint"), seed=0).table
    for label, (smaller, larger) in ((1, ("contrast", "near")), (0, ("near", "contrast"))):
        members = table[table["label"] == label]
        assert (members[larger] >= members[smaller]).all()
        assert members[smaller].any()
    equal = sb.synthesise(two("joint", second=(0.8, 0.2)), seed=0).table
    assert (equal["near"] == equal["contrast"]).all()


@pytest.mark.parametrize("membership", ["independent", "joint"])
def test_shortcut_ceiling_of_two_biases_equals_simulation(membership):
    scenario, rng, n = two(membership), np.random.default_rng(1), 400_000
    label = rng.integers(0, 2, n)
    magnitude = rng.normal(2 * label - 1, 1)
    first = rng.random(n)
    second = first if membership == "joint" else rng.random(n)
    groups = 2 * (first < np.where(label == 1, 0.8, 0.2)) + (
        second < np.where(label == 1, 0.6, 0.3)
    )
    odds = [
        np.mean(groups[label == 1] == g) / max(1e-9, np.mean(groups[label == 0] == g)) + 1e-9
        for g in range(4)
    ]
    decision = 2 * magnitude + np.log(np.array(odds)[groups]) > 0
    assert scenario.ceiling(shortcut=True) == pytest.approx((decision == label).mean(), abs=0.003)


def test_twins_of_one_bias_keep_the_other():
    cohort = sb.synthesise(two("joint"), seed=0).where(np.arange(20))
    index = int(np.flatnonzero((cohort["near"] == 1) & (cohort["contrast"] == 1))[0])
    shown = cohort.twin(without="near").magnitudes(index)
    assert shown["near"] == 0 and shown["contrast"] != 0
    assert cohort.twin(without=["near", "contrast"]).magnitudes(index)["disease"] != 0


def test_leakage_floor_asks_which_bias():
    assert two("joint").leakage_floor(0.86, "near") == pytest.approx(0.86 * 0.8 + 0.14 * 0.2)
    with pytest.raises(sb.SimbaError, match="near, contrast"):
        two("joint").leakage_floor(0.86)
    with pytest.raises(sb.core.UnknownNameError, match="near"):
        two("joint").leakage_floor(0.86, "nearr")


def test_truncated_magnitudes_stay_inside():
    bias = sb.Intensity("noise", 0.1, magnitude=sb.Normal(1.0, 1.0, low=0.0, high=2.0))
    scenario = sb.Scenario(subjects=200, spacing_mm=8, disease=DISEASE, bias=bias)
    magnitude = sb.synthesise(scenario, seed=0)["bias_magnitude"]
    assert 0 <= magnitude.min() < 0.1 and 1.9 < magnitude.max() <= 2
    assert sb.Scenario.from_yaml(scenario.to_yaml()) == scenario


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subjects": 4}, "scenario.subjects must be an integer of at least 16"),
        ({"spacing_mm": 0.1}, "from 0.5 to 8"),
        ({"noise": 2}, r"in \[0, 1\]"),
        ({"bias_field": -1}, "scenario.bias_field"),
        ({"membership": "both"}, "Did you mean joint"),
        ({"bias": {"label": DISEASE}}, "named by letters"),
        ({"bias": {"near": 3}}, r"bias\['near'\] must be a Morphology"),
        ({"split": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"template": "mni"}, "mni152"),
        ({"disease": "Insula_L"}, "disease must be a Morphology or an Intensity"),
        ({"disease": sb.Morphology("Insula_L", 1, prevalence=0.5)}, "Only a bias has a prevalence"),
        ({"biass": None}, "Did you mean bias"),
    ],
)
def test_bad_scenarios_are_refused(fields, says):
    with pytest.raises(sb.SimbaError, match=says):
        biased(0.8, 0.2).replace(**fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("subjects: 100\ndisease: {region: Insula_L, amplitud_mm: 2}", "amplitude_mm"),
        ("subjects: 100\ndisease: [1, 2]", "scenario.disease must be a mapping"),
        ("subjects: 100\ndisease: {region: Insula_L}", "with region and amplitude_mm"),
        ("subjects: [\n", "valid YAML"),
        ("- 1\n- 2\n", "mapping"),
        ("disease: !!python/object/apply:os.system ['true']\nsubjects: 1", "valid YAML"),
    ],
)
def test_bad_yaml_is_refused(text, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.Scenario.from_yaml(text)


def test_missing_file():
    with pytest.raises(sb.SimbaError, match="existing YAML file"):
        sb.Scenario.from_yaml("nowhere.yaml")


def test_unknown_region_is_named_with_its_field():
    scenario = biased(0.8, 0.2).replace(bias=sb.Morphology("Putamen", 2.5))
    with pytest.raises(sb.core.UnknownNameError, match=r"scenario\.bias\.region.*Putamen_L"):
        sb.synthesise(scenario)
