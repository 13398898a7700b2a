"""Verdicts follow the bound, intervals hold for all marks together, bad answers are named."""

import numpy as np
import pytest

import simba_lab as sb
from simba_lab.auditing.answers import Difference, answer_table
from simba_lab.auditing.cautions import cautions_of


def answers(means, count=24, sd=0.1, seed=0):
    """Answers of spread 1, and those that differ by exactly these means and this deviation."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((count, len(means)))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1) * sd
    off = generator.standard_normal(count)
    off = (off - off.mean()) / off.std(ddof=1)
    return off, off[:, None] + means + noise


def table(off, on, **options):
    marks = [f"m{number}" for number in range(on.shape[1])]
    return answer_table(off, on, 1.0, marks=marks, **options)


def test_verdicts_need_the_whole_interval_beyond_or_within_the_bound():
    off, on = answers([0.7, -0.7, 0.3, -0.3, 0.5, 0.45])
    rows = table(off, on)
    used, free, unknown = ["used"] * 2, ["not used"] * 2, ["cannot tell"] * 2
    assert rows["verdict"].tolist() == used + free + unknown
    assert (rows["needs"] != "").tolist() == [False] * 4 + [True] * 2
    assert table(off, on, bound=0.2).loc["m2", "verdict"] == "used"


def test_an_interval_without_zero_is_not_yet_a_use():
    row = table(*answers([0.2])).iloc[0]
    assert row["effect_low"] > 0 and row["verdict"] == "not used"


@pytest.mark.parametrize("edge, verdict", [(1e-6, "used"), (-1e-6, "cannot tell")])
def test_the_verdict_turns_where_the_end_meets_the_bound(edge, verdict):
    off, on = answers([1.0], sd=0.3)
    low = table(off, on).iloc[0]["effect_low"]
    assert table(off, on, bound=low - edge).iloc[0]["verdict"] == verdict


def test_controls_are_subtracted_and_their_spread_widens_the_interval():
    off, on = answers([1.0])
    row = table(off, on, controls=[(off * 3, off[:, None] * 3 + 3)]).iloc[0]
    np.testing.assert_allclose([row["control"], row["excess"]], [1, 0], atol=1e-9)
    assert row["verdict"] == "not used" and row["effect"] > 0.99
    pairs = [(off, off[:, None] + shift) for shift in (-0.2, 0.0, 0.2, 0.01)]
    same = [(off, off[:, None] + shift) for shift in (0.0, 1e-6, 2e-6, 3e-6)]
    several, alike = (table(off, on, controls=c).iloc[0] for c in (pairs, same))
    widths = [row["excess_high"] - row["excess_low"] for row in (several, alike)]
    assert widths[0] > 2 * widths[1]
    assert several["verdict"] == "cannot tell" and "more control networks" in several["needs"]


def test_a_network_that_does_not_move_uses_nothing_however_its_controls_move():
    off, on = answers([0.0])
    row = table(off, on, controls=[(off, off[:, None] + 1.15)]).iloc[0]
    assert row["excess_high"] < -0.5 and row["verdict"] == "not used"
    off, on = answers([0.6], sd=1.0)
    row = table(off, on, controls=[(off, off[:, None] - 3)]).iloc[0]
    assert row["excess_low"] > 0.5 > row["effect_low"] and row["verdict"] == "cannot tell"
    off, on = answers([1.0])
    row = table(off, on, controls=[(off, off[:, None] + 3)]).iloc[0]
    assert row["excess_high"] < -0.5 and row["verdict"] == "cannot tell"


def test_a_network_is_no_control_of_itself_and_no_control_counts_twice():
    off, on = answers([1.0])
    for controls in ([(off, on)], [(off, on + 1), (off.copy(), on + 1)]):
        with pytest.raises(sb.SimbaError, match="two networks with the same answers"):
            table(off, on, controls=controls)


def test_decisions_that_change_both_ways_are_a_caution():
    off, _ = answers([0.0], count=400)
    turned = cautions_of(table(off, -off[:, None]), 2)
    assert len(turned) == 1 and "100 % of the decisions change" in turned[0]
    assert not cautions_of(table(off, off[:, None] + 0.1), 2)


def test_a_network_of_the_same_population_as_its_controls_is_rarely_accused():
    """Effects of networks are drawn from one normal distribution; the judged one is one of them."""
    generator, used = np.random.default_rng(0), 0
    for seed in range(400):
        effects = 1 + 0.4 * generator.standard_normal(5)
        pairs = [answers([effect], seed=seed) for effect in effects]
        row = table(*pairs[0], controls=pairs[1:], bound=0.01).iloc[0]
        used += row["verdict"] == "used"
    assert used / 400 < 0.07


DRAWS = {
    "normal": lambda generator, size: generator.standard_normal(size),
    "skewed": lambda generator, size: generator.gamma(4, size=size) - 4,
}


@pytest.mark.parametrize("count", [16, 48])
@pytest.mark.parametrize("name", DRAWS)
def test_intervals_hold_for_eight_marks_together(name, count):
    generator, trials = np.random.default_rng(1), 400
    held = 0
    for _ in range(trials):
        values = DRAWS[name](generator, (8, count))
        ends = [Difference(row, 0.05 / 8).ends for row in values]
        held += all(low < 0 < high for low, high in ends)
    error = np.sqrt(0.95 * 0.05 / trials)
    assert held / trials > 0.95 - 2.5 * error


def test_the_smallest_effect_is_shown_in_four_of_five_samples():
    generator, bound = np.random.default_rng(2), 0.5
    shown = []
    for _ in range(300):
        noise = generator.standard_normal(24)
        centred = noise / noise.std(ddof=1)
        smallest = Difference(centred - centred.mean(), 0.05).smallest(bound)
        shown.append(Difference(generator.standard_normal(24) + smallest, 0.05).verdict(bound))
    assert 0.72 < np.mean(np.array(shown) == "used") < 0.95


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda off, on: (off[:15], on[:15]), "15 scans"),
        (lambda off, on: (np.where(off > 0, np.nan, off), on), "not finite"),
        (lambda off, on: (off, on[:-1]), "shapes"),
    ],
)
def test_bad_answers_get_one_error(spoil, message):
    with pytest.raises(sb.SimbaError, match=message):
        table(*spoil(*answers([0.0])))
