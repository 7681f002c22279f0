"""SSTKD's statistics of a region: quantised similarities, counted, and a graph that reasons over the levels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from segdistill.texture import (
    Kernel,
    clip_counts,
    count,
    heuristic_levels,
    quantise,
    uniform_levels,
    widen_levels,
)

WIDTH = 128
"""Channels of the knowledge, as in STLNet."""


class LevelGraph(nn.Module):
    """Graph reasoning over the quantisation levels: each becomes a vector that knows of all others.

    Level and share → two layers; with the region's mean feature → one layer; attention among the levels; and each
    position gets the vectors of the levels that it belongs to.

    Args:
        channels: A of the features.
        num_levels: N.
        trained: whether the layers are parameters, or buffers that stay as they are drawn.

    Source:
        Zhu et al., Learning Statistical Texture for Semantic Segmentation (STLNet, CVPR 2021). There the mean feature
        has 128 channels already.
    """

    first: Tensor
    second: Tensor
    mean: Tensor
    merge: Tensor
    query: Tensor
    key: Tensor
    value: Tensor

    def __init__(self, channels: int, num_levels: int, *, trained: bool = False):
        super().__init__()
        shapes = {
            "first": (64, 2, 2.0),
            "second": (WIDTH, 64, 2.0),
            "mean": (WIDTH, channels, 1.0),
            "merge": (WIDTH, 2 * WIDTH, 1.0),
            "query": (WIDTH, WIDTH, 1.0),
            "key": (WIDTH, WIDTH, 1.0),
            "value": (WIDTH, WIDTH, 1.0),
        }
        generator = torch.Generator().manual_seed(0)  # of every run the same: frozen layers are part of the loss
        for name, (rows, columns, gain) in shapes.items():
            weight = torch.randn(rows, columns, generator=generator) * (gain / columns) ** 0.5
            if name == "first":
                weight[:, 1] *= num_levels  # shares are of the order 1/N, levels of the order 1
            if trained:
                self.register_parameter(name, nn.Parameter(weight))
            else:
                self.register_buffer(name, weight)

    def forward(self, mean: Tensor, levels: Tensor, counts: Tensor, encoding: Tensor) -> Tensor:
        """Knowledge (R,128,P).

        Args:
            mean: feature of each region (R,A).
            levels: (R,N).
            counts: (R,N).
            encoding: (R,P,N).
        """
        nodes = torch.stack([levels, counts], dim=2)  # (R,N,2)
        nodes = F.relu(F.linear(F.relu(F.linear(nodes, self.first)), self.second))
        of_region = F.linear(mean, self.mean)[:, None].expand_as(nodes)
        nodes = F.linear(torch.cat([nodes, of_region], dim=2), self.merge)
        query, key, value = (F.linear(nodes, weight) for weight in (self.query, self.key, self.value))
        # Differs from the paper: divided by √128, without which layers as they are drawn attend to one level alone.
        nodes = (key @ query.mT / WIDTH**0.5).softmax(2) @ value
        knowledge: Tensor = (encoding @ nodes).mT
        return knowledge


def constant(module: nn.Module) -> Callable[..., Tensor]:
    """The module as a function whose parameters get no gradient.

    Args:
        module: any.
    """
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return lambda *inputs: functional_call(module, weights, inputs)


def place_levels(similarity: Tensor, num_levels: int, *, heuristic: bool, kernel: Kernel) -> Tensor:
    """Levels (R,N) of regions: closer where similarities are frequent, or uniform.

    Args:
        similarity: (R,P).
        num_levels: N.
        heuristic: whether frequent similarities get more levels.
        kernel: as of `encode`.
    """
    if heuristic:
        return heuristic_levels(similarity, num_levels, kernel=kernel)
    return uniform_levels(similarity, num_levels)


def own_counts(
    similarity: Tensor, *, num_levels: int, heuristic: bool, clip: float | None, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Levels and denoised counts (R,N) of regions by themselves.

    Args:
        similarity: (R,P).
        num_levels: N.
        heuristic: as of `place_levels`.
        clip: θ of the denoising; None = none.
        kernel: as of `encode`.
    """
    levels = place_levels(similarity, num_levels, heuristic=heuristic, kernel=kernel)
    counts = count(quantise(similarity, levels, kernel=kernel))
    return levels, counts if clip is None else clip_counts(counts, clip)


@dataclass(frozen=True)
class SharedCounts:
    """Student's and teacher's regions, counted on the same levels.

    Args:
        levels: (R,N+2).
        encodings: memberships (R,P,N+2) of the student's and of the teacher's positions.
        counts: (R,N+2) of either, denoised.
    """

    levels: Tensor
    encodings: tuple[Tensor, Tensor]
    counts: tuple[Tensor, Tensor]


def shared_counts(
    student: Tensor, teacher: Tensor, *, num_levels: int, heuristic: bool, clip: float | None, kernel: Kernel
) -> SharedCounts:
    """Count both sides on the teacher's levels, and cut off on both what the teacher's denoising cuts off.

    Args:
        student: similarities (R,P).
        teacher: likewise.
        num_levels: N; two more mark how far the similarities of both sides reach.
        heuristic: as of `place_levels`.
        clip: θ of the denoising; None = none.
        kernel: as of `encode`.
    """
    # Differs from the paper: the teacher's levels serve both sides. Each side's own move with its extremes: descent on
    # them makes the distributions of the similarities less alike, or where the gradient moves the levels too, not as
    # alike.
    levels = place_levels(teacher, num_levels, heuristic=heuristic, kernel=kernel)
    levels = widen_levels(levels, torch.cat([student.detach(), teacher], dim=1))
    own, other = (quantise(x, levels, kernel=kernel) for x in (student, teacher))
    counts = count(own), count(other)
    if clip is not None:
        # Differs from the paper: the teacher's denoising serves both sides too. With each side's own, a student whose
        # similarities are all alike is held there: its peak gives to all levels, and as it shrinks, they lose more
        # than the levels beside it gain.
        counts = clip_counts(counts[0], clip, like=counts[1]), clip_counts(counts[1], clip, like=counts[1])
    return SharedCounts(levels, (own, other), counts)
