"""The contourlet transform: a map split by scale, then by direction (Do and Vetterli, 2005).

A Laplacian pyramid ('9-7' filters) takes the band-pass of each scale; a directional filter bank ('pkva' ladder filters)
splits each band-pass into 4, 8 … wedges of the frequency plane. Everything is linear, periodic and channel-wise, so
that one step of the bank is a permutation of the pixels, whose indices are computed once per size, and a few products
with small banded matrices, for all channels, images and wedges together.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segdistill.functional import full_precision

ANALYSIS = (0.037828455506995, -0.023849465019380, -0.11062440441842, 0.37740285561265, 0.85269867900940)
"""Low-pass '9-7' of the pyramid's way down, up to its middle tap."""
SYNTHESIS = (-0.064538882628938, -0.040689417609558, 0.41809227322221, 0.78848561640566)
"""Low-pass '9-7' of the pyramid's way up, up to its middle tap."""
LADDER = (0.0144, 0.0272, 0.0526, 0.0972, 0.1930, 0.6300, -0.6300, -0.1930, -0.0972, -0.0526, -0.0272, -0.0144)
"""'pkva' of length 12, modulated: (reversed half, half) with every other tap negated, from the first on."""
ROOT = 2**0.5


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
        return iter((self.low, self.bands))


@full_precision
def contourlet(x: Tensor, levels: Sequence[int] = (4, 3)) -> Contourlet:
    if x.dim() != 4 or x.numel() == 0:
        raise ValueError(f"x: expected a non-empty (N,A,H,W), got {tuple(x.shape)}")
    if not 1 <= len(levels) <= 3 or not all(2 <= n <= 5 for n in levels):
        raise ValueError(f"levels: expected one to three numbers from 2 to 5, got {tuple(levels)}")
    size = (x.shape[2], x.shape[3])
    unit = max(2 ** len(levels), *(2 ** (scale + n - 1) for scale, n in enumerate(levels)))
    height, width = (-(-length // unit) * unit for length in size)
    padded = (height, width) != size
    if padded:
        x = x[:, :, _reflection(size[0], height, x.device)][..., _reflection(size[1], width, x.device)]
    low = x
    bands = []
    for n in levels:
        low, *halves = _Analysis.apply(low, _bank(low.shape[2], low.shape[3], n, low.dtype, low.device), False)
        bands.append([band for half in halves for band in half.unbind()])
    return Contourlet(low, bands, size if padded else None)


class _Analysis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bank, dual):
        ctx.bank, ctx.dual = bank, dual
        n, c = x.shape[:2]
        pos = x.permute(2, 3, 0, 1).flatten(2)
        down, up = (bank.up_t, bank.down_t) if dual else (bank.down, bank.up)
        low = _separable(down, pos)
        state = _separable(up, low)
        torch.sub(pos, state, out=state)
        del pos
        state = state.flatten(0, 1)
        other = torch.empty_like(state)
        state, other = _permute(state, other, bank.first)
        lift(state, bank.first, dual, True)
        outs = []
        for half, spare, (steps, final, shape) in zip(state.chunk(2), other.chunk(2), bank.halves):
            for step in steps:
                half, spare = _permute(half, spare, step)
                lift(half, step, dual, True)
            torch.index_select(half, 0, final[0], out=spare)
            spare = spare.view(*shape, n, c)
            spare.mul_(final[2])
            outs.append(spare.permute(0, 3, 4, 1, 2))
        return low.unflatten(2, (n, c)).permute(2, 3, 0, 1), *outs


def _permute(x, out, step):
    return torch.index_select(x, 0, step.there, out=out), x

def _separable(ms, x):
    y = (ms[1] @ x).flatten(1)
    return (ms[0] @ y).unflatten(1, (-1, x.shape[2]))

def lift(x, step, dual, forward):
    x = x.view(*step.shape, -1)
    for target, alpha in ((0, -1), (1, .5)):
        _add(step, target, x[target], x[1-target], alpha)

def _add(step, target, t, source, alpha):
    k, m, n, _ = source.shape
    which = 1 - target
    source = step.columns[which] @ source
    t = t.flatten(2)
    t.baddbmm_(step.rows[which].expand(k, m, m), source.flatten(2), alpha=alpha)
    if step.wraps is not None:
        t.baddbmm_(step.wraps[which].expand(k, m, m), source.roll(n // 2, 2).flatten(2), alpha=alpha)


@dataclass
class _Step:
    there: Tensor
    back: Tensor
    shape: tuple
    rows: tuple
    columns: tuple
    wraps: tuple | None = None


@dataclass
class _Bank:
    down: tuple
    up: tuple
    first: _Step
    halves: list


def banded(size, taps, before, period, dtype, device):
    rows = torch.arange(size)[:, None]
    cols = (rows - before + torch.arange(len(taps))) % period
    out = torch.zeros(size, period, dtype=torch.float64)
    out.scatter_add_(1, cols, torch.tensor(taps, dtype=torch.float64).expand(size, -1))
    return out.to(device, dtype)


def shear_rows(x, s):
    m, n = x.shape
    i, j = torch.arange(m)[:, None], torch.arange(n)
    return x[(i + s * j) % m, j]


def shear_columns(x, s):
    return shear_rows(x.T, s).T


def polyphase(x, kind):
    if kind == "1r":
        u = shear_rows(x, -1)
        return shear_columns(u[::2], 1), shear_columns(u[1::2].roll(-1, 1), 1)
    if kind == "2c":
        u = shear_columns(x, -1)
        return shear_rows(u[:, ::2], 1), shear_rows(u[:, 1::2].roll(-1, 0), 1)
    if kind == 0:
        return shear_columns(x[::2], 1), shear_columns(x[1::2].roll(-1, 1), 1)
    if kind == 1:
        return shear_columns(x[::2], -1), shear_columns(x[1::2], -1)
    if kind == 2:
        return shear_rows(x[:, ::2], 1), shear_rows(x[:, 1::2].roll(-1, 0), 1)
    return shear_rows(x[:, ::2], -1), shear_rows(x[:, 1::2], -1)


@functools.lru_cache(64)
def _bank(height, width, n, dtype, device):
    def ladder(size):
        return tuple(banded(size, LADDER, b, size, dtype, device) for b in (5, 6))

    def perm(parts):
        flat = torch.stack(parts).flatten()
        return flat.to(device), flat.argsort().to(device)

    def step(pairs):
        parts = [p[0] for p in pairs] + [p[1] for p in pairs]
        m, w = parts[0].shape
        return _Step(*perm(parts), (2, len(pairs), m, w), ladder(m), ladder(w))

    h = (*ANALYSIS, *ANALYSIS[-2::-1])
    g = (*SYNTHESIS, *SYNTHESIS[-2::-1])
    down = tuple(banded(s, h, 4, s, dtype, device)[::2].contiguous() for s in (height, width))
    up = tuple(banded(s, g, 3, s, dtype, device)[:, ::2].contiguous() for s in (height, width))
    first = step([polyphase(torch.arange(height * width).view(height, width), "1r")])
    m = height // 2
    both = [banded(m, LADDER, b, 2 * m, dtype, device) for b in (5, 6)]
    first.rows = tuple(b[:, :m].contiguous() for b in both)
    first.wraps = tuple(b[:, m:].contiguous() for b in both)
    halves = []
    for half in range(2):
        bands = [torch.arange(m * width).view(m, width)]
        steps = []
        for level in range(2, n + 1):
            pairs = [polyphase(b, "2c" if level == 2 else 2 * half + k % 2) for k, b in enumerate(bands)]
            steps.append(step(pairs))
            idx = torch.arange(m * width).view(steps[-1].shape)
            bands = [idx[1 - z, k] for k in range(len(pairs)) for z in range(2)]
        if n > 2:
            for k in range(1, 2 ** (n - 2) + 1):
                s = 2 * k - (2 ** (n - 2) + 1)
                for i in (2 * k - 2, 2 * k - 1):
                    bands[i] = shear_rows(bands[i], s) if half else shear_columns(bands[i], s)
        if half:
            bands.reverse()
        scale = []
        for k in range(2 ** (n - 1)):
            # the path of band k before reordering
            f = (-ROOT) if half else 1 / ROOT
            for l in range(n - 1):
                f *= (-ROOT, 1 / ROOT)[(k >> l) & 1]
            scale.append(f)
        if half:
            scale.reverse()
        halves.append((steps, (*perm(bands), torch.tensor(scale, dtype=dtype, device=device).view(-1, 1, 1, 1, 1)), (len(bands), *bands[0].shape)))
    return _Bank(down, up, first, halves)


def _reflection(size, padded, device):
    period = max(2 * (size - 1), 1)
    i = torch.arange(padded, device=device) % period
    return torch.minimum(i, period - i)
