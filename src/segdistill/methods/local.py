"""LOCAL: how each pixel compares with its eight neighbours (Xie et al. 2018; LOCAL in SKD's Table 2)."""

from typing import Literal

import torch
from torch import Tensor

from segdistill.functional import check_maps, empty, full_precision
from segdistill.methods._base import Method
from segdistill.methods.skd import inverse_lengths
from segdistill.taps import Taps

DIRECTIONS = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns to four of the neighbours; the other four are opposite."""


@full_precision
def local_similarity(student: Tensor, teacher: Tensor, *, kind: Literal["cosine", "l2"] = "cosine") -> Tensor:
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
    own, other = neighbours(student, kind), neighbours(teacher.detach(), kind)
    difference = own - other if kind == "cosine" else (own - other).sum(1)
    return difference.square().mean().to(student.dtype)


def neighbours(x: Tensor, kind: Literal["cosine", "l2"]) -> Tensor:
    """Cosine similarities or squared distances of each inner vector of a map and its eight neighbours, in float64.

    Args:
        x: (N,A,H,W).
        kind: what to compute.

    Returns:
        (N,8,H−2,W−2), opposite neighbours one after the other.
    """
    h, w = x.shape[2:]
    scale = inverse_lengths(x) if kind == "cosine" else None
    maps = []
    for down, right in DIRECTIONS:
        left, right = max(0, -right), max(0, right)  # columns without a partner, on either side
        here = (..., slice(0, h - down), slice(left, w - right))
        there = (..., slice(down, h), slice(right, w - left))
        if scale is None:
            pairs = (x[here] - x[there]).square().sum(1, dtype=torch.float64)
        else:
            pairs = (x[here] * x[there]).sum(1, dtype=torch.float64) * (scale[here] * scale[there])[:, 0]
        # Each pair serves twice: as the neighbour ahead of its first pixel, and behind its second.
        maps.append(pairs[:, 1 : h - 1, 1 - left : w - 1 - left])
        maps.append(pairs[:, 1 - down : h - 1 - down, 1 - right : w - 1 - right])
    return torch.stack(maps, 1)


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
