"""The one reader of images and masks: what a file holds, as bytes of colour or as values of classes, through Pillow."""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from segdistill._printing import one_line
from segdistill._types import Box, Size
from segdistill.data.walk import dangling_link

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm")

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Range = tuple[float, float]

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
"""What is read, as Pillow names it: what it decodes by itself. A file of PostScript it would hand on to Ghostscript,
whatever the file is called."""

ORIENTATION = ExifTags.Base.Orientation.value
COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits and less that mean what RGB means."""


def check_range(image_range: Range | None, option: str) -> None:
    """Raise ValueError with one line if a range cannot be mapped to 0…1.

    Args:
        image_range: [the value that becomes 0, the value that becomes 1], or None.
        option: its name, for the error line.
    """
    if image_range is not None and not (all(map(math.isfinite, image_range)) and image_range[0] < image_range[1]):
        raise ValueError(f"{option}: expected the darkest and the brightest value, such as 0 1, got {image_range}")


def read_image(path: Path | bytes, *, image_range: Range | None = None, max_pixels: int | None = None) -> Bytes:
    """Read the pixels of an image file, (H,W,3) RGB, turned upright as its EXIF data say.

    Transparency is dropped: the colours under it count. Of 16-bit images the high byte counts, unless there is a range.

    Args:
        path: of one of `FORMATS`, with one image in it; or what such a file holds.
        image_range: the values that become 0 and 255, what lies beyond them is cut off, NaN becomes 0. Floats and whole
            numbers of 32 bits cannot be read without; 8-bit images are refused if the range is not one of bytes.
        max_pixels: the largest image that is read; None: Pillow's own limit, beyond which it suspects an attack.

    Raises:
        ValueError: if the file cannot be read, is too large, or its values cannot be mapped safely.
    """
    return read_part(path, image_range=image_range, max_pixels=max_pixels)[0]


def read_part(
    path: Path | bytes,
    box: Box | None = None,
    reduce: int = 1,
    *,
    image_range: Range | None = None,
    max_pixels: int | None = None,
) -> tuple[Bytes, Size]:
    """Read a part of an image, as `read_image`, and the size (H,W) of the whole.

    A file is decoded as a whole, since no usual format lets one skip; but what lies outside the box costs nothing more.
    A JPEG may be decoded at a half, a quarter or an eighth of its size, which takes less time.

    Args:
        path: as for `read_image`.
        box: the part; None: all. What lies outside the image is black.
        reduce: 2, 4 or 8: decode a JPEG at that fraction of its size. Other files, and JPEGs that are not upright, come
            in full.
        image_range: as for `read_image`.
        max_pixels: as for `read_image`.

    Raises:
        ValueError: as `read_image`.
    """
    name = str(_name(path))
    with _opened(path, max_pixels, reduce) as (image, tiles, size):
        if box is None:
            return _pixels(image, image_range, name, tiles), size
        if image.mode not in COLOURS:
            return _pixels(image, image_range, name, tiles)[box], size
        by = 1 if (image.height, image.width) == size else reduce
        left, top, right, bottom = (e // by for e in (box[1].start, box[0].start, box[1].stop, box[0].stop))
        return _pixels(image.crop((left, top, right, bottom)), image_range, name, tiles), size


def image_pixels(image: Image.Image, *, image_range: Range | None = None) -> Bytes:
    """Take the pixels of an image that is open already, as `read_image` takes those of a file.

    Args:
        image: of any mode; turned upright as its EXIF data say.
        image_range: as for `read_image`.

    Raises:
        ValueError: if it cannot be decoded, or its values cannot be mapped safely.
    """
    name = str(getattr(image, "filename", "") or "the image")
    try:
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        upright = ImageOps.exif_transpose(image) if turned else image
    except Exception as error:  # a damaged file makes Pillow raise anything
        raise ValueError(_line(Path(name), error)) from error
    if "transparency" in upright.info:
        upright = upright.copy()  # the caller's image stays as it is
    return _pixels(upright, image_range, name, [])


def _pixels(image: Image.Image, image_range: Range | None, name: str, tiles: list[Any]) -> Bytes:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_grey(image, image_range, name)[..., None], 3, axis=2)
    if image.mode not in COLOURS:
        raise ValueError(f"{name}: colours of mode {image.mode}, which is not RGB; save it as RGB")
    image.info.pop("transparency", None)  # Pillow would warn of it at every conversion
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image_range is None:
        return pixels
    low, high = image_range
    shown = f"image_range [{low:g}, {high:g}]"
    if ";16" in str(tiles):
        what = f"16 bits per colour, of which Pillow reads 8, so that {shown} cannot be applied"
        raise ValueError(f"{name}: {what}; save it with 8 bits, or one channel with 16")
    if low < 0 or high > 255 or high - low <= 1:
        what = f"an image of 8 bits, whose values are 0 to 255, which {shown} does not mean"
        raise ValueError(f"{name}: {what}; keep such images apart, or give them their own range")
    mapped: Bytes = _mapped(np.arange(256), image_range)[pixels]
    return mapped


def _grey(image: Image.Image, image_range: Range | None, name: str) -> Bytes:
    """One channel of more than 8 bits, as bytes."""
    values = np.asarray(image)
    if image.mode == "I" and getattr(image, "tag_v2", {}).get(339, (0,))[0] == 1:
        values = values.view(np.uint32)  # a TIFF says that its numbers have no sign, and Pillow gives them one
    if image_range is not None:
        return _mapped(values, image_range)
    if image.mode.startswith("I;16") or image.format == "PPM":  # Pillow scales a PGM's values to 16 bits by itself
        high: Bytes = (values >> 8).astype(np.uint8)
        return high
    seen = values[np.isfinite(values)]
    span = f"{seen.min():g} to {seen.max():g}" if seen.size else "none of them finite"
    kind = "floats" if image.mode == "F" else "whole numbers of more than 16 bits, or with a sign"
    raise ValueError(
        f"{name}: an image of {kind} ({span}); say which value is black and which is white: data.image_range: "
        "[LOW, HIGH], for predict --image-range LOW HIGH, or save it with 8 bits"
    )


def _mapped(values: Array, image_range: Range) -> Bytes:
    low, high = image_range
    share = np.nan_to_num((values.astype(np.float64) - low) / (high - low), nan=0, posinf=1, neginf=0)
    mapped: Bytes = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return mapped


def read_mask(path: Path | bytes, *, by_colour: bool = False, max_pixels: int | None = None) -> Array:
    """Read the values of a mask file: (H,W) ids, or (H,W,3) colours if the file has colours; upright as an image.

    A palette PNG (mode P, as VOC's masks are) holds indices *and* colours: the indices are the ids, unless its colours
    are asked for.

    Args:
        path: of the mask, or what such a file holds.
        by_colour: read a palette image by its colours.
        max_pixels: as for `read_image`.

    Raises:
        ValueError: if the file cannot be read, or does not hold whole numbers as they are.
    """
    with _opened(path, max_pixels) as (mask, tiles, _):
        path = _name(path)
        scaled = [args[-1] for _, _, _, args in tiles if mask.format == "PPM" and isinstance(args, tuple)]
        if scaled and scaled[0] not in (255, 65535):
            raise ValueError(f"{path}: a PGM with values up to {scaled[0]}, which Pillow scales; save class ids as PNG")
        if mask.mode in ("RGB", "RGBA", "RGBX") or (mask.mode in ("P", "PA") and by_colour):
            mask.info.pop("transparency", None)
            return np.array(mask.convert("RGB"))
        if mask.mode in ("LA", "PA"):
            return np.asarray(mask)[..., 0]
        if mask.mode == "F" or np.asarray(mask).ndim != 2:
            raise ValueError(f"{path}: a mask of mode {mask.mode}; save class ids as an 8-bit PNG of one channel")
        return np.array(mask)


@contextmanager
def _opened(
    path: Path | bytes, max_pixels: int | None, reduce: int = 1
) -> Iterator[tuple[Image.Image, list[Any], Size]]:
    """Open and decode a file; the image, how Pillow found its data stored, and its size. One line says what is wrong.

    The size is that of the file, upright; the image is smaller if it was decoded so.
    """
    try:
        image = _open(path, max_pixels)
    except Exception as error:  # a damaged file makes Pillow raise anything
        raise ValueError(_line(path, error)) from error
    with image:
        try:
            pages = _pages(image)
            tiles = list(getattr(image, "tile", []))
            size = image.height, image.width
            if reduce > 1 and _can_be_reduced(image, reduce):
                image.draft(image.mode, (image.width // reduce, image.height // reduce))
            image.load()
            if image.getexif().get(ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
                size = image.height, image.width
        except Exception as error:
            raise ValueError(_line(path, error)) from error
        if pages > 1:
            raise ValueError(f"{_name(path)}: {pages} images in one file; save each as a file of its own")
        yield image, tiles, size


def _can_be_reduced(image: Image.Image, reduce: int) -> bool:
    """Whether an image that is open but not decoded can be decoded at a fraction of its size."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or min(image.size) < 16 * reduce:
        return False
    return bool(image.getexif().get(ORIENTATION, 1) == 1)  # else a box is not where it seems


def count_pixels(path: Path, *, max_pixels: int | None = None) -> int:
    """How many pixels an image has, from the file's head.

    Args:
        path: of the image.
        max_pixels: as for `read_image`.

    Raises:
        ValueError: if the file is no image, or is too large.
    """
    try:
        with _open(path, max_pixels) as image:
            return image.width * image.height
    except Exception as error:
        raise ValueError(_line(path, error)) from error


_PILLOW = threading.Lock()
if hasattr(os, "register_at_fork"):  # a process that loads images must not inherit the lock while it is held
    os.register_at_fork(before=_PILLOW.acquire, after_in_parent=_PILLOW.release, after_in_child=_PILLOW.release)


def _name(source: Path | bytes) -> Path:
    """What messages call a source."""
    return Path("image") if isinstance(source, bytes) else source


def _open(path: Path | bytes, max_pixels: int | None) -> Image.Image:
    # Pillow has one limit for the whole process; it is lifted while a header is read, and the size checked here.
    with _PILLOW:
        pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(path) if isinstance(path, bytes) else path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = pillows
    limit = max_pixels if max_pixels is not None else 2 * pillows if pillows is not None else math.inf
    if image.width * image.height > limit:
        image.close()
        count = f"{image.width}×{image.height} = {image.width * image.height} pixels"
        raise Image.DecompressionBombError(f"{count}, more than {limit}")
    return image


def _pages(image: Image.Image) -> int:
    """How many images a file holds; previews of smaller size do not count, nor what cameras put behind a photo."""
    frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF", "WEBP", "PNG") else 1
    if frames == 1 or image.format != "TIFF":
        return int(frames)
    pages = 0
    for index in range(frames):
        image.seek(index)
        pages += not image.tag_v2.get(254, 0) & 5  # type: ignore[attr-defined]  # NewSubfileType: reduced, or a mask
    image.seek(0)
    return pages


def _line(source: Path | bytes, error: Exception) -> str:
    """What is wrong with a file that could not be opened or decoded, and what to do."""
    path = _name(source)
    if isinstance(error, PermissionError):
        return f"{path}: may not be read ({error.strerror}); see that you have the right to"
    dangling = None if isinstance(source, bytes) else dangling_link(path)
    if dangling is not None:
        return dangling
    if isinstance(error, FileNotFoundError):
        return (
            f"{path}: no such file any more: it was moved or deleted since the folder was looked through; start again"
        )
    if isinstance(error, IsADirectoryError):
        return f"{path}: a folder, where an image was expected; rename or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"{path}: {error}; if it is meant to be so large, set data.max_pixels, for predict --max-pixels"
    if isinstance(error, MemoryError):
        return f"{path}: too large for the memory that is free; cut it into smaller images"
    reason = one_line(str(error))
    if not source if isinstance(source, bytes) else path.is_file() and not path.stat().st_size:
        reason = "an empty file, of 0 bytes"
    elif isinstance(error, UnidentifiedImageError) or not reason:
        reason = "Pillow does not know what it is"
    elif not isinstance(error, OSError | ValueError | SyntaxError):
        reason = f"damaged: {type(error).__name__} {reason}"
    return f"{path}: not a readable image ({reason}); replace or remove it"
