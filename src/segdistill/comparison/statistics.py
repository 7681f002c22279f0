"""What a handful of runs says: spread, paired differences with intervals, bootstrap over images. Pure functions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from segdistill.metrics import class_iou


@dataclass(frozen=True)
class Interval:
    """A difference and the range that it may well lie in.

    Args:
        difference: the estimate.
        low: end of the interval; None where there are too few values for one.
        high: the other end.
    """

    difference: float
    low: float | None = None
    high: float | None = None

    @property
    def within_noise(self) -> bool | None:
        """Whether the interval contains 0; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high

    def as_dict(self) -> dict[str, float | bool | None]:
        """The interval for JSON."""
        return {**asdict(self), "within_noise": self.within_noise}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1); no deviation of a single value.

    Args:
        values: at least one.

    >>> mean_and_deviation([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def t_coverage(t: float, freedom: int) -> float:
    """Probability that a variable of Student's t distribution lies in −t … t.

    For whole degrees of freedom this is a finite sum, so it needs no incomplete beta function.

    Args:
        t: not negative.
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: on fewer than one degree of freedom.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    >>> round(t_coverage(1.0, 1), 12)
    0.5
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, got {freedom}")
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(confidence: float, freedom: int) -> float:
    """The t for which −t … t holds a share `confidence` of Student's t distribution.

    Args:
        confidence: in (0, 1).
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: if one of them is out of its range.

    >>> round(t_quantile(0.95, 2), 4)
    4.3027
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    low, high = 0.0, 1.0
    while t_coverage(high, freedom) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_coverage(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def paired_interval(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of the differences of pairs, with Student's confidence interval.

    Runs of one seed share their first weights, images and augmentation, so that pairs differ by the method alone.

    Args:
        values: one per seed.
        baseline: of the same seeds.
        confidence: of the interval.

    Raises:
        ValueError: if there are no pairs, or the two are not of one length.

    >>> paired_interval([3.0, 5.0], [1.0, 2.0]).difference
    2.5
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"pairs: expected as many values as baselines, got {len(values)} and {len(baseline)}")
    mean, deviation = mean_and_deviation([a - b for a, b in zip(values, baseline, strict=True)])
    if deviation is None:
        return Interval(mean)
    half = t_quantile(confidence, len(values) - 1) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def mean_iou(counts: Tensor, absent: Literal["skip", "zero"] = "skip") -> Tensor:
    """Mean IoU of summed counts.

    Args:
        counts: (…,3,C), as `image_counts` gives them, summed over images.
        absent: whether classes that are neither in the truth nor in the prediction leave the mean or count as 0.

    Returns:
        (…) float64.

    >>> mean_iou(torch.tensor([[3, 4, 0], [4, 4, 0], [3, 5, 0]])).item()
    0.775
    """
    iou = class_iou(counts)
    return iou.nanmean(-1) if absent == "skip" else iou.nan_to_num(0).mean(-1)


def bootstrap_interval(
    counts: Tensor,
    baseline: Tensor,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
    absent: Literal["skip", "zero"] = "skip",
) -> Interval:
    """Difference in mean IoU, with a percentile interval over resampled images.

    The same images are drawn for both sides and for all seeds; the difference is the mean over the seeds. It says how
    much hangs on the choice of these images, not on that of the seeds; images that resemble each other, such as frames
    of one video, make it too narrow.

    Args:
        counts: (S,N,3,C), of S seeds on N images, as `image_counts` gives them; images without labels do not count.
        baseline: of the same seeds and images.
        confidence: of the interval.
        resamples: how often N images are drawn.
        seed: of the draws.
        absent: as for `mean_iou`.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if counts.shape != baseline.shape or counts.dim() != 4:
        raise ValueError(f"counts: expected twice (S,N,3,C), got {tuple(counts.shape)} and {tuple(baseline.shape)}")
    labelled = (counts[:, :, 1] + baseline[:, :, 1]).sum((0, 2)) > 0  # a draw of nothing but others has no mean IoU
    counts, baseline = counts[:, labelled], baseline[:, labelled]
    images = counts.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(images, (resamples, images), generator=generator)
    times = torch.zeros(resamples, images, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))

    def per_resample(side: Tensor) -> Tensor:
        summed = torch.einsum("bn,snkc->sbkc", times, side.double())
        return mean_iou(summed, absent).mean(0)

    tail = (1 - confidence) / 2
    differences = per_resample(counts) - per_resample(baseline)
    low, high = differences.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    estimate = (mean_iou(counts.sum(1), absent) - mean_iou(baseline.sum(1), absent)).mean().item()
    return Interval(estimate, low, high)


def gap_closed(value: float, baseline: float, teacher: float) -> float | None:
    """Share of the way from the baseline to the teacher; None where the teacher is not better than the baseline.

    Args:
        value: of the method.
        baseline: of the same student alone.
        teacher: its teacher's.

    >>> gap_closed(0.5, 0.25, 0.75)
    0.5
    """
    gap = teacher - baseline
    return (value - baseline) / gap if gap > 0 else None
