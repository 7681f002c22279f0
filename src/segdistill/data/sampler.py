"""Batches that are addressed by step: the same ones for any number of workers, processes and accumulation chunks."""

import os
import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segdistill.data.dataset import SegmentationDataset
from segdistill.data.transforms import EvalTransform
from segdistill.functional import IGNORE

Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor, Tensor], Batch]
Address = tuple[int, int, int]
"""Of a view: `LABELLED` or `UNLABELLED`, the image's number in its data set, the view's number."""
Recall = Callable[[Sequence[Address]], dict[str, Tensor]]
"""What is known of some views beside their images, (N,…) each."""

LABELLED, UNLABELLED = 0, 1


def train_loader(
    dataset: SegmentationDataset,
    transform: Transform,
    *,
    batch_size: int,
    steps: int,
    start: int = 0,
    seed: int = 0,
    workers: int = 0,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    unlabelled: SegmentationDataset | None = None,
    unlabelled_batch: int = 0,
    views: int | None = None,
    recall: Recall | None = None,
) -> Iterable[Any]:
    """Batches of the steps `start` … `steps - 1`, each cut into `accumulate` micro-batches that come one after another.

    Which image stands at a position of a step's batch, and how it is augmented, depends on (seed, step, position)
    alone; with `views`, how image i is augmented in epoch e depends on (seed, i, e mod views), so that its views come
    again. An epoch is a permutation; a batch may straddle two. A process gets a contiguous share of the batch, and cuts
    that into micro-batches; the images without labels stand behind the others in each micro-batch.

    Args:
        dataset: images with labels.
        transform: (image, mask) → (image, target) of one size; its randomness comes from torch's CPU generator.
        batch_size: images with labels per step, over all processes and micro-batches.
        steps: of the whole training.
        start: the first step, at no cost.
        seed: of the order and the augmentation.
        workers: processes that load ahead, with one thread each; 0: load in this one.
        accumulate: micro-batches per step.
        rank: of this process.
        world: number of processes.
        unlabelled: images for the losses that need no labels; masks they may have are replaced by 255.
        unlabelled_batch: how many of them come with each step, over all processes and micro-batches.
        views: how many ways of augmenting each image there are; None: another one each time.
        recall: what is read beside each micro-batch of views, by the process that loads it; a batch is then (images,
            target, what it gave).

    Raises:
        ValueError: if a batch cannot be divided evenly; when iterating, what data set and transform raise.
    """
    if recall is not None and views is None:
        raise ValueError("recall needs views: an image that is augmented another way each time is never met again")
    streams = [_Stream(dataset, batch_size, LABELLED, views)]
    if unlabelled_batch:
        if unlabelled is None:
            raise ValueError(f"unlabelled_batch is {unlabelled_batch} but there are no unlabelled images; give them")
        streams.append(_Stream(unlabelled, unlabelled_batch, UNLABELLED, views))
    for name, stream in zip(("batch_size", "unlabelled_batch"), streams, strict=False):
        if stream.size < 1 or stream.size % (world * accumulate):
            raise ValueError(
                f"{name} {stream.size} must be a multiple of {world} processes × {accumulate} micro-batches; "
                f"take {max(1, round(stream.size / (world * accumulate))) * world * accumulate}"
            )
        if not len(stream.dataset):
            raise ValueError(f"{name}: the data set has no images")
    micro_batches = _MicroBatches(streams, transform, seed, accumulate, rank, world, recall)
    return _Loader(micro_batches, range(start * accumulate, steps * accumulate), workers)


def view_loader(
    datasets: Sequence[SegmentationDataset],
    transform: Transform,
    groups: Sequence[Sequence[Address]],
    *,
    seed: int = 0,
    workers: int = 0,
) -> Iterable[Batch]:
    """The very views that `train_loader` gives with `views`, in groups.

    Args:
        datasets: the images with labels, then those without, if there are any.
        transform: as for `train_loader`.
        groups: addresses of views, a batch each.
        seed: as for `train_loader`.
        workers: likewise.
    """
    streams = [_Stream(dataset, 1, number) for number, dataset in enumerate(datasets)]
    return _Loader(_Views(streams, transform, seed, groups), range(len(groups)), workers)


