"""Taps on the disk, mapped into memory: one record for each view of each image."""

import math
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdistill.data.sampler import Address
from segdistill.engine.run_folder import explaining
from segdistill.taps import Taps

TAPS, DONE = "taps.bin", "done.bin"
"""The numbers, and a byte per view that is 1 once its numbers are there."""


class TapStore:
    """Taps on the disk: one record for each view of each image, with its taps side by side.

    Args:
        folder: of the cache.
        shapes: tap → (A,h,w), as the methods get it.
        counts: images with labels, then those without.
        views: of each image.
        precision: `float16`, `bfloat16` or `float32`.
        topk: how many logits of a pixel are kept; None: all.

    Raises:
        ValueError: if keeping so many logits saves nothing.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        counts: Sequence[int],
        views: int,
        precision: str,
        topk: int | None = None,
    ):
        self.folder, self.counts, self.views, self.precision = folder, list(counts), views, precision
        self.shapes = {name: list(shape) for name, shape in shapes.items()}
        self.topk = topk if "logits" in shapes else None
        classes = self.shapes["logits"][0] if self.topk else 0
        if self.topk and 2 * self.topk + 1 >= classes:
            raise ValueError(
                f"teacher.cache_topk={topk} keeps {2 * self.topk + 1} numbers a pixel, and there are {classes} "
                f"classes; leave it out{f', or take at most {classes // 2 - 1}' if classes > 3 else ''}"
            )
        self.kept = {k: [2 * self.topk + 1, *s[1:]] if self.topk and k == "logits" else s for k, s in shapes.items()}
        self.dtype: torch.dtype = getattr(torch, precision)
        self.words = np.dtype(np.int32 if precision == "float32" else np.int16)  # NumPy knows no bfloat16
        self.integers = torch.int32 if precision == "float32" else torch.int16
        self.length = sum(map(math.prod, self.kept.values()))
        self.entries = sum(self.counts) * views
        self.bytes = self.entries * self.length * self.words.itemsize
        self.reads = set(shapes)
        """Taps that `read` gives; all of them, if nothing else is set."""
        self._opened: tuple[np.memmap[Any, Any], np.memmap[Any, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:  # a process that loads images maps the files itself
        return {**self.__dict__, "_opened": None}

    def _files(self) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any]]:
        if self._opened is None:
            shapes = {TAPS: ((self.entries, self.length), self.words), DONE: ((self.entries,), np.dtype(np.uint8))}
            for name, (shape, dtype) in shapes.items():
                path, expected = self.folder / name, math.prod(shape) * dtype.itemsize
                if not path.is_file() or path.stat().st_size != expected:
                    there = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
                    raise ValueError(f"{path} {there}, expected {expected}; delete {self.folder} to fill it anew")
            with explaining(self.folder):
                mode: Any = "r+" if self.writable else "r"
                taps, done = (np.memmap(self.folder / k, d, mode, shape=s) for k, (s, d) in shapes.items())
            self._opened = taps, done
        return self._opened

    @property
    def writable(self) -> bool:
        """Whether records may be added; one that is full may be read from where nothing can be written."""
        return all(os.access(self.folder / name, os.W_OK) for name in (TAPS, DONE))

    def create(self) -> None:
        """Take the room for all of it.

        Raises:
            ValueError: if there is not enough.
        """
        for name in (TAPS, DONE):  # of a process that was killed right here
            (self.folder / name).unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < self.bytes + self.entries:
            raise ValueError(
                f"teacher.cache: {self.folder} needs {_size(self.bytes)}, {_size(free)} are free there; make room, "
                "name another folder, or lower teacher.cache_views"
            )
        for name, size in ((TAPS, self.bytes), (DONE, self.entries)):
            path = self.folder / name
            try:
                with explaining(path), path.open("wb") as file:
                    if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end the process
                        os.posix_fallocate(file.fileno(), 0, size)
                    else:
                        file.truncate(size)
            except ValueError:
                path.unlink(missing_ok=True)
                raise

    def close(self) -> None:
        """Let go of the files; they are mapped again when they are needed."""
        self._opened = None

    def addresses(self, entries: range) -> list[Address]:
        """Whose records some are."""
        labelled = self.counts[0]
        images = [divmod(entry, self.views) for entry in entries]
        return [(int(i >= labelled), i - labelled if i >= labelled else i, view) for i, view in images]

    def holds(self, entries: range) -> bool:
        """Whether some records are all there."""
        return bool(self._files()[1][entries.start : entries.stop].all())

    def count(self) -> int:
        """How many records are there."""
        return int(self._files()[1].astype(bool).sum())

    def write(self, entries: range, taps: Taps) -> None:
        """Keep the taps of some views.

        Args:
            entries: numbers of the records.
            taps: (N,A,h,w) each.

        Raises:
            ValueError: if they have other shapes than the first ones, or values that are not finite or too large.
        """
        kept = []
        for name, shape in self.shapes.items():
            tap = taps[name].detach().float()
            if list(tap.shape[1:]) != shape:
                size = "×".join(map(str, tap.shape[1:]))
                raise ValueError(
                    f"teacher.cache: tap {name} is {size} of one image and {'×'.join(map(str, shape))} of another; set "
                    "data.crop (or data.size)"
                )
            tap = _largest(tap, self.topk) if self.topk and name == "logits" else tap
            rounded = tap.to(self.dtype)
            if not bool(rounded.isfinite().all()):
                beyond = f"beyond what {self.precision} holds; set teacher.cache_precision=bfloat16"
                why = beyond if bool(tap.isfinite().all()) else "that are not finite"
                raise ValueError(f"teacher.cache: tap {name} has values {why}")
            kept.append(rounded.flatten(1))
        numbers = torch.cat(kept, dim=1).cpu().view(self.integers)
        rows, done = self._files()
        with explaining(self.folder):
            rows[entries.start : entries.stop] = numbers.numpy()
            rows.flush()  # on the disk before it is said to be there
            done[entries.start : entries.stop] = 1
            done.flush()

    def read(self, addresses: Sequence[Address]) -> Taps:
        """The taps of some views, (N,A,h,w) each.

        Raises:
            ValueError: if one is not there.
        """
        rows, done = self._files()
        entries = [(stream * self.counts[0] + index) * self.views + view for stream, index, view in addresses]
        if not done[entries].all():
            raise ValueError(f"{self.folder} lacks views that it had; run the same command again, with --resume auto")
        _announce(rows, entries)
        taps: Taps = {}
        begin = 0
        for name, shape in self.kept.items():
            end = begin + math.prod(shape)
            if name in self.reads:
                tap = torch.empty(len(entries), *shape, dtype=self.dtype)
                into = tap.view(self.integers).flatten(1).numpy()
                for row, entry in zip(into, entries, strict=True):
                    row[...] = rows[entry, begin:end]
                taps[name] = _spread(tap, self.topk, self.shapes[name][0]) if self.topk and name == "logits" else tap
            begin = end
        return taps

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in self.kept.items())
        return f"{sum(self.counts)} images × {self.views} views of {shown} in {self.precision}: {_size(self.bytes)}"


def _announce(rows: np.memmap[Any, Any], entries: Sequence[int]) -> None:
    """Let the system read some records ahead, all at once: page by page, a cold disk would answer each by itself."""
    with suppress(AttributeError, OSError, ValueError):  # systems without it
        length = rows.shape[1] * rows.dtype.itemsize
        for entry in entries:
            start = entry * length // mmap.PAGESIZE * mmap.PAGESIZE
            rows._mmap.madvise(mmap.MADV_WILLNEED, start, (entry + 1) * length - start)  # type: ignore[attr-defined]


def _largest(logits: Tensor, count: int) -> Tensor:
    """(N,2k+1,h,w): the k largest logits, the logarithm of the others' sum of exponentials, and whose the k are."""
    values, classes = logits.topk(count, dim=1)
    rest = logits.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([values, rest, classes.to(logits.dtype)], dim=1)  # each precision has whole numbers up to 256


def _spread(kept: Tensor, count: int, classes: int) -> Tensor:
    """Logits (N,C,h,w) whose classes beyond the k largest share what is left evenly."""
    values, rest, whose = torch.split(kept.float(), [count, 1, count], dim=1)
    logits: Tensor = (rest - math.log(classes - count)).repeat(1, classes, 1, 1)
    return logits.scatter_(1, whose.long(), values)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
