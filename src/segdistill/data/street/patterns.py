"""Patterns that surfaces of drawn scenes are made of: stripes, tiles, smooth noise."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@cache
def _between(length: int, cell: int) -> tuple[NDArray[np.intp], Floats]:
    """For each pixel, the grid value before it and how far it is on the way to the next one."""
    position = np.arange(length, dtype=np.float32) / np.float32(cell)
    before = position.astype(np.intp)
    return before, position - before.astype(np.float32)


def smooth_noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> Floats:
    """Noise (height,width), about -1 … 1, straight between random values that stand `rows` × `columns` pixels apart.

    Args:
        rng: source of the values.
        height: of the noise.
        width: of the noise.
        rows: height of a cell.
        columns: width of a cell.
    """
    grid = rng.standard_normal((height // rows + 2, width // columns + 2), np.float32)
    # Not as a product of matrices: BLAS would start threads in each loader process.
    above, down = _between(height, rows)
    grid = grid[above] + down[:, None] * (grid[above + 1] - grid[above])
    before, right = _between(width, columns)
    return grid[:, before] + right * (grid[:, before + 1] - grid[:, before])


def grain(rng: np.random.Generator, *shape: int) -> Floats:
    """Noise of mean 0 and variance 1, each value on its own.

    Args:
        rng: source of the values.
        *shape: of the noise.
    """
    # The sum of two bytes: bell-shaped enough for a sensor, at a fifth of a normal deviate's time.
    first, second = rng.integers(0, 256, (2, *shape), np.uint8).astype(np.float32)
    noise: Floats = (first + second - 255) * np.float32(1 / 104.5)
    return noise


def stripes(coordinate: Floats, period: float, share: float) -> Mask:
    """True in the first `share` of each period.

    Args:
        coordinate: along which the stripes follow each other.
        period: of the stripes.
        share: in 0 … 1.
    """
    phase = coordinate * np.float32(1 / period)
    inside: Mask = phase - np.floor(phase) < share
    return inside


def scatter(a: Floats, b: Floats) -> Floats:
    """A number in -0.5 … 0.5 for each pair of whole numbers, without pattern: the shade of a brick or tile.

    Args:
        a: whole numbers.
        b: whole numbers.
    """
    wild = np.sin(a * 12.9898 + b * 78.233) * 4375.85
    return wild - np.floor(wild) - 0.5
