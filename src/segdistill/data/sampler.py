"""Batches that are addressed by step: the same ones for any number of workers, processes and accumulation chunks."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segdistill.data.dataset import SegmentationDataset, Source, Unlabelled
from segdistill.data.loading import Batch, Loader, Recalled, collate, plain, stacked
from segdistill.data.mixing import Mixer, Mixing
from segdistill.data.transforms import Crop, Crops, EvalTransform, TrainTransform

Transform = Callable[[Tensor, Tensor], Batch]

Address = tuple[int, int, int]
"""Of a view: `LABELLED` or `UNLABELLED`, the image's number in its data set, the view's number."""
Recall = Callable[[Sequence[Address]], dict[str, Tensor]]
"""What is known of some views beside their images, (N,…) each."""

LABELLED, UNLABELLED = 0, 1
OTHERS = 2
"""The turn of those images of the labelled data set whose labels do not count, where they come by themselves."""
VIEWS = 2**63 - 1
"""Stands in the place of the seed where views come again: they are the same in runs of every seed."""


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
    device: torch.device | str | None = None,
    views: int | None = None,
    recall: Recall | None = None,
    labelled: Sequence[int] | None = None,
    labelled_batch: int | None = None,
    mixing: Mixing | None = None,
) -> Iterable[Any]:
    """Batches of the steps `start` … `steps - 1`, each cut into `accumulate` micro-batches that come one after another.

    Which image stands at a position of a step's batch, and how it is augmented, depends on (seed, step, position)
    alone; with `views`, how image i is augmented in epoch e depends on (i, e mod views), so that its views come again,
    in runs of any seed. An epoch is a permutation; a batch may straddle two. It is cut into micro-batches, and each
    process gets a contiguous share of each; the images without labels stand behind the others there.

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
        device: where the batches of a `TrainTransform` are made: they travel there as bytes. None: they stay.
        views: how many ways of augmenting each image there are; None: another one each time.
        recall: what is read beside each micro-batch of views, by the process that loads it; a batch is then (images,
            target, what it gave).
        labelled: with `labelled_batch`: the positions of the items of `dataset` that have labels.
        labelled_batch: how many of `batch_size` are these; the others come from the other items, in turns of their own,
            and stand behind them. None: all come in one order.
        mixing: what is put into an image of others, which are drawn from the same address as its augmentation: for
            CutMix from the same data set, for ClassMix from those of `dataset` that have labels. It needs a
            `TrainTransform`.

    Raises:
        ValueError: if a batch cannot be divided evenly; when iterating, what data set and transform raise.
    """
    if recall is not None and views is None:
        raise ValueError("recall needs views: an image that is augmented another way each time is never met again")
    streams = [_Stream(dataset, batch_size, LABELLED, views)]
    names = ["batch_size"]
    if parted(dataset, labelled, labelled_batch) and labelled is not None and labelled_batch is not None:
        others = sorted(set(range(len(dataset))) - set(labelled))
        streams = [_Stream(dataset, labelled_batch, LABELLED, views, labelled)]
        names = ["labelled_per_batch"]
        if labelled_batch < batch_size:
            streams.append(_Stream(dataset, batch_size - labelled_batch, LABELLED, views, others, turn=OTHERS))
            names.append("batch_size - labelled_per_batch")
    if unlabelled_batch:
        if unlabelled is None:
            raise ValueError(f"unlabelled_batch is {unlabelled_batch} but there are no unlabelled images; give them")
        streams.append(_Stream(unlabelled, unlabelled_batch, UNLABELLED, views))
        names.append("unlabelled_batch")
    for name, stream in zip(names, streams, strict=True):
        if stream.size < 1 or stream.size % (world * accumulate):
            raise ValueError(
                f"{name} {stream.size} must be a multiple of {world} processes × {accumulate} micro-batches; "
                f"take {max(1, round(stream.size / (world * accumulate))) * world * accumulate}"
            )
        if not len(stream):
            raise ValueError(f"{name}: the data set has no images")
    if mixing is not None:
        if not isinstance(transform, TrainTransform):
            raise ValueError("mixing needs a TrainTransform, whose crops are put together before they become numbers")
        mixer = Mixer(mixing, dataset)
        for stream in streams:
            stream.mixer = mixer
    micro_batches = _MicroBatches(streams, transform, seed, accumulate, rank, world, recall)
    return Loader(micro_batches, range(start * accumulate, steps * accumulate), workers, device)


def parted(dataset: SegmentationDataset, labelled: Sequence[int] | None, labelled_batch: int | None) -> bool:
    """Whether images with labels come in turns of their own, and those without behind them.

    Args:
        dataset: all images.
        labelled: positions of those with labels; None: all have some.
        labelled_batch: how many of them each batch has; None: as it comes.
    """
    return labelled_batch is not None and labelled is not None and len(labelled) < len(dataset)


def view_loader(
    datasets: Sequence[SegmentationDataset],
    transform: Transform,
    groups: Sequence[Sequence[Address]],
    *,
    workers: int = 0,
    device: torch.device | str | None = None,
    mixing: Mixing | None = None,
) -> Iterable[Batch]:
    """The very views that `train_loader` gives with `views`, in groups.

    Args:
        datasets: the images with labels, then those without, if there are any.
        transform: as for `train_loader`.
        groups: addresses of views, a batch each.
        workers: as for `train_loader`.
        device: likewise.
        mixing: likewise.
    """
    streams = [_Stream(dataset, 1, number) for number, dataset in enumerate(datasets)]
    if mixing is not None:
        mixer = Mixer(mixing, datasets[LABELLED])
        for stream in streams:
            stream.mixer = mixer
    return Loader(_Views(streams, transform, groups), range(len(groups)), workers, device)


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
    return Loader(groups, range(len(groups)), workers)


class _Stream:
    """An endless sequence of permutations of a data set, or of a choice of it; each step takes the next `size` images.

    `number` tells the data set, `turn` the order in which its images come.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        size: int,
        number: int,
        views: int | None = None,
        chosen: Sequence[int] | None = None,
        *,
        turn: int | None = None,
    ):
        self.dataset = dataset
        self.size = size
        self.number = number
        self.turn = number if turn is None else turn
        self.views = views
        self.chosen = chosen
        self.mixer: Mixer | None = None

    def __len__(self) -> int:
        return len(self.dataset if self.chosen is None else self.chosen)

    def address(self, seed: int, step: int, position: int) -> Address:
        epoch, place = divmod(step * self.size + position, len(self))
        index = int(_permutation(len(self), seed, self.turn, epoch)[place])
        return self.number, index if self.chosen is None else self.chosen[index], epoch % (self.views or 1)

    def sample(self, seed: int, step: int, position: int, transform: Transform) -> Batch | Crop:
        _, index, view = self.address(seed, step, position)
        if self.views is not None:
            return self.view(index, view, transform)
        return self._draw(index, _sample_seed(seed, self.turn, step, position), transform)

    def view(self, index: int, view: int, transform: Transform) -> Batch | Crop:
        return self._draw(index, _sample_seed(VIEWS, self.number, index, view), transform)

    def _draw(self, index: int, seed: int, transform: Transform) -> Batch | Crop:
        # torch.manual_seed would reset the generators of all devices as well; only the CPU's is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            source = self._source(index)
            if not isinstance(transform, TrainTransform):
                whole = (slice(0, source.size[0]), slice(0, source.size[1]))
                return transform(source.image(whole), source.mask(whole))
            crop = transform.draw(source)  # first, so that it is the same whatever is put in
            return crop if self.mixer is None else self.mixer(crop, transform, self._source, len(self.dataset))

    def _source(self, index: int) -> Source:
        source = self.dataset.source(index)
        return Unlabelled(source) if self.number == UNLABELLED else source


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, stream: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, stream, epoch]).permutation(count)


