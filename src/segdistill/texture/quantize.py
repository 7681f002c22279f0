"""Quantise and count: the statistical texture of a region as levels of similarity and how often each occurs.

Here R counts regions, P their positions, N the quantisation levels.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from segdistill.functional import full_precision, inverse_lengths

NARROW = 1e-6
"""Smallest window of a level: all positions of a constant region belong to all levels alike."""
Kernel = Literal["triangle", "released"]
"""How a position's membership of a level falls with its distance from it."""


@full_precision
def mean_similarity(features: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cosine of each position's feature with the region's mean feature, (R,P).

    Args:
        features: f (R,A,P).
        weight: W (B,A); if given, the cosine is that of the features Wf, which are not computed: WᵀW is all it takes.

    Raises:
        ValueError: on another rank, or a weight that does not fit.

    Source:
        Zhu et al., Learning Statistical Texture for Semantic Segmentation (STLNet, CVPR 2021).

    >>> mean_similarity(torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]))
    tensor([[0.7071, 0.7071]])
    """
    if features.dim() != 3:
        raise ValueError(f"features: expected (R,A,P), got {tuple(features.shape)}")
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != features.shape[1]):
        raise ValueError(f"weight: expected (B,{features.shape[1]}), got {tuple(weight.shape)}")
    mapped = features if weight is None else (weight.T @ weight) @ features
    product = (features.mean(2)[:, None] @ mapped)[:, 0]
    # Squared lengths of the position's feature and of the mean one.
    square = torch.linalg.vecdot(features, mapped, dim=1) * product.mean(1, keepdim=True)
    similarity: Tensor = product * inverse_lengths(square)
    return similarity


@full_precision
def uniform_levels(similarity: Tensor, num_levels: int) -> Tensor:
    """N levels in the middle of N equal cells between each region's least and largest similarity, (R,N).

    Args:
        similarity: (R,P).
        num_levels: N, two at least.

    Raises:
        ValueError: on another rank, or fewer than two levels.

    Source:
        STLNet.

    >>> uniform_levels(torch.tensor([[0.0, 0.4, 1.0]]), 4).tolist()
    [[0.125, 0.375, 0.625, 0.875]]
    """
    _check(similarity, num_levels)
    centres = torch.arange(num_levels, dtype=similarity.dtype, device=similarity.device) + 0.5
    return _at(similarity, centres / num_levels)


def _check(similarity: Tensor, num_levels: int) -> None:
    if similarity.dim() != 2 or similarity.numel() == 0:
        raise ValueError(f"similarity: expected a non-empty (R,P), got {tuple(similarity.shape)}")
    if num_levels < 2:
        raise ValueError(f"expected two levels at least, got {num_levels}")


def _at(similarity: Tensor, share: Tensor) -> Tensor:
    """Where a share 0…1 of the way from each region's least similarity to its largest lies."""
    low, high = similarity.amin(1, keepdim=True), similarity.amax(1, keepdim=True)
    return low + (high - low) * share


@full_precision
def encode(similarity: Tensor, levels: Tensor, *, kernel: Kernel = "triangle") -> Tensor:
    """How strongly each position belongs to each level, (R,P,N): E = max(0, 1 − |L − S|/δ).

    δ is the level's distance to its farther neighbour, which for uniform levels is their spacing. The region's ends
    count as mirrors, beyond which the outermost levels see themselves, so that with any levels each position belongs to
    one of them at least. A position's memberships do not sum to 1; `quantise` divides by the sum.

    Args:
        similarity: (R,P).
        levels: (R,N), ascending.
        kernel: "triangle" falls to 0 at the window's edge; "released" is (1 − |L − S|)·[|L − S| < δ] as in STLNet's
            released code, which jumps there by about 1, so that its slope does not tell where a position is going.

    Raises:
        ValueError: on other shapes, fewer than two levels, or another kernel.

    Source:
        STLNet.

    >>> encode(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.25, 0.75]])).tolist()
    [[[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]]
    """
    # Differs from the paper: SSTKD writes an absolute window 0.5/N, which loses positions wherever the similarities of
    # a region span more than 1.
    if levels.dim() != 2 or levels.shape[0] != similarity.shape[0]:
        raise ValueError(f"levels: expected ({similarity.shape[0]},N), got {tuple(levels.shape)}")
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel: expected 'triangle' or 'released', got {kernel!r}")
    _check(similarity, levels.shape[1])
    before = levels[:, :1] - similarity.amin(1, keepdim=True)
    after = similarity.amax(1, keepdim=True) - levels[:, -1:]
    gaps = torch.cat([2 * before, levels.diff(dim=1), 2 * after], dim=1)
    windows = torch.maximum(gaps[:, :-1], gaps[:, 1:]).clamp_min(NARROW)[:, None]
    distance = (levels[:, None] - similarity[:, :, None]).abs()
    # Differs from the paper: a membership is continuous, where STLNet's jumps as a position enters the window.
    if kernel == "triangle":
        return (1 - distance / windows).clamp_min(0.0)
    return torch.where(distance < windows.clamp_max(1.0), 1 - distance, 0.0)  # farther than 1, it would be negative


