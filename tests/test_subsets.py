"""Some labels, all images: which they are, how they come, and what is learned from them."""

import hashlib
import os
import re

import pytest
import torch
import yaml

from conftest import write_image
from faults import assert_same_run, at_step, config, interrupt, read_metrics
from segdistill import distill
from segdistill.data import build_dataset
from segdistill.data.check import quick_check
from segdistill.data.dataset import SegmentationDataset, hash_names
from segdistill.data.sampler import train_loader
from segdistill.data.subsets import PartlyLabelled, Subset, choose_labelled, keep_labelled, keep_only, match_names
from segdistill.data.transforms import TrainTransform
from segdistill.engine.build import build_split, build_training
from segdistill.engine.config import load_config

STILL = TrainTransform(crop=(8, 8), scale=(1, 1), flip=False)


class Numbered(SegmentationDataset):
    """Images whose every pixel is their index, with masks of class 1; those of `bare` have none."""

    def __init__(self, count, bare=()):
        self.classes, self.palette = ["a", "b"], [(0, 0, 0), (9, 9, 9)]
        self.names = [f"{'even' if index % 2 == 0 else 'odd'}_{index}" for index in range(count)]
        self.bare = bare

    def __getitem__(self, index):
        return torch.full((3, 8, 8), index, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.int64)

    def has_mask(self, index):
        return index not in self.bare


@pytest.fixture
def folder(tmp_path):
    """Six training images in a folder, of which three have masks, and two of validation."""
    for split, count, masks in (("train", 6, 3), ("val", 2, 2)):
        for number in range(count):
            write_image(tmp_path / f"images/{split}/{number}.png", torch.randint(0, 256, (32, 32, 3)).byte().numpy())
            if number < masks:
                write_image(tmp_path / f"masks/{split}/{number}.png", torch.randint(0, 2, (32, 32)).byte().numpy())
    return tmp_path


def shown(loader):
    """The images of each batch, and which of them have labels."""
    for images, target in loader:
        yield (images[:, 0, 0, 0] * 255).round().int().tolist(), (target != 255).flatten(1).any(1).tolist()


def test_a_number_is_of_a_ranking_by_hash_and_smaller_choices_are_within_larger_ones():
    dataset = Numbered(20)
    ranked = sorted(range(20), key=lambda i: hashlib.sha256(f"3/{dataset.names[i]}".encode()).digest())
    assert choose_labelled(dataset, 5, 3) == sorted(ranked[:5])
    assert set(choose_labelled(dataset, 5, 3)) < set(choose_labelled(dataset, 9, 3))
    assert choose_labelled(dataset, 5, 3) != choose_labelled(dataset, 5, 4)


def test_names_that_are_no_text_are_ranked_and_told_apart_too():
    odd = [os.fsdecode(b"caf\xe9_%d" % index) for index in range(4)]
    images = Numbered(4)
    images.names = odd
    ranked = sorted(range(4), key=lambda i: hashlib.sha256(b"0/" + os.fsencode(odd[i])).digest())
    assert choose_labelled(images, 2) == sorted(ranked[:2])
    assert hash_names(odd).hexdigest() == hashlib.sha256(b"\n".join(map(os.fsencode, odd))).hexdigest()


@pytest.mark.parametrize(("share", "count"), [(0.25, 5), (1.0, 20), (0.01, 1)])
def test_a_share(share, count):
    assert len(choose_labelled(Numbered(20), share)) == count


def test_names_that_fit_a_pattern_or_one_of_several():
    assert choose_labelled(Numbered(6), "odd_*") == [1, 3, 5]
    assert choose_labelled(Numbered(6), ["odd_[13]", "even_0"]) == [0, 1, 3]


