"""Data sets that were decoded once and for all: images and masks as they are in memory, in a few large files.

A pack is a folder. `pack.json` says what was packed: the data set, its options, classes and splits. A split is a row of
shards, `train-00000.bin` and so on: item after item, each its image (H·W·3 bytes, RGB) followed by its mask (H·W bytes
of class ids). `train-00000.json` beside it says names, sizes and offsets of its items, its length and its SHA-256, and
under `bare` which items have no mask, if there are any: these are 255 throughout.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdistill._types import Box
from segdistill.data.dataset import MissingMasks, SegmentationDataset, Source, check_split
from segdistill.data.files import Bytes, Range
from segdistill.data.subsets import Subset
from segdistill.data.walk import check_folder

INDEX = "pack.json"
FORMAT = 1
BYTES_PER_PIXEL = 4
"""Three of the image and one of the mask."""


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard is; its index has the same name with .json.

    Args:
        folder: of the pack.
        split: that the shard belongs to.
        number: of the shard, from 0.
    """
    return folder / f"{split}-{number:05d}.bin"


def read_index(path: Path, *needed: str) -> dict[str, Any]:
    """Read one of a pack's JSON files.

    Args:
        path: of the file.
        *needed: keys that it must have.

    Raises:
        ValueError: if it is missing, or is not what was written there.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(index, dict) and all(key in index for key in needed):
            return index
        reason = "it lacks what belongs there"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no valid JSON"
    raise ValueError(f"{path}: not what `segdistill data pack` writes ({reason}); pack the data again")


def read_pack(folder: Path) -> dict[str, Any]:
    """Read what a pack says of itself.

    Args:
        folder: of the pack.

    Raises:
        ValueError: if it is no pack, or one of another version.
    """
    check_folder(folder, "set data.packed to a folder that `segdistill data pack` has written")
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is no pack: it has no {INDEX}; `segdistill data pack CONFIG --out {folder}` makes one"
        )
    pack = read_index(folder / INDEX, "format", "name", "options", "classes", "palette", "image_range", "splits")
    if pack["format"] != FORMAT:
        raise ValueError(
            f"{folder}: a pack of format {pack['format']}, this version reads {FORMAT}; pack the data again"
        )
    return pack


def check_origin(pack: Mapping[str, Any], folder: Path, name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError with one line if a pack is of another data set, or of one with other options.

    Args:
        pack: as `read_pack` returns it.
        folder: of the pack.
        name: of the data set.
        options: of the data set, complete.
    """
    wanted = json.loads(json.dumps({"data.name": name, **{f"data.{key}": value for key, value in options.items()}}))
    packed = {"data.name": pack["name"], **{f"data.{key}": value for key, value in pack["options"].items()}}
    for key in [*wanted, *(key for key in packed if key not in wanted)]:
        if wanted.get(key) != packed.get(key):
            raise ValueError(
                f"{folder} was packed with {key}={packed.get(key)}, the configuration says {wanted.get(key)}; pack the "
                "data again, into another folder, or set it as it was"
            )