def eval_loader(
    dataset: SegmentationDataset,
    *,
    workers: int = 0,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterable[Batch]:
    """Every image once, whole, in order; a process gets every `world`-th one, nothing is repeated to fill up.

    Args:
        dataset: images with labels.
        workers: processes that load ahead.
        size: (H,W) to resize images and masks to.
        batch_size: how many neighbours are stacked at most; those of different sizes come in separate batches.
        rank: of this process.
        world: number of processes.
    """
    groups = _Groups(dataset, EvalTransform(size=size), range(rank, len(dataset), world), batch_size)
    return _Loader(groups, range(len(groups)), workers)


class _Stream:
    """An endless sequence of permutations of a data set, of which each step takes the next `size` images."""

    def __init__(self, dataset: SegmentationDataset, size: int, number: int, views: int | None = None):
        self.dataset = dataset
        self.size = size
        self.number = number
        self.views = views

    def address(self, seed: int, step: int, position: int) -> Address:
        epoch, place = divmod(step * self.size + position, len(self.dataset))
        index = int(_permutation(len(self.dataset), seed, self.number, epoch)[place])
        return self.number, index, epoch % (self.views or 1)

    def sample(self, seed: int, step: int, position: int, transform: Transform) -> Batch:
        _, index, view = self.address(seed, step, position)
        return self.draw(index, seed, (step, position) if self.views is None else (index, view), transform)

    def draw(self, index: int, seed: int, key: tuple[int, int], transform: Transform) -> Batch:
        image, mask = self.dataset[index]
        if self.number == UNLABELLED:
            mask = torch.full_like(mask, IGNORE)
        # torch.manual_seed would reset the generators of all devices as well; only the CPU's is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_sample_seed(seed, self.number, *key))
            return transform(image, mask)


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, stream: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, stream, epoch]).permutation(count)


def _sample_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class _MicroBatches(Dataset[Any]):
    def __init__(
        self,
        streams: list[_Stream],
        transform: Transform,
        seed: int,
        accumulate: int,
        rank: int,
        world: int,
        recall: Recall | None,
    ):
        self.streams = streams
        self.transform = transform
        self.seed = seed
        self.accumulate = accumulate
        self.rank = rank
        self.world = world
        self.recall = recall

    def __getitem__(self, index: int) -> Any:
        step, chunk = divmod(index, self.accumulate)
        samples, addresses = [], []
        try:
            for stream in self.streams:
                share = stream.size // (self.world * self.accumulate)
                first = (self.rank * self.accumulate + chunk) * share
                for position in range(first, first + share):
                    samples.append(stream.sample(self.seed, step, position, self.transform))
                    addresses.append(stream.address(self.seed, step, position))
            batch = _stack(samples)
            return batch if self.recall is None else (*batch, self.recall(addresses))
        except ValueError as error:
            return _plain(error)


class _Views(Dataset[Batch | ValueError]):
    def __init__(self, streams: list[_Stream], transform: Transform, seed: int, groups: Sequence[Sequence[Address]]):
        self.streams = streams
        self.transform = transform
        self.seed = seed
        self.groups = groups

    def __getitem__(self, group: int) -> Batch | ValueError:
        try:
            return _stack(
                [
                    self.streams[number].draw(index, self.seed, (index, view), self.transform)
                    for number, index, view in self.groups[group]
                ]
            )
        except ValueError as error:
            return _plain(error)


class _Groups(Dataset[list[Batch] | ValueError]):
    def __init__(self, dataset: SegmentationDataset, transform: Transform, indices: range, batch_size: int):
        self.dataset = dataset
        self.transform = transform
        self.indices = indices
        self.batch_size = max(1, batch_size)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, index: int) -> list[Batch] | ValueError:
        try:
            chosen = self.indices[index * self.batch_size : (index + 1) * self.batch_size]
            samples = [self.transform(*self.dataset[i]) for i in chosen]
            return [_stack(list(group)) for _, group in groupby(samples, key=lambda sample: sample[0].shape)]
        except ValueError as error:
            return _plain(error)


def _stack(samples: list[Batch]) -> Batch:
    sizes = sorted({(image.shape[1], image.shape[2]) for image, _ in samples})
    if len(sizes) > 1:
        shown = " and ".join(f"{width}×{height}" for height, width in sizes[:2])
        raise ValueError(f"images of {shown} do not fit into one batch; set data.crop (or data.size)")
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)


def _plain(error: ValueError) -> ValueError:
    """The error without its traceback: in a worker it travels as a value, as torch would wrap its line in pages."""
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


class _Loader:
    """A DataLoader over ready-made batches, which raises the errors that its workers hand over."""

    def __init__(self, batches: Dataset[Any], indices: range, workers: int):
        self.indices = indices
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
                yield from item if isinstance(item, list) else [item]
        except (ConnectionError, EOFError):  # what is heard first of a worker that was killed, now and then
            raise RuntimeError("DataLoader worker (pid unknown) exited unexpectedly") from None