def test_a_list(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("odd_5\neven_2.png\n\n")
    assert choose_labelled(Numbered(6), str(path)) == [2, 5]


def test_those_that_have_masks():
    assert choose_labelled(Numbered(6, bare={1, 4}), "masks") == [0, 2, 3, 5]
    assert set(choose_labelled(Numbered(6, bare={1, 4}), 4)) == {0, 2, 3, 5}


@pytest.mark.parametrize(
    ("labelled", "line"),
    [
        (
            7,
            "data.labelled=7: expected 1 to 4 images, or a share above 0 and up to 1.0 of the 6, of which 4 have masks",
        ),
        ("none_*", "data.labelled: 'none_*' fits none of the 6 names (even_0, odd_1, …)"),
        (["odd_*", "x"], "data.labelled: 'x' fits none of the 6 names (even_0, odd_1, …)"),
        ("odd_*", "data.labelled: odd_1 has no mask; data.labelled=masks takes those that have one"),
        ("*", "data.labelled: odd_1 and 1 more has no mask; data.labelled=masks takes those that have one"),
        ("there_is_none.txt", "there_is_none.txt: not a readable list"),
        ([], "data.labelled: expected a pattern of names, or several, got []; leave it out if all are meant"),
    ],
)
def test_what_is_not_there(labelled, line):
    with pytest.raises(ValueError, match=re.escape(line)) as error:
        choose_labelled(Numbered(6, bare={1, 4}), labelled)
    assert "\n" not in str(error.value)


def test_no_masks_at_all_and_empty_lists(tmp_path):
    with pytest.raises(ValueError, match="none of the training images has a mask"):
        choose_labelled(Numbered(2, bare={0, 1}), "masks")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty; write an image a line"):
        choose_labelled(Numbered(2), str(tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"labelled": 0}, "no labels at all; give the number of images that have some, or leave it out"),
        ({"labelled": 1.5}, "expected a share above 0 and up to 1.0, or a whole number of images, got 1.5"),
        ({"labelled": True}, "expected a share above 0 and up to 1.0, or a whole number of images, got True"),
        ({"labelled": -2}, "expected a share above 0 and up to 1.0, or a whole number of images, got -2"),
        ({"labelled": []}, "no labels at all; give the number of images that have some, or leave it out"),
        ({"labelled_per_batch": 2}, "data: labelled_per_batch: with data.labelled alone"),
        ({"labelled_seed": 2}, "data: labelled_seed: of a choice by number or share, and data.labelled is null"),
        ({"labelled_seed": 2, "labelled": "a*"}, "data: labelled_seed: of a choice by number or share, and data.l"),
        ({"labelled": 3, "labelled_per_batch": 9}, "data.labelled_per_batch is 9, of a batch of 8 (data.batch_size)"),
        (
            {"labelled": 3, "labelled_per_batch": 8},
            "8, of a batch of 8 (data.batch_size): no image without labels would",
        ),
        ({"labelled": 3, "labelled_per_batch": True}, "data.labelled_per_batch: expected a number, got true"),
        ({"only": {"trian": "a*"}}, "data.only.trian"),
    ],
)
def test_a_configuration_that_makes_no_sense(given, line):
    with pytest.raises(ValueError, match=re.escape(line)) as error:
        load_config({"data": {"name": "synthetic", "batch_size": 8, **given}, "student": {"name": "pspnet_resnet18"}})
    assert "\n" not in str(error.value)


def test_whole_numbers_stay_numbers_and_shares_shares():
    data = {"name": "synthetic", "labelled": 1}
    student = {"name": "pspnet_resnet18"}
    assert type(load_config({"data": data, "student": student}).data.labelled) is int
    assert type(load_config({"data": {**data, "labelled": 1.0}, "student": student}).data.labelled) is float


def test_patterns_fit_capitals_and_folders():
    assert match_names(["a/x", "b/x", "a/Y"], "a/*", "k") == [0, 2]
    assert match_names(["a/x", "b/x", "a/Y"], "*/x", "k") == [0, 1]


def test_the_folder_of_a_split_may_be_left_out_of_a_pattern():
    names = ["train/a_1", "train/b_1", "other/a_1"]
    assert match_names(names, "a_*", "k") == [0]
    assert match_names(names, "train/a_*", "k") == [0]
    assert match_names(names, "*a_*", "k") == [0, 2]


def test_checking_the_data_knows_what_is_allowed(folder, segdistill):
    path = folder / "my.yaml"
    data = {"name": "folder", "root": str(folder), "classes": ["a", "b"], "labelled": "masks"}
    path.write_text(yaml.safe_dump({"data": data, "student": {"name": "pspnet_resnet18"}}))
    status, out, _ = segdistill("data", "check", path)
    assert status == 0, out
    assert "3 images have no mask; what is learned there comes from the teacher (data.labelled)" in " ".join(
        out.split()
    )
    status, out, _ = segdistill("data", "check", path, "data.labelled=null")
    assert status == 2
    assert "has no mask; expected" in " ".join(out.split())
    status, out, _ = segdistill("data", "check", path, "data.only={val: '1'}")
    assert "1 image: 1 of 32×32" in out


