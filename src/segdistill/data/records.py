"""What a check keeps of each image: a few numbers, computed in several processes, on request kept in a file."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from segdistill.data.dataset import SegmentationDataset
from segdistill.data.loading import Loader

Record = dict[str, Any]
FORMAT = 1
"""Of the records in a file; those of another one are read anew."""


class _Items(Dataset[Record]):
    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> Record:
        return make_record(self.dataset, index)


def make_record(dataset: SegmentationDataset, index: int) -> Record:
    """What a check has to know of an item, as JSON can hold it; of an unreadable one, what is wrong with it.

    Pixels are counted by value, and colours summed up as whole numbers, so that nothing is rounded. Digests are those
    of the decoded pixels with their shape: a copy in another format has the same ones.

    Args:
        dataset: that has the item.
        index: of the item.
    """
    try:
        image, mask = dataset[index]
    except ValueError:
        return {"problems": dataset.problems(index)}
    pixels, ids = image.numpy().reshape(3, -1), mask.numpy().astype(np.uint8)
    counts = np.bincount(ids.ravel(), minlength=256)
    return {
        "size": list(ids.shape),
        "counts": {str(value): int(counts[value]) for value in np.flatnonzero(counts)},
        "sums": pixels.sum(1, dtype=np.int64).tolist(),
        "squares": np.square(pixels, dtype=np.uint16).sum(1, dtype=np.int64).tolist(),
        "image": _digest(image.numpy()),
        "mask": _digest(ids),
    }


def _digest(values: np.ndarray) -> str:
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def read_records(
    dataset: SegmentationDataset, *, workers: int = 0, store: "RecordStore | None" = None
) -> Iterator[Record]:
    """The records of all items, in their order.

    Args:
        dataset: whose items are read.
        workers: processes that read them; 0: this one.
        store: of records that need not be read again.
    """
    keys = [store.key(dataset, index) if store else None for index in range(len(dataset))]
    unread = [index for index, key in enumerate(keys) if store is None or key not in store]
    fresh = iter(Loader(_Items(dataset), unread, min(workers, len(unread))))
    wanted = set(unread)
    for index, key in enumerate(keys):
        if index not in wanted:
            assert store is not None
            yield store[key]
            continue
        record = next(fresh)
        if store is not None and key is not None and "problems" not in record:
            store.add(key, record)
        yield record


class RecordStore:
    """Records in a file, a line each, so that a check that was interrupted, or is repeated, reads only what changed.

    A record holds as long as the paths, sizes and times of its image and mask, and the data set's options, are the
    same. Items with problems are not kept, nor those of data sets without files. Lines that cannot be read, such as the
    last one of a killed process, count for nothing; to start afresh, delete the file.

    Args:
        path: of the file; it need not be there.
        settings: what the records depend on besides the files.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.settings = json.dumps([FORMAT, settings], sort_keys=True, default=str)
        self.file = path.open("a+b")  # what two processes append stays whole
        self.file.seek(0)
        self.places: dict[str, int] = {}
        place, line = 0, b"\n"
        for line in self.file:
            key = line[:32].decode("ascii", "replace")
            if line.endswith(b"\n") and line[32:33] == b" ":
                self.places[key] = place
            place += len(line)
        if not line.endswith(b"\n"):
            self.file.write(b"\n")

    def __enter__(self) -> "RecordStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __contains__(self, key: str | None) -> bool:
        return key in self.places

    def __getitem__(self, key: str | None) -> Record:
        assert key is not None
        self.file.seek(self.places[key])
        record: Record = json.loads(self.file.readline()[33:])
        return record

    def key(self, dataset: SegmentationDataset, index: int) -> str | None:
        """What an item is known by; None if it is not made of files, or they cannot be looked at.

        Args:
            dataset: that has the item.
            index: of the item.
        """
        files = dataset.files(index)
        if not files:
            return None
        try:
            seen = [(str(file.absolute()), *_state(file)) for file in files]
        except OSError:
            return None
        return hashlib.blake2b(
            repr((self.settings, seen)).encode("utf-8", "surrogateescape"), digest_size=16
        ).hexdigest()

    def add(self, key: str, record: Record) -> None:
        """Append a record.

        Args:
            key: of the item.
            record: of the item.
        """
        line = f"{key} {json.dumps(record)}\n".encode()
        self.file.write(line)
        self.file.flush()
        self.places[key] = self.file.tell() - len(line)


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
