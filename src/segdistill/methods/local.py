"""LOCAL: how each pixel compares with its eight neighbours (Xie et al. 2018; LOCAL in SKD's Table 2)."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segdistill.channels import channel_sum, corrected, split_channels, squared_lengths
from segdistill.functional import check_maps, empty, exact, full_precision, inverse_lengths
from segdistill.methods._base import Method
from segdistill.taps import Taps

Kind = Literal["cosine", "l2"]

DIRECTIONS = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns to four of the neighbours; the other four are opposite."""


@full_precision
def local_similarity(student: Tensor, teacher: Tensor, *, kind: Kind = "cosine") -> Tensor:
    """Squared difference of how pixels compare with their neighbours, mean over the pixels that have all eight.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), detached here; B may differ from A.
        kind: "cosine", the eight cosine similarities (mean over these, too); or "l2", the sum of the eight squared
            distances. No pixel has eight neighbours: 0, with a graph.

    Raises:
        ValueError: if N or H×W differ, or on an unknown kind.

    Source:
        Xie et al., Improving Fast Segmentation with Teacher-student Learning, section 3.3; LOCAL in SKD's Table 2.

    >>> student, teacher = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    >>> teacher[..., 1, 1] = -1.0
    >>> local_similarity(student, teacher).item()  # (1 - -1)² eight times
    4.0
    """
    check_maps(student, teacher, channels=False)
    if kind not in ("cosine", "l2"):
        raise ValueError(f"kind: expected 'cosine' or 'l2', got {kind!r}")
    if min(student.shape[2:]) < 3:
        return empty(student)
    own, other = neighbours(student, teacher.detach(), kind)
    difference = own - other if kind == "cosine" else (own - other).sum(1)
    return difference.square().mean().to(student)


class Place(NamedTuple):
    """Where the pairs of neighbours in one direction stand in a map."""

    here: tuple[Any, ...]
    """Their first pixels, in (…,H,W)."""
    there: tuple[Any, ...]
    """Their second pixels."""
    ahead: tuple[Any, ...]
    """Among the pairs, those whose first pixel is an inner one, in the order of the inner pixels."""
    behind: tuple[Any, ...]
    """Those whose second pixel is."""


def places(h: int, w: int) -> Iterator[Place]:
    """The places of the pairs in each direction.

    Args:
        h: H of the map.
        w: W of the map.
    """
    for down, right in DIRECTIONS:
        left, right = max(0, -right), max(0, right)  # columns without a partner, on either side
        yield Place(
            here=(..., slice(0, h - down), slice(left, w - right)),
            there=(..., slice(down, h), slice(right, w - left)),
            ahead=(..., slice(1, h - 1), slice(1 - left, w - 1 - left)),
            behind=(..., slice(1 - down, h - 1 - down), slice(1 - right, w - 1 - right)),
        )


def neighbours(student: Tensor, teacher: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Cosine similarities or squared distances of each inner vector of a map and its eight neighbours.

    Args:
        student: (N,A,H,W).
        teacher: (N,B,H,W), without a graph.
        kind: what to compute.

    Returns:
        The student's and the teacher's, (N,8,H−2,W−2) float64 each, opposite neighbours one after the other.
    """
    lengths = squared_lengths(student, teacher)
    scales = [inverse_lengths(x) for x in (lengths.own, lengths.other)]
    maps: tuple[list[Tensor], list[Tensor]] = ([], [])
    own_pairs: tuple[Tensor, ...] = _Pairs.apply(student, kind)
    for place, own_pair in zip(places(*student.shape[2:]), own_pairs, strict=True):
        here, there, ahead, behind = place
        own, other = exact(own_pair), exact(channel_sum(PAIR[kind], teacher[here], teacher[there]))
        if student.shape == teacher.shape:
            ends = student[here], student[there], teacher[here], teacher[there]
            near = lengths.near[here] & lengths.near[there]
            own = corrected(own, other, exact(channel_sum(PAIR_GAP[kind], *ends)), near)
        for side, pairs, scale in zip(maps, (own, other), scales, strict=True):
            values = pairs * scale[here] * scale[there] if kind == "cosine" else pairs
            # Each pair serves twice: as the neighbour ahead of its first pixel, and behind its second.
            side.extend((values[ahead], values[behind]))
    return torch.stack(maps[0], 1), torch.stack(maps[1], 1)


PAIR: dict[Kind, Callable[..., Tensor]] = {
    "cosine": torch.mul,
    "l2": lambda x, y: (x - y).square_(),
}
"""What a pair (x, y) sums over its channels."""

PAIR_GAP: dict[Kind, Callable[..., Tensor]] = {
    "cosine": lambda x, y, t, u: (x - t).mul_(y).addcmul_(t, y - u),
    "l2": lambda x, y, t, u: (x - t).sub_(y - u).mul_((x - y).add_(t - u)),
}
"""What a pair (x, y) of the student's sums more than the pair (t, u) of the teacher's, with nothing that cancels."""


class _Pairs(torch.autograd.Function):
    """The student's sums over the pairs in each direction; the backward pass writes into one map for all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: Kind) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.kind = kind
        return tuple(channel_sum(PAIR[kind], x[place.here], x[place.there]) for place in places(*x.shape[2:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        result = torch.zeros_like(x)
        for part, into in split_channels(x, result):
            for place, gradient in zip(places(*x.shape[2:]), gradients, strict=True):
                here, there, gradient = part[place.here], part[place.there], gradient.unsqueeze(1)
                if ctx.kind == "cosine":
                    into[place.here].addcmul_(there, gradient)
                    into[place.there].addcmul_(here, gradient)
                else:
                    slope = (here - there).mul_(2 * gradient)
                    into[place.here].add_(slope)
                    into[place.there].sub_(slope)
        return result, None


class LocalSimilarity(Method):
    """Squared difference of how the features of a pixel compare with those of its eight neighbours.

    Args:
        weight: of the term; 10 is our choice, SKD's λ1, since its comparison does not say.
        kind: "cosine" similarities, or "l2", squared distances, which grow with the features and need their own weight.
    """

    def __init__(self, *, weight: float = 10.0, kind: Literal["cosine", "l2"] = "cosine"):
        super().__init__()
        self.weight = weight
        self.kind = kind

    def student_taps(self) -> set[str]:
        """`features`, unless the weight is 0."""
        return {"features"} if self.weight else set()

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `features`."""
        if not self.weight:
            return {}
        loss = local_similarity(student["features"], teacher["features"], kind=self.kind)
        return {"features": self.weight * loss}
