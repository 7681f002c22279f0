"""Bands around boundaries: the pixels that have one of another label nearby."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST, HIGHEST = -32768, 32767


def near_another(labels: Tensor, reach: int, *, edge: bool) -> Tensor:
    """Which pixels have one of another label within `reach` pixels, in both directions of both axes, as a mask of bool.

    A distance is the larger one of those along the two axes, as `reach` erosions by a 3×3 square have it. The label 255
    is one like any other. Time grows with the logarithm of `reach`, and not with the number of labels.

    Args:
        labels: (N,H,W) integers.
        reach: pixels, at least 1.
        edge: whether what lies beyond the image's border counts as another label.

    >>> near_another(torch.tensor([[[4, 4, 4, 7, 7]]]), 1, edge=False).int().tolist()
    [[[0, 0, 1, 1, 0]]]
    """
    values = labels.to(torch.int16)
    extremes = []
    for pick, neutral in ((torch.maximum, LOWEST), (torch.minimum, HIGHEST)):
        found = values
        for dim in (-2, -1):
            found = _slide(found, reach, dim, pick, neutral)
        extremes.append(found)
    near = extremes[0] != extremes[1]
    if edge:
        height, width = labels.shape[-2:]
        for dim, side in ((-2, height), (-1, width)):
            near.narrow(dim, 0, min(reach, side)).fill_(True)
            near.narrow(dim, max(0, side - reach), min(reach, side)).fill_(True)
    return near


def _slide(x: Tensor, reach: int, dim: int, pick: Callable[[Tensor, Tensor], Tensor], neutral: int) -> Tensor:
    """The extreme of each window of 2·reach + 1 entries, by doubling: of 1, 2, 4, … entries."""
    wanted, length = 2 * reach + 1, 1
    x = F.pad(x, (reach, reach) if dim == -1 else (0, 0, reach, reach), value=neutral)
    while length < wanted:
        step = min(length, wanted - length)
        rest = x.shape[dim] - step
        x = pick(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
        length += step
    return x
