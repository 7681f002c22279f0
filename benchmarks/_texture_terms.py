"""What SSTKD's two texture terms do by themselves: share of the gradient, and descent on held-out images."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _descent import MAPS, Stages, descend, make_map, norm, over_seeds
from segdistill.methods import sstkd
from segdistill.methods._level_graph import LevelGraph
from segdistill.methods.sstkd import statistical_texture, structural_texture
from segdistill.texture import (
    Contourlet,
    clip_counts,
    contourlet,
    count,
    crop_regions,
    encode,
    heuristic_levels,
    mean_similarity,
    quantise,
    sample_regions,
)

REGIONS = 8

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Regions of the student (R,A,P), of the teacher (R,B,P), weight (B,A) → loss."""


def forms(channels: int) -> dict[str, Form]:
    """The statistical term in all its forms, old ones too.

    Args:
        channels: B.
    """
    with_graph = {"num_levels": 8, "graph": LevelGraph(channels, 8)}
    first = LevelGraph(channels, 32)
    return {
        "own levels, released kernel, graph with own means": lambda s, t, w: first_form(s, t, w, first),
        "own levels, released kernel": lambda s, t, w: first_form(s, t, w, None),
        "own levels (knowledge: levels)": public(knowledge="levels"),
        "graph of 8 levels (graph: frozen)": public(**with_graph),
        "teacher's levels, clamped, own denoising": clamped,
        "teacher's levels, clamped, no denoising": lambda s, t, w: clamped(s, t, w, None),
        "share of each level (knowledge: counts)": public(knowledge="counts"),
        "cumulative, released kernel (kernel: released)": public(kernel="released"),
        "cumulative, uniform levels, no denoising": public(heuristic=False, clip=None),
        "cumulative, no denoising (denoise: false)": public(clip=None),
        "cumulative (the default)": public(),
        "sorted similarities (knowledge: sorted)": public(knowledge="sorted"),
    }


def public(**options: Any) -> Form:
    """A form that is an option."""
    return lambda student, teacher, weight: statistical_texture(student, teacher, weight=weight, **options)


def first_form(student: Tensor, teacher: Tensor, weight: Tensor, graph: LevelGraph | None) -> Tensor:
    """Each side on its own levels, which are constants to the gradient, and with its own mean feature."""
    sides = []
    for features, projected in ((student, weight), (teacher, None)):
        similarity = sstkd.mean_similarity(features, projected)
        levels = heuristic_levels(similarity, 32, kernel="released").detach()
        encoding = encode(similarity, levels, kernel="released")
        counts, mean = clip_counts(count(encoding), 0.5), features.mean(2)
        mean = mean if projected is None else F.linear(mean, projected)
        sides.append(torch.stack([levels, counts], 1) if graph is None else graph(mean, levels, counts, encoding))
    return F.mse_loss(sides[0], sides[1])


def clamped(student: Tensor, teacher: Tensor, weight: Tensor, clip: float | None = 0.5) -> Tensor:
    """Cumulative counts on the teacher's levels without ends beyond, each side's peaks cut by itself."""
    own, other = sstkd.mean_similarity(student, weight), sstkd.mean_similarity(teacher)
    levels = heuristic_levels(other, 32)
    own, other = (count(quantise(x, levels)) for x in (own, other))
    if clip is not None:
        own, other = clip_counts(own, clip), clip_counts(other, clip)
    return (own - other).cumsum(1).square().sum(1).mean()


