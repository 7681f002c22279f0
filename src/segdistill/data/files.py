"""Data sets made of files: pairs of an image and a mask, read with Pillow."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from segdistill._types import Colour
from segdistill.data.dataset import MissingMasks, SegmentationDataset
from segdistill.functional import IGNORE

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm")

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below a folder, sorted; hidden ones are left out.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted, in lower case.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]


def find_files(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files below a folder, by their path in it without suffix, sorted; hidden files are left out.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted, in lower case.

    Raises:
        ValueError: if the folder is missing, or two files differ in nothing but the suffix.
    """
    check_folder(folder)
    files: dict[str, Path] = {}
    for path in files_below(folder, suffixes):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{path} and {files[name].name} have one name; keep one of the two")
        files[name] = path
    return files


def check_folder(folder: Path, hint: str = "") -> None:
    """Raise ValueError with one line if a folder is missing; it says which part of the path is there.

    Args:
        folder: that is needed.
        hint: what to do.
    """
    if folder.is_dir():
        return
    parent = next((p for p in folder.parents if p.is_dir()), Path())
    inside = sorted(p.name for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    shown = ", ".join(inside[:6]) + (", …" if len(inside) > 6 else "") if inside else "no folder"
    raise ValueError(f"{folder}: no such folder; in {parent} there is {shown}{'; ' + hint if hint else ''}")


def read_image(path: Path) -> Bytes:
    """The pixels of an image file, (H,W,3) RGB, turned upright as its EXIF data say.

    Args:
        path: of any kind that Pillow reads; of 16-bit images, the high byte.

    Raises:
        ValueError: if the file cannot be read, or is so large that Pillow suspects an attack.
    """
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


def image_tensor(pixels: Bytes) -> Tensor:
    """The pixels of an image as what networks take: (H,W,3) of 0…255 → (3,H,W) float32 in 0…1.

    Args:
        pixels: as `read_image` gives them.
    """
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def read_mask(path: Path, *, by_colour: bool = False) -> Array:
    """The values of a mask file: (H,W) ids, or (H,W,3) colours if the file has colours.

    A palette PNG (mode P, as VOC's masks are) holds indices *and* colours: the indices are the ids, unless its colours
    are asked for.

    Args:
        path: of the mask.
        by_colour: read a palette image by its colours.

    Raises:
        ValueError: if the file cannot be read.
    """
    with _opened(path) as mask:
        if mask.mode in ("RGB", "RGBA") or (mask.mode == "P" and by_colour):
            return np.array(mask.convert("RGB"))
        if mask.mode in ("LA", "PA"):
            return np.asarray(mask)[..., 0]
        if mask.mode == "F" or np.asarray(mask).ndim != 2:
            raise ValueError(f"{path}: a mask of mode {mask.mode}; save class ids as an 8-bit PNG of one channel")
        return np.array(mask)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open and decode a file with Pillow; say in one line what is wrong with it if that does not work."""
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        if not reason or path.name in reason:
            reason = "Pillow does not know what it is"
        raise ValueError(f"{path}: not a readable image ({reason}); replace or remove it") from error
    with image:
        yield image


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

    Args:
        images: name → image.
        masks: name → mask; None: the images have no labels, every mask is 255 throughout.
        expected: for an image without a mask, where its mask was looked for.

    Raises:
        ValueError: if an image has no mask.
    """

    def __init__(self, images: Mapping[str, Path], masks: Mapping[str, Path] | None, expected: Callable[[str], str]):
        missing = [name for name in images if masks is not None and name not in masks]
        self.names = [name for name in images if masks is None or name in masks]
        self.images = [images[name] for name in self.names]
        self.masks = None if masks is None else [masks[name] for name in self.names]
        if missing:
            lines = [f"{images[name]} has no mask; expected {expected(name)}" for name in missing]
            raise MissingMasks(lines, self)

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask file, (H,W).

        Args:
            path: of the mask.

        Raises:
            ValueError: if the file cannot be read or holds something else.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.images[index])
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

        image = attempt(read_image, self.images[index])
        if self.masks is None:
            return found
        path = self.masks[index]
        values = attempt(read_mask, path)
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
