"""Batches from processes that load ahead: how samples become one, how errors and bytes travel, who gets a signal."""

import math
import os
import signal
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from segdistill.data.transforms import Crop, Crops, stack

Batch = tuple[Tensor, Tensor]


class Recalled(NamedTuple):
    """A batch, and what was read beside it."""

    batch: Batch | Crops
    known: dict[str, Tensor]


class Loader:
    """A DataLoader over ready-made items in a given order, which raises the errors that its workers hand over.

    A signal to the process group leaves the workers alone.

    Args:
        batches: the items; one that cannot be made is a ValueError instead.
        indices: which of them, in which order.
        workers: processes that load ahead; 0: load in this one.
        device: where batches that travel as bytes become numbers; None: they stay.
    """

    def __init__(
        self, batches: Dataset[Any], indices: Sequence[int], workers: int, device: torch.device | str | None = None
    ):
        self.indices = indices
        self.device = device
        self.loader = DataLoader(
            batches,
            batch_size=None,
            sampler=indices,
            num_workers=workers,
            collate_fn=_same,
            worker_init_fn=_leave_group,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each pass draws from the global one, and a resumed run differs
        )

    def __iter__(self) -> Generator[Any]:
        try:
            for item in self.loader:
                if isinstance(item, ValueError):
                    raise item
                if isinstance(item, Recalled):
                    yield (*self._numbers(item.batch), item.known)
                else:
                    yield from item if isinstance(item, list) else [self._numbers(item)]
        except (ConnectionError, EOFError):  # what is heard first of a worker that was killed, now and then
            raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly") from None

    def _numbers(self, item: Any) -> Any:
        return item.numbers(self.device) if isinstance(item, Crops) else item


def collate(samples: Sequence[Batch | Crop]) -> Batch | Crops:
    """Samples as one batch.

    Args:
        samples: images with targets, or crops that are to become numbers later.

    Raises:
        ValueError: if they differ in size.
    """
    crops = [sample for sample in samples if isinstance(sample, Crop)]
    if not crops:
        return stacked([sample for sample in samples if not isinstance(sample, Crop)])
    _check_sizes(crop.size for crop in crops)
    return stack(crops, _empty)


def stacked(samples: list[Batch]) -> Batch:
    """Images and targets, each in one tensor.

    Args:
        samples: (3,h,w) and (h,w) each.

    Raises:
        ValueError: if they differ in size.
    """
    _check_sizes((image.shape[1], image.shape[2]) for image, _ in samples)
    images, targets = default_collate(samples)  # at once in memory that is shared, as `_empty` makes it
    return images, targets


def _check_sizes(sizes: Iterable[tuple[int, int]]) -> None:
    different = sorted(set(sizes))
    if len(different) > 1:
        shown = " and ".join(f"{width}×{height}" for height, width in different[:2])
        raise ValueError(f"images of {shown} do not fit into one batch; set data.crop (or data.size)")


def _empty(shape: tuple[int, ...]) -> Tensor:
    """Bytes to be written; in a loader's process such as the other process sees, so that they need not be copied."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage: Any = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def plain(error: ValueError) -> ValueError:
    """The error without its traceback: in a worker it travels as a value, as torch would wrap its line in pages.

    Args:
        error: that stopped an item from being made.
    """
    return ValueError(str(error))


def _same(item: Any) -> Any:
    return item


def _leave_group(_worker: int) -> None:
    """A signal to the whole process group is for the main process, which finishes its step and ends its workers.

    They must not ignore it instead: the interpreter ends a worker that is left over by SIGTERM, and waits for it.
    """
    if hasattr(os, "setpgid"):  # Windows sends no signals to groups
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
