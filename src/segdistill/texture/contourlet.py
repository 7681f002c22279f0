"""The contourlet transform: a map split by scale, then by direction (Do and Vetterli, 2005).

A Laplacian pyramid ('9-7' filters) takes the band-pass of each scale; a directional filter bank ('pkva' ladder filters)
splits each band-pass into 4, 8 … wedges of the frequency plane, by a tree of two-channel splits. All of it is linear,
periodic and channel-wise. So one round of splits is a permutation of the pixels, whose indices are computed once per
size, and a few products with small banded matrices, for all channels, images and wedges of one half of the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segdistill.functional import full_precision
from segdistill.texture._bank import Bank, Round, make_bank


@dataclass(frozen=True)
class Contourlet:
    """A map's contourlet coefficients.

    Args:
        low: what is left below the coarsest scale, (N,A,h,w).
        bands: one list per scale, the finest first, of one (N,A,h,w) tensor per direction.
        size: (H,W) of the map where it had to be padded; None: as large as the coefficients say.
    """

    low: Tensor
    bands: list[list[Tensor]]
    size: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        """`low`, then `bands`."""
        return iter((self.low, self.bands))


def contourlet(x: Tensor, levels: Sequence[int] = (4, 3)) -> Contourlet:
    """Contourlet coefficients of each channel, at most 4/3 as many as the map has pixels.

    A scale with n directional levels gives 2ⁿ subbands. The first half of them holds the frequencies that are more
    horizontal than vertical (stripes along the columns), the second half the others.

    H and W are padded at the bottom and at the right, by reflection, to the next multiple of 8 for (4, 3), of the
    largest 2^(s+n−1) over the scales s = 0, 1 … in general. The transform itself is periodic. Its cost grows with H+W
    per pixel, which is made for feature maps: below some hundreds of pixels it is bound by memory, not by arithmetic.

    Args:
        x: (N,A,H,W), computed in float32 at least.
        levels: directional levels n of each scale, the finest first: one to three numbers from 2 to 5.

    Raises:
        ValueError: on another rank or other levels.

    Source:
        Do and Vetterli, The Contourlet Transform, IEEE Transactions on Image Processing 14(12), 2005.

    >>> coefficients = contourlet(torch.ones(1, 2, 16, 32), levels=(3, 2))
    >>> [len(bands) for bands in coefficients.bands], tuple(coefficients.bands[0][0].shape)
    ([8, 4], (1, 2, 4, 16))
    """
    low, halves = _coefficients(x, levels)
    bands = [[band.permute(2, 3, 0, 1) for half in pair for band in half.unbind()] for pair in halves]
    size = (x.shape[2], x.shape[3])
    scale = 2 ** len(bands)
    exact = (low.shape[0] * scale, low.shape[1] * scale) == size
    return Contourlet(low.permute(2, 3, 0, 1), bands, None if exact else size)


def inverse_contourlet(coefficients: Contourlet) -> Tensor:
    """The map that has these coefficients, (N,A,H,W); undoes `contourlet` to rounding.

    Args:
        coefficients: as `contourlet` gives them.

    Raises:
        ValueError: if the subbands of a scale are not 4, 8, 16 or 32.

    >>> x = torch.randn(1, 2, 20, 12, dtype=torch.float64)
    >>> bool((inverse_contourlet(contourlet(x)) - x).abs().max() < 1e-12)
    True
    """
    low = coefficients.low.permute(2, 3, 0, 1)
    for bands in reversed(coefficients.bands):
        if len(bands) not in (4, 8, 16, 32):
            raise ValueError(f"bands: expected 4, 8, 16 or 32 of each scale, got {len(bands)}")
        halves = [
            torch.stack([b.permute(2, 3, 0, 1) for b in half])
            for half in (bands[: len(bands) // 2], bands[len(bands) // 2 :])
        ]
        low = _synthesise(low, *halves, len(bands).bit_length() - 1, False)
    height, width = coefficients.size or low.shape[:2]
    return low.permute(2, 3, 0, 1)[:, :, :height, :width]


def contourlet_energy(x: Tensor, levels: Sequence[int] = (4, 3)) -> Tensor:
    """Mean square of the contourlet coefficients over each subband, mean over the subbands; the low-pass is left out.

    Args:
        x: (N,A,H,W), computed in float32 at least.
        levels: as of `contourlet`.

    Raises:
        ValueError: on another rank or other levels.
    """
    _, halves = _coefficients(x, levels)
    parts = [half for pair in halves for half in pair]
    # All subbands of one half of a scale are of one size.
    return torch.stack([half.square().mean() * len(half) for half in parts]).sum() / sum(len(half) for half in parts)


@full_precision
def _coefficients(x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Low-pass (h,w,N,A), and for each scale the two halves of its subbands, (K,h,w,N,A)."""
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x: expected a non-empty (N,A,H,W), got {tuple(x.shape)}")
    if not 1 <= len(levels) <= 3 or not all(2 <= n <= 5 for n in levels):
        raise ValueError(f"levels: expected one to three numbers from 2 to 5, got {tuple(levels)}")
    unit = _unit(levels)
    # Positions first: then a permutation of pixels moves whole rows of channels, and a filter is one matrix product.
    low = _pad(_pad(x.permute(2, 3, 0, 1), 0, unit), 1, unit)
    halves = []
    for n in levels:
        low, first, second = _analyse(low, n, False)
        halves.append((first, second))
    return low, halves


