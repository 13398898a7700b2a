"""Intervals cover the truth as often as they say."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import simba_lab as sb


def test_interval_over_seeds_is_that_of_a_t_test():
    values = [0.2, 0.5, 0.9]
    mean, low, high = sb.core.over_seeds(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(values), expected.low, expected.high))
    with pytest.raises(sb.SimbaError, match="at least 2 networks"):
        sb.core.over_seeds([1.0])


def test_interval_of_a_rank_correlation_covers_the_truth():
    """For normal variables with correlation r, Spearman's is 6 / pi * asin(r / 2)."""
    generator, truth, covered = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.35), 0
    for _ in range(1000):
        first, noise = generator.normal(size=(2, 12))
        value, low, high = sb.core.rank_correlation(first, 0.7 * first + np.sqrt(0.51) * noise)
        assert low <= value <= high
        covered += low <= truth <= high
    assert 0.92 < covered / 1000 < 0.99
    assert sb.core.rank_correlation([1, 2, 3, 4], [2, 3, 5, 9]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3], "as many"),
        ([1] * 4, [1, 2, 3, 4], "the same for all"),
    ],
)
def test_what_cannot_be_ranked_is_refused(first, second, message):
    with pytest.raises(sb.SimbaError, match=message):
        sb.core.rank_correlation(first, second)
