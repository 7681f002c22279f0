"""Images, and whole sequences of them, drawn again and again."""

import numpy as np
import pytest
import torch
from scipy import stats

from segdistill.comparison.bootstrap import Resampling, mean_iou, resampled_interval
from segdistill.comparison.statistics import Interval
from segdistill.functional import IGNORE
from segdistill.metrics import confusion_matrix, image_counts, scores


def bootstrap(counts, baseline, confidence=0.95, *, absent="skip", **how):
    """The interval of two sides (S,N,3,C), as a comparison takes it: run by run."""
    draws = Resampling(counts[0], **how)
    values, base = (torch.stack([draws.mious(run, absent) for run in side]) for side in (counts, baseline))
    return resampled_interval(values, base, confidence)


def images(seeds, count, classes=4, right=0.7):
    generator, truth = (torch.Generator().manual_seed(count) for _ in range(2))
    counts = torch.zeros(seeds, count, 3, classes, dtype=torch.long)
    targets = torch.randint(classes - 1, (count, 6, 7), generator=truth)  # the last class is nowhere
    for s in range(seeds):
        for n in range(count):
            target = targets[n].clone()
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
    assert torch.equal(counts[0, :, 1], baseline[1, :, 1])
    mine = bootstrap(counts, baseline, 0.8, resamples=200, seed=3)
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


@pytest.mark.parametrize("own", [None, ["a", "a", "b"]])
def test_images_without_any_label_are_one_line(own):
    with pytest.raises(ValueError, match="none of the 3 images has labels, so that nothing can be compared on them"):
        Resampling(torch.zeros(3, 3, 4, dtype=torch.long), own)


def test_absent_classes_may_count_as_zero():
    counts = torch.tensor([[3, 4, 0], [4, 4, 0], [3, 5, 0]])
    assert mean_iou(counts, "zero").item() == pytest.approx((0.75 + 0.8 + 0) / 3)
    mine, its = (torch.tensor([[[[n, 0], [4, 0], [4, 0]]]]) for n in (4, 2))
    skip, zero = (bootstrap(mine, its, absent=absent, resamples=100).difference for absent in ("skip", "zero"))
    assert (skip, zero) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_the_bootstrap_is_close_to_scipys():
    counts, baseline = images(1, 40, right=0.8), images(1, 40, right=0.75)

    def difference(chosen):
        return float(mean_iou(counts[0, chosen].sum(0)) - mean_iou(baseline[0, chosen].sum(0)))

    theirs = stats.bootstrap(
        (np.arange(40),), difference, vectorized=False, n_resamples=1000, method="percentile", random_state=0
    ).confidence_interval
    mine = bootstrap(counts, baseline)
    width = theirs.high - theirs.low
    assert mine.low == pytest.approx(theirs.low, abs=0.12 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.12 * width)


def test_the_same_predictions_differ_by_nothing():
    counts = images(2, 4)
    assert bootstrap(counts, counts) == Interval(0.0, 0.0, 0.0, 1.0)


def test_images_without_labels_do_not_count():
    counts, baseline = images(2, 4, right=0.8), images(2, 4, right=0.4)
    nothing = torch.zeros(2, 3, 3, counts.shape[-1], dtype=torch.long)
    padded = (torch.cat([side, nothing], 1) for side in (counts, baseline))
    assert bootstrap(*padded) == bootstrap(counts, baseline)


def test_whole_sequences_are_drawn_as_in_naive_loops():
    counts, baseline = images(2, 7, right=0.8), images(2, 7, right=0.5)
    own = list("aabbbca")
    mine = bootstrap(counts, baseline, 0.8, sequences=own, resamples=150, seed=4)
    drawn = torch.randint(3, (150, 3), generator=torch.Generator().manual_seed(4))
    differences = []
    for row in drawn:
        chosen = [n for sequence in row for n in range(7) if own[n] == "abc"[sequence]]
        sums = [[sum(side[s, n] for n in chosen) for s in (0, 1)] for side in (counts, baseline)]
        differences.append(np.mean([float(mean_iou(sums[0][s]) - mean_iou(sums[1][s])) for s in (0, 1)]))
    np.testing.assert_allclose((mine.low, mine.high), np.quantile(differences, (0.1, 0.9)), rtol=1e-9)
    least = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert mine.p == min(1.0, 2 * (1 + least) / 151)
    assert mine.difference == bootstrap(counts, baseline).difference  # the images as they are


def test_sequences_are_counted_without_those_that_have_no_labels():
    counts = images(1, 4)[0]
    counts[3] = 0
    assert Resampling(counts).sequences is None
    assert Resampling(counts, ["a", "b", "a", "c"]).sequences == 2


def test_frames_that_resemble_each_other_make_images_too_sure():
    generator = torch.Generator().manual_seed(0)
    truth = torch.full((6, 10, 2), 100)
    hits = (60 + 20 * torch.randn(6, 1, 2, generator=generator)).round().long().expand(6, 10, 2)  # alike in a sequence
    counts, other = (torch.stack([h, truth, truth], 2).flatten(0, 1)[None] for h in (hits, torch.full_like(hits, 60)))
    names = [f"s{n // 10}" for n in range(60)]
    frames, wholes = (bootstrap(counts, other, sequences=own) for own in (None, names))
    assert wholes.high - wholes.low > 2 * (frames.high - frames.low)


def test_p_of_certain_and_of_no_differences():
    assert bootstrap(images(1, 30, right=0.95), images(1, 30, right=0.2), resamples=100).p == pytest.approx(2 / 101)
    counts = images(1, 30)
    assert bootstrap(counts, counts, resamples=100).p == 1.0


def test_other_images_are_refused():
    draws = Resampling(images(1, 4)[0])
    with pytest.raises(ValueError, match=r"evaluated on other images \(5\) than the runs before it \(4\)"):
        draws.mious(images(1, 5)[0])
    changed = images(1, 4)[0]
    changed[0, 1, 0] += 1
    with pytest.raises(ValueError, match="evaluated on other images"):
        draws.mious(changed)
