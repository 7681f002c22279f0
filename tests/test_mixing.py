"""Images of two: what is put in, with its labels; the same for any number of workers, processes and parts."""

import json
import math

import pytest
import torch

from faults import assert_same_run, config
from segdistill import distill
from segdistill.data import SegmentationDataset, build_dataset
from segdistill.data.dataset import Held
from segdistill.data.mixing import Mixing, paste
from segdistill.data.sampler import train_loader, view_loader
from segdistill.data.transforms import Crop, TrainTransform
from segdistill.engine.build import build_mixing, build_transform
from segdistill.engine.config import load_config
from segdistill.engine.teacher_cache import _images_digest

SIZE = (24, 32)
STUDENT = {"name": "pspnet_resnet18"}


class Numbered(SegmentationDataset):
    """Image i is `first` + i throughout; its labels are 0 above and 1 + i below, the first row is void."""

    def __init__(self, count, first=0, bare=(), sizes=(SIZE,)):
        self.classes = [f"class {i}" for i in range(count + 1)]
        self.palette, self.names = [(i, i, i) for i in range(count + 1)], [str(i) for i in range(count)]
        self.first, self.bare, self.sizes = first, bare, sizes
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        size = self.sizes[index % len(self.sizes)]
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[size[0] // 2 :] = 1 + index
        mask[0] = 255
        if index in self.bare:
            mask[:] = 255
        return torch.full((3, *size), self.first + index, dtype=torch.uint8), mask

    def has_mask(self, index):
        return index not in self.bare


WHOLE = TrainTransform(crop=None, scale=(1, 1), flip=False)


def crop(number, classes=(0, 1), place=(slice(0, 24), slice(0, 32))):
    """A crop whose pixels are all a number, and whose labels are stripes of the classes."""
    height, width = (part.stop - part.start for part in place)
    mask = torch.tensor(classes, dtype=torch.uint8).repeat_interleave(math.ceil(width / len(classes)))[:width]
    image = torch.full((3, height, width), number, dtype=torch.uint8)
    return Crop(image, mask.repeat(height, 1), SIZE, place, (0.5, 0.25, 1.0))


def never():
    raise AssertionError("drawn in vain")


# What is put in


def test_a_box_of_half_the_picture():
    boxes = set()
    for seed in range(40):
        torch.manual_seed(seed)
        mixed = Mixing(cutmix=1)(crop(10, (3, 4)), lambda: crop(20, (5, 6)), never)
        inside = mixed.image[0] == 20
        assert torch.equal(mixed.image, torch.where(inside, 20, 10).expand(3, -1, -1))
        assert torch.equal(mixed.mask, torch.where(inside, crop(0, (5, 6)).mask, crop(0, (3, 4)).mask))
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)  # a rectangle
        assert inside.sum() == rows.sum() * columns.sum()
        assert inside.sum().item() / inside.numel() == pytest.approx(0.5, abs=0.04)  # whole pixels
        assert rows.sum() >= 12
        assert columns.sum() >= 16
        boxes.add((int(rows.sum()), int(rows.int().argmax()), int(columns.int().argmax())))
    assert len({height for height, _, _ in boxes}) > 5
    assert len({(top, left) for _, top, left in boxes}) > 20


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_half_of_the_classes_rounded_up(count):
    classes, chosen = tuple(range(2, 2 + count)), set()
    for seed in range(30):
        torch.manual_seed(seed)
        mixed = Mixing(classmix=1)(crop(10, (0, 255)), never, lambda: crop(20, (*classes, 255)))
        found = frozenset(mixed.mask[mixed.image[0] == 20].tolist())
        assert len(found) == (count + 1) // 2
        chosen.add(found)
        other = crop(20, (*classes, 255))
        inside = torch.isin(other.mask, torch.tensor(sorted(found)))
        assert torch.equal(mixed.image[0] == 20, inside)  # all pixels of these classes, no void
        assert torch.equal(mixed.mask, torch.where(inside, other.mask, crop(0, (0, 255)).mask))
    assert len(chosen) == math.comb(count, (count + 1) // 2)


def test_labels_are_of_what_is_seen():
    bare = crop(10, (255,))
    torch.manual_seed(0)
    mixed = Mixing(classmix=1)(bare, never, lambda: crop(20, (1, 2)))
    assert torch.equal(mixed.mask == 255, mixed.image[0] == 10)
    mixed = Mixing(cutmix=1)(crop(10, (1, 2)), lambda: crop(20, (255,)), never)
    assert torch.equal(mixed.mask == 255, mixed.image[0] == 20)
    assert Mixing(classmix=1)(bare, never, lambda: crop(20, (255,))) is bare


def test_padding_is_not_put_in_and_stays_what_it_is():
    small = crop(20, (1, 2), (slice(2, 12), slice(4, 20)))
    where = torch.ones(SIZE, dtype=torch.bool)
    where[:, 10:] = False
    mixed = paste(crop(10, (3, 4)), small, where)
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[2:12, 4:10] = True
    assert torch.equal(mixed.image[0] == 20, inside)
    assert (mixed.mask[inside] == 1).all()
    back = paste(small, crop(10, (3, 4)), where)
    assert (back.image[:, :, :10] == 10).all()
    assert (back.image[:, 2:12, 10:20] == 20).all()
    padding = torch.tensor([128, 64, 255]).view(3, 1)  # the colour to the nearest byte
    assert torch.equal(back.image[:, 15, 12:].int(), padding.expand(3, 20).int())
    assert (back.mask[15, 12:] == 255).all()
    assert paste(small, crop(10), torch.zeros(SIZE, dtype=torch.bool)) is small
    outside = torch.zeros(SIZE, dtype=torch.bool)
    outside[20:] = True
    assert paste(crop(10), small, outside).image.unique().tolist() == [10]


def test_probabilities():
    for name, share in (("cutmix", 0.3), ("classmix", 0.6)):
        mixing = Mixing(**{name: share})
        torch.manual_seed(1)
        mixed = [mixing(crop(10), lambda: crop(20), lambda: crop(20)).image.amax() == 20 for _ in range(400)]
        assert sum(mixed) / 400 == pytest.approx(share, abs=0.08)
    both = Mixing(cutmix=1, classmix=1)(crop(10), lambda: crop(20), lambda: crop(30, (1, 2)))
    assert {30} < set(both.image.unique().tolist()) <= {10, 20, 30}
    assert Mixing()(crop(10), never, never).image.unique().tolist() == [10]


# In a loader


def numbers(images):
    return [set((image * 255).round().int().unique().tolist()) for image in images]


def test_the_teacher_sees_the_image_that_the_labels_are_of():
    data = Numbered(9)
    options = {"batch_size": 3, "steps": 6, "seed": 1}
    plain = list(train_loader(data, WHOLE, **options))
    mixed = list(train_loader(data, WHOLE, mixing=Mixing(cutmix=0.5, classmix=0.5), **options))
    changed = 0
    for (images, target), (other_images, other_target) in zip(plain, mixed, strict=True):
        for image, labels, own_image, own in zip(other_images, other_target, images, target, strict=True):
            number = (image[0] * 255).round().int()
            own_number = int((own_image * 255).round().max())
            changed += bool((number != own_number).any())
            # A label of the lower half says whose pixel it is.
            assert torch.equal(number[12:] + 1, labels[12:].int())
            assert torch.equal(labels[number == own_number], own[number == own_number])
    assert 5 < changed < 18


def test_where_partners_come_from():
    data, others = Numbered(6, bare=range(2, 6)), Numbered(5, first=100)
    options = {"batch_size": 3, "steps": 20, "unlabelled": others, "unlabelled_batch": 3}
    for images, target in train_loader(data, WHOLE, mixing=Mixing(cutmix=1), **options):
        for found in numbers(images[:3]):
            assert max(found) < 100
        for found, labels in zip(numbers(images[3:]), target[3:], strict=True):
            assert min(found) >= 100
            assert (labels == 255).all()
    labelled = 0
    for images, target in train_loader(data, WHOLE, mixing=Mixing(classmix=1), **options):
        for found in numbers(images[3:]):
            assert len([number for number in found if number < 100]) == 1
            assert {number for number in found if number < 100} <= {0, 1}  # those that have labels
        labelled += sum(bool((labels != 255).any()) for labels in target[3:])
    assert labelled == 60


JITTER = TrainTransform(crop=(16, 20), photometric=True, colour=0.5)
BOTH = Mixing(cutmix=0.6, classmix=0.6)


def equal(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_workers_and_a_late_start_do_not_matter():
    options = {"batch_size": 4, "seed": 5, "mixing": BOTH, "unlabelled": Numbered(5, 100), "unlabelled_batch": 2}
    expected = list(train_loader(Numbered(9), JITTER, steps=5, **options))
    for workers in (1, 2):
        equal(expected, train_loader(Numbered(9), JITTER, steps=5, workers=workers, **options))
    equal(expected[3:], train_loader(Numbered(9), JITTER, steps=5, start=3, **options))


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_one_batch(world, accumulate):
    options = {"batch_size": 8, "steps": 3, "seed": 2, "mixing": BOTH}
    whole = list(train_loader(Numbered(13), JITTER, **options))
    shares = [
        list(train_loader(Numbered(13), JITTER, accumulate=accumulate, rank=rank, world=world, **options))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        parts = [share[step * accumulate + chunk] for chunk in range(accumulate) for share in shares]
        for number, tensor in enumerate(batch):
            assert torch.equal(torch.cat([part[number] for part in parts]), tensor)


def test_views_come_again():
    data, others, met = Numbered(5), Numbered(3, 100), {}
    options = {"batch_size": 5, "unlabelled": others, "unlabelled_batch": 3, "mixing": BOTH}
    recall = lambda addresses: {"address": torch.tensor(addresses)}  # noqa: E731
    for seed in (0, 1):
        for images, targets, known in train_loader(data, JITTER, steps=4, seed=seed, views=2, recall=recall, **options):
            for image, target, address in zip(images, targets, known["address"].tolist(), strict=True):
                met.setdefault(tuple(address), []).append((image, target))
    assert len(met) == 2 * (5 + 3)
    for first, *rest in met.values():
        for other in rest:
            equal([first], [other])
    groups = [sorted(met)[:6], sorted(met)[6:]]
    for group, batch in zip(groups, view_loader([data, others], JITTER, groups, mixing=BOTH), strict=True):
        for address, *view in zip(group, *batch, strict=True):
            equal([met[address][0]], [view])


def test_what_is_not_mixed_is_as_it_was():
    plain = TrainTransform(crop=(16, 20), photometric=True)
    options = {"batch_size": 4, "steps": 3, "seed": 5}
    expected = list(train_loader(Numbered(9), plain, **options))
    equal(expected, train_loader(Numbered(9), plain, mixing=Mixing(), **options))
    data = Numbered(9)
    equal(expected, train_loader(data, plain, **options))
    assert len(data.read) == 12


def test_colours_vary_now_and_then():
    image, mask = torch.arange(3 * 16 * 16).view(3, 16, 16).remainder(251).to(torch.uint8), torch.zeros(16, 16)
    for share in (0.0, 0.3, 1.0):
        transform = TrainTransform(crop=None, scale=(1, 1), flip=False, photometric="fast", colour=share)
        changed = 0
        for seed in range(200):
            torch.manual_seed(seed)
            changed += not torch.equal(transform.draw(Held(image, mask)).image, image)
        assert changed / 200 == pytest.approx(share, abs=0.1)


# The configuration


def data_config(**keys):
    return load_config({"data": {"name": "synthetic", **keys}, "student": STUDENT}).data


def test_the_configuration():
    assert build_mixing(data_config()) is None
    assert build_mixing(data_config(augment={"colour": 0.5})) is None
    mixing = build_mixing(data_config(augment={"cutmix": 0.5, "classmix": 0.25}))
    assert (mixing.cutmix, mixing.classmix) == (0.5, 0.25)
    transform = build_transform(data_config(augment={"colour": 0.5}))
    assert (transform.photometric, transform.colour) == ("fast", 0.5)
    transform = build_transform(data_config(augment={"cutmix": 0.5}, photometric="mmseg"))
    assert (transform.photometric, transform.colour) == ("mmseg", 1.0)
    changed = load_config({"data": {"name": "synthetic"}, "student": STUDENT}, ["data.augment.cutmix=0.5"])
    assert changed.data.augment.cutmix == 0.5


def test_a_cache_knows_what_is_put_in(tmp_path):
    folder = tmp_path / "teacher"
    distill(config(train={"steps": 1, "eval_every": 0}), out=folder)

    def run(name, **augment):
        section = {"checkpoint": str(folder), "cache": str(tmp_path / "cache"), "cache_views": 2}
        distill(config(teacher=section, method="kd", data={"augment": augment}), out=tmp_path / name)

    run("first", cutmix=0.5, classmix=0.5)
    run("second", cutmix=0.5, classmix=0.5)
    assert_same_run(tmp_path / "first", tmp_path / "second")
    facts = json.loads((tmp_path / "cache/cache.json").read_text(encoding="utf-8"))
    data = build_dataset("synthetic", "train", size=(32, 32), images=8)
    assert facts["images"] == _images_digest(data, labels=True) != _images_digest(data, labels=False)
    with pytest.raises(ValueError, match=r"was filled with data.augment.cutmix=0.5, not 0.0"):
        run("third", classmix=0.5)


def test_labels_are_a_part_of_the_digest():
    one, other = Numbered(3), Numbered(3, bare=[1])
    assert _images_digest(one, labels=False) == _images_digest(other, labels=False)
    assert _images_digest(one, labels=True) != _images_digest(other, labels=True)


def test_errors():
    for keys, line in [
        ({"augment": {"cutmix": 1.5}}, "data.augment.cutmix: "),
        ({"augment": {"classmix": -0.1}}, "data.augment.classmix: "),
        ({"augment": {"cutmixx": 0.5}}, "unknown key data.augment.cutmixx; did you mean cutmix"),
        ({"augment": {"colour": 0.5}, "photometric": True}, "data: augment.colour: photometric=fast varies the"),
        ({"augment": {"colour": 0.5}, "augmentation": "mmseg"}, "photometric=mmseg varies the colours of every image"),
    ]:
        with pytest.raises(ValueError, match=line) as caught:
            data_config(**keys)
        assert "\n" not in str(caught.value)
    options = {"batch_size": 1, "steps": 9, "mixing": Mixing(cutmix=1)}
    with pytest.raises(ValueError, match=r"images of 8×9 and 32×24 cannot be mixed; set data.crop \(or data.size\)"):
        list(train_loader(Numbered(2, sizes=[SIZE, (9, 8)]), WHOLE, **options))
    with pytest.raises(ValueError, match="mixing needs a TrainTransform"):
        train_loader(Numbered(3), lambda image, mask: (image, mask), **options)
    with pytest.raises(
        ValueError, match=r"data.augment.classmix puts in classes by their labels, and no training image"
    ):
        train_loader(Numbered(3, bare=range(3)), WHOLE, batch_size=1, steps=1, mixing=Mixing(classmix=1))
