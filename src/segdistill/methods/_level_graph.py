"""SSTKD's statistical knowledge of a region: quantised similarities, counted, and a graph that reasons over them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from segdistill.functional import full_precision
from segdistill.texture import clip_counts, count, encode, heuristic_levels, mean_similarity, uniform_levels

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


@full_precision
def texture_knowledge(
    features: Tensor,
    *,
    weight: Tensor | None = None,
    num_levels: int = 32,
    heuristic: bool = True,
    clip: float | None = 0.5,
    graph: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Statistical knowledge of regions: which similarities to their mean feature occur how often, and where.

    Args:
        features: (R,A,P) of R regions with P positions each.
        weight: (B,A), of a linear layer that is meant to come first; it is not applied position by position.
        num_levels: N.
        heuristic: whether frequent similarities get more levels.
        clip: θ of the counts' denoising; None = none.
        graph: a `LevelGraph`; None: the knowledge is the levels and their counts.

    Returns:
        (R,128,P) with a graph, (R,2,N) without.
    """
    similarity = mean_similarity(features, weight)
    levels = (heuristic_levels if heuristic else uniform_levels)(similarity, num_levels)
    encoding = encode(similarity, levels)
    counts = count(encoding)
    if clip is not None:
        counts = clip_counts(counts, clip)
    if graph is None:
        return torch.stack([levels, counts], dim=1)
    mean = features.mean(2)
    return graph(mean if weight is None else F.linear(mean, weight), levels, counts, encoding)
