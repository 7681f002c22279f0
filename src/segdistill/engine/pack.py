"""Decode a data set once and for all: `segdistill data pack`; what is written is described in `data/packed.py`."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segdistill.data.dataset import SegmentationDataset
from segdistill.data.files import Bytes, count_pixels
from segdistill.data.packed import (
    BYTES_PER_PIXEL,
    FORMAT,
    INDEX,
    check_length,
    check_origin,
    read_index,
    read_pack,
    shard_path,
)
from segdistill.data.pairs import FileDataset
from segdistill.engine.build import build_whole
from segdistill.engine.data_config import DataConfig
from segdistill.engine.lock import locked
from segdistill.engine.run_folder import write_atomically, write_json

SHARD = 2**30
"""Bytes after which a shard ends; so much work is lost at most when packing is stopped."""

SAMPLE = 500
"""Files whose heads are read, so that the size can be said first."""


@dataclass
class _Split:
    """What is to be packed of one split, and how much of it is there."""

    split: str
    dataset: SegmentationDataset
    shards: int = 0
    done: int = 0
    complete: bool = False

    @property
    def missing(self) -> int:
        """Items that have yet to be packed."""
        return len(self.dataset) - self.done

    @property
    def facts(self) -> dict[str, Any]:
        """What the pack's index says of the split."""
        return {"images": len(self.dataset), "shards": self.shards, "remarks": list(self.dataset.remarks)}

    def bare(self, items: range) -> list[int]:
        """Which of some items have no labels, counted from the first of them."""
        return [index - items.start for index in items if not self.dataset.has_mask(index)]

    def bytes(self) -> int:
        """The space that they will take, from a sample of them."""
        count = min(SAMPLE if isinstance(self.dataset, FileDataset) else 8, self.missing)
        sample = [self.done + index * self.missing // count for index in range(count)]
        return sum(_pixels(self.dataset, index) for index in sample) * BYTES_PER_PIXEL * self.missing // max(1, count)


def _pixels(dataset: SegmentationDataset, index: int) -> int:
    if isinstance(dataset, FileDataset):
        return count_pixels(dataset.images[index], max_pixels=dataset.max_pixels)
    return dataset[index][1].numel()


def pack_data(
    data: DataConfig,
    out: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD,
) -> None:
    """Decode the images and masks of a data set into a folder from which `data.packed` reads them.

    What is there already is kept: packing that was stopped goes on, and further splits are added.

    Args:
        data: section of a configuration.
        out: the folder.
        splits: that are packed.
        say: is told how much it will be, and what is done.
        progress: called with (images done, images in all).
        shard_bytes: length after which a file ends.

    Raises:
        ValueError: if an item cannot be read, the disk has too little room, or the folder holds a pack of other data.
    """
    folder = Path(out).expanduser()
    found = [_Split(split, build_whole(data, split)) for split in dict.fromkeys(splits)]
    with locked(folder):
        pack = _begin(folder, data, found[0].dataset)
        for part in found:
            _look(folder, pack, part)
        _check_space(folder, found, say)
        total = sum(len(part.dataset) for part in found)

        def tell(written: int) -> None:
            if progress is not None:
                progress(sum(part.done for part in found) + written, total)

        for part in found:
            while part.missing:
                written = _write_shard(folder, part, max(1, data.workers), shard_bytes, tell)
                part.shards, part.done = part.shards + 1, part.done + written
            if not part.complete:
                pack["splits"][part.split] = part.facts
                write_json(folder / INDEX, pack)
    say(f"read them with data.packed={folder}")


def _begin(folder: Path, data: DataConfig, dataset: SegmentationDataset) -> dict[str, Any]:
    """What the folder's index says; it is written if there is none."""
    if (folder / INDEX).is_file():
        pack = read_pack(folder)
        check_origin(pack, folder, data.name, data.options)
        if pack["classes"] != dataset.classes:
            raise ValueError(f"{folder} was packed with other classes; pack into another folder")
        return pack
    pack = {
        "format": FORMAT,
        "name": data.name,
        "options": json.loads(json.dumps(data.options)),
        "classes": dataset.classes,
        "palette": [list(colour) for colour in dataset.palette],
        "image_range": getattr(dataset, "image_range", None),
        "splits": {},
    }
    write_json(folder / INDEX, pack)
    return pack


def _look(folder: Path, pack: dict[str, Any], part: _Split) -> None:
    """Count the whole shards of a split, which packing goes on behind."""
    names = part.dataset.names
    while (index := shard_path(folder, part.split, part.shards).with_suffix(".json")).is_file():
        shard = read_index(index, "bytes", "names")
        check_length(index.with_suffix(".bin"), shard["bytes"])
        here = range(part.done, part.done + len(shard["names"]))
        if shard["names"] != names[here.start : here.stop] or shard.get("bare", []) != part.bare(here):
            raise ValueError(
                f"{index} has other images than the data have now; pack them into another folder, or delete {folder}"
            )
        part.shards, part.done = part.shards + 1, part.done + len(shard["names"])
    packed = pack["splits"].get(part.split)
    part.complete = packed == part.facts and not part.missing


def _check_space(folder: Path, found: Sequence[_Split], say: Callable[[str], None]) -> None:
    need, free = sum(part.bytes() for part in found), shutil.disk_usage(folder).free
    for part in found:
        there = f", {part.done if part.missing else 'all'} packed already" if part.done else ""
        say(f"{part.split}: {len(part.dataset)} images{there}")
    left = f"about {need / 1e9:.2f} GB to write; {free / 1e9:.2f} GB are free in {folder}"
    say(left if need else "nothing is left to write")
    if need > free:
        raise ValueError(
            f"{folder} has room for {free / 1e9:.2f} GB, the decoded images take about {need / 1e9:.2f} GB; make room, "
            "name another folder with --out, or pack fewer splits with --split"
        )


def _write_shard(folder: Path, part: _Split, threads: int, limit: int, tell: Callable[[int], None]) -> int:
    """Write the next shard of a split, then its index, which says that the shard is whole; returns how many items."""
    path = shard_path(folder, part.split, part.shards)
    digest, length = hashlib.sha256(), 0
    sizes: list[list[int]] = []
    offsets: list[int] = []

    def write(temporary: Path) -> None:
        nonlocal length
        with temporary.open("wb") as file:
            for image, mask in _items(part.dataset, part.done, threads):
                sizes.append(list(mask.shape))
                offsets.append(length)
                for pixels in (image, mask):
                    file.write(pixels.data)
                    digest.update(pixels.data)
                    length += pixels.nbytes
                tell(len(sizes))
                if length >= limit:
                    break

    write_atomically(path, write)
    names = part.dataset.names[part.done : part.done + len(sizes)]
    bare = part.bare(range(part.done, part.done + len(sizes)))
    facts = {"bytes": length, "sha256": digest.hexdigest(), "names": names, "sizes": sizes, "offsets": offsets}
    if bare:
        facts["bare"] = bare
    write_json(path.with_suffix(".json"), facts)
    return len(sizes)


def _items(dataset: SegmentationDataset, start: int, threads: int) -> Iterator[tuple[Bytes, Bytes]]:
    """Images (H,W,3) and masks in order, a few of them decoded at a time."""

    def read(index: int) -> tuple[Bytes, Bytes]:
        image, mask = dataset[index]
        return image.permute(1, 2, 0).contiguous().numpy(), mask.to(torch.uint8).contiguous().numpy()

    with ThreadPoolExecutor(threads) as pool:
        for first in range(start, len(dataset), 2 * threads):
            yield from pool.map(read, range(first, min(first + 2 * threads, len(dataset))))
