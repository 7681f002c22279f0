import subprocess
import sys

import pytest
import torch

from conftest import PATIENCE
from segdistill.data import SegmentationDataset
from segdistill.data.sampler import eval_loader, train_loader
from segdistill.data.transforms import EvalTransform, TrainTransform


class Numbered(SegmentationDataset):
    """Images whose every pixel is their index; `bad` ones raise."""

    def __init__(self, count, sizes=((8, 8),), bad=()):
        self.classes, self.palette = ["a", "b"], [(0, 0, 0), (9, 9, 9)]
        self.names = [str(i) for i in range(count)]
        self.sizes, self.bad = sizes, bad

    def __getitem__(self, index):
        if index in self.bad:
            raise ValueError(f"{index}.png is torn; replace it")
        size = self.sizes[index % len(self.sizes)]
        return torch.full((3, *size), index, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)


def noisy(image, mask):
    """The image's number in the first pixel, what chance made of it in the second."""
    image = image.float()
    image[:, 0, 1] = torch.rand(3)
    return image, mask.long()


def chain(batches):
    return [index for batch in batches for index in batch]


def indices(loader):
    return [images[:, 0, 0, 0].int().tolist() for images, _ in loader]


def equal(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_an_epoch_is_a_permutation_and_the_next_another():
    batches = indices(train_loader(Numbered(10), noisy, batch_size=5, steps=4))
    first, second = batches[0] + batches[1], batches[2] + batches[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_batch_may_straddle_two_epochs():
    order = chain(indices(train_loader(Numbered(7), noisy, batch_size=4, steps=7)))
    for epoch in range(4):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_a_batch_larger_than_the_data_set():
    order = chain(indices(train_loader(Numbered(3), noisy, batch_size=8, steps=3)))
    assert all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 24, 3))


def test_seeds_differ():
    loaders = [train_loader(Numbered(50), noisy, batch_size=5, steps=3, seed=seed) for seed in (0, 1)]
    assert indices(loaders[0]) != indices(loaders[1])


def test_one_image_at_two_steps_is_augmented_differently():
    chances = {float(images[0, 0, 0, 1]) for images, _ in train_loader(Numbered(1), noisy, batch_size=1, steps=20)}
    assert len(chances) == 20


@pytest.mark.parametrize("start", [0, 3, 7])
def test_it_starts_at_any_step(start):
    whole = list(train_loader(Numbered(11), noisy, batch_size=4, steps=8))
    equal(whole[start:], train_loader(Numbered(11), noisy, batch_size=4, steps=8, start=start))


def test_a_late_start_skips_what_is_before_it():
    # Walking through a million million steps would not end.
    loader = train_loader(Numbered(200), noisy, batch_size=8, steps=10**12, start=10**12 - 2)
    assert len(list(loader)) == 2


def test_workers_do_not_matter():
    options = {"batch_size": 4, "steps": 6, "start": 1, "seed": 5}
    transform = TrainTransform(crop=(6, 6), photometric=True)
    expected = list(train_loader(Numbered(9), transform, **options))
    for workers in (1, 2):
        equal(expected, train_loader(Numbered(9), transform, workers=workers, **options))


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_processes_and_micro_batches_share_one_batch(world, accumulate):
    whole = list(train_loader(Numbered(13), noisy, batch_size=8, steps=3, seed=2))
    shares = [
        list(
            train_loader(
                Numbered(13), noisy, batch_size=8, steps=3, seed=2, accumulate=accumulate, rank=rank, world=world
            )
        )
        for rank in range(world)
    ]
    for step, (images, target) in enumerate(whole):
        parts = [share[step * accumulate + chunk] for chunk in range(accumulate) for share in shares]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), target)


def test_unlabelled_images_join_without_labels():
    options = {"batch_size": 2, "steps": 4, "unlabelled": Numbered(5), "unlabelled_batch": 4}
    for images, target in train_loader(Numbered(20), noisy, **options):
        assert images.shape[0] == target.shape[0] == 6
        assert (target[:2] == 0).all()
        assert (target[2:] == 255).all()
        assert (images[2:, 0, 0, 0] < 5).all()
    with_them = [images[:2] for images, _ in train_loader(Numbered(20), noisy, **options)]
    without = [images for images, _ in train_loader(Numbered(20), noisy, batch_size=2, steps=4)]
    assert all(torch.equal(a, b) for a, b in zip(with_them, without, strict=True))


