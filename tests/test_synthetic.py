import pytest
import torch

from segdistill.data import build_dataset
from segdistill.data.sets.synthetic import Synthetic


def test_shapes_and_classes():
    dataset = Synthetic("val", size=(48, 80), images=3)
    image, mask = dataset[0]
    assert image.shape == (3, 48, 80)
    assert mask.shape == (48, 80)
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
    assert len(dataset) == len(dataset.names) == 3
    assert len(dataset.classes) == len(dataset.palette) == len(set(dataset.palette)) == 11


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(32, 32), (32, 200), (200, 32), (65, 67), (256, 300)])
def test_any_size(size):
    dataset = Synthetic("test", size=size, images=6)
    for image, mask in (dataset[index] for index in range(6)):
        assert image.shape[1:] == mask.shape == size
        assert {dataset.classes[i] for i in mask.unique().tolist()} >= {"sky", "road"}


def test_default_number_of_images():
    assert [len(Synthetic(split)) for split in ("train", "val", "test")] == [400, 100, 100]


def test_an_image_depends_on_seed_split_and_index_alone():
    first, again = Synthetic("train", images=5), Synthetic("train", images=400)
    for index in (4, 0, 2):
        for a, b in zip(first[index], again[index], strict=True):
            assert torch.equal(a, b)
    others = [Synthetic("train")[1], Synthetic("val")[0], Synthetic("test")[0], Synthetic("train", seed=1)[0]]
    assert all(not torch.equal(first[0][0], image) for image, _ in others)


def test_every_class_is_seen_and_the_shares_are_uneven():
    dataset = Synthetic("train", images=60)
    counts = sum(torch.bincount(dataset[i][1].flatten().long(), minlength=11) for i in range(60))
    share = dict(zip(dataset.classes, (counts / counts.sum()).tolist(), strict=True))
    assert min(share.values()) > 0.003
    assert share["road"] > 10 * max(share["pole"], share["person"])


def test_colour_alone_does_not_tell_the_classes():
    # The best guess from a pixel's colour (of 16 levels each), learned on the same images that it is judged on.
    dataset = Synthetic("train", images=60)
    images, masks = zip(*(dataset[i] for i in range(60)), strict=True)
    colours = torch.stack([image.long() >> 4 for image in images], 1).flatten(1)
    colour = colours[0] * 256 + colours[1] * 16 + colours[2]
    label = torch.stack(masks).flatten().long()
    table = torch.zeros(4096, 11).index_put_((colour, label), torch.ones(len(label)), accumulate=True)
    guess = table.argmax(1)[colour]
    hits = torch.bincount(label[guess == label], minlength=11)
    union = torch.bincount(label, minlength=11) + torch.bincount(guess, minlength=11) - hits
    assert (hits / union).mean() < 0.25


def test_difficulty_adds_noise():
    calm, wild = (Synthetic("train", difficulty=d)[0][0].float() for d in (0.0, 1.0))
    assert (wild[:, 1:] - wild[:, :-1]).abs().mean() > (calm[:, 1:] - calm[:, :-1]).abs().mean() + 2


def test_label_noise_changes_masks_of_train_only():
    clean, noisy = Synthetic("train"), Synthetic("train", label_noise=1.0)
    changed = []
    for index in range(8):
        assert torch.equal(clean[index][0], noisy[index][0])
        changed.append((clean[index][1] != noisy[index][1]).float().mean().item())
    assert 0.01 < sum(changed) / 8 < 0.2
    assert torch.equal(Synthetic("val", label_noise=1.0)[0][1], Synthetic("val")[0][1])


def test_objects_are_missing_from_noisy_labels():
    clean, noisy = Synthetic("train"), Synthetic("train", label_noise=1.0)
    things = torch.tensor([clean.classes.index(name) for name in ("pole", "car", "person")])
    count = [sum(int(torch.isin(d[i][1], things).sum()) for i in range(20)) for d in (clean, noisy)]
    assert count[1] < 0.9 * count[0]


def test_drawn_images_are_kept(monkeypatch):
    dataset = Synthetic("train", size=(32, 32))
    image, mask = dataset[3]
    monkeypatch.setattr(dataset, "_draw", None)
    assert torch.equal(dataset[3][0], image)
    assert torch.equal(dataset[3][1], mask)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("segdistill.data.sets.synthetic.MEMORY", 2 * 3 * 32 * 32 + 1)
    dataset = Synthetic("train", size=(32, 32))
    for index in range(5):
        dataset[index]
    assert len(dataset._drawn) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size": (16, 128)}, r"size must be at least \[32, 32\], got \[16, 128\]"),
        ({"images": 0}, "images must be at least 1"),
        ({"seed": -1}, "must not be negative"),
        ({"difficulty": -0.5}, "must not be negative"),
    ],
)
def test_errors(options, line):
    with pytest.raises(ValueError, match=line):
        build_dataset("synthetic", "train", **options)
    with pytest.raises(ValueError, match="expected train, val or test"):
        Synthetic("all")
    with pytest.raises(IndexError):
        Synthetic("val", images=2)[2]
