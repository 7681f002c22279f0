"""A student where it works: its ONNX file, NumPy, Pillow and ONNX Runtime; torch is not needed, and never imported.

>>> from segdistill.runtime import Predictor  # doctest: +SKIP
>>> Predictor("student.onnx")("street.jpg").colour().save("street_classes.png")  # doctest: +SKIP
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill._types import Colour, Size
from segdistill.data.files import Bytes, Range, image_pixels, read_image

METADATA = "segdistill"
"""The key of the file's metadata under which `segdistill export` says what the file is, as JSON."""

SCHEMA = 1
"""The version of those metadata that this module reads."""

BAND = 1 << 22
"""Logits that are resized at a time, so that those of a large image are never there all at once."""

Floats = NDArray[np.float32]
Picture = Image.Image | NDArray[Any] | str | Path


class Prediction:
    """What a network sees in one image.

    Attributes:
        ids: the class of each pixel, (H,W) uint8, at the image's size.
        pixels: the image as it was read, (H,W,3) uint8 RGB.
        classes: names.
        palette: a colour per class.

    Args:
        predictor: that saw the image.
        pixels: as above.
        ids: as above.
        logits: (C,H,W), if they are known already.
    """

    def __init__(self, predictor: "Predictor", pixels: Bytes, ids: Bytes, logits: Floats | None):
        self.pixels, self.ids = pixels, ids
        self.classes, self.palette = predictor.classes, predictor.palette
        self._predictor, self._logits = predictor, logits

    @property
    def logits(self) -> Floats | None:
        """(C,H,W) float32 at the image's size; None of a file that gives class numbers alone.

        They take far more memory than the class numbers: unless the call asked for them, the file runs once more here.
        """
        if self._logits is None and self._predictor.gives_logits:
            self._logits = next(self._predictor.stream([self.pixels], logits=True, again=True))._logits
        return self._logits

    def colour(self) -> Image.Image:
        """Draw each pixel in the colour of its class."""
        return Image.fromarray(np.array(self.palette, np.uint8)[self.ids])

    def blend(self, alpha: float = 0.5) -> Image.Image:
        """Lay the colours over the image.

        Args:
            alpha: share of the colours, 0 to 1.
        """
        colours = np.array(self.palette, np.uint8)[self.ids]
        mixed = np.float32(1 - alpha) * self.pixels + np.float32(alpha) * colours
        return Image.fromarray(mixed.round().astype(np.uint8))

    def shares(self) -> dict[str, float]:
        """Count which share of the image each class takes; classes that do not occur are left out."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.classes)) / self.ids.size
        return {name: float(share) for name, share in zip(self.classes, counts, strict=True) if share}


class Predictor:
    """A file that `segdistill export` wrote, ready to segment images.

    An image is read as in training: EXIF, grey, transparency, palettes and 16 bits included. Where the run resized its
    images, so is this one, and the result has the image's own size. Otherwise a file of one fixed size sees the image
    through overlapping windows of that size, whose logits are averaged; a file of free size sees it whole, unless a
    window is given. It sees each image once: further scales and mirrored views of a validation are left out.

    Attributes:
        classes: names; a class's position is its id.
        palette: a colour per class.
        size: (H,W) that the file takes; None: any.
        metadata: all that the file says about itself.

    Args:
        path: of the `.onnx` file.
        threads: of the CPU (default: ONNX Runtime's choice).
        providers: ONNX Runtime's execution providers, such as `["CUDAExecutionProvider"]` (default: the CPU).
        window: (H,W) of the windows that an image is seen through, for images too large to be seen whole by a file of
            free size; they overlap by a third, and images are then not resized.

    Raises:
        ValueError: if the file is missing, damaged, or was not written by `segdistill export`; or if it takes one size,
            but images were validated at sizes of their own.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        window: Size | None = None,
    ):
        self.path = Path(path)
        self._session = _open(self.path, threads, providers)
        self.metadata = _metadata(self._session, self.path)
        self.classes: list[str] = list(self.metadata["classes"])
        self.palette: list[Colour] = [(int(r), int(g), int(b)) for r, g, b in self.metadata["palette"]]
        size = self.metadata["input"]["size"]
        self.size: Size | None = None if size is None else (int(size[0]), int(size[1]))
        if window is not None and (self.size not in (None, tuple(window)) or min(window) < 1):
            takes = (
                "windows of at least 1×1" if self.size is None else f"{self.size[0]}×{self.size[1]} and nothing else"
            )
            raise ValueError(f"window {window[0]}×{window[1]}: {self.path} takes {takes}")
        resized = None if window is not None else self.metadata.get("eval_size")
        self._resized: Size | None = None if resized is None else self.size or (int(resized[0]), int(resized[1]))
        self._window = window or (self.size if self._resized is None else None)
        protocol = self.metadata.get("protocol") or {}
        self._sides = (protocol.get("short_side"), protocol.get("long_side")) if window is None else (None, None)
        if any(self._sides) and self.size is not None:
            raise ValueError(
                f"{self.path} takes images of {self.size[0]}×{self.size[1]} alone, but the student was validated at "
                "sizes that depend on the image; export with --dynamic"
            )
        stride = protocol.get("stride") if window is None else None
        self._stride: tuple[int | None, int | None] = (
            (None, None) if stride is None else (int(stride[0]), int(stride[1]))
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, image: Picture, *, logits: bool = False) -> Prediction:
        """Segment one image.

        Args:
            image: a path, a Pillow image, or an array, (H,W,3) RGB, (H,W,4) with alpha or (H,W) grey.
            logits: whether its logits are computed at once, C·H·W floats, rather than when they are asked for.

        Raises:
            ValueError: if the image cannot be read, or logits are asked of a file that gives class numbers alone.
        """
        return next(self.stream([image], logits=logits))

    @property
    def gives_logits(self) -> bool:
        """Whether the file gives logits besides class numbers, or instead of them."""
        return "logits" in self._names

    def stream(
        self, images: Iterable[Picture], *, batch_size: int = 1, logits: bool = False, again: bool = False
    ) -> Iterator[Prediction]:
        """Segment images one after the other, several at a time where the file takes that and their sizes agree.

        Args:
            images: as for a call.
            batch_size: how many at a time; a file of fixed size takes one.
            logits: as for a call.
            again: whether the images are pixels that `read` gave.
        """
        if logits and not self.gives_logits:
            raise ValueError(f"{self.path} gives class numbers alone; export with --output both for logits")
        together = batch_size if self.metadata.get("dynamic") else 1
        waiting: list[Bytes] = []
        for image in images:
            pixels: Bytes = image if again and isinstance(image, np.ndarray) else self.read(image)
            if waiting and (len(waiting) == together or pixels.shape != waiting[0].shape):
                yield from self._segment(waiting, logits)
                waiting = []
            waiting.append(pixels)
        if waiting:
            yield from self._segment(waiting, logits)

    def read(self, image: Picture) -> Bytes:
        """Read an image as it was in training: its pixels, (H,W,3) uint8 RGB.

        Args:
            image: as for a call.

        Raises:
            ValueError: if it cannot be read.
        """
        span = self.metadata.get("image_range")
        image_range: Range | None = None if span is None else (float(span[0]), float(span[1]))
        if isinstance(image, str | Path):
            return read_image(Path(image), image_range=image_range)
        if isinstance(image, np.ndarray):
            image = _as_image(image)
        return image_pixels(image, image_range=image_range)

    def run(self, images: Bytes | Floats) -> dict[str, NDArray[Any]]:
        """Run the file as it is: what it gives for images of the size that it takes.

        Args:
            images: (N,3,H,W) RGB in 0…255, uint8 or float32.

        Returns:
            `ids` (N,H,W) uint8 and `logits` (N,C,h,w) float32 at the network's own resolution, or one of the two.
        """
        taken: NDArray[Any]
        if self.metadata["input"]["dtype"] == "uint8":
            taken = images if images.dtype == np.uint8 else np.rint(images).clip(0, 255).astype(np.uint8)
        else:
            taken = images.astype(np.float32) / np.float32(255)
        found = self._session.run(None, {self.metadata["input"]["name"]: np.ascontiguousarray(taken)})
        return dict(zip(self._names, found, strict=True))

    def _segment(self, images: list[Bytes], logits: bool) -> Iterator[Prediction]:
        size = images[0].shape[:2]
        windows = self._window is not None and self._window != size
        if windows:
            found = [self._through_windows(pixels, logits) for pixels in images]
        else:
            found = self._whole(images, (size[0], size[1]), logits)
        for pixels, (ids, values) in zip(images, found, strict=True):
            yield Prediction(self, pixels, ids, values)

    def _whole(self, images: list[Bytes], size: Size, logits: bool) -> list[tuple[Bytes, Floats | None]]:
        seen = self._resized or size
        stack: Bytes | Floats = np.stack([_resize(pixels, seen) for pixels in images]).transpose(0, 3, 1, 2)
        if any(self._sides):
            seen = _fitted(seen, *self._sides)
            stack = np.stack([_interpolate(image.astype(np.float32), seen, False, range(seen[0])) for image in stack])
        found = self.run(stack)
        if "ids" in found and seen == size and not logits:
            return [(ids, None) for ids in found["ids"]]
        if "logits" not in found:  # nothing lies between two class numbers
            return [
                (np.asarray(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST)), None)
                for ids in found["ids"]
            ]
        aligned = bool(self.metadata["align_corners"])
        # Twice, as in validation: to the size of what the network saw, and from there to the image's own.
        given = [_interpolate(v, seen, aligned, range(seen[0])) for v in found["logits"]]
        if logits:
            values = [_interpolate(v, size, aligned, range(size[0])) for v in given]
            return [(v.argmax(0).astype(np.uint8), v) for v in values]
        return [(_classes(v, size, aligned), None) for v in given]

    def _through_windows(self, pixels: Bytes, logits: bool) -> tuple[Bytes, Floats | None]:
        """Row of windows after row of windows: what no later window touches is done and leaves the memory."""
        assert self._window is not None
        (height, width), (tall, wide) = pixels.shape[:2], self._window
        padded = np.pad(pixels, ((0, max(0, tall - height)), (0, max(0, wide - width)), (0, 0)), mode="edge")
        rows, columns = (
            _starts(length, side, stride)
            for length, side, stride in zip(padded.shape[:2], self._window, self._stride, strict=True)
        )
        ids = np.zeros(padded.shape[:2], np.uint8)
        kept = np.zeros((len(self.classes), *padded.shape[:2]), np.float32) if logits else None
        count = np.zeros(padded.shape[1], np.float32)
        for column in columns:
            count[column : column + wide] += 1
        sums = np.zeros((len(self.classes), tall, padded.shape[1]), np.float32)
        seen = np.zeros(tall, np.float32)
        for index, row in enumerate(rows):
            for column in columns:
                window = padded[row : row + tall, column : column + wide]
                sums[:, :, column : column + wide] += self._votes(window)
            seen += 1
            done = (rows[index + 1] if index + 1 < len(rows) else row + tall) - row
            ids[row : row + done] = sums[:, :done].argmax(0)
            if kept is not None:
                kept[:, row : row + done] = sums[:, :done] / (count * seen[:done, None])
            sums = np.concatenate([sums[:, done:], np.zeros_like(sums[:, :done])], axis=1)
            seen = np.concatenate([seen[done:], np.zeros_like(seen[:done])])
        cut = (slice(0, height), slice(0, width))
        return ids[cut], None if kept is None else kept[:, *cut]

    def _votes(self, window: Bytes) -> Floats:
        """Logits of one window at its size; of a file that gives class numbers alone, 1 for the class, else 0."""
        found = self.run(window.transpose(2, 0, 1)[None])
        if "logits" not in found:
            votes: Floats = (np.arange(len(self.classes))[:, None, None] == found["ids"][0]).astype(np.float32)
            return votes
        height, width = window.shape[:2]
        return _interpolate(found["logits"][0], (height, width), bool(self.metadata["align_corners"]), range(height))


