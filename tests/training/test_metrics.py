from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn

import simba_lab as sb
from simba_lab.core.intervals import delong, paired_share
from simba_lab.training.disparities import BOUND
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.groups import groups_of

Z = norm.ppf(0.975)
RATES = ["tpr", "fpr", "accuracy", "auroc"]


class Brightness(nn.Module):
    """A planted network: its logit is linear in the mean intensity of given voxels."""

    def __init__(self, mask, weight=50.0, offset=0.0):
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)))
        self.weight, self.offset = weight, offset

    def forward(self, x):
        return self.weight * ((x[:, 0] * self.mask).sum((1, 2, 3)) / self.mask.sum() - self.offset)


class Constant(nn.Module):
    """A planted network that says the same of everybody."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((len(x), 1), self.value)


def people(cohort, **columns):
    """Return a cohort that is nothing but a table: enough for logits that are given."""
    return replace(cohort, table=pd.DataFrame(columns))


def cells(cohort, counts, *, times=1):
    """Return subjects and logits, given (diseased, group, subjects, subjects called diseased)."""
    label, bias, scores = [], [], []
    for diseased, group, count, called in counts:
        label += [diseased] * count * times
        bias += [group] * count * times
        scores += ([1.0] * called + [-1.0] * (count - called)) * times
    return people(cohort, label=np.array(label), bias=np.array(bias)), np.array(scores)


HAND = [(1, 0, 10, 7), (0, 0, 10, 2), (1, 1, 8, 4), (0, 1, 6, 3)]


def test_rates_of_given_logits_are_counted_by_hand(cohort):
    subjects, scores = cells(cohort, HAND)
    table = sb.evaluate(scores, subjects)
    expected = {
        "n": [34, 20, 14],
        "tpr": [11 / 18, 0.7, 0.5],
        "fpr": [5 / 16, 0.2, 0.5],
        "accuracy": [22 / 34, 15 / 20, 7 / 14],
        "balanced_accuracy": [(11 / 18 + 11 / 16) / 2, (0.7 + 0.8) / 2, 0.5],
        "auroc": [(11 / 18 + 11 / 16) / 2, 0.75, 0.5],  # of two answers it is the balanced accuracy
    }
    assert table.index.tolist() == ["all", "NB", "B"]
    for column, values in expected.items():
        assert table[column].tolist() == pytest.approx(values), column
    all_diseased = sb.evaluate(scores, subjects, threshold=-2)
    assert (all_diseased[["tpr", "fpr"]] == 1).all(axis=None)
    assert all_diseased["accuracy"].tolist() == pytest.approx([18 / 34, 10 / 20, 8 / 14])


def test_intervals_of_rates_are_those_of_wilson(cohort):
    subjects, scores = cells(cohort, HAND)
    table = sb.evaluate(scores, subjects)
    trials = {"accuracy": [34, 20, 14], "tpr": [18, 10, 8], "fpr": [16, 10, 6]}
    for rate, n in trials.items():
        p, n = table[rate].to_numpy(), np.array(n)
        middle, half = (
            (p + Z**2 / (2 * n)) / (1 + Z**2 / n),
            Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n),
        )
        np.testing.assert_allclose(table[f"{rate}_low"], middle - half, atol=1e-9)
        np.testing.assert_allclose(table[f"{rate}_high"], middle + half, atol=1e-9)


def test_brier_score_is_the_mean_squared_error_of_the_probability(cohort):
    scores = np.random.default_rng(0).normal(cohort["label"], 1)
    squares = (expit(scores) - cohort["label"]) ** 2
    table = sb.evaluate(scores, cohort)
    expected = [
        squares.mean(),
        squares[cohort["bias"] == 0].mean(),
        squares[cohort["bias"] == 1].mean(),
    ]
    assert table["brier"].tolist() == pytest.approx(expected)


def graded(cohort):
    """Return 20 subjects at each of ten probabilities, which hold exactly, and their logits."""
    probability = np.repeat(np.arange(1, 20, 2) / 20, 20)
    label = np.concatenate([np.arange(20) < 20 * share for share in probability[::20]]).astype(int)
    return people(cohort, label=label, bias=np.tile([0, 1], 100)), logit(probability)


def test_calibration_error_is_nothing_for_true_probabilities_and_large_for_overconfident_ones(
    cohort,
):
    subjects, scores = graded(cohort)
    true = np.arange(1, 20, 2) / 20
    overconfident = sb.evaluate(5 * scores, subjects, by=None).loc["all", "calibration_error"]
    assert overconfident == pytest.approx(np.abs(expit(5 * logit(true)) - true).mean())
    assert overconfident > 0.15
    assert sb.evaluate(scores, subjects, by=None).loc["all", "calibration_error"] < 1e-9


def test_calibration_error_does_not_depend_on_the_order_of_subjects(cohort):
    """The base rate for all subjects is perfectly calibrated, however ties are sorted."""
    label = np.repeat([0, 1], 50)
    assert (
        sb.evaluate(np.full(100, 2.0), people(cohort, label=label), by=None).loc[
            "all", "calibration_error"
        ]
        > 0.3
    )
    for order in (np.arange(100), np.argsort(np.arange(100) % 50, kind="stable")):
        subjects = people(cohort, label=label[order])
        assert sb.evaluate(np.zeros(100), subjects, by=None).loc["all", "calibration_error"] < 1e-9


def test_calibration_table_adds_up(cohort):
    scores = np.random.default_rng(1).normal(cohort["label"], 1)
    table = sb.training.calibration(scores, cohort, bins=4)
    assert table.index.names == ["group", "bin"]
    for name, group in (("NB", 0), ("B", 1)):
        members, rows = cohort["bias"] == group, table.loc[name]
        assert rows["n"].sum() == members.sum() and rows["n"].max() - rows["n"].min() <= 1
        assert rows["predicted"].is_monotonic_increasing
        assert (rows["n"] * rows["predicted"]).sum() == pytest.approx(expit(scores[members]).sum())
        assert (rows["n"] * rows["observed"]).sum() == pytest.approx(cohort["label"][members].sum())
        assert (
            (rows["observed_low"] <= rows["observed"]) & (rows["observed"] <= rows["observed_high"])
        ).all()


def test_auroc_interval_agrees_with_a_bootstrap(cohort):
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], 200)
    scores = rng.normal(label, 1)
    row = sb.evaluate(scores, people(cohort, label=label), by=None).loc["all"]
    assert row["auroc"] == pytest.approx(roc_auc_score(label, scores))
    above = scores[200:, None] > scores[:200]
    draws = [
        above[rng.integers(0, 200, 200)][:, rng.integers(0, 200, 200)].mean() for _ in range(1000)
    ]
    assert [row["auroc_low"], row["auroc_high"]] == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.01
    )


def test_auroc_interval_covers_the_truth_as_often_as_it_says():
    rng, truth, label = np.random.default_rng(3), norm.cdf(1 / np.sqrt(2)), np.repeat([0, 1], 60)
    samples = [rng.normal(label, 1) for _ in range(400)]
    ends = np.array([delong(label, scores)[1:] for scores in samples])
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    # Three standard errors of a share of 400.
    assert covered == pytest.approx(0.95, abs=0.033)


@pytest.mark.parametrize("count", [79, 81])
def test_logits_of_another_number_of_subjects_are_refused(cohort, count):
    wrong = np.zeros(count)
    for ask in (
        lambda: sb.evaluate(wrong, cohort),
        lambda: sb.training.calibration(wrong, cohort),
        lambda: sb.disparity(wrong, cohort),
        lambda: sb.disparity(np.zeros(80), cohort, control=wrong),
    ):
        with pytest.raises(sb.SimbaError, match=r"logits must be of shape \(80,\)"):
            ask()


@pytest.fixture(scope="module")
def crossed(scenario):
    """Two biases whose groups are independent of each other within each class."""
    bias = {
        "near": sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
        "scanner": sb.Intensity("contrast", 0.2, prevalence={"disease": 0.6, "control": 0.3}),
    }
    return sb.synthesise(scenario.replace(bias=bias, membership="independent"), seed=0)


def test_intersections_of_two_biases_are_four_groups_that_add_up(crossed):
    scores = np.random.default_rng(4).normal(crossed["label"], 1)
    table = sb.evaluate(scores, crossed, by=["near", "scanner"])
    corners = {
        f"near {('NB', 'B')[near]}, scanner {('NB', 'B')[scanner]}": (crossed["near"] == near)
        & (crossed["scanner"] == scanner)
        for near in (0, 1)
        for scanner in (0, 1)
    }
    assert table.index.tolist() == ["all", *corners]
    assert table["n"].tolist() == [80, *(members.sum() for members in corners.values())]
    for name, members in corners.items():
        assert table.loc[name, "accuracy"] == pytest.approx(
            ((scores > 0) == crossed["label"])[members].mean()
        )
        calibrated = sb.training.calibration(scores, crossed, by=["near", "scanner"], bins=2)
        assert calibrated.loc[name, "n"].sum() == members.sum()


def test_groups_that_cannot_be_compared_are_refused_by_name(crossed):
    incomplete = crossed.where((crossed["near"] == 0) | (crossed["scanner"] == 0))
    with pytest.raises(sb.SimbaError, match="no members of group 'near B, scanner B'"):
        sb.evaluate(np.zeros(len(incomplete)), incomplete, by=["near", "scanner"])
    bias_group = crossed.where(crossed["near"] == 1)
    with pytest.raises(sb.SimbaError, match="no members of group 'NB'"):
        sb.evaluate(np.zeros(len(bias_group)), bias_group, by="near")
    for by, message in (
        ([], "by must be"),
        ("scaner", "Did you mean scanner"),
        (["near", "scaner"], "Did you mean scanner"),
    ):
        with pytest.raises(sb.SimbaError, match=message):
            sb.evaluate(np.zeros(80), crossed, by=by)
    for by, message in ((["near", "scanner"], "a text"), ("split", "of two groups")):
        with pytest.raises(sb.SimbaError, match=message):
            sb.disparity(np.zeros(80), crossed, by=by)


def test_equal_networks_have_no_excess_disparity(cohort):
    rng = np.random.default_rng(5)
    scores, control_scores = rng.normal(cohort["bias"], 1), rng.normal(size=80)
    different = sb.disparity(scores, cohort, control=control_scores)
    np.testing.assert_allclose(different["excess"], different["difference"] - different["control"])
    assert different.loc["auroc", "control"] == pytest.approx(
        sb.disparity(control_scores, cohort).loc["auroc", "difference"]
    )
    assert (different["excess"] != 0).any() and not different["excess_equivalent"].any()
    equal = sb.disparity(scores, cohort, control=scores.copy())
    assert (equal[["excess", "excess_low", "excess_high"]] == 0).all(axis=None)
    large, many_scores = cells(
        cohort, [(1, 0, 100, 60), (0, 0, 100, 20), (1, 1, 100, 70), (0, 1, 100, 30)]
    )
    assert sb.disparity(many_scores, large, control=many_scores.copy())["excess_equivalent"].all()


def test_a_planted_gap_is_found_and_is_not_equivalent(cohort):
    subjects, scores = cells(
        cohort, [(1, 0, 200, 120), (0, 0, 300, 60), (1, 1, 300, 270), (0, 1, 200, 80)]
    )
    gaps = sb.disparity(scores, subjects)
    accuracy = (270 + 120) / 500 - (120 + 240) / 500
    assert gaps["difference"].tolist() == pytest.approx(
        [0.3, 0.2, accuracy, (0.9 + 0.6) / 2 - (0.6 + 0.8) / 2], abs=1e-6
    )
    assert (gaps.loc[["tpr", "fpr"], "low"] > 0).all()
    assert not gaps.loc[["tpr", "fpr"], "equivalent"].any()
    assert ((gaps["low"] < gaps["difference"]) & (gaps["difference"] < gaps["high"])).all()


def test_intervals_of_a_gap_are_as_wide_as_two_shares_make_them(cohort):
    subjects, scores = cells(
        cohort, [(1, 0, 200, 120), (0, 0, 300, 60), (1, 1, 300, 270), (0, 1, 200, 80)]
    )
    gaps = sb.disparity(scores, subjects)
    for rate, shares in (("tpr", [(0.6, 200), (0.9, 300)]), ("fpr", [(0.2, 300), (0.4, 200)])):
        half = Z * np.sqrt(sum(p * (1 - p) / n for p, n in shares))
        assert (gaps.loc[rate, "high"] - gaps.loc[rate, "low"]) / 2 == pytest.approx(half, rel=0.1)


def test_equivalence_takes_a_large_sample(cohort):
    counts = [(label, group, 10, 4 + 2 * label) for label in (0, 1) for group in (0, 1)]
    small, large = (
        sb.disparity(scores, subjects)
        for subjects, scores in (cells(cohort, counts, times=n) for n in (1, 200))
    )
    assert large["equivalent"].all() and (large["high"] < BOUND).all()
    assert (
        small["difference"].tolist()
        == large["difference"].tolist()
        == pytest.approx([0, 0, 0, 0], abs=1e-6)
    )
    assert not small["equivalent"].any() and (small["high"] > BOUND).all()
    subjects, scores = cells(cohort, counts)
    assert sb.disparity(scores, subjects, bound=0.9)["equivalent"].all()


def test_auroc_gap_is_the_difference_of_two_aurocs(cohort):
    scores = np.random.default_rng(6).normal(cohort["label"], 1).round(1)  # some are tied
    groups = [cohort["bias"] == group for group in (0, 1)]
    reference_auroc, bias_auroc = (
        roc_auc_score(cohort["label"][members], scores[members]) for members in groups
    )
    assert sb.disparity(scores, cohort).loc["auroc", "difference"] == pytest.approx(
        bias_auroc - reference_auroc, abs=1e-6
    )
    assert abs(bias_auroc - reference_auroc) > 1e-3


@pytest.mark.parametrize("bound", [0, 1, -0.1, 2])
def test_bounds_that_bound_nothing_are_refused(cohort, bound):
    with pytest.raises(sb.SimbaError, match="bound must be above 0 and below 1"):
        sb.disparity(np.zeros(80), cohort, bound=bound)


def test_disparity_of_any_column_with_two_values(cohort):
    scores = np.random.default_rng(7).normal(cohort["bias"], 1)
    table = cohort.table.assign(hand=np.where(cohort["bias"] == 1, "right", "left"))
    pd.testing.assert_frame_equal(
        sb.disparity(scores, replace(cohort, table=table), by="hand"), sb.disparity(scores, cohort)
    )
    with pytest.raises(sb.SimbaError, match=r"cohort\['split'\] must be of two groups"):
        sb.disparity(scores, cohort, by="split")


@pytest.fixture(scope="module")
def planted(cohort):
    """Two networks that look at the bias region, strongly and weakly, and give both answers."""
    test = cohort.test
    near = np.any([test.changed(index, "bias") for index in range(len(test))], axis=0)
    offset = np.median(test.arrays()[:, near].mean(axis=1))
    return Brightness(near, offset=offset), Brightness(near, weight=5.0, offset=offset)


def test_excess_of_a_twin_effect_is_the_difference_of_two_twin_effects(cohort, planted):
    test, (strong, weak) = cohort.test, planted
    effect = sb.twin_effect(strong, test, control=weak).loc["bias"]
    assert effect["logit"] == sb.twin_effect(strong, test).loc["bias", "logit"]
    assert effect["control"] == pytest.approx(sb.twin_effect(weak, test).loc["bias", "logit"])
    assert effect["excess"] == pytest.approx(effect["logit"] - effect["control"])
    assert effect["excess_low"] < effect["excess"] < effect["excess_high"]
    assert not effect["excess_low"] <= 0 <= effect["excess_high"]
    itself = sb.twin_effect(strong, test, control=strong).loc[
        "bias", ["excess", "excess_low", "excess_high"]
    ]
    assert (itself == 0).all()


def test_rate_of_a_twin_effect_is_counted_by_hand(cohort, planted):
    test, (strong, _) = cohort.test, planted
    effect = sb.twin_effect(strong, test).loc["bias"]
    on, off = (
        sb.logits(strong, twins)
        for twins in (test.twin(carrying="bias"), test.twin(without="bias"))
    )
    assert effect["rate"] == pytest.approx(((on > 0).sum() - (off > 0).sum()) / len(test))
    assert effect["flips"] == pytest.approx(((on > 0) != (off > 0)).mean()) and effect["flips"] > 0
    for name in ("logit", "rate", "flips"):
        assert effect[f"{name}_low"] <= effect[name] <= effect[f"{name}_high"]
    assert effect["logit_low"] < effect["logit_high"] and effect["n"] == len(test)
    change, magnitude = on - off, test["bias_magnitude"]
    assert effect["per_magnitude"] == pytest.approx(
        np.linalg.lstsq(magnitude[:, None], change)[0][0]
    )


def test_twin_effects_that_cannot_be_had_are_refused(cohort):
    with pytest.raises(sb.SimbaError, match="Did you mean bias"):
        sb.twin_effect(Constant(0.0), cohort.test, effect="biass")
    with pytest.raises(sb.SimbaError, match="at least 2 subjects"):
        sb.twin_effect(Constant(0.0), cohort.where([0]))


ROUTED = GroupRouted([Constant(-1.0), Constant(2.0)], "bias", [0, 1])


def test_each_subject_is_judged_by_the_network_of_the_group_that_it_shows(cohort):
    test, carriers = cohort.test, cohort.test["bias"] == 1
    assert 0 < carriers.sum() < len(test)
    np.testing.assert_array_equal(sb.logits(ROUTED, test), np.where(carriers, 2, -1))
    np.testing.assert_array_equal(
        sb.logits(ROUTED, test.twin(flipped="bias")), np.where(carriers, -1, 2)
    )
    assert (sb.logits(ROUTED, test.twin(carrying="bias")) == 2).all()
    assert (sb.logits(ROUTED, test.twin(without="bias")) == -1).all()
    effect = sb.twin_effect(ROUTED, test).loc["bias"]
    assert (effect["logit"], effect["rate"], effect["flips"]) == (3, 1, 1)


def test_groups_of_bare_volumes_have_to_be_given(cohort):
    volumes = list(cohort.where(range(3)).volumes())
    given = sb.logits(ROUTED, volumes, groups=np.array([1, 0, 1]), batch_size=2)
    assert given.tolist() == [2, -1, 2]
    with pytest.raises(sb.SimbaError, match="bare list of volumes"):
        sb.logits(ROUTED, volumes)


def test_networks_of_groups_may_come_in_any_order(cohort):
    turned = GroupRouted([Constant(2.0), Constant(-1.0)], "bias", [1, 0])
    np.testing.assert_array_equal(sb.logits(turned, cohort.test), sb.logits(ROUTED, cohort.test))


@pytest.mark.parametrize("groups", [[0, 1, 7], [0, -1, 1], [0, 1], [0, 1, 1, 0]])
def test_groups_that_no_network_is_of_are_refused(cohort, groups):
    volumes = list(cohort.where(range(3)).volumes())
    with pytest.raises(sb.SimbaError, match="group"):
        sb.logits(ROUTED, volumes, groups=np.array(groups))


def test_flipped_twins_carry_the_bias_where_their_subjects_do_not(cohort):
    subjects = cohort.where(range(8))
    carriers = subjects["bias"] == 1
    assert 0 < carriers.sum() < len(subjects)
    flipped, carrying, without = (
        subjects.twin(**{switch: "bias"}).arrays() for switch in ("flipped", "carrying", "without")
    )
    assert (flipped != subjects.arrays()).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(flipped[~carriers], carrying[~carriers])
    np.testing.assert_array_equal(flipped[carriers], without[carriers])


def test_carriers_are_who_shows_the_bias(cohort):
    carriers = cohort["bias"] == 1
    np.testing.assert_array_equal(cohort.carriers("bias"), carriers)
    np.testing.assert_array_equal(cohort.twin(flipped="bias").carriers("bias"), ~carriers)
    assert cohort.twin(carrying="bias").carriers("bias").all()
    assert not cohort.twin(without="bias").carriers("bias").any()
    for call in (lambda: cohort.carriers("disease"), lambda: cohort.twin(flipped="disease")):
        with pytest.raises(sb.SimbaError, match="known names"):
            call()


def test_the_unbiased_control_has_equal_prevalence_in_both_classes_and_the_same_splits(cohort):
    assert cohort.table.groupby("label")["bias"].mean().tolist() == pytest.approx([0.2, 0.8])
    control = cohort.unbiased()
    assert (control.table.groupby(["split", "label"])["bias"].mean() == 0.5).all()
    sizes = [subjects.table.groupby(["split", "label"]).size() for subjects in (cohort, control)]
    pd.testing.assert_series_equal(*sizes)
    pd.testing.assert_frame_equal(cohort.test.unbiased().table, control.test.table)
    assert control.test.table.index.equals(cohort.test.table.index)


@pytest.mark.parametrize(
    "rows",
    [np.arange(10), np.arange(79), np.random.default_rng(0).integers(0, 80, 80)],
    ids=["few", "all but one", "drawn with replacement"],
)
def test_arbitrary_subjects_have_no_unbiased_control(cohort, rows):
    with pytest.raises(sb.SimbaError, match="whole, or whole splits"):
        cohort.where(rows).unbiased()


def test_a_rate_of_zero_flips_is_not_known_exactly():
    estimate, low, high = paired_share(0, 0, 240)
    assert estimate == 0 and low == pytest.approx(-high) and 0.01 < high < 0.03
    assert paired_share(240, 0, 240)[2] == 1 > paired_share(240, 0, 240)[1] > 0.97


def test_intervals_of_paired_rates_cover():
    generator, truth = np.random.default_rng(0), 0.05
    covered = 0
    for up, down, _ in generator.multinomial(100, [0.08, 0.03, 0.89], size=400):
        _, low, high = paired_share(up, down, 100)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.995


def test_missing_groups_are_named(cohort):
    table = cohort.table.assign(sex=["F", "n/a", None, "M"] * 20)
    people = replace(cohort, table=table)
    with pytest.raises(sb.SimbaError, match=r"cohort\['sex'\] .*40 of 80 missing"):
        groups_of(people, "sex")