class PackedDataset(SegmentationDataset):
    """A split of a pack: the same items as those of the data set that was packed.

    Args:
        folder: of the pack.
        split: train, val or test.
        name: of the data set that it has to be a pack of; None: of any.
        options: of that data set, complete.

    Raises:
        ValueError: if it is no pack, or of other data, or has no such split, or a file of it is missing or cut off.
        MissingMasks: as for the files, if some of the images have a mask and others have none.
    """

    def __init__(
        self, folder: str | Path, split: str, *, name: str | None = None, options: Mapping[str, Any] | None = None
    ):
        self.folder = Path(folder).expanduser()
        pack = read_pack(self.folder)
        if name is not None:
            check_origin(pack, self.folder, name, options or {})
        again = (
            f"`segdistill data pack CONFIG --out {self.folder} --split {split}` adds it, or goes on if it was stopped"
        )
        check_split(split, list(pack["splits"]), again)
        self.classes = list(pack["classes"])
        self.palette = [(red, green, blue) for red, green, blue in pack["palette"]]
        self.image_range: Range | None = None if pack["image_range"] is None else tuple(pack["image_range"])
        self.remarks = pack["splits"][split].get("remarks", [])  # the first packs have none
        self.names = []
        self._shards = [shard_path(self.folder, split, number) for number in range(pack["splits"][split]["shards"])]
        self._maps: dict[int, Bytes] = {}
        rows: list[tuple[int, ...]] = []
        self.bare: set[int] = set()
        for number, path in enumerate(self._shards):
            index = read_index(path.with_suffix(".json"), "bytes", "names", "sizes", "offsets")
            check_length(path, index["bytes"])
            self.bare |= {len(self.names) + place for place in index.get("bare", [])}  # without labels
            self.names += index["names"]
            rows += [(number, at, *size) for at, size in zip(index["offsets"], index["sizes"], strict=True)]
        if len(self.names) != pack["splits"][split]["images"] or len(rows) != len(self.names):
            raise ValueError(f"{self.folder}: {len(self.names)} images of {split}, where {INDEX} says "
                             f"{pack['splits'][split]['images']}; pack the data again")  # fmt: skip
        self._places = np.array(rows, np.int64).reshape(-1, 4)
        if self.bare and len(self.bare) < len(self.names):
            lines = [f"{self.names[index]} had no mask when {self.folder} was packed" for index in sorted(self.bare)]
            raise MissingMasks(lines, Subset(self, (i for i in range(len(self.names)) if i not in self.bare)), self)

    def __getstate__(self) -> dict[str, Any]:
        # A process that loads images maps the files itself; else their contents would be sent to it.
        return {**self.__dict__, "_maps": {}}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self._views(index)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(mask)).long()

    def has_mask(self, index: int) -> bool:
        """Whether the item had labels when it was packed."""
        return index not in self.bare

    def source(self, index: int) -> Source:
        """The item, of which only those rows are read that are wanted."""
        return _PackedSource(*self._views(index))

    def _views(self, index: int) -> tuple[Bytes, Bytes]:
        shard, start, height, width = self._places[index].tolist()
        if shard not in self._maps:
            try:
                self._maps[shard] = np.memmap(self._shards[shard], np.uint8, "r")
            except (OSError, ValueError) as error:
                raise ValueError(f"{self._shards[shard]}: cannot be read ({error}); pack the data again") from None
        colours = start + 3 * height * width
        pixels = self._maps[shard]
        image = pixels[start:colours].reshape(height, width, 3)
        return image, pixels[colours : colours + height * width].reshape(height, width)


class _PackedSource(Source):
    """Views of what lies in a shard, of which parts are copied."""

    def __init__(self, image: Bytes, mask: Bytes):
        self.size = mask.shape[0], mask.shape[1]
        self._image, self._mask = image, mask

    def image(self, box: Box, reduce: int = 1) -> Tensor:
        """A part of the image, always in full."""
        return torch.from_numpy(np.array(self._image[box])).permute(2, 0, 1)

    def mask(self, box: Box) -> Tensor:
        """A part of the mask."""
        return torch.from_numpy(np.array(self._mask[box]))


def check_length(path: Path, length: int) -> None:
    """Raise ValueError with one line if a shard is missing or has not the length that its index says.

    Args:
        path: of the shard.
        length: in bytes.
    """
    there = path.stat().st_size if path.is_file() else None
    if there != length:
        found = "missing" if there is None else f"{there} bytes long"
        raise ValueError(f"{path}: {found}, where its index says {length}; delete the index and pack the data again")


def damaged_shards(folder: Path) -> list[str]:
    """Compare every shard of a pack with its checksum.

    Args:
        folder: of the pack.

    Returns:
        One line for each shard that is missing, cut off or altered.

    Raises:
        ValueError: if it is no pack.
    """
    problems = []
    for split, found in read_pack(folder)["splits"].items():
        for number in range(found["shards"]):
            path = shard_path(folder, split, number)
            try:
                index = read_index(path.with_suffix(".json"), "bytes", "sha256")
                check_length(path, index["bytes"])
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != index["sha256"]:
                        raise ValueError(f"{path}: its bytes have changed; delete it and its index, and pack again")
            except (OSError, ValueError) as error:
                problems.append(str(error))
    return problems
