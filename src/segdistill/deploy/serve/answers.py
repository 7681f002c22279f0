"""What the server answers with: ids as a PNG or as runs, and how much of the image each class has."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from segdistill._types import Colour
from segdistill.data.files import Bytes

FORMATS = ("png", "rle", "json")


def ids_png(ids: Bytes, palette: Sequence[Colour]) -> bytes:
    """Ids as a palette PNG, whose values are the ids and whose colours are those of the classes.

    Args:
        ids: (H,W).
        palette: a colour per class; what lies beyond it, as 255 does, is black.
    """
    image = Image.fromarray(ids).convert("P")
    image.putpalette([part for colour in palette for part in colour] + [0] * 3 * (256 - len(palette)))
    return _png(image)


def image_png(pixels: Bytes, side: int | None = None) -> bytes:
    """An image as a PNG.

    Args:
        pixels: (H,W,3).
        side: the longer side, if it is longer than this; None: as it is.
    """
    image = Image.fromarray(pixels)
    if side is not None:
        image.thumbnail((side, side))
    return _png(image)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


def runs(ids: Bytes) -> list[int]:
    """Ids as runs, line by line from the top: an id, how often it comes, the next id, and so on.

    Args:
        ids: (H,W).

    >>> runs(np.array([[3, 3, 0], [0, 0, 0]], np.uint8))
    [3, 2, 0, 4]
    """
    flat = ids.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    pairs: list[int] = np.stack([flat[starts].astype(np.int64), lengths], axis=1).reshape(-1).tolist()
    return pairs


def describe(ids: Bytes, classes: Sequence[str]) -> dict[str, Any]:
    """Size, class names, and the share of pixels that each class has.

    Args:
        ids: (H,W); what is no class, as 255, counts as pixels of none.
        classes: their names.
    """
    counts = np.bincount(ids.reshape(-1), minlength=256)
    shares = {name: round(int(counts[number]) / ids.size, 6) for number, name in enumerate(classes)}
    return {"height": ids.shape[0], "width": ids.shape[1], "classes": list(classes), "shares": shares}