def test_only_some_of_a_split():
    dataset = Numbered(6)
    assert keep_only(dataset, "train", None) is keep_only(dataset, "train", {"test": "odd*"}) is dataset
    kept = keep_only(dataset, "train", {"train": ["odd_*", "even_0"]})
    assert kept.names == ["even_0", "odd_1", "odd_3", "odd_5"]
    assert [int(kept[i][0][0, 0, 0]) for i in range(len(kept))] == [0, 1, 3, 5]
    assert int(kept.source(2).image((slice(0, 1), slice(0, 1)))[0]) == 3
    with pytest.raises(ValueError, match=r"data.only.val: 'x\*' fits none of the 6 names"):
        keep_only(dataset, "val", {"val": "x*"})


def test_only_is_of_a_configuration_and_every_reader_of_a_split(camvid):
    data = load_config(
        {"data": {"name": "camvid", "root": str(camvid), "only": {"test": "Seq05VD*", "train": "0001TP*"}},
         "student": {"name": "pspnet_resnet18"}}
    ).data  # fmt: skip
    assert {name[:7] for name in build_split(data, "test").names} == {"Seq05VD"}
    assert [len(build_split(data, split)) for split in ("train", "val", "test")] == [62, 101, 171]


def test_masks_that_do_not_count_are_never_read():
    class Torn(Numbered):
        def __getitem__(self, index):
            if index in (1, 2):
                raise ValueError("its mask is torn")
            return super().__getitem__(index)

        def source(self, index):
            class Image:
                size = (8, 8)

                def image(self, box, reduce=1):
                    return torch.full((3, 8, 8), index, dtype=torch.uint8)[:, *box]

                def mask(self, box):
                    raise ValueError("its mask is torn")

            return Image() if index in (1, 2) else super().source(index)

    dataset = PartlyLabelled(Torn(4), [0, 3])
    image, mask = dataset[1]
    assert int(image[0, 0, 0]) == 1
    assert mask.dtype == torch.int64
    assert bool((mask == 255).all())
    assert bool((dataset[3][1] == 1).all())
    loader = train_loader(dataset, STILL, batch_size=4, steps=1)
    [(images, labels)] = shown(loader)
    assert {image for image, has in zip(images, labels, strict=True) if has} == {0, 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_per_batch_come_first_and_each_part_in_turns_of_its_own(workers):
    labelled = [1, 4, 7]
    dataset = PartlyLabelled(Numbered(10), labelled)
    loader = train_loader(dataset, STILL, batch_size=8, steps=21, labelled=labelled, labelled_batch=1, workers=workers)
    first, others = [], []
    for images, labels in shown(loader):
        assert labels == [True] + [False] * 7
        first += images[:1]
        others += images[1:]
    assert all(sorted(first[at : at + 3]) == labelled for at in range(0, 21, 3))
    assert all(sorted(others[at : at + 7]) == [0, 2, 3, 5, 6, 8, 9] for at in range(0, 147, 7))
    assert len({tuple(others[at : at + 7]) for at in range(0, 147, 7)}) > 10  # in another order each time


def test_processes_share_out_both_parts():
    labelled = list(range(5))
    dataset = PartlyLabelled(Numbered(16), labelled)
    how = {"batch_size": 8, "steps": 6, "labelled": labelled, "labelled_batch": 4, "seed": 3}
    whole = list(shown(train_loader(dataset, STILL, **how)))
    for world, accumulate in ((2, 1), (1, 2), (2, 2)):
        split = [
            list(shown(train_loader(dataset, STILL, **how, rank=rank, world=world, accumulate=accumulate)))
            for rank in range(world)
        ]
        for step, (images, labels) in enumerate(whole):
            parts = [split[rank][step * accumulate + part] for part in range(accumulate) for rank in range(world)]
            half = 4 // (world * accumulate)
            assert [i for part, _ in parts for i in part[:half]] + [
                i for part, _ in parts for i in part[half:]
            ] == images
            assert sum(sum(has) for _, has in parts) == sum(labels) == 4


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"labelled_batch": 3, "world": 2}, "labelled_per_batch 3 must be a multiple of 2"),
        ({"labelled_batch": 2, "accumulate": 4}, "labelled_per_batch 2 must be a multiple of 1 processes × 4"),
        ({"labelled_batch": 6, "accumulate": 3}, "batch_size - labelled_per_batch 2 must be a multiple"),
    ],
)
def test_a_batch_that_cannot_be_shared_out(how, line):
    with pytest.raises(ValueError, match=line):
        train_loader(PartlyLabelled(Numbered(9), [0]), STILL, batch_size=8, steps=1, labelled=[0], **how)


