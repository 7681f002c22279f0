"""Maps that are made a few rows at a time: a network's logits of an image, whole or in windows, resized, mirrored.

The logits of an image of a hundred megapixels take many gigabytes, its class numbers a tenth of one. So nothing here
holds a whole map that can be made from the top down: each map makes the rows that are asked for from rows of another.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from segdistill._types import Size
from segdistill.functional import upcast
from segdistill.taps import as_logits, resize

Network = Callable[[Tensor], Any]
"""Images (N,3,h,w) in, whatever `as_logits` understands out."""


class Rows:
    """A map (N,C,H,W) whose rows are made when they are asked for, from the top down.

    Attributes:
        size: (H,W).
    """

    size: Size

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom` − 1, (N,C,bottom−top,W) in float32 at least.

        Args:
            top: no smaller than in the call before.
            bottom: likewise.
        """
        raise NotImplementedError


class Given(Rows):
    """A tensor that is there already.

    Args:
        values: (N,C,H,W); of uint8, 0 … 255 becomes 0 … 1.
    """

    def __init__(self, values: Tensor):
        self.values = values
        self.size = (values.shape[-2], values.shape[-1])

    def rows(self, top: int, bottom: int) -> Tensor:
        """As the base class says."""
        part = self.values[..., top:bottom, :]
        return part.float() / 255 if part.dtype == torch.uint8 else upcast(part)


class Mirrored(Rows):
    """Another map with left and right exchanged."""

    def __init__(self, source: Rows):
        self.source = source
        self.size = source.size

    def rows(self, top: int, bottom: int) -> Tensor:
        """As the base class says."""
        return self.source.rows(top, bottom).flip(-1)


class Resized(Rows):
    """Another map, resized bilinearly without antialiasing.

    Args:
        source: the map.
        size: (H,W) that it gets.
        align_corners: whether the centres of the corner pixels stay where they are, or the corners of the image.
    """

    def __init__(self, source: Rows, size: Size, align_corners: bool):
        self.source = source
        self.size = size
        self.align_corners = align_corners

    def rows(self, top: int, bottom: int) -> Tensor:
        """As the base class says; all rows at once are exactly what torch makes of the whole map."""
        if (top, bottom) == (0, self.size[0]):
            return resize(self.source.rows(0, self.source.size[0]), self.size, self.align_corners)
        place = self._places(torch.arange(top, bottom, dtype=torch.float64))
        above = place.long()
        below = (above + 1).clamp(max=self.source.size[0] - 1)
        first = int(above[0])
        known = self.source.rows(first, int(below[-1]) + 1)
        share = (place - above).to(known.dtype).to(known.device)[:, None]
        above, below = ((index - first).to(known.device) for index in (above, below))
        mixed = torch.lerp(known.index_select(-2, above), known.index_select(-2, below), share)
        return resize(mixed, (bottom - top, self.size[1]), self.align_corners)

    def _places(self, rows: Tensor) -> Tensor:
        """Where rows lie among those of the source, in float64: in float32 the last of 10 000 are a thousandth off."""
        height, source = self.size[0], self.source.size[0]
        if self.align_corners:
            return rows * ((source - 1) / max(1, height - 1))
        return ((rows + 0.5) * (source / height) - 0.5).clamp(min=0)


def resized(source: Rows, size: Size, align_corners: bool = False) -> Rows:
    """A map of another size; the same map where nothing is to do.

    Args:
        source: the map.
        size: (H,W).
        align_corners: as for `Resized`.
    """
    return source if source.size == size else Resized(source, size, align_corners)


class Whole(Rows):
    """A network's logits of whole images, at the images' size.

    Args:
        network: what gives them; at whatever resolution.
        images: (N,3,H,W) in 0 … 1.
        align_corners: for resizing its logits.
        device: where the network is.
    """

    def __init__(self, network: Network, images: Rows, align_corners: bool, device: torch.device):
        self.network, self.images, self.align_corners, self.device = network, images, align_corners, device
        self.size = images.size
        self.logits: Rows | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
        """As the base class says; the network runs in the first call."""
        if self.logits is None:
            seen = self.images.rows(0, self.size[0]).to(self.device)
            self.logits = resized(Given(as_logits(self.network(seen))), self.size, self.align_corners)
        return self.logits.rows(top, bottom)


BLOCK = 64
"""Most rows of sums that come and go together."""


class Windows(Rows):
    """A network's logits of images that it sees through windows, averaged where windows overlap.

    Only the rows of windows that reach into the rows asked for, or below them, are in memory.

    Args:
        network: as for `Whole`.
        images: likewise.
        window: (h,w); of an image that is smaller the window is as large as the image.
        stride: (down, across) from one window to the next; the last one is moved back to the image's border.
        align_corners: as for `Whole`.
        device: likewise.
    """

    def __init__(
        self,
        network: Network,
        images: Rows,
        window: Size,
        stride: Size,
        align_corners: bool,
        device: torch.device,
    ):
        self.network, self.images, self.align_corners, self.device = network, images, align_corners, device
        self.size = images.size
        self.height, self.width = (min(side, full) for side, full in zip(window, self.size, strict=True))
        self.tops = starts(self.size[0], window[0], stride[0])
        self.lefts = starts(self.size[1], window[1], stride[1])
        edges = {*self.tops, *(top + self.height for top in self.tops), *range(0, self.size[0], BLOCK)}
        self.blocks = list(pairwise(sorted(edges)))
        """Rows that the same windows see, [top, bottom)."""
        self.sums: dict[int, Tensor] = {}
        """Sums of logits of a block, by its top."""
        self.done = 0

    def rows(self, top: int, bottom: int) -> Tensor:
        """As the base class says; the network runs as far down as it has to."""
        while self.done < len(self.tops) and self.tops[self.done] < bottom:
            self._look(self.tops[self.done])
            self.done += 1
        across = torch.zeros(self.size[1], device=self.device)
        for left in self.lefts:
            across[left : left + self.width] += 1
        parts = []
        for first, last in self.blocks:
            if last <= top:
                self.sums.pop(first, None)
            elif first < bottom:
                down = sum(start <= first < start + self.height for start in self.tops)
                part = self.sums[first][..., max(top, first) - first : min(bottom, last) - first, :]
                parts.append(part / (down * across))
        return torch.cat(parts, -2)

    def _look(self, top: int) -> None:
        """Add the logits of one row of windows."""
        strip = self.images.rows(top, top + self.height)
        for left in self.lefts:
            logits = as_logits(self.network(strip[..., left : left + self.width].to(self.device)))
            logits = resize(upcast(logits), (self.height, self.width), self.align_corners)
            for first, last in self.blocks:
                if top <= first < top + self.height:
                    if first not in self.sums:
                        shape = (*logits.shape[:2], last - first, self.size[1])
                        self.sums[first] = logits.new_zeros(shape)
                    seen = logits[..., first - top : last - top, :]
                    self.sums[first][..., left : left + self.width] += seen


def starts(full: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride` pixels, the last one so that it ends at the border.

    Args:
        full: pixels of the side.
        window: of the window, which may be more.
        stride: from one window to the next.

    >>> starts(2048, 769, 513)
    [0, 513, 1026, 1279]
    """
    last = max(0, full - window)
    return [min(start, last) for start in range(0, last + stride, stride)]