def _sample_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class _MicroBatches(Dataset[Batch | Crops | Recalled | ValueError]):
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

    def __getitem__(self, index: int) -> Batch | Crops | Recalled | ValueError:
        step, chunk = divmod(index, self.accumulate)
        samples: list[Batch | Crop] = []
        addresses = []
        try:
            for stream in self.streams:
                share = stream.size // (self.world * self.accumulate)
                first = (chunk * self.world + self.rank) * share
                for position in range(first, first + share):
                    samples.append(stream.sample(self.seed, step, position, self.transform))
                    addresses.append(stream.address(self.seed, step, position))
            batch = collate(samples)
            return batch if self.recall is None else Recalled(batch, self.recall(addresses))
        except ValueError as error:
            return plain(error)


class _Views(Dataset[Batch | Crops | ValueError]):
    def __init__(self, streams: list[_Stream], transform: Transform, groups: Sequence[Sequence[Address]]):
        self.streams = streams
        self.transform = transform
        self.groups = groups

    def __getitem__(self, group: int) -> Batch | Crops | ValueError:
        try:
            views = [(self.streams[number], index, view) for number, index, view in self.groups[group]]
            return collate([stream.view(index, view, self.transform) for stream, index, view in views])
        except ValueError as error:
            return plain(error)


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
            return [stacked(list(group)) for _, group in groupby(samples, key=lambda sample: sample[0].shape)]
        except ValueError as error:
            return plain(error)