def _open(path: Path, threads: int | None, providers: Sequence[str]) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ImportError("ONNX files need ONNX Runtime: pip install onnxruntime") from None
    if not path.is_file():
        raise ValueError(f"no file at {path}; `segdistill export RUN --out {path.name}` writes one")
    if not path.stat().st_size:
        raise ValueError(f"{path} is an empty file, of 0 bytes; export it again")
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        there = ", ".join(onnxruntime.get_available_providers())
        raise ValueError(f"ONNX Runtime has no {missing[0]} here; there is {there}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises classes of its own, one per status
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is not a readable ONNX file, or damaged ({reason}); export it again") from error


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise ValueError(f"{path} was not written by `segdistill export`: it says nothing of its classes or its input")
    try:
        metadata = json.loads(text)
        complete = all(key in metadata for key in ("schema", "classes", "palette", "input", "align_corners"))
    except (ValueError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged: its metadata cannot be read; export it again")
    if metadata["schema"] != SCHEMA:
        raise ValueError(f"{path} has metadata of version {metadata['schema']}, this segdistill reads {SCHEMA}")
    found: dict[str, Any] = metadata
    return found


def _as_image(pixels: NDArray[Any]) -> Image.Image:
    shape, kind = pixels.shape, pixels.dtype
    if kind == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) and min(shape[:2]) > 0:
        return Image.fromarray(np.ascontiguousarray(pixels))
    if len(shape) == 2 and kind in (np.uint16, np.int32, np.float32) and min(shape) > 0:
        return Image.fromarray(np.ascontiguousarray(pixels))
    raise ValueError(f"an array {shape} of {kind}; expected (H,W,3) uint8 RGB, (H,W,4), or (H,W) of one channel")


def _fitted(size: Size, short: int | None, long: int | None) -> Size:
    """Mmcv's rule, as in `Protocol`: as large as both sides allow, the ratio kept."""
    factor = min(side / end for side, end in ((short, min(size)), (long, max(size))) if side)
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _resize(pixels: Bytes, size: Size) -> Bytes:
    """As in training, to the last bit: bilinear, averaging where it shrinks, first along rows, then along columns."""
    for axis in (1, 0):
        if pixels.shape[axis] != size[axis]:
            pixels = _resample(pixels, axis, size[axis])
    return pixels


def _resample(pixels: Bytes, axis: int, target: int) -> Bytes:
    """Torch's `interpolate(…, antialias=True)` of bytes along one axis: a triangle's weights in 16 bits."""
    source = pixels.shape[axis]
    scale = source / target
    support = max(scale, 1.0)
    centre = scale * (np.arange(target) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    places = first[:, None] + np.arange(int((last - first).max()))
    weights = np.maximum(1 - np.abs((places - centre[:, None] + 0.5) / support), 0) * (places < last[:, None])
    weights /= weights.sum(1, keepdims=True)
    bits = next(bits for bits in range(22) if int(0.5 + weights.max() * 2 ** (bits + 1)) >= 2**15 or bits == 21)
    counts = np.floor(weights * 2**bits + 0.5).astype(np.int32)
    shape = [target if side == axis else 1 for side in range(pixels.ndim)]
    total = np.full(1, 2 ** (bits - 1), np.int32)
    for place, count in zip(places.T, counts.T, strict=True):
        total = total + pixels.take(np.minimum(place, source - 1), axis).astype(np.int32) * count.reshape(shape)
    return (total >> bits).clip(0, 255).astype(np.uint8)


def _starts(length: int, window: int, stride: int | None) -> list[int]:
    """Where windows begin along one side: every two thirds of their length, the last one moved back to the border."""
    stride = stride or max(1, int(window * 2 / 3 + 0.5))
    steps = max(0, math.ceil((length - window) / stride))
    return [min(step * stride, length - window) for step in range(steps + 1)]


def _classes(logits: Floats, size: Size, aligned: bool) -> Bytes:
    """The class of each pixel at another size, rows by rows."""
    rows = max(1, BAND // (len(logits) * size[1]))
    bands = [range(first, min(first + rows, size[0])) for first in range(0, size[0], rows)]
    return np.concatenate([_interpolate(logits, size, aligned, band).argmax(0).astype(np.uint8) for band in bands])


def _interpolate(logits: Floats, size: Size, aligned: bool, rows: range) -> Floats:
    """Some rows of logits (C,h,w) resized to `size`, bilinear, as torch's `interpolate` does it."""
    if logits.shape[1:] == tuple(size):
        return logits[:, rows.start : rows.stop]
    top, bottom, down = _neighbours(logits.shape[1], size[0], aligned)
    left, right, along = _neighbours(logits.shape[2], size[1], aligned)
    band = slice(rows.start, rows.stop)

    def across(lines: NDArray[np.intp]) -> Floats:
        part = logits[:, lines[band]]
        mixed: Floats = part[:, :, left] * (1 - along) + part[:, :, right] * along
        return mixed

    weight: Floats = down[band, None]
    found: Floats = across(top) * (1 - weight) + across(bottom) * weight
    return found


def _neighbours(source: int, target: int, aligned: bool) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each place along a side: the two source places that it lies between, and how far it is from the first."""
    places = np.arange(target, dtype=np.float32)
    if aligned:
        scale = np.float32((source - 1) / (target - 1)) if target > 1 else np.float32(0)
        found = places * scale
    else:
        found = np.maximum((places + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5), 0)
    first = np.minimum(found.astype(np.intp), source - 1)
    return first, np.minimum(first + 1, source - 1), (found - first).astype(np.float32)
