"""The tables of the contourlet transform: filters as banded matrices, polyphase components and shears as indices."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DOWN = (0.037828455506995, -0.023849465019380, -0.11062440441842, 0.37740285561265, 0.85269867900940)
"""Low-pass '9-7' of the pyramid's way down, up to its middle tap."""
UP = (-0.064538882628938, -0.040689417609558, 0.41809227322221, 0.78848561640566)
"""Low-pass '9-7' of the pyramid's way up, up to its middle tap."""
LADDER = (0.0144, 0.0272, 0.0526, 0.0972, 0.1930, 0.6300, -0.6300, -0.1930, -0.0972, -0.0526, -0.0272, -0.0144)
"""'pkva' of length 12, modulated: the symmetric filter with its 1st, 3rd, 5th … tap negated."""
ROOT = 2**0.5


class Round(NamedTuple):
    """One round of two-channel splits: K wedges, each into its two polyphase components of m×n."""

    gather: Tensor  # for each of the 2·K·m·n pixels, where it was before
    scatter: Tensor  # the inverse permutation
    shape: tuple[int, int, int]  # K, m, n
    rows: Tensor  # (2,m,m): along its columns, what the other component brings into this one
    columns: Tensor  # (2,n,n): likewise along its rows
    wraps: Tensor | None  # (2,m,m): what `rows` takes from beyond the border, where the map goes on shifted by n/2


class Half(NamedTuple):
    """What happens to one of the two halves that the first split makes."""

    rounds: list[Round]
    gather: Tensor
    scatter: Tensor
    shape: tuple[int, int, int]  # K, h, w of the subbands
    scale: Tensor  # (K,1): the factors 1/√2 and −√2 of all splits, applied once


class Bank(NamedTuple):
    """All that depends on the size alone, for one scale."""

    down: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    first: Round
    halves: list[Half]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # tables that are first made there would be of no use to training
def make_bank(height: int, width: int, levels: int, dtype: torch.dtype, device: torch.device) -> Bank:
    """The tables of one scale of H×W with 2^levels directions."""

    def ladder(length: int, period: int) -> Tensor:
        return torch.stack([_banded(LADDER, length, before=before, period=period) for before in (6, 5)])

    def splits(kinds: Sequence[str], wedges: Sequence[Tensor]) -> Round:
        pairs = [_polyphase(kind, wedge) for kind, wedge in zip(kinds, wedges, strict=True)]
        components = torch.stack([torch.stack(component) for component in zip(*pairs, strict=True)])
        m, n = components.shape[2:]
        rows, wraps = ladder(m, m), None
        if kinds == ["1r"]:  # quincunx: two turns along the columns, each shifted by half a row
            rows, wraps = torch.tensor_split(ladder(m, 2 * m), 2, dim=2)
        gather = components.flatten()
        wraps = wraps if wraps is None else to(wraps)
        return Round(to(gather), to(gather.argsort()), (len(pairs), m, n), to(rows), to(ladder(n, n)), wraps)

    def to(table: Tensor) -> Tensor:
        return table.to(device, dtype if table.is_floating_point() else None).contiguous()

    def tree(second: bool) -> Half:
        wedges, rounds = [_positions(height // 2, width)], []
        scales = torch.tensor([-ROOT if second else 1 / ROOT], dtype=torch.float64)
        for level in range(2, levels + 1):
            kinds = ["2c"] if level == 2 else ["3" if second else "1", "4" if second else "2"] * (len(wedges) // 2)
            rounds.append(splits(kinds, wedges))
            after = _positions(1, height * width // 2).view(2, *rounds[-1].shape)
            wedges = [after[component, k] for k in range(len(wedges)) for component in (1, 0)]
            scales = torch.outer(scales, torch.tensor([-ROOT, 1 / ROOT], dtype=torch.float64)).flatten()
        count = len(wedges)
        if levels > 2:  # shear each subband back
            shear = _shear_rows if second else _shear_columns
            wedges = [shear(wedge, 2 * (k // 2) + 1 - count // 2) for k, wedge in enumerate(wedges)]
        bands = torch.stack(wedges)
        if second:
            bands, scales = bands.flip(0), scales.flip(0)
        gather = bands.flatten()
        return Half(rounds, to(gather), to(gather.argsort()), (count, *wedges[0].shape), to(scales[:, None]))

    lengths = (height, width)
    down = [to(_banded((*DOWN, *DOWN[-2::-1]), length, before=4, period=length)[::2]) for length in lengths]
    up = [to(_banded((*UP, *UP[-2::-1]), length, before=3, period=length)[:, ::2]) for length in lengths]
    first = splits(["1r"], [_positions(height, width)])
    return Bank((down[0], down[1]), (up[0], up[1]), first, [tree(False), tree(True)])


def _banded(taps: Sequence[float], length: int, *, before: int, period: int) -> Tensor:
    """(length, period): row i has the taps from column i − before on, cyclically; they add up where they meet again."""
    columns = (torch.arange(length)[:, None] - before + torch.arange(len(taps))) % period
    matrix = torch.zeros(length, period, dtype=torch.float64)
    return matrix.scatter_add_(1, columns, torch.tensor(taps, dtype=torch.float64).expand(length, -1))


def _positions(height: int, width: int) -> Tensor:
    return torch.arange(height * width).view(height, width)


def _shear_rows(x: Tensor, step: int) -> Tensor:
    """y[i,j] = x[i + step·j, j], cyclically: R1 for 1, R2 for −1."""
    i, j = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
    return x[(i + step * j) % x.shape[0], j]


def _shear_columns(x: Tensor, step: int) -> Tensor:
    """y[i,j] = x[i, j + step·i], cyclically: R3 for 1, R4 for −1."""
    return _shear_rows(x.T, step).T


def _polyphase(kind: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two components of a map, on the quincunx ("1r", "2c") or a parallelogram lattice ("1" to "4")."""
    if kind in ("2c", "3", "4"):  # those of "1r", "1" and "2" with rows and columns exchanged
        p0, p1 = _polyphase({"2c": "1r", "3": "1", "4": "2"}[kind], x.T)
        return p0.T, p1.T
    if kind == "1r":
        x = _shear_rows(x, -1)
    odd = x[1::2] if kind == "2" else x[1::2].roll(-1, 1)
    shear = -1 if kind == "2" else 1
    return _shear_columns(x[::2], shear), _shear_columns(odd, shear)
