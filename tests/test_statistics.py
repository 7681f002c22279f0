import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segdistill.comparison.statistics import (
    Interval,
    bootstrap_interval,
    gap_closed,
    mean_and_deviation,
    mean_iou,
    paired_interval,
    t_coverage,
    t_quantile,
)
from segdistill.functional import IGNORE
from segdistill.metrics import confusion_matrix, image_counts, scores


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
    assert interval.within_noise is None
    assert mean_and_deviation([0.5]) == (0.5, None)


def test_noise_is_what_holds_zero():
    assert Interval(0.1, -0.1, 0.3).within_noise
    assert not Interval(0.2, 0.1, 0.3).within_noise
    assert not Interval(-0.2, -0.3, -0.1).within_noise


def images(seeds, count, classes=4, right=0.7):
    generator = torch.Generator().manual_seed(count)
    counts = torch.zeros(seeds, count, 3, classes, dtype=torch.long)
    for s in range(seeds):
        for n in range(count):
            target = torch.randint(classes - 1, (6, 7), generator=generator)  # the last class is nowhere
            guess = torch.randint(classes - 1, (6, 7), generator=generator)
            prediction = torch.where(torch.rand(6, 7, generator=generator) < right, target, guess)
            target[0, 0] = IGNORE
            counts[s, n] = image_counts(prediction, target, classes)
    return counts


def test_counts_of_images_add_up_to_the_confusion_matrix():
    counter, summed = confusion_matrix(4), torch.zeros(3, 4, dtype=torch.long)
    for _ in range(3):
        prediction, target = torch.randint(4, (5, 6)), torch.randint(4, (5, 6))
        target[0] = IGNORE
        counter.update(prediction[None], target[None])
        summed += image_counts(prediction, target, 4)
    confusion = counter.confmat
    torch.testing.assert_close(summed, torch.stack([confusion.diag(), confusion.sum(1), confusion.sum(0)]))
    assert mean_iou(summed).item() == pytest.approx(scores(confusion, list("abcd"))["miou"])


def test_the_bootstrap_is_that_of_naive_loops():
    counts, baseline = images(2, 5, right=0.8), images(2, 5, right=0.4)
    mine = bootstrap_interval(counts, baseline, 0.8, resamples=200, seed=3)
    drawn = torch.randint(5, (200, 5), generator=torch.Generator().manual_seed(3))
    differences = []
    for row in drawn:
        per_seed = [
            float(mean_iou(sum(counts[s, i] for i in row)) - mean_iou(sum(baseline[s, i] for i in row))) for s in (0, 1)
        ]
        differences.append(np.mean(per_seed))
    np.testing.assert_allclose((mine.low, mine.high), np.quantile(differences, (0.1, 0.9)), rtol=1e-9)
    whole = [float(mean_iou(counts[s].sum(0)) - mean_iou(baseline[s].sum(0))) for s in (0, 1)]
    assert mine.difference == pytest.approx(np.mean(whole))


def test_absent_classes_may_count_as_zero():
    counts = torch.tensor([[3, 4, 0], [4, 4, 0], [3, 5, 0]])
    assert mean_iou(counts, "zero").item() == pytest.approx((0.75 + 0.8 + 0) / 3)
    mine, its = (torch.tensor([[[[n, 0], [4, 0], [4, 0]]]]) for n in (4, 2))
    skip, zero = (bootstrap_interval(mine, its, absent=absent).difference for absent in ("skip", "zero"))
    assert (skip, zero) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_the_bootstrap_is_close_to_scipys():
    counts, baseline = images(1, 40, right=0.8), images(1, 40, right=0.75)

    def difference(chosen):
        return float(mean_iou(counts[0, chosen].sum(0)) - mean_iou(baseline[0, chosen].sum(0)))

    theirs = stats.bootstrap(
        (np.arange(40),), difference, vectorized=False, n_resamples=1000, method="percentile", random_state=0
    ).confidence_interval
    mine = bootstrap_interval(counts, baseline)
    width = theirs.high - theirs.low
    assert mine.low == pytest.approx(theirs.low, abs=0.12 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.12 * width)


def test_the_same_predictions_differ_by_nothing():
    counts = images(2, 4)
    assert bootstrap_interval(counts, counts) == Interval(0.0, 0.0, 0.0)


def test_images_without_labels_do_not_count():
    counts, baseline = images(2, 4, right=0.8), images(2, 4, right=0.4)
    nothing = torch.zeros(2, 3, 3, counts.shape[-1], dtype=torch.long)
    padded = (torch.cat([side, nothing], 1) for side in (counts, baseline))
    assert bootstrap_interval(*padded) == bootstrap_interval(counts, baseline)


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
    with pytest.raises(ValueError, match=r"expected twice \(S,N,3,C\)"):
        bootstrap_interval(images(1, 4), images(2, 4))
