"""Videos, frame by frame, through PyAV (extra `video`): read with their times, written as H.264."""

import tempfile
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from segdistill._printing import first_line
from segdistill.data.files import Bytes

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")

CLOCK = 90_000
"""Ticks of a second in the videos that are written; every usual rate is a whole number of them."""

QUALITY = "18"
"""H.264's constant rate factor: what is lost at 18 is hardly seen."""


def is_video(path: str | Path) -> bool:
    """Whether a file's name says that it is a video.

    Args:
        path: any.
    """
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """The frames of a video, upright, one after the other.

    Attributes:
        path: of the file.
        count: how many frames the file says, or its length suggests; 0 if it says nothing.

    Args:
        path: of the file.

    Raises:
        ValueError: if there is no such file, or no video in it.
        ImportError: if PyAV is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        stream, container = _open(self.path)
        with container:
            seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
            self.count = int(stream.frames or round(seconds * float(stream.average_rate or 0)))

    def __iter__(self) -> Iterator[tuple[Bytes, Fraction]]:
        """Each frame, (H,W,3) uint8 RGB, and the second at which it is shown.

        Raises:
            ValueError: where the file ends in the middle of a frame, or is damaged.
        """
        import av

        stream, container = _open(self.path)
        stream.thread_type = "AUTO"
        done = 0
        with container:
            try:
                for frame in container.decode(stream):
                    time = frame.pts * frame.time_base if frame.pts is not None else done / (stream.average_rate or 25)
                    pixels = frame.to_ndarray(format="rgb24")
                    yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4)), Fraction(time)
                    done += 1
            except av.error.FFmpegError as error:
                reason = error.strerror or first_line(error)
                raise ValueError(
                    f"{self.path}: damaged behind frame {done} ({reason}); replace or remove it"
                ) from error
        if not done:
            raise ValueError(f"{self.path}: a video without a frame; replace or remove it")
        if done < 0.95 * self.count - 1:  # what a file says of its length is a little off at times
            warnings.warn(f"{self.path}: cut short? It says {self.count} frames, {done} could be read", stacklevel=2)


class VideoWriter:
    """A video that is being written; it is there, whole, when the context ends without an error.

    Args:
        path: of the file, `.mp4`.
        rate: frames a second, as players show it; the frames' own times decide.
    """

    def __init__(self, path: Path, rate: Fraction = Fraction(25)):
        self.path = path
        self.rate = rate
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> Self:
        import av

        self._folder = tempfile.TemporaryDirectory(prefix=f".{self.path.stem}.", dir=self.path.parent)
        self._unfinished = Path(self._folder.name) / "video.mp4"
        self._container = av.open(str(self._unfinished), "w")
        return self

    def write(self, pixels: Bytes, time: Fraction) -> None:
        """Append a frame.

        Args:
            pixels: (H,W,3) uint8 RGB; every frame has the first one's size.
            time: the second at which it is shown, later than that of the frame before.
        """
        import av

        height, width = pixels.shape[:2]
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": QUALITY})
            self._stream.pix_fmt = "yuv420p"
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.codec_context.time_base = Fraction(1, CLOCK)
        # H.264 halves the colours' resolution, for which sides have to be even.
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        self._last = max(self._last + 1, round(time * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                self._unfinished.replace(self.path)
        finally:
            self._folder.cleanup()


def _open(path: Path) -> tuple[Any, Any]:
    try:
        import av
    except ImportError:
        raise ImportError("videos need PyAV: pip install 'segdistill[video]'") from None
    if not path.is_file():
        raise ValueError(f"no video at {path}")
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        reason = "an empty file, of 0 bytes" if not path.stat().st_size else error.strerror or first_line(error)
        raise ValueError(f"{path}: not a readable video ({reason}); replace or remove it") from error
    if not container.streams.video:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise ValueError(f"{path}: no video in it, only {others}")
    return container.streams.video[0], container