def _unit(levels: Sequence[int]) -> int:
    """What H and W are padded to multiples of."""
    return max(1 << len(levels), *(1 << (scale + n - 1) for scale, n in enumerate(levels)))


def _pad(x: Tensor, dim: int, unit: int) -> Tensor:
    """Continue a dimension by reflection, as often as it takes, to a multiple of `unit`."""
    size = x.shape[dim]
    if size % unit == 0:
        return x
    index = torch.arange(-(-size // unit) * unit, device=x.device) % max(2 * size - 2, 1)
    return x.index_select(dim, torch.minimum(index, 2 * size - 2 - index) if size > 1 else index)


@torch.library.custom_op("segdistill::contourlet_analysis", mutates_args=())
@full_precision
def _analyse(x: Tensor, levels: int, dual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(H,W,N,A) → low-pass (H/2,W/2,N,A) and both halves of the subbands, (K,h,w,N,A).

    With `dual`, that of the dual bank, which is the transposed synthesis, as the dual synthesis is this transposed: so
    each is the other's gradient. One operator each, since `torch.compile` would only unroll it.
    """
    bank, batch = make_bank(x.shape[0], x.shape[1], levels, x.dtype, x.device), x.shape[2:]
    down, up = _pyramid(bank, dual)
    x = x.flatten(2)
    low = _separable(down, x)
    detail = _separable(up, low)
    torch.sub(x, detail, out=detail)
    del x
    parts = [detail.flatten(0, 1).index_select(0, gather) for gather in bank.first.gather.chunk(2)]
    del detail
    _lift(parts, bank.first, dual=dual, inverse=False)
    for k, half in enumerate(bank.halves):
        part, spare = parts[k], torch.empty_like(parts[k])
        for round_ in half.rounds:
            part, spare = torch.index_select(part, 0, round_.gather, out=spare), part
            _lift(part.chunk(2), round_, dual=dual, inverse=False)
        bands = torch.index_select(part, 0, half.gather, out=spare).view(len(half.scale), -1)
        bands = bands.div_(half.scale) if dual else bands.mul_(half.scale)
        parts[k] = bands.view(*half.shape, *batch)
    return low.view(*low.shape[:2], *batch), parts[0], parts[1]


@torch.library.custom_op("segdistill::contourlet_synthesis", mutates_args=())
@full_precision
def _synthesise(low: Tensor, first: Tensor, second: Tensor, levels: int, dual: bool) -> Tensor:
    """Low-pass and both halves of the subbands → (H,W,N,A): undoes `_analyse`."""
    height, width, batch = 2 * low.shape[0], 2 * low.shape[1], low.shape[2:]
    bank = make_bank(height, width, levels, low.dtype, low.device)
    parts = []
    for bands, half in zip((first, second), bank.halves, strict=True):
        bands = bands.reshape(len(half.scale), -1)
        part = (bands * half.scale if dual else bands / half.scale).view(len(half.gather), -1)
        part, spare = part.index_select(0, half.scatter), part
        for round_ in reversed(half.rounds):
            _lift(part.chunk(2), round_, dual=dual, inverse=True)
            part, spare = torch.index_select(part, 0, round_.scatter, out=spare), part
        parts.append(part)
        del part, spare
    _lift(parts, bank.first, dual=dual, inverse=True)
    x = torch.cat(parts)
    del parts
    x = x.index_select(0, bank.first.scatter).view(height, width, -1)
    down, up = _pyramid(bank, dual)
    return x.add_(_separable(up, low.flatten(2) - _separable(down, x))).view(height, width, *batch)


@_analyse.register_fake
def _(x: Tensor, levels: int, dual: bool) -> tuple[Tensor, Tensor, Tensor]:
    height, width, *batch = x.shape
    many = 2 ** (levels - 1)
    return (
        x.new_empty(height // 2, width // 2, *batch),
        x.new_empty(many, height // many, width // 2, *batch),
        x.new_empty(many, height // 2, width // many, *batch),
    )


@_synthesise.register_fake
def _(low: Tensor, first: Tensor, second: Tensor, levels: int, dual: bool) -> Tensor:
    return low.new_empty(2 * low.shape[0], 2 * low.shape[1], *low.shape[2:])


def _keep_options(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *_, ctx.levels, ctx.dual = inputs


def _analyse_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
    return _synthesise(*gradients, ctx.levels, not ctx.dual), None, None


def _synthesise_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_analyse(gradient, ctx.levels, not ctx.dual), None, None


_analyse.register_autograd(_analyse_backward, setup_context=_keep_options)
_synthesise.register_autograd(_synthesise_backward, setup_context=_keep_options)


def _pyramid(bank: Bank, dual: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The pyramid's way down and its way up, as matrices of rows and columns; in the dual they change places."""
    if not dual:
        return bank.down, bank.up
    return tuple(matrix.T for matrix in bank.up), tuple(matrix.T for matrix in bank.down)


def _separable(matrices: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Apply one matrix to the rows and one to the columns of (H,W,B)."""
    rows, columns = matrices
    return (rows @ (columns @ x).flatten(1)).view(rows.shape[0], columns.shape[0], -1)


def _lift(components: Sequence[Tensor], round_: Round, *, dual: bool, inverse: bool) -> None:
    """The two steps of a ladder, p0 −= B₁p1 and p1 += ½B₀p0, or their inverse; in place, without the factors."""
    steps = [(0, -1.0), (1, 0.5)]
    if dual:  # B₀ᵀ = B₁, so that the transposed ladder exchanges the two components
        steps = [(1 - target, -factor) for target, factor in steps]
    if inverse:
        steps = [(target, -factor) for target, factor in reversed(steps)]
    wedges, m, n = round_.shape
    components = [component.view(wedges, m, n, -1) for component in components]
    for target, factor in steps:
        filtered = round_.columns[target] @ components[1 - target]
        into = components[target].flatten(2)
        into.baddbmm_(round_.rows[target].expand(wedges, m, m), filtered.flatten(2), alpha=factor)
        if round_.wraps is not None:
            shifted = filtered.roll(n // 2, 2).flatten(2)
            into.baddbmm_(round_.wraps[target].expand(wedges, m, m), shifted, alpha=factor)


def analysis_operations(height: int, width: int, levels: int, *, dense: bool = False) -> int:
    """Multiply-adds of the transform of one scale of one channel: its pyramid and its directional filter bank.

    Args:
        height: H of the map, padded already.
        width: W.
        levels: directional levels of the scale.
        dense: whether to count the matrix products that are run, whose matrices are mostly zeros, or else the taps of
            the filters alone (on a map that is shorter than a filter, taps that meet after a turn count once).

    >>> analysis_operations(128, 128, 4) / 128**2  # 12 of the pyramid, 24 of each level of the bank
    108.0
    """
    bank = make_bank(height, width, levels, torch.float64, torch.device("cpu"))

    def cost(matrix: Tensor | None) -> int:
        return 0 if matrix is None else int(matrix.numel() if dense else matrix.count_nonzero())

    total = cost(bank.down[1]) * height + cost(bank.down[0]) * (width // 2)
    total += cost(bank.up[1]) * (height // 2) + cost(bank.up[0]) * width
    for round_ in (bank.first, *(round_ for half in bank.halves for round_ in half.rounds)):
        wedges, m, n = round_.shape
        wraps = round_.wraps if round_.wraps is not None else (None, None)
        for rows, columns, wrap in zip(round_.rows, round_.columns, wraps, strict=True):
            total += wedges * (cost(columns) * m + (cost(rows) + cost(wrap)) * n)
    return total


def contourlet_operations(height: int, width: int, levels: Sequence[int] = (4, 3), *, dense: bool = False) -> int:
    """Multiply-adds of `contourlet` for one channel of an H×W map, all scales together.

    Args:
        height: H.
        width: W.
        levels: as of `contourlet`.
        dense: as of `analysis_operations`.
    """
    unit = _unit(levels)
    height, width = (-(-n // unit) * unit for n in (height, width))
    return sum(analysis_operations(height >> s, width >> s, n, dense=dense) for s, n in enumerate(levels))
