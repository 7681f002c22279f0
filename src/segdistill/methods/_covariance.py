"""Statistics of features by class, exact over all batches and processes: what FAKD augments with."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill._processes import gather_over_processes, sum_over_processes
from segdistill.functional import (
    IGNORE,
    check_labels,
    exact,
    full_precision,
    has_float64,
    labelled,
    resize_labels,
)

BLOCK = 128
"""Pixels of one class that share a matrix product."""
CHANNELS = 64
"""Channels whose variances are summed at a time."""


def class_blocks(index: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted into blocks of equal size that hold one group each, so that one batched product serves all groups.

    Args:
        index: (R,) int64, the group of each row, in 0…num_groups−1.
        num_groups: how many groups there are.

    Returns:
        For B blocks of `BLOCK` places: the row at each place (B,BLOCK), whether the place is taken (B,BLOCK; at those
        that are not stands just some row), and the group of each block (B,).

    >>> rows, taken, groups = class_blocks(torch.tensor([1, 0, 1]), 2)
    >>> groups, taken.sum(1), rows[taken]
    (tensor([0, 1]), tensor([1, 2]), tensor([1, 0, 2]))
    """
    counts = torch.bincount(index, minlength=num_groups)
    blocks = (counts + BLOCK - 1) // BLOCK
    groups = torch.arange(num_groups, device=index.device).repeat_interleave(blocks)
    number = torch.arange(len(groups), device=index.device) - (blocks.cumsum(0) - blocks)[groups]  # within its group
    place = (number * BLOCK)[:, None] + torch.arange(BLOCK, device=index.device)
    ranks = (counts.cumsum(0) - counts)[groups][:, None] + place
    rows = index.argsort(stable=True)[ranks.clamp(max=len(index) - 1)]
    return rows, place < counts[groups][:, None], groups


class ClassCovariance(nn.Module):
    """Running mean and covariance of the features of each class, exact over all batches and all processes.

    Buffers, all in the checkpoint: `count` (C,) int64, `mean` (C,A), `covariance` (C,A) or (C,A,A); the last two in
    float64, because small differences of large means enter the covariance. On a device without float64 (Apple's MPS)
    the three stay on the CPU.

    Args:
        num_classes: C.
        channels: A.
        full: keep whole matrices (C,A,A) instead of their diagonals (C,A).
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    Source:
        The running update of ISDA (Wang et al., NeurIPS 2019), which FAKD takes over. Biased, as there.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, num_classes: int, channels: int, full: bool = False, *, ignore_index: int = IGNORE):
        super().__init__()
        self.full = full
        self.ignore_index = ignore_index
        shape = (num_classes, channels, channels) if full else (num_classes, channels)
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(num_classes, channels, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(shape, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        target = fn(torch.zeros((), device=self.mean.device)).device
        return super()._apply(fn, recurse) if has_float64(target) else self  # type: ignore[no-untyped-call]

    @torch.no_grad()
    @full_precision
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in one batch, in every process at once where there are several.

        With n pixels so far and m new ones, w = m/(m+n): Σ ← (1−w)Σ + wΣ′ + w(1−w)(μ−μ′)(μ−μ′)ᵀ, written with
        n·Σ so that images, processes and the past are joined by one and the same sum.

        Args:
            features: (N,A,H,W).
            labels: (N,h,w) integers, brought to H×W by the nearest neighbour.

        Raises:
            ValueError: if the channels are not A, or the labels do not fit.
        """
        if features.dim() != 4 or features.shape[1] != self.mean.shape[1]:
            raise ValueError(f"features: expected (N,{self.mean.shape[1]},H,W), got {tuple(features.shape)}")
        check_labels(features, labels)
        classes = len(self.count)
        labels = resize_labels(labels, (features.shape[2], features.shape[3])).flatten()
        labels = labels.where(labelled(labels, classes, self.ignore_index), classes)
        count, mean, scatter = self._moments(features.flatten(2), labels)
        parts = gather_over_processes(count[None]), gather_over_processes(mean[None])
        count, mean, scatter = self._join(*parts, sum_over_processes(scatter))
        count, mean, scatter = self._join(
            torch.stack([self.count, count]),
            torch.stack([self.mean, mean]),
            scatter + self.covariance * _column(self.count, scatter),
        )
        self.count.copy_(count)
        self.mean.copy_(mean)
        self.covariance.copy_(scatter / _column(count.clamp(min=1), scatter))

    def _moments(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count (C,), mean (C,A) and scatter about it of one batch: features (N,A,M), labels (N·M,) with C for none."""
        images, channels, positions = features.shape
        classes = len(self.count)
        order = labels.argsort(stable=True)
        counts = torch.bincount(labels, minlength=classes + 1)
        first, counts = counts.cumsum(0) - counts, counts[:classes].to(self.count.device)

        def class_mean(x: Tensor) -> Tensor:
            return exact(F.embedding_bag(order, x, first, mode="sum")[:classes]) / counts.clamp(min=1)[:, None]

        mean = torch.empty_like(self.mean)
        scatter = torch.empty_like(self.covariance)
        # A few channels at a time, so that their copies stay in the processor's cache; and always in the same memory,
        # since asking for new memory costs more than the sums.
        width = channels if self.full else min(CHANNELS, channels)
        spare = features.new_empty(2, len(labels) * width)
        for start in range(0, channels, width):
            part = slice(start, min(start + width, channels))
            rows, centred = spare[:, : len(labels) * (part.stop - start)].view(2, len(labels), -1)
            rows.view(images, positions, -1).copy_(features[:, part].transpose(1, 2))
            centres = class_mean(rows).to(rows)
            # The row of zeros stands for no class; what comes of it is never read.
            torch.index_select(F.pad(centres, (0, 0, 0, 1)), 0, labels, out=centred).sub_(rows)
            error = class_mean(centred)  # a mean of large features is rounded more than a small covariance bears
            mean[:, part] = exact(centres) - error
            products = self._products(centred, labels) if self.full else class_mean(centred.square_()) * counts[:, None]
            scatter[:, part] = products - self._spread(counts[None], error[None])
        return counts, mean, scatter

    def _products(self, centred: Tensor, labels: Tensor) -> Tensor:
        """Σ over each class's rows of row rowᵀ, (C,A,A)."""
        classes = len(self.count)
        pixels, taken, owners = class_blocks(labels, classes + 1)
        known = owners < classes
        block = F.embedding(pixels[known], centred).masked_fill_(~taken[known][..., None], 0)
        owners = owners[known].to(self.covariance.device)
        return torch.zeros_like(self.covariance).index_add_(0, owners, exact(block.mT @ block))

    def _join(self, counts: Tensor, means: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and scatter of the union of P parts: counts (P,C), means (P,C,A), `scatter` their sum."""
        count = counts.sum(0)
        mean = (means * counts[..., None]).sum(0) / count.clamp(min=1)[:, None]
        return count, mean, scatter + self._spread(counts, means - mean)

    def _spread(self, counts: Tensor, offsets: Tensor) -> Tensor:
        """Σ over the parts of count · offset offsetᵀ, or of its diagonal."""
        weighted = offsets * counts[..., None]
        return torch.einsum("pca,pcb->cab", weighted, offsets) if self.full else (weighted * offsets).sum(0)


def _column(count: Tensor, like: Tensor) -> Tensor:
    return count.view(-1, *[1] * (like.dim() - 1))
