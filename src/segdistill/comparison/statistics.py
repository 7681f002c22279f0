"""What a handful of runs says: spread, paired differences, Holm's correction, the seeds it takes. Pure functions."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

EFFECT = 0.01
"""The difference in mIoU that a comparison should be able to see: one point."""

POWER = 0.8
"""Probability with which it should."""

MOST_SEEDS = 1000
"""Beyond these, their number is not worked out."""

ALL_FLIPS = 16
"""Most pairs of which every combination of signs is tried."""


@dataclass(frozen=True)
class Interval:
    """A difference and the range that it may well lie in.

    Args:
        difference: the estimate.
        low: end of the interval; None where there are too few values for one.
        high: the other end.
        p: probability of a difference at least so large, in either direction, where there is none; None likewise.
    """

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

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
    return min(1.0, 2 / math.pi * (angle + sine * total) if odd else sine * total)  # rounding may lead beyond


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
    """Mean of the differences of pairs, with Student's confidence interval and the p of Student's test.

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
    error, freedom = deviation / math.sqrt(len(values)), len(values) - 1
    half = t_quantile(confidence, freedom) * error
    p = 1 - t_coverage(abs(mean) / error, freedom) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half, p)


def sign_flip_p(differences: Sequence[float]) -> float:
    """The p of paired differences without any assumption on their distribution: how many signs give as large a mean.

    Where the method changes nothing, each difference might as well have had the other sign. So p is at least 2/2ⁿ.

    Args:
        differences: of n pairs; of more than 16, 65536 combinations of signs are drawn instead of trying all.

    Source:
        Fisher, The Design of Experiments, 1935, section 21.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    values = np.asarray(differences, np.float64)
    count = len(values)
    if count <= ALL_FLIPS:
        flips = np.arange(2**count)[:, None] >> np.arange(count) & 1
    else:
        flips = np.random.default_rng(0).integers(2, size=(2**ALL_FLIPS, count))
        flips[0] = 0  # the signs as they are
    sums = np.abs((1 - 2 * flips) @ values)
    return float((sums >= abs(values.sum()) - 1e-12 * np.abs(values).sum()).mean())  # same numbers, other rounding


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values: below α, with a probability of at most α, if any of the hypotheses that hold.

    Args:
        values: p of each comparison; None: there is none, and it does not count.

    Source:
        Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    ranked = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(ranked):
        adjusted[place] = largest = max(largest, min(1.0, (len(ranked) - rank) * p))
    return adjusted


def paired_power(pairs: int, effect: float, confidence: float = 0.95) -> float:
    """Probability that the t test of paired differences finds an effect, in either direction.

    Args:
        pairs: how many, at least 2.
        effect: the true mean of the differences over their true deviation.
        confidence: of the test.

    Source:
        Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2. The noncentral t distribution is
        integrated over the deviation that is found: given it, the mean is normal.
    """
    freedom, shift = pairs - 1, effect * math.sqrt(pairs)
    t = t_quantile(confidence, freedom)
    scale = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)
    low, high = (max(0.0, 1 + side * 12 / math.sqrt(2 * freedom)) for side in (-1, 1))
    intervals = 800
    total = 0.0
    for k in range(intervals + 1):
        found = low + (high - low) * k / intervals
        if found == 0:
            density = math.exp(scale) if freedom == 1 else 0.0
        else:
            density = math.exp(scale + (freedom - 1) * math.log(found) - freedom * found**2 / 2)
        tails = math.erfc((t * found - shift) / math.sqrt(2)) + math.erfc((t * found + shift) / math.sqrt(2))
        total += (1 if k in (0, intervals) else 4 if k % 2 else 2) * density * tails / 2  # Simpson's rule
    return min(1.0, total * (high - low) / intervals / 3)


def seeds_needed(deviation: float, confidence: float = 0.95, *, effect: float = EFFECT) -> int | None:
    """How many seeds it takes to find an effect with a probability of 80 %; None if it is more than 1000.

    Args:
        deviation: of the paired differences.
        confidence: of the test.
        effect: the difference that is to be found.

    >>> seeds_needed(0.01), seeds_needed(0.005)
    (10, 5)
    """
    if deviation <= 0:
        return 2

    def finds(pairs: int) -> bool:
        return paired_power(pairs, effect / deviation, confidence) >= POWER

    low, high = 1, 2
    while not finds(high):
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


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
