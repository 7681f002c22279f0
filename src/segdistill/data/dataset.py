"""The contract of a data set, and what all of them share: class names, colours, reading of options."""

import colorsys
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from segdistill._types import Box, Colour, Size
from segdistill.functional import IGNORE

if TYPE_CHECKING:
    from hashlib import _Hash

SPLITS = ("train", "val", "test")


class Source:
    """One item of a data set that is read in pieces: a transform knows the size first, then takes what it will use.

    Attributes:
        size: (H,W) of the whole image and of its mask.
    """

    size: Size

    def image(self, box: Box, reduce: int = 1) -> Tensor:
        """A part of the image, uint8 (3,h,w) RGB.

        Args:
            box: the part.
            reduce: 2, 4 or 8 allows that it comes with so many times fewer rows and columns, where that is cheaper to
                read; starts and stops of the box are multiples of it.

        Raises:
            ValueError: as the data set's items do.
        """
        raise NotImplementedError

    def mask(self, box: Box) -> Tensor:
        """A part of the mask, uint8 (h,w); it is never reduced.

        Args:
            box: the part.
        """
        raise NotImplementedError


class Held(Source):
    """An item that is in memory as a whole.

    Args:
        image: uint8 (3,H,W).
        mask: (H,W) of whole numbers.
    """

    def __init__(self, image: Tensor, mask: Tensor):
        self.size = image.shape[1], image.shape[2]
        self._image, self._mask = image, mask.to(torch.uint8)  # until it is a target, an eighth of the bytes is enough

    def image(self, box: Box, reduce: int = 1) -> Tensor:
        """A part of the image, always in full."""
        return self._image[:, *box]

    def mask(self, box: Box) -> Tensor:
        """A part of the mask."""
        return self._mask[box]


class Unlabelled(Source):
    """An item without its mask, which is 255 throughout and never read.

    Args:
        source: the item.
    """

    def __init__(self, source: Source):
        self.source = source
        self.size = source.size

    def image(self, box: Box, reduce: int = 1) -> Tensor:
        """A part of the image."""
        return self.source.image(box, reduce)

    def mask(self, box: Box) -> Tensor:
        """255 in every pixel of the box."""
        return torch.full([part.stop - part.start for part in box], IGNORE, dtype=torch.uint8)


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images with one class id per pixel.

    A data set is one file in `data/sets/` with one subclass of this class; a config names it by the file's name. Its
    `__init__` takes the split, and its options as keyword-only arguments with annotations. The config check and
    `segdistill list data` read the options from there. An item that cannot be read raises a ValueError of one line:
    what is wrong, in which file, what to do.

    Attributes:
        classes: names; a class's position is its id in the masks, 0 … C-1.
        palette: one RGB colour per class, for pictures.
        names: one per item, for messages and reports: the image's path inside its folder, without suffix.
        remarks: what is conspicuous about the whole and may be meant so, a line each; told before a training and by
            `segdistill data check`.
        image_range: the values in an image's file that became 0 and 255; None: those of 8 bits.
    """

    classes: list[str]
    palette: list[Colour]
    names: list[str]
    remarks: Sequence[str] = ()
    image_range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One item: the image, uint8 (3,H,W) RGB, and the mask, int64 (H,W) of class ids or 255."""
        raise NotImplementedError

    def source(self, index: int) -> Source:
        """The same item to be read in pieces; a data set that can read less than a whole item says how.

        Args:
            index: of the item.
        """
        return Held(*self[index])

    def problems(self, index: int) -> list[str]:
        """What is wrong with an item, one line each; nothing if it can be read.

        Args:
            index: of the item.
        """
        try:
            self[index]
        except ValueError as error:
            return [str(error)]
        return []

    def has_mask(self, index: int) -> bool:
        """Whether an item has labels; where it has none, its mask is 255 throughout.

        Args:
            index: of the item.
        """
        return True

    def files(self, index: int) -> list[Path]:
        """The files that an item is made of; none where it is made otherwise.

        Args:
            index: of the item.
        """
        return []


class MissingMasks(ValueError):  # noqa: N818  (it names what is missing, and people read the line, not the class)
    """Some images have no mask.

    Args:
        problems: one line per image.
        dataset: the data set of the other images, so that a check can go on and look at those.
        whole: the data set of all images, of which some have no labels.
    """

    def __init__(self, problems: Sequence[str], dataset: SegmentationDataset, whole: SegmentationDataset):
        more = f" (and {len(problems) - 1} more; `segdistill data check` lists them)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = list(problems)
        self.dataset = dataset
        self.whole = whole


def hash_names(names: Sequence[str]) -> "_Hash":
    """The SHA-256 of some names in their order, which tells one choice of images from another; more may be added to it.

    Args:
        names: of items, whatever bytes the names of their files have.
    """
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape"))


def check_split(split: str, available: Sequence[str] = SPLITS, reason: str = "") -> None:
    """Raise ValueError with one line if there is no such split.

    Args:
        split: what was asked for.
        available: what there is.
        reason: what to do about it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected train, val or test, got {split!r}")
    if split not in available:
        there = f"there is {', '.join(available)}" if available else "there is none at all"
        raise ValueError(f"no split {split!r}; {there}{'; ' + reason if reason else ''}")


def check_classes(classes: Sequence[str], source: str) -> list[str]:
    """The class names, if they can be told apart and their ids fit beside 255.

    Args:
        classes: names.
        source: where they come from, for the error line.

    Raises:
        ValueError: if there are none, too many, or two of one name.
    """
    if not 1 <= len(classes) <= IGNORE:
        raise ValueError(f"{source}: expected 1 to {IGNORE} classes, got {len(classes)}")
    twice = [name for name in classes if list(classes).count(name) > 1]
    if twice:
        raise ValueError(f"{source}: class {twice[0]!r} is listed {list(classes).count(twice[0])} times")
    return list(classes)


def distinct_colours(count: int) -> list[Colour]:
    """Colours that are easy to tell apart: hues in golden steps, in two lightnesses by turns.

    Args:
        count: how many.

    >>> distinct_colours(3)
    [(224, 56, 56), (132, 164, 241), (98, 143, 36)]
    """
    colours = []
    for index in range(count):
        lightness, saturation = ((0.55, 0.73), (0.73, 0.79), (0.35, 0.6))[index % 3 if index else 0]
        red, green, blue = colorsys.hls_to_rgb(index * 0.618034 % 1, lightness, saturation)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
