"""Layers that exporters understand for images of any size, in the place of those that they fix to one."""

from collections.abc import Iterator
from contextlib import contextmanager

import timm.layers.padding
import torch
from torch import Tensor, nn


class CellAverages(nn.Module):
    """`AdaptiveAvgPool2d` as two matrix products: averages over the rows of each cell, then over its columns.

    The matrices are made from the map's size in the graph, where an exporter would otherwise write down the cells of
    the example's size. (N,C,H,W) → (N,C,*cells).

    Args:
        cells: rows and columns of the result.
    """

    def __init__(self, cells: tuple[int, int]):
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        rows, columns = (_averaging(x, side, count) for side, count in zip((2, 3), self.cells, strict=True))
        return rows @ x @ columns.T


def _averaging(x: Tensor, side: int, cells: int) -> Tensor:
    """The matrix (cells,length) that averages along one side; cell i is ⌊i·length/cells⌋ … ⌈(i+1)·length/cells⌉."""
    length = x.shape[side]
    number = torch.arange(cells, device=x.device)[:, None]
    start = torch.div(number * length, cells, rounding_mode="floor")
    end = torch.div((number + 1) * length + cells - 1, cells, rounding_mode="floor")
    at = torch.arange(length, device=x.device)
    return ((at >= start) & (at < end)).to(x.dtype) / (end - start)


def make_portable(network: nn.Module) -> None:
    """Put portable layers into a network, in the places of those that exporters fix to one size.

    Args:
        network: a copy that is to be exported; it is changed.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and (cells := _cells(child.output_size)) is not None:
            setattr(network, name, CellAverages(cells))
        else:
            make_portable(child)


def _cells(size: int | tuple[int | None, int | None] | None) -> tuple[int, int] | None:
    """Rows and columns; None where exporters do well by themselves: one cell, or as many as the map has pixels."""
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return None if rows is None or columns is None or (rows, columns) == (1, 1) else (rows, columns)


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
def whole_number_padding() -> Iterator[None]:
    """Let timm compute "SAME" padding in whole numbers for a while: exporters do not get done with its division."""
    timms = timm.layers.padding.get_same_padding
    timm.layers.padding.get_same_padding = same_padding  # type: ignore[assignment]
    try:
        yield
    finally:
        timm.layers.padding.get_same_padding = timms