@full_precision
def quantise(similarity: Tensor, levels: Tensor, *, kernel: Kernel = "triangle") -> Tensor:
    """Memberships of each position (R,P,N) for levels that need not be the region's own.

    Similarities beyond the outermost levels count as theirs; `widen_levels` sees to it that none is. With the triangle,
    each position's memberships are divided by their sum, so that every position weighs 1; STLNet's released form is
    left as it is.

    Args:
        similarity: (R,P).
        levels: (R,N), ascending; in SSTKD those of the teacher's region, for both sides.
        kernel: as of `encode`.

    Raises:
        ValueError: as `encode` does.

    >>> quantise(torch.tensor([[0.0, 0.35, 2.0]]), torch.tensor([[0.25, 0.75]]))
    tensor([[[1.0000, 0.0000],
             [0.8000, 0.2000],
             [0.0000, 1.0000]]])
    """
    if levels.dim() == 2 and levels.shape[0] == similarity.shape[0]:  # or else `encode` says what is wrong
        similarity = similarity.clamp(levels[:, :1], levels[:, -1:])
    encoding = encode(similarity, levels, kernel=kernel)
    return encoding / encoding.sum(2, keepdim=True) if kernel == "triangle" else encoding


def count(encoding: Tensor) -> Tensor:
    """Share of each level, C_n = Σ_i E_in / ΣΣ E, (R,N).

    Args:
        encoding: (R,P,N), as `encode` or `quantise` gives it.

    >>> similarity = torch.tensor([[0.0, 0.1, 0.25, 0.4, 0.75, 1.0]])
    >>> count(encode(similarity, uniform_levels(similarity, 4)))
    tensor([[0.3878, 0.2857, 0.1224, 0.2041]])
    """
    totals = encoding.sum(1)
    return totals / totals.sum(1, keepdim=True)


@full_precision
def clip_counts(counts: Tensor, ratio: float, *, like: Tensor | None = None) -> Tensor:
    """Denoised counts: what exceeds a share of the largest is cut off and given to all levels alike; the sum stays.

    Args:
        counts: (R,N).
        ratio: θ, the threshold as a share of each region's largest count; 1 changes nothing.
        like: counts (R,N) that decide, for each level, which share of a count is cut off; by default the counts' own.

    Raises:
        ValueError: on another rank or shape, or a ratio outside 0…1.

    Source:
        Ji et al., Structural and Statistical Texture Knowledge Distillation for Semantic Segmentation (CVPR 2022).

    >>> clip_counts(torch.tensor([[0.6, 0.3, 0.1]]), 0.5)
    tensor([[0.4000, 0.4000, 0.2000]])
    >>> clip_counts(torch.tensor([[0.2, 0.0, 0.8]]), 0.5, like=torch.tensor([[0.6, 0.3, 0.1]]))  # half of the first
    tensor([[0.1333, 0.0333, 0.8333]])
    """
    if counts.dim() != 2:
        raise ValueError(f"counts: expected (R,N), got {tuple(counts.shape)}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 to 1, got {ratio}")
    if like is None:
        kept = torch.minimum(counts, ratio * counts.amax(1, keepdim=True))
    elif like.shape == counts.shape:
        share = ratio * like.amax(1, keepdim=True) / like.clamp_min(torch.finfo(like.dtype).tiny)
        kept = counts * share.clamp_max(1.0)
    else:
        raise ValueError(f"like: expected {tuple(counts.shape)} as the counts, got {tuple(like.shape)}")
    return kept + (counts - kept).mean(1, keepdim=True)