def test_with_all_labelled_the_order_is_that_of_one_part():
    dataset = Numbered(6)
    plain = list(shown(train_loader(dataset, STILL, batch_size=4, steps=5)))
    every = list(range(6))
    assert list(shown(train_loader(dataset, STILL, batch_size=4, steps=5, labelled=every, labelled_batch=2))) == plain
    part = PartlyLabelled(dataset, every)
    assert list(shown(train_loader(part, STILL, batch_size=4, steps=5))) == plain


def test_views_are_the_same_whichever_have_labels():
    transform = TrainTransform(crop=(6, 6), photometric=True)
    seen = {}
    for labelled in ([0, 3], [1, 2, 5]):
        dataset = PartlyLabelled(Numbered(6), labelled)
        loader = train_loader(
            dataset, transform, batch_size=2, steps=18, labelled=labelled, labelled_batch=1, views=1,
            recall=lambda addresses: {"index": torch.tensor([index for _, index, _ in addresses])},
        )  # fmt: skip
        for images, _, known in loader:
            for image, index in zip(images, known["index"].tolist(), strict=True):
                assert torch.equal(seen.setdefault(index, image), image)
    assert sorted(seen) == list(range(6))


def test_a_folder_in_which_some_images_have_masks(folder):
    options = {"name": "folder", "root": str(folder), "classes": ["a", "b"]}
    data = load_config({"data": {**options, "labelled": "masks"}, "student": {"name": "pspnet_resnet18"}}).data
    dataset, labelled = build_training(data, distils=True)
    assert labelled == [0, 1, 2]
    assert len(dataset) == 6
    assert [bool((dataset[i][1] != 255).any()) for i in range(6)] == [True] * 3 + [False] * 3
    assert quick_check(Subset(dataset, labelled)) == []
    alone, labels = build_training(data, distils=False)
    assert labels is None
    assert alone.names == ["train/0", "train/1", "train/2"]
    scored = keep_labelled(build_split(data, "train"))
    assert scored.names == ["train/0", "train/1", "train/2"]
    assert quick_check(scored, sample=6) == []
    assert keep_labelled(alone) is alone
    bare = Subset(build_split(data, "train"), [3, 4])
    assert keep_labelled(bare) is bare  # which is refused by who wants labels
    without = load_config({"data": options, "student": {"name": "pspnet_resnet18"}}).data
    with pytest.raises(ValueError, match=r"3.png has no mask; expected .* \(and 2 more"):
        build_training(without, distils=True)
    with pytest.raises(ValueError, match=r"3.png has no mask"):
        build_dataset(**options, split="train")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    distill(config(student={"name": "deeplabv3_resnet18_quarter"}, train={"steps": 1, "eval_every": 0}), out=folder)
    return str(folder)


def some_labels(teacher, method="kd", **data):
    section = {"teacher": {"checkpoint": teacher}} if method != "none" else {}
    return config(method=method, data={"labelled": 3, "labelled_per_batch": 1, "batch_size": 2, **data}, **section)


def test_a_run_says_how_many_have_labels_and_uses_them_alone(teacher, tmp_path, capfd):
    distill(some_labels(teacher), out=tmp_path / "run")
    assert "data, train: 3 of 8 images have labels" in capfd.readouterr().err
    assert all(step["ce"] > 0 for step in read_metrics(tmp_path / "run") if "ce" in step)


@pytest.mark.parametrize(
    ("method", "augment", "told"), [("none", {}, True), ("none", {"classmix": 0.5}, False), ("kd", {}, False)]
)
def test_images_from_which_nothing_is_learned_are_told(teacher, tmp_path, capfd, method, augment, told):
    more = {"name": "synthetic", "size": [32, 32], "images": 4, "batch_size": 2}
    data = {"labelled": None, "labelled_per_batch": None, "unlabelled": more, "augment": augment}
    distill(some_labels(teacher, method, **data), ["train.steps=1"], out=tmp_path / "run")
    line = "data.unlabelled: method none learns nothing from these images, but batch norm sees them; leave them out"
    assert (line in capfd.readouterr().err) == told


