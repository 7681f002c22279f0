"""Other images of the same kind: a bootstrap over the images of a split, or over whole sequences of them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segdistill.comparison.statistics import Interval
from segdistill.metrics import class_iou

Absent = Literal["skip", "zero"]


def mean_iou(counts: Tensor, absent: Absent = "skip") -> Tensor:
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


class Resampling:
    """Images drawn again and again, with replacement: the same draws for every run that was evaluated on them.

    Frames of one video resemble each other, and an interval that takes them for independent is too narrow. Where their
    sequences are known, whole sequences are drawn.

    Attributes:
        truth: (N,C), pixels of each class in each image.
        sequences: how many there are; None: single images are drawn.

    Args:
        counts: (N,3,C), of any of the runs, as `image_counts` gives them; images without labels do not count.
        sequences: that of each image; None: each image stands for itself.
        resamples: how often as many are drawn as there are.
        seed: of the draws.

    Raises:
        ValueError: if no image has labels.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13. Whole sequences: Davison and Hinkley,
        Bootstrap Methods and their Application, section 3.8.
    """

    def __init__(self, counts: Tensor, sequences: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0):
        self.truth = counts[:, 1]
        labelled = self.truth.sum(1) > 0  # a draw of nothing but others has no mean IoU
        own = [str(n) for n in range(len(counts))] if sequences is None else list(sequences)
        names = dict.fromkeys(name for name, counted in zip(own, labelled.tolist(), strict=True) if counted)
        if not names:
            raise ValueError(f"none of the {len(counts)} images has labels, so that nothing can be compared on them")
        numbers = {name: number for number, name in enumerate(names)}
        self.sequences = None if sequences is None else len(names)
        self._unit = torch.tensor([numbers.get(name, 0) for name in own])
        self._labelled = labelled
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(names), (resamples, len(names)), generator=generator)
        self._times = torch.zeros(resamples, len(names), dtype=torch.float64)
        self._times.scatter_add_(1, drawn, torch.ones_like(self._times))

    def mious(self, counts: Tensor, absent: Absent = "skip") -> Tensor:
        """Mean IoU of a run on the images as they are, then on each draw, (1+resamples) float64.

        Args:
            counts: (N,3,C) of the run.
            absent: as for `mean_iou`.

        Raises:
            ValueError: if the images are not those of the draws.
        """
        if counts[:, 1].shape != self.truth.shape or not torch.equal(counts[:, 1], self.truth):
            raise ValueError(f"evaluated on other images ({len(counts)}) than the runs before it ({len(self.truth)})")
        kept = counts[self._labelled].flatten(1).double()
        units = torch.zeros(self._times.shape[1], kept.shape[1], dtype=torch.float64)
        units.index_add_(0, self._unit[self._labelled], kept)
        summed = torch.cat([units.sum(0, keepdim=True), self._times @ units])
        return mean_iou(summed.view(-1, *counts.shape[1:]), absent)


def resampled_interval(values: Tensor, baseline: Tensor, confidence: float = 0.95) -> Interval:
    """Difference in mean IoU, the mean over the seeds, with a percentile interval over the draws of images.

    It says how much hangs on the choice of these images, not on that of the seeds.

    Args:
        values: (S,1+resamples), of S seeds, as `Resampling.mious` gives them.
        baseline: of the same seeds.
        confidence: of the interval.

    >>> same = torch.tensor([[0.5, 0.4, 0.6]], dtype=torch.float64)
    >>> resampled_interval(same, same)
    Interval(difference=0.0, low=0.0, high=0.0, p=1.0)
    """
    differences = (values - baseline).mean(0)
    estimate, drawn = differences[0].item(), differences[1:]
    tail = (1 - confidence) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    below, above = (drawn <= 0).sum().item(), (drawn >= 0).sum().item()
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn)))
    return Interval(estimate, low, high, p)
