"""Data sets made of files: pairs of an image and a mask, and how a mask becomes class ids."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segdistill._types import Box, Colour, Size
from segdistill.data.dataset import Held, MissingMasks, SegmentationDataset, Source
from segdistill.data.files import Array, Bytes, Range, read_mask, read_part
from segdistill.data.walk import file_list
from segdistill.functional import IGNORE


def colours_to_ids(colours: Bytes, ids: Mapping[Colour, int], path: Path, hint: str = "") -> Bytes:
    """The class ids of a colour mask.

    Args:
        colours: (H,W,3).
        ids: the id of each colour.
        path: of the mask, for the error line.
        hint: what to do about colours without a class.

    Raises:
        ValueError: naming the file and its colours that have no class.
    """
    packed = (colours.astype(np.int32) << np.array([16, 8, 0], np.int32)).sum(2)
    keys = np.array(sorted((r << 16) + (g << 8) + b for r, g, b in ids), np.int64)
    values = np.array([ids[(int(k) >> 16, int(k) >> 8 & 255, int(k) & 255)] for k in keys], np.uint8)
    position = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    unknown = keys[position] != packed
    if unknown.any():
        found = [f"({v >> 16},{v >> 8 & 255},{v & 255})" for v in np.unique(packed[unknown]).tolist()]
        raise ValueError(
            f"{path}: {_some(found)} in {unknown.sum()} pixels, which is no class's colour{'; ' + hint if hint else ''}"
        )
    mapped: Bytes = values[position]
    return mapped


def check_ids(ids: Array, num_classes: int, path: Path, hint: str | Callable[[], str] = "") -> Bytes:
    """The ids as bytes, if all of them are 0 … C-1 or 255.

    Args:
        ids: (H,W), whole numbers.
        num_classes: C.
        path: of the mask, for the error line.
        hint: what to do about values that mean something else; or what finds it out, if that takes time.

    Raises:
        ValueError: naming the file and the values.
    """
    bad = (ids != IGNORE) & ((ids < 0) | (ids >= num_classes))
    if bad.any():
        found = [str(value) for value in np.unique(ids[bad]).tolist()]
        hint = hint if isinstance(hint, str) else hint()
        raise ValueError(
            f"{path}: label values {_some(found)} in {bad.sum()} pixels; expected 0 to {num_classes - 1}, or {IGNORE} "
            f"for void{'; ' + hint if hint else ''}"
        )
    return ids.astype(np.uint8, copy=False)


def _some(values: Iterable[str]) -> str:
    values = list(values)
    return ", ".join(values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


class FileDataset(SegmentationDataset):
    """Pairs of an image and a mask; a subclass says which files, and how a mask becomes ids.

    Attributes:
        image_range: the values of an image's file that become 0 and 255, as for `read_image`; None: those of 8 bits.
        max_pixels: the largest image and mask that are read; None: Pillow's own limit.

    Args:
        images: name → image.
        masks: name → mask; None: the images have no labels, every mask is 255 throughout.
        expected: for an image without a mask, where its mask was looked for.

    Raises:
        ValueError: if an image has no mask.
    """

    image_range: Range | None = None
    max_pixels: int | None = None

    def __init__(self, images: Mapping[str, Path], masks: Mapping[str, Path] | None, expected: Callable[[str], str]):
        missing = [name for name in images if masks is not None and name not in masks]
        self.names = [name for name in images if masks is None or name in masks]
        self.images = file_list(images, self.names)
        self.masks: Sequence[Path | None] | None = None if masks is None else file_list(masks, self.names)
        if masks is not None and missing:
            lines = [f"{images[name]} has no mask; expected {expected(name)}" for name in missing]
            whole = copy(self)
            whole.names, whole.images = list(images), list(images.values())
            whole.masks = [masks.get(name) for name in images]
            raise MissingMasks(lines, self, whole)

    def mask_path(self, index: int) -> Path | None:
        """The file of an item's mask; None where it has no labels.

        Args:
            index: of the item.
        """
        return None if self.masks is None else self.masks[index]

    def has_mask(self, index: int) -> bool:
        """Whether there is a file of the item's mask."""
        return self.mask_path(index) is not None

    def files(self, index: int) -> list[Path]:
        """The image's file, and the mask's."""
        mask = self.mask_path(index)
        return [self.images[index], *([] if mask is None else [mask])]

    def read_image(self, path: Path) -> Bytes:
        """The pixels of an image file, (H,W,3) RGB.

        Args:
            path: of the image.

        Raises:
            ValueError: if the file cannot be read.
        """
        return self.read_part(path)[0]

    def read_part(self, path: Path, box: Box | None = None, reduce: int = 1) -> tuple[Bytes, Size]:
        """A part of an image file, and the size of the whole, as `files.read_part`.

        Args:
            path: of the image.
            box: the part; None: all.
            reduce: the fraction of its size at which a JPEG may be decoded.

        Raises:
            ValueError: if the file cannot be read.
        """
        return read_part(path, box, reduce, image_range=self.image_range, max_pixels=self.max_pixels)

    def read_mask(self, path: Path) -> Array:
        """The values of a mask file, (H,W) or (H,W,3), before they become ids.

        Args:
            path: of the mask.

        Raises:
            ValueError: if the file cannot be read.
        """
        return read_mask(path, max_pixels=self.max_pixels)

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask file, (H,W).

        Args:
            path: of the mask.

        Raises:
            ValueError: if the file cannot be read or holds something else.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.read_image(self.images[index])
        path = self.mask_path(index)
        if path is None:
            mask = np.full(image.shape[:2], IGNORE, np.uint8)
        else:
            mask = self.read_ids(path)
            self.check_sizes(index, image.shape, mask.shape)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).long()

    def source(self, index: int) -> Source:
        """The item, of which the image is decoded when it is known how much of it is wanted."""
        return _FileSource(self, index) if self.has_mask(index) else Held(*self[index])

    def problems(self, index: int) -> list[str]:
        """What is wrong with the image, with its mask, and with the two together."""
        found: list[str] = []

        def attempt(read: Callable[[Path], Array], path: Path) -> Array | None:
            try:
                return read(path)
            except ValueError as error:
                found.append(str(error))
                return None

        image = attempt(self.read_image, self.images[index])
        path = self.mask_path(index)
        if path is None:
            return found
        values = attempt(self.read_mask, path)
        if values is not None:
            attempt(self.read_ids, path)
        if image is not None and values is not None:
            try:
                self.check_sizes(index, image.shape, values.shape)
            except ValueError as error:
                found.append(str(error))
        return found

    def check_sizes(self, index: int, image: Sequence[int], mask: Sequence[int]) -> None:
        """Raise ValueError with one line if an image and its mask are not of one size.

        Args:
            index: of the item.
            image: shape of the image, (H,W,…).
            mask: shape of the mask, (H,W,…).
        """
        (height, width), (mask_height, mask_width) = image[:2], mask[:2]
        path = self.mask_path(index)
        if path is not None and (height, width) != (mask_height, mask_width):
            swapped = (height, width) == (mask_width, mask_height)
            turned = " (turned: does the image have EXIF orientation?)" if swapped else ""
            raise ValueError(
                f"{self.images[index]} is {width}×{height} but its mask {path} is "
                f"{mask_width}×{mask_height}{turned}; they must have one size"
            )


class _FileSource(Source):
    """A pair of files: the mask is decoded first and says how large the image is, then as much of that as is wanted."""

    def __init__(self, dataset: FileDataset, index: int):
        self.dataset, self.index = dataset, index
        path = dataset.mask_path(index)
        assert path is not None
        self.ids = dataset.read_ids(path)
        self.size = self.ids.shape[0], self.ids.shape[1]

    def image(self, box: Box, reduce: int = 1) -> Tensor:
        """A part of the image; a JPEG may be reduced."""
        pixels, size = self.dataset.read_part(self.dataset.images[self.index], box, reduce)
        self.dataset.check_sizes(self.index, size, self.size)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def mask(self, box: Box) -> Tensor:
        """A part of the mask."""
        return torch.from_numpy(self.ids[box])
