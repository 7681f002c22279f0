"""Sums over the channels of maps: in the processor's cache, and exact where student and teacher nearly agree."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdistill.functional import BLOCK, exact


def split_channels(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of maps (N,A,…), a few channels at a time on a CPU, so that what is made of them stays in its cache.

    Maps whose channels lie side by side (`torch.channels_last`) come whole: a few channels of these are read from all
    over the memory.

    Args:
        *maps: of the same shape.
    """
    size = maps[0].shape[1] if _side_by_side(maps[0]) else _part(maps[0], 1)
    return zip(*(torch.split(x, size, 1) for x in maps), strict=True)


def _side_by_side(x: Tensor) -> bool:
    return x.dim() > 2 and x.stride(1) == 1 and x.shape[1] > 1


def _part(x: Tensor, dim: int) -> int:
    """Entries along a dimension that are worked on at a time."""
    if x.device.type != "cpu":
        return max(1, x.shape[dim])
    # Threads wait for each other after every part: it grows with their number.
    return max(1, BLOCK * torch.get_num_threads() * x.shape[dim] // max(1, x.numel()))


@torch.no_grad()
def channel_sum(terms: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """Sum over channels of what a function makes of maps, without a graph: (N,A,…) → (N,…).

    On a CPU the terms of the sum are never written to memory as a whole.

    Args:
        terms: (N,a,…) of each map → (N,a,…), entry by entry.
        *maps: (N,A,…) each.

    >>> channel_sum(torch.mul, torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([11.])
    """
    if _side_by_side(maps[0]):  # rows of all channels: each is one stretch of memory
        rows = zip(*(torch.split(x, _part(maps[0], 2), 2) for x in maps), strict=True)
        return torch.cat([terms(*part).sum(1) for part in rows], 1)
    parts = split_channels(*maps)
    total = terms(*next(parts)).sum(1)
    for part in parts:
        total += terms(*part).sum(1)
    return total


class _Squares(torch.autograd.Function):
    """Squared lengths along the channels; the derivative is written down, so that the squares are never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return channel_sum(torch.square, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return x * (2 * gradient).unsqueeze(1)


class Lengths(NamedTuple):
    """Squared lengths of the vectors of two sides, in float64."""

    own: Tensor
    """Of the student's, (N,…), with its graph."""
    other: Tensor
    """Of the teacher's, (N,…)."""
    near: Tensor
    """Where the two are close enough for `corrected`, (N,…) bool."""


def squared_lengths(student: Tensor, teacher: Tensor, difference: Tensor | None = None) -> Lengths:
    """Squared lengths of the vectors along the channels, whose difference is right even where both nearly agree.

    Sums of rounded squares differ by rounding alone once the features agree to 1e-6. Therefore, where both sides have
    the same channels, their difference is summed as Σ (s−t)·(s+t), which cancels nothing.

    Args:
        student: (N,A,…).
        teacher: (N,B,…), without a graph; B may differ from A, and then each side is only as good as float32.
        difference: (N,A,…), student − teacher, where that is known better than the two tell.

    >>> [x.tolist() for x in squared_lengths(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 5.0]]))]
    [[25.0], [26.0], [True]]
    """
    own: Tensor = _Squares.apply(student)
    own, other = exact(own), exact(channel_sum(torch.square, teacher))
    if student.shape != teacher.shape:
        return Lengths(own, other, torch.zeros_like(own, dtype=torch.bool))
    if difference is None:
        gap = channel_sum(lambda s, t: (s - t).mul_(s + t), student, teacher)
    else:
        gap = channel_sum(lambda d, s, t: (s + t).mul_(d), difference, student, teacher)
    gap = exact(gap)
    near = gap.abs() <= other / 2
    return Lengths(corrected(own, other, gap, near), other, near)


def corrected(own: Tensor, other: Tensor, gap: Tensor, near: Tensor) -> Tensor:
    """A quantity of the student's as the teacher's plus their difference, where both nearly agree.

    Only the value changes. The gradient is that of `own`, whose derivative does not cancel anyway.

    Args:
        own: float64, with its graph.
        other: of the teacher, same shape.
        gap: own − other, computed so that nothing cancels.
        near: (bool) where `gap` is small beside what `own` is summed from.
    """
    return own + torch.where(near, other + gap - own, 0).detach()
