import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segdistill.comparison.statistics import (
    Interval,
    gap_closed,
    holm,
    mean_and_deviation,
    paired_interval,
    paired_power,
    seeds_needed,
    sign_flip_p,
    t_coverage,
    t_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 29, 30, 200])
def test_students_t_is_scipys(freedom):
    for t in (0.0, 0.1, 1.0, 2.5, 40.0):
        assert t_coverage(t, freedom) == pytest.approx(2 * stats.t.cdf(t, freedom) - 1, abs=1e-12)
    for confidence in (0.05, 0.5, 0.9, 0.95, 0.99, 0.999):
        assert t_quantile(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-10)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_paired_intervals_are_scipys(pairs):
    values, baseline = zip(*pairs, strict=True)
    mine = paired_interval(values, baseline, 0.9)
    differences = np.subtract(values, baseline)
    error = stats.sem(differences)
    assert mine.difference == pytest.approx(differences.mean(), abs=1e-12)
    if error > 1e-9:
        low, high = stats.t.interval(0.9, len(values) - 1, loc=differences.mean(), scale=error)
        assert (mine.low, mine.high) == (
            pytest.approx(low, rel=1e-6, abs=1e-9),
            pytest.approx(high, rel=1e-6, abs=1e-9),
        )


def test_a_single_pair_has_no_interval():
    interval = paired_interval([0.5], [0.25])
    assert interval == Interval(0.25)
    assert interval.p is None
    assert interval.within_noise is None
    assert mean_and_deviation([0.5]) == (0.5, None)


def test_noise_is_what_holds_zero():
    assert Interval(0.1, -0.1, 0.3).within_noise
    assert not Interval(0.2, 0.1, 0.3).within_noise
    assert not Interval(-0.2, -0.3, -0.1).within_noise


def test_no_p_is_below_zero():
    assert all(0 <= 1 - t_coverage(10 ** (k / 8), freedom) <= 1 for k in range(-8, 80) for freedom in range(1, 60))


def test_a_difference_without_spread_is_certain():
    assert paired_interval([0.5, 0.5], [0.25, 0.25]) == Interval(0.25, 0.25, 0.25, 0.0)
    assert paired_interval([0.5, 0.5], [0.5, 0.5]).p == 1.0


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_p_is_scipys_and_agrees_with_the_interval(differences):
    interval = paired_interval(differences, [0.0] * len(differences))
    if np.std(differences) > 1e-6:
        assert interval.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6, abs=1e-9)
        if abs(interval.p - 0.05) > 1e-6:
            assert interval.within_noise == (interval.p > 0.05)


def test_holm_is_the_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.7, 0.01]) == [1.0, None, 1.0, 0.03]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_nothing_and_bonferroni(values):
    adjusted = holm(values)
    assert all(p <= q <= min(1.0, len(values) * p) + 1e-12 for p, q in zip(values, adjusted, strict=True))
    assert adjusted[values.index(min(values))] == pytest.approx(min(1.0, len(values) * min(values)))


def test_sign_flips_are_counted():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8  # these signs, and all the other way round
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0  # nothing is smaller than 0
    assert sign_flip_p([3.0, 1.0, -1.0]) == 6 / 8  # 3 or 5, but for the two ways to 3 − 1 − 1
    assert sign_flip_p([0.5]) == 1.0


def test_sign_flips_are_scipys():
    differences = [0.3, -0.1, 0.25, 0.4, 0.05, -0.2]
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue)
    many = list(np.random.default_rng(1).normal(0.3, 1, 20))
    drawn = stats.permutation_test((many,), np.mean, permutation_type="samples", n_resamples=50000, rng=0)
    assert sign_flip_p(many) == pytest.approx(drawn.pvalue, abs=0.01)
    assert sign_flip_p(many) == sign_flip_p(many)


@pytest.mark.parametrize("pairs", [2, 3, 5, 10, 40, 200, 1000])
def test_power_is_that_of_scipys_noncentral_t(pairs):
    for effect in (0.0, 0.1, 0.5, 1.0, 3.0):
        for confidence in (0.9, 0.95):
            t, shift = stats.t.ppf((1 + confidence) / 2, pairs - 1), effect * np.sqrt(pairs)
            theirs = stats.nct.sf(t, pairs - 1, shift) + np.nan_to_num(stats.nct.cdf(-t, pairs - 1, shift))
            assert paired_power(pairs, effect, confidence) == pytest.approx(theirs, abs=1e-6)


def test_seeds_that_are_needed_are_those_of_tables():
    # Cohen's d = 1, 0.8, 0.5, 0.2: 10, 15, 34, 199 pairs at 5 % two-sided and a power of 80 % (G*Power 3.1, paired t).
    assert [seeds_needed(0.01 / d) for d in (1, 0.8, 0.5, 0.2)] == [10, 15, 34, 199]
    assert paired_power(10, 1.0) >= 0.8 > paired_power(9, 1.0)
    assert seeds_needed(0.0) == 2
    assert seeds_needed(0.01, effect=0.1) == 3
    assert seeds_needed(0.01, 0.99) > seeds_needed(0.01, 0.95)
    assert seeds_needed(10.0) is None


def test_share_of_the_gap():
    assert gap_closed(0.5, 0.25, 0.75) == 0.5
    assert gap_closed(1.0, 0.25, 0.75) > 1
    assert gap_closed(0.0, 0.25, 0.75) < 0
    assert gap_closed(0.5, 0.75, 0.75) is None


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="as many values as baselines, got 2 and 1"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="as many values"):
        paired_interval([], [])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        t_quantile(95, 3)
    with pytest.raises(ValueError, match="at least 1 degree of freedom"):
        t_quantile(0.95, 0)
