"""Operations that exporters understand for images of any size, in the place of those that they fix to one."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

Cells = int | tuple[int | None, int | None]


def cell_averages(x: Tensor, cells: Cells) -> Tensor:
    """Adaptive average pooling as two matrix products: over the rows of each cell, then over its columns.

    The matrices are made from the map's size in the graph, where an exporter would otherwise write down the cells of
    the example's size.

    Args:
        x: (N,C,H,W).
        cells: rows and columns of the result; None: as many as the map has.
    """
    wanted = cells if isinstance(cells, tuple) else (cells, cells)
    if wanted == (1, 1):
        return x.mean((2, 3), keepdim=True)
    for side, count in zip((2, 3), wanted, strict=True):
        if count is not None:
            averaging = _averaging(x, side, count)
            x = averaging @ x if side == 2 else x @ averaging.T
    return x


def _averaging(x: Tensor, side: int, cells: int) -> Tensor:
    """The matrix (cells,length) that averages along one side; cell i is ⌊i·length/cells⌋ … ⌈(i+1)·length/cells⌉."""
    length = x.shape[side]
    number = torch.arange(cells, device=x.device)[:, None]
    start = torch.div(number * length, cells, rounding_mode="floor")
    end = torch.div((number + 1) * length + cells - 1, cells, rounding_mode="floor")
    at = torch.arange(length, device=x.device)
    return ((at >= start) & (at < end)).to(x.dtype) / (end - start)


def same_padding(length: int, kernel: int, stride: int, dilation: int) -> int | torch.SymInt:
    """What TensorFlow's "SAME" adds to one side of a map, so that ⌈length/stride⌉ values come out.

    Args:
        length: of the side.
        kernel: of the convolution.
        stride: likewise.
        dilation: likewise.
    """
    needed = (length + stride - 1) // stride * stride - stride + (kernel - 1) * dilation + 1 - length
    # A kernel that covers its stride always reaches over the edge: no maximum, which would double what is symbolic.
    return needed if (kernel - 1) * dilation + 1 >= stride else torch.sym_max(needed, 0)


@contextmanager
def portable() -> Iterator[None]:
    """Let networks use these operations for a while, whatever calls them: modules, functions, other libraries.

    timm's own padding divides in floats, with which exporters do not get done.
    """
    with (
        patch.object(F, "adaptive_avg_pool2d", cell_averages),
        patch("timm.layers.padding.get_same_padding", same_padding),
    ):
        yield