def test_unlabelled_images_are_spread_evenly():
    options = {"batch_size": 4, "steps": 2, "unlabelled": Numbered(50), "unlabelled_batch": 8}
    whole = [images[4:] for images, _ in train_loader(Numbered(20), noisy, **options)]
    shares = [
        [images[1:] for images, _ in train_loader(Numbered(20), noisy, accumulate=2, rank=rank, world=2, **options)]
        for rank in range(2)
    ]
    for step in range(2):
        parts = [shares[rank][2 * step + chunk] for chunk in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(parts), whole[step])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_numbers_are_left_alone(workers):
    state = torch.get_rng_state()
    list(train_loader(Numbered(9), noisy, batch_size=2, steps=3, workers=workers))
    list(eval_loader(Numbered(3), workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_its_one_line(workers):
    with pytest.raises(ValueError, match=r"^4\.png is torn; replace it$"):
        list(train_loader(Numbered(5, bad=[4]), noisy, batch_size=5, steps=1, workers=workers))
    with pytest.raises(ValueError, match=r"^4\.png is torn; replace it$"):
        list(eval_loader(Numbered(5, bad=[4]), workers=workers))


def test_images_of_different_sizes_need_a_crop():
    dataset = Numbered(4, sizes=[(8, 8), (8, 6)])
    whole = TrainTransform(crop=None, scale=(1, 1))
    with pytest.raises(ValueError, match=r"images of 6×8 and 8×8 do not fit into one batch; set data.crop"):
        list(train_loader(dataset, whole, batch_size=4, steps=1))
    for transform in (TrainTransform(crop=(5, 5)), TrainTransform(crop=None, size=(7, 7))):
        assert len(list(train_loader(dataset, transform, batch_size=4, steps=1))) == 1


def test_errors():
    with pytest.raises(ValueError, match="batch_size 9 must be a multiple of 2 processes × 2 micro-batches; take 8"):
        train_loader(Numbered(5), noisy, batch_size=9, steps=1, world=2, accumulate=2)
    with pytest.raises(ValueError, match="unlabelled_batch 3 must be a multiple of 2 processes"):
        train_loader(Numbered(5), noisy, batch_size=2, steps=1, world=2, unlabelled=Numbered(2), unlabelled_batch=3)
    with pytest.raises(ValueError, match="there are no unlabelled images"):
        train_loader(Numbered(5), noisy, batch_size=2, steps=1, unlabelled_batch=3)
    with pytest.raises(ValueError, match="the data set has no images"):
        train_loader(Numbered(0), noisy, batch_size=2, steps=1)
    with pytest.raises(ValueError, match="batch_size 0"):
        train_loader(Numbered(5), noisy, batch_size=0, steps=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(workers):
    loader = eval_loader(Numbered(7), workers=workers, batch_size=3)
    for _ in range(2):
        batches = [(images[:, 0, 0, 0] * 255).round().int().tolist() for images, _ in loader]
        assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_evaluation_batches_images_of_one_size_only():
    sizes = [(8, 8), (8, 8), (8, 6), (4, 4), (8, 8)]
    shapes = [tuple(images.shape) for images, _ in eval_loader(Numbered(5, sizes=sizes), batch_size=4)]
    assert shapes == [(2, 3, 8, 8), (1, 3, 8, 6), (1, 3, 4, 4), (1, 3, 8, 8)]
    shapes = [tuple(images.shape) for images, _ in eval_loader(Numbered(5, sizes=sizes), batch_size=5, size=(4, 6))]
    assert shapes == [(5, 3, 4, 6)]


@pytest.mark.parametrize("count", [7, 1])
def test_processes_evaluate_all_images_together_and_none_twice(count):
    seen = []
    for rank in range(3):
        for images, target in eval_loader(Numbered(count), rank=rank, world=3, batch_size=2):
            assert target.shape[0] == images.shape[0]
            seen += (images[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(seen) == list(range(count))


def test_evaluation_is_the_image_itself():
    image, mask = Numbered(9)[7]
    (images, target) = list(eval_loader(Numbered(9)))[7]
    expected, expected_target = EvalTransform()(image, mask)
    assert torch.equal(images[0], expected)
    assert torch.equal(target[0], expected_target)


def test_workers_end_when_their_loader_is_garbage():
    # In a process of its own, since workers that do not end hold up its exit.
    code = """
import gc
import torch
from segdistill.data import build_dataset
from segdistill.data.sampler import eval_loader

loader = eval_loader(build_dataset("synthetic", split="val", size=(32, 32), images=8), workers=2)
batches = iter(loader)
next(batches)
cycle = [batches]
cycle.append(cycle)
del batches, cycle, loader
gc.collect()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