def test_alone_the_student_trains_on_what_has_labels(teacher, tmp_path):
    """Whole batches of them: images without labels teach nothing there, and would only stand in for others."""
    distill(some_labels(teacher, "none"), out=tmp_path / "some")
    names = build_split(load_config(some_labels(teacher)).data, "train").names
    chosen = [
        names[i]
        for i in choose_labelled(Subset(build_split(load_config(some_labels(teacher)).data, "train"), range(8)), 3)
    ]
    distill(
        some_labels(teacher, "none", labelled=None, labelled_per_batch=None, only={"train": chosen}),
        out=tmp_path / "only",
    )
    some, only = (
        [
            {k: v for k, v in line.items() if k in ("ce", "grad_norm", "val_miou")}
            for line in read_metrics(tmp_path / run)
        ]
        for run in ("some", "only")
    )
    assert some == only


def test_an_epoch_is_as_long_alone_as_distilled(teacher, tmp_path, capfd):
    for method in ("none", "kd"):
        made = some_labels(teacher, method, labelled_per_batch=None)
        assert distill(made, ["train.epochs=0.5"], out=tmp_path / method)["steps"] == 2  # 8 images, 2 at a time
        others = "; a student alone learns nothing from the others" if method == "none" else ""
        assert f"data, train: 3 of 8 images have labels{others}\n" in capfd.readouterr().err


def test_where_all_have_labels_no_others_are_told_of(teacher, tmp_path, capfd):
    distill(some_labels(teacher, "none", labelled="masks", labelled_per_batch=None), out=tmp_path / "run")
    assert "data, train: 8 of 8 images have labels\n" in capfd.readouterr().err


def test_a_run_that_was_interrupted_goes_on_to_the_bit(teacher, tmp_path, monkeypatch):
    distill(some_labels(teacher), out=tmp_path / "whole")
    with at_step(monkeypatch, 2, interrupt), pytest.raises(KeyboardInterrupt):
        distill(some_labels(teacher), out=tmp_path / "broken")
    distill(some_labels(teacher), out=tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_goes_on_with_the_very_images_it_began_with(teacher, tmp_path, monkeypatch):
    """A list has the same name, whatever it says."""
    chosen = tmp_path / "some.txt"
    chosen.touch()
    made, out = some_labels(teacher, labelled=str(chosen)), tmp_path / "run"
    names = build_split(load_config(made).data, "train").names
    chosen.write_text("\n".join(names[1:3]))
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(made, out=out)
    chosen.write_text("\n".join(names[2:4]))
    with pytest.raises(ValueError, match=r"run was started with other images with labels than there are now; put them"):
        distill(made, out=out, resume=True)
    chosen.write_text("\n".join(names[2:0:-1]))  # an order says nothing
    assert distill(made, out=out, resume=True)["steps"] == 4
    alone = some_labels(teacher, "none", labelled=str(chosen), labelled_per_batch=None)
    distill(alone, out=tmp_path / "alone")
    chosen.write_text("\n".join(names[2:4]))
    with pytest.raises(ValueError, match=r"alone was started with other training images than there are now"):
        distill(alone, out=tmp_path / "alone", resume="auto")


def test_a_cache_is_good_for_any_choice_of_labels(teacher, tmp_path, capfd):
    section = {"checkpoint": teacher, "cache": str(tmp_path / "cache")}
    for number, labelled in enumerate((3, "*1*", 0.5)):
        distill(
            config(method="kd", teacher=section, data={"labelled": labelled, "batch_size": 2}),
            out=tmp_path / f"run{number}",
        )
        told = capfd.readouterr().err
        assert ("0 of 8 views are there" in told) == (number == 0), told


@pytest.mark.parametrize("seen", [{"cat_max_ratio": 0.9}, {"augment": {"classmix": 0.5}}])
def test_where_labels_decide_what_is_seen_a_cache_is_of_one_choice(teacher, tmp_path, seen):
    section = {"checkpoint": teacher, "cache": str(tmp_path / "cache")}
    for number, (labelled, line) in enumerate(((3, None), (4, "was filled with data.labelled="))):
        given = config(method="kd", teacher=section, data={"labelled": labelled, "batch_size": 2, **seen})
        if line is None:
            distill(given, out=tmp_path / f"run{number}")
        else:
            with pytest.raises(ValueError, match=line):
                distill(given, out=tmp_path / f"run{number}")