@full_precision
def widen_levels(levels: Tensor, similarity: Tensor) -> Tensor:
    """Levels and, outside of them, two more: the least and the largest of all similarities, (R,N+2), ascending.

    So a similarity beyond the range of the levels is counted where it is, and has a slope that leads back.

    Args:
        levels: (R,N), ascending.
        similarity: (R,P), in SSTKD those of student and teacher together.

    >>> widen_levels(torch.tensor([[0.4, 0.6]]), torch.tensor([[0.0, 0.5, 0.7]]))
    tensor([[0.0000, 0.4000, 0.6000, 0.7000]])
    """
    least = torch.minimum(similarity.amin(1, keepdim=True), levels[:, :1])
    largest = torch.maximum(similarity.amax(1, keepdim=True), levels[:, -1:])
    return torch.cat([least, levels, largest], dim=1)


@full_precision
def heuristic_levels(
    similarity: Tensor, num_levels: int, *, density: float = 0.5, kernel: Kernel = "triangle"
) -> Tensor:
    """N levels that lie closer where similarities are frequent, (R,N), ascending.

    2N uniform levels are counted first. Their cells form two groups, the dense ones (a count of at least `density`
    times the largest) and the sparse ones. The dense group gets as large a share of the N levels as of the counts, one
    at least and N − 1 at most; each group's levels lie uniformly on its cells, put end to end. A region whose counts
    this does not flatten, as where all similarities are equally frequent already, keeps its uniform levels.

    Args:
        similarity: (R,P).
        num_levels: N, two at least.
        density: ρ.
        kernel: what counts, as of `encode`.

    Raises:
        ValueError: on another rank, fewer than two levels, or a density outside 0…1.

    Source:
        Ji et al., with one division into groups.

    >>> heuristic_levels(torch.tensor([[0.0, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8, 0.8, 1.0]]), 4)
    tensor([[0.3750, 0.6667, 0.7500, 0.8333]])
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density: expected 0 to 1, got {density}")

    def counted(levels: Tensor) -> Tensor:
        return count(quantise(similarity, levels, kernel=kernel))

    with torch.no_grad():  # which cells are dense does not change by a small step
        counts = counted(uniform_levels(similarity, 2 * num_levels))
        dense = counts >= density * counts.amax(1, keepdim=True)
        mass = (counts * dense).sum(1, keepdim=True)
        first = (num_levels * mass).round().clamp(1, num_levels - 1)
        first = first.where(~dense.all(1, keepdim=True), num_levels)  # no sparse cell, no sparse level
        slot = torch.arange(num_levels, dtype=similarity.dtype, device=similarity.device)
        sparse = _spread(~dense, (slot - first + 0.5) / (num_levels - first))
        place = torch.where(slot < first, _spread(dense, (slot + 0.5) / first), sparse).sort(1).values
    levels, plain = _at(similarity, place / (2 * num_levels)), uniform_levels(similarity, num_levels)
    with torch.no_grad():
        flatter = _entropy(counted(levels)) > _entropy(counted(plain))
    return levels.where(flatter, plain)


def _entropy(counts: Tensor) -> Tensor:
    return -torch.xlogy(counts, counts).sum(1, keepdim=True)


def _spread(cells: Tensor, share: Tensor) -> Tensor:
    """Where a share 0…1 of the way along the chosen cells, put end to end, lies among all cells (of length 1).

    Args:
        cells: (R,M) bool, at least one of them chosen in each row that counts.
        share: (R,N).
    """
    before = cells.cumsum(1)  # chosen cells up to and with this one
    way = share * before[:, -1:]
    cell = torch.searchsorted(before.to(way.dtype), way, right=True).clamp_max(cells.shape[1] - 1)
    return cell + way - (before.gather(1, cell) - 1)
