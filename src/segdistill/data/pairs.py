"""Data sets made of files: pairs of an image and a mask, and how a mask becomes class ids."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segdistill._types import Colour
from segdistill.data.dataset import MissingMasks, SegmentationDataset
from segdistill.data.files import Array, Bytes, Range, read_image, read_mask
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


def check_ids(ids: Array, num_classes: int, path: Path, hint: str = "") -> Bytes:
    """The ids as bytes, if all of them are 0 … C-1 or 255.

    Args:
        ids: (H,W), whole numbers.
        num_classes: C.
        path: of the mask, for the error line.
        hint: what to do about values that mean something else.

    Raises:
        ValueError: naming the file and the values.
    """
    bad = (ids != IGNORE) & ((ids < 0) | (ids >= num_classes))
    if bad.any():
        found = [str(value) for value in np.unique(ids[bad]).tolist()]
        raise ValueError(
            f"{path}: label values {_some(found)} in {bad.sum()} pixels; expected 0 to {num_classes - 1}, or {IGNORE} "
            f"for void{'; ' + hint if hint else ''}"
        )
    return ids.astype(np.uint8)


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
        self.images = [images[name] for name in self.names]
        self.masks = None if masks is None else [masks[name] for name in self.names]
        if missing:
            lines = [f"{images[name]} has no mask; expected {expected(name)}" for name in missing]
            raise MissingMasks(lines, self)

    def read_image(self, path: Path) -> Bytes:
        """The pixels of an image file, (H,W,3) RGB.

        Args:
            path: of the image.

        Raises:
            ValueError: if the file cannot be read.
        """
        return read_image(path, image_range=self.image_range, max_pixels=self.max_pixels)

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
        if self.masks is None:
            mask = np.full(image.shape[:2], IGNORE, np.uint8)
        else:
            mask = self.read_ids(self.masks[index])
            self._check_sizes(index, image, mask)
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask)

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
        if self.masks is None:
            return found
        path = self.masks[index]
        values = attempt(self.read_mask, path)
        if values is not None:
            attempt(self.read_ids, path)
        if image is not None and values is not None:
            try:
                self._check_sizes(index, image, values)
            except ValueError as error:
                found.append(str(error))
        return found

    def _check_sizes(self, index: int, image: Array, mask: Array) -> None:
        if self.masks is not None and image.shape[:2] != mask.shape[:2]:
            (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
            swapped = (height, width) == (mask_width, mask_height)
            turned = " (turned: does the image have EXIF orientation?)" if swapped else ""
            raise ValueError(
                f"{self.images[index]} is {width}×{height} but its mask {self.masks[index]} is "
                f"{mask_width}×{mask_height}{turned}; they must have one size"
            )