def regions(layers: nn.Sequential, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled regions of both sides, and the projection's weight, as the method does."""
    boxes = sample_regions(teacher.mean(1), REGIONS)
    own, other = (crop_regions(x, boxes).flatten(2) for x in (layers[0](student), teacher))
    return own, other, layers[1].weight.flatten(1)


def statistical(found: Stages, seeds: int) -> Iterator[dict[str, Any]]:
    """Each form's share of the gradient through the similarities, its own loss, the quantiles' error."""
    for name, form in forms(found.teacher.shape[1]).items():
        row: dict[str, Any] = {"form": name}
        for kind in MAPS:
            results = []
            for seed in range(seeds):

                def loss(layers: nn.Sequential, student: Tensor, teacher: Tensor, form: Form = form) -> Tensor:
                    return form(*regions(layers, student, teacher))

                @torch.no_grad()
                def judge(layers: nn.Sequential, student: Tensor, teacher: Tensor, form: Form = form) -> dict[str, Any]:
                    with torch.random.fork_rng(devices=[]):
                        torch.manual_seed(0)  # the same regions before and after
                        held_out = regions(layers, student, teacher)
                    return {"loss": float(form(*held_out)), **quantiles(*held_out)}

                result = descend(found, seed, kind, loss, judge)
                result["share"] = share_through_similarities(found, seed, kind, form)
                results.append(result)
            row[kind] = over_seeds(results)
        yield row


def quantiles(student: Tensor, teacher: Tensor, weight: Tensor) -> dict[str, float]:
    """Mean error of the similarities' 19 quantiles, and how many lie beyond the teacher's."""
    own, other = mean_similarity(student, weight), mean_similarity(teacher)
    steps = torch.linspace(0.05, 0.95, 19)
    error = (torch.quantile(own, steps, dim=1) - torch.quantile(other, steps, dim=1)).abs().mean()
    beyond = (own < other.amin(1, keepdim=True)) | (own > other.amax(1, keepdim=True))
    return {"quantile_error": float(error), "beyond": float(beyond.float().mean())}


def share_through_similarities(found: Stages, seed: int, kind: str, form: Form) -> float:
    """Norm of the map's gradient that comes through the similarities, over that and the norm of the rest."""
    torch.manual_seed(seed)
    layers = make_map(kind, found.students[seed], found.teacher)
    own, other, weight = regions(layers, *found.batch(found.students[seed]))
    seen: list[Tensor] = []

    def recorded(*arguments: Any) -> Tensor:
        seen.append(mean_similarity(*arguments))
        return seen[-1]

    with mock.patch.object(sstkd, "mean_similarity", recorded):
        loss = form(own, other, weight)
    parameters = list(layers.parameters())
    whole = torch.autograd.grad(loss, parameters, retain_graph=True)
    (at_similarities,) = torch.autograd.grad(loss, seen[0], retain_graph=True)
    through = torch.autograd.grad(seen[0], parameters, at_similarities)
    rest = norm([a - b for a, b in zip(whole, through, strict=True)])
    return norm(through) / (norm(through) + rest)


def structural(found: Stages, seeds: int) -> Iterator[dict[str, Any]]:
    """What descent on the contourlet's bands does, beside descent on the maps' plain squared difference."""
    losses = {
        "contourlet bands (CDM)": lambda layers, s, t: structural_texture(layers(s), t),
        "plain squared difference": lambda layers, s, t: F.mse_loss(layers(s), t),
    }
    for name, loss in losses.items():
        row: dict[str, Any] = {"form": name}
        for kind in MAPS:
            results = [descend(found, seed, kind, loss, structure) for seed in range(seeds)]
            row[kind] = over_seeds(results)
            if name.startswith("contourlet"):
                row[kind]["share"] = over_seeds([band_shares(found, seed, kind) for seed in range(seeds)])
        yield row


@torch.no_grad()
def structure(layers: nn.Sequential, student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """How alike edges and bands are; errors are shares of the teacher's energy.

    Returns:
        `loss`; `edges`: correlation of the maps' gradient magnitudes, mean over images; `fine`, `coarse`: error of the
        bands of each direction, `low`: of the low-pass, which does not count.
    """
    own = layers(student)
    error, wanted = (contourlet(x) for x in (own - teacher, teacher))
    return {
        "loss": float(structural_texture(own, teacher)),
        "edges": float(correlation(edges(own), edges(teacher))),
        **{scale: relative(error, wanted, k) for k, scale in enumerate(("fine", "coarse"))},
        "low": float(error.low.square().mean() / wanted.low.square().mean()),
    }


def relative(error: Contourlet, wanted: Contourlet, scale: int) -> dict[str, float]:
    """Error of each direction of a scale over the teacher's energy there, and `all` of them."""
    pairs = list(zip(error.bands[scale], wanted.bands[scale], strict=True))
    found = {str(k): float(a.square().mean() / b.square().mean()) for k, (a, b) in enumerate(pairs)}
    found["all"] = float(sum(a.square().mean() for a, _ in pairs) / sum(b.square().mean() for _, b in pairs))
    return found


def edges(x: Tensor) -> Tensor:
    """Gradient magnitude over space, all channels together, (N,H−1,W−1)."""
    down, right = x[:, :, 1:, :-1] - x[:, :, :-1, :-1], x[:, :, :-1, 1:] - x[:, :, :-1, :-1]
    return (down.square() + right.square()).sum(1).sqrt()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, over the positions of each map, mean over the maps."""
    a, b = ((x - x.mean((1, 2), keepdim=True)).flatten(1) for x in (a, b))
    return F.cosine_similarity(a, b).mean()


def band_shares(found: Stages, seed: int, kind: str) -> dict[str, Any]:
    """Norm of each direction's gradient in the map, as a share of all directions' norms; and of each scale's."""
    torch.manual_seed(seed)
    layers = make_map(kind, found.students[seed], found.teacher)
    student, teacher = found.batch(found.students[seed])
    bands = contourlet(layers(student) - teacher).bands
    parameters = list(layers.parameters())

    def length(loss: Tensor) -> float:
        return norm(torch.autograd.grad(loss, parameters, retain_graph=True))

    energies = [[band.square().mean() for band in scale] for scale in bands]
    lengths = [[length(energy) for energy in scale] for scale in energies]
    whole = sum(map(sum, lengths))
    scales = [length(torch.stack(scale).sum()) for scale in energies]
    shares: dict[str, Any] = {}
    for name, of_bands, of_scale in zip(("fine", "coarse"), lengths, scales, strict=True):
        shares[name] = {str(k): value / whole for k, value in enumerate(of_bands)}
        shares[name]["all"] = of_scale / sum(scales)
    return shares
