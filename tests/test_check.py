import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import write_image as write
from segdistill.data import build_dataset, check_data, check_dataset, check_splits, quick_check, records
from segdistill.data.dataset import SegmentationDataset
from segdistill.data.sets.camvid import CamVid
from segdistill.data.sheet import choose_samples, draw_sheet


def check(root, **options):
    return check_data("folder", "train", root=str(root), val_fraction=0.0, **{"classes": ["a", "b", "c"], **options})


def test_a_sound_data_set(tmp_path):
    write(tmp_path / "images" / "x.png", np.zeros((2, 4, 3)))
    write(tmp_path / "images" / "y.png", np.zeros((2, 2, 3)))
    write(tmp_path / "masks" / "x.png", [[0, 0, 0, 1], [0, 255, 255, 255]])
    write(tmp_path / "masks" / "y.png", [[1, 1], [1, 255]])
    report = check(tmp_path)
    assert report.images == 2
    assert report.sizes == {(2, 4): 1, (2, 2): 1}
    assert report.share == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert report.ignored == pytest.approx(4 / 12)
    assert report.unseen == ["c"]
    assert report.problems == []
    assert report.lines() == [
        "2 images: 1 of 4×2, 1 of 2×2",
        "mean 0.0000 0.0000 0.0000, deviation 0.0000 0.0000 0.0000 (RGB, 0 to 1)",
        " 50.000% in      1 images  a",
        " 50.000% in      2 images  b",
        "  0.000% in      0 images  c",
        " 33.333%  ignored (of all pixels)",
        "never seen: c",
        "no problems",
    ]


def test_all_problems_are_listed(tmp_path):
    for name in ("fine", "small", "torn", "values", "nomask", "nomask2", "void", "both"):
        write(tmp_path / "images" / f"{name}.png", np.zeros((2, 2, 3)))
        if not name.startswith("nomask"):
            write(tmp_path / "masks" / f"{name}.png", np.zeros((2, 2)))
    write(tmp_path / "masks" / "fine.png", [[0, 1], [2, 255]])
    write(tmp_path / "masks" / "small.png", np.full((1, 2), 9))  # two mistakes in one
    write(tmp_path / "masks" / "values.png", [[0, 7], [8, 1]])
    write(tmp_path / "masks" / "void.png", np.full((2, 2), 255))
    (tmp_path / "images" / "torn.png").write_bytes(b"")
    (tmp_path / "images" / "both.png").write_bytes(b"")
    (tmp_path / "masks" / "both.png").write_bytes(b"")
    report = check(tmp_path)
    text = "\n".join(report.problems)
    for line in (
        "nomask.png has no mask",
        "nomask2.png has no mask",
        "small.png is 2×2 but its mask",
        "masks/small.png: label values 9",
        "images/torn.png: not a readable image",
        "masks/values.png: label values 7, 8",
        "images/both.png: not a readable image",
        "masks/both.png: not a readable image",
        "1 of 6 masks are 255 throughout (void)",
    ):
        assert line in text
    assert len(report.problems) == 9
    assert report.images == 6
    assert report.sizes == {(2, 2): 2}
    assert report.lines()[-1] == "9 problems"
    assert sum("problem: " in line for line in report.lines()) == 9


def test_a_binary_mask_is_suspected(tmp_path):
    write(tmp_path / "images" / "x.png", np.zeros((2, 2, 3)))
    write(tmp_path / "masks" / "x.png", [[0, 255], [255, 0]])
    assert check(tmp_path).problems == [
        "masks hold nothing but 0 and 255, which is ignored; if 255 is a class, set data.values: {0: 0, 255: 1}"
    ]
    assert check(tmp_path, values={255: 1}).problems == []


def test_images_without_labels_are_fine(tmp_path):
    write(tmp_path / "images" / "x.png", np.zeros((2, 2, 3)))
    for classes in (None, ["unlabelled"]):
        report = check(tmp_path, masks=None, classes=classes)
        assert report.problems == []
        assert report.ignored == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_figures_are_those_of_all_pixels(tmp_path, workers):
    rng = np.random.default_rng(0)
    images, masks = [], []
    for index, (height, width) in enumerate([(5, 7), (9, 4), (6, 6), (8, 3), (2, 2)]):
        images.append(rng.integers(0, 256, (height, width, 3)))
        masks.append(rng.choice([0, 1, 255], (height, width)))
        write(tmp_path / "images" / f"{index}.png", images[-1])
        write(tmp_path / "masks" / f"{index}.png", masks[-1])
    report = check(tmp_path, workers=workers)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    ids = np.concatenate([mask.ravel() for mask in masks])
    np.testing.assert_allclose(report.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(report.std, pixels.std(0), rtol=1e-12)
    assert report.share["b"] == (ids == 1).sum() / (ids != 255).sum()
    assert report.ignored == (ids == 255).mean()
    assert report.images_with == {"a": sum(0 in m for m in masks), "b": sum(1 in m for m in masks), "c": 0}
    assert report.seen.tolist() == [[0 in m, 1 in m, False] for m in masks]
    assert json.loads(json.dumps(report.figures()))["sizes"][0] == {"height": 5, "width": 7, "images": 1}


NETWORKS = {"student": {"name": "pspnet_resnet18_quarter"}, "method": "none"}


def splits(root):
    """Three splits: train has two copies of an image, val one of train's as another kind of file, test one of val's."""
    rng = np.random.default_rng(1)
    for split, names in {"train": "abc", "val": "de", "test": "fg"}.items():
        for name in names:
            write(root / "images" / split / f"{name}.png", rng.integers(0, 256, (4, 6, 3)))
            write(root / "masks" / split / f"{name}.png", rng.integers(0, 2, (4, 6)))
    shutil.copy(root / "images/train/a.png", root / "images/train/c.png")
    (root / "images/val/d.png").unlink()
    Image.open(root / "images/train/b.png").save(root / "images/val/d.bmp")
    shutil.copy(root / "masks/train/b.png", root / "masks/val/d.png")
    shutil.copy(root / "images/val/e.png", root / "images/test/g.png")
    return {"root": str(root), "classes": ["a", "b"]}


def test_copies_are_found_within_and_between_splits(tmp_path):
    found = check_splits("folder", splits(tmp_path))
    assert found["train"].problems == []
    line = "1 image occurs more than once, pixel by pixel, 1 of them with another mask (train/a = train/c)"
    assert found["train"].remarks == [line]
    assert f"note: {line}" in found["train"].lines()
    assert found["val"].problems == ["1 image occurs in train and in val, pixel by pixel (train/b = val/d)"]
    assert found["val"].remarks == []
    assert found["test"].problems == []
    assert found["test"].remarks == [
        "1 image occurs in val and in test, pixel by pixel, 1 of them with another mask (val/e = test/g)"
    ]


def test_equal_pixels_of_another_shape_are_no_copy(tmp_path):
    write(tmp_path / "images" / "x.png", np.zeros((2, 6, 3)))
    write(tmp_path / "images" / "y.png", np.zeros((3, 4, 3)))
    write(tmp_path / "masks" / "x.png", np.zeros((2, 6)))
    write(tmp_path / "masks" / "y.png", np.zeros((3, 4)))
    assert check(tmp_path).remarks == []


def test_a_split_that_is_not_there_is_said_in_its_place(tmp_path):
    found = check_splits("folder", {"root": str(tmp_path / "gone"), "classes": ["a", "b"]})
    assert "no such folder" in found["train"]
    options = splits(tmp_path)
    shutil.rmtree(tmp_path / "images" / "test")
    assert check_splits("folder", options)["test"].startswith("no split 'test'; there is train, val")


def test_a_second_check_reads_only_what_changed(tmp_path, monkeypatch):
    options, path = splits(tmp_path), tmp_path / "records"
    first = check_splits("folder", options, records=path)
    made = []
    record = records.make_record
    monkeypatch.setattr(records, "make_record", lambda data, i: made.append(data.names[i]) or record(data, i))

    def again(**changes):
        made.clear()
        return check_splits("folder", options | changes, records=path)

    assert {s: r.figures() for s, r in again().items()} == {s: r.figures() for s, r in first.items()}
    assert made == []
    write(tmp_path / "masks/val/e.png", np.ones((4, 6)))  # of another size or time
    os.utime(tmp_path / "images/train/b.png", (1, 1))
    again()
    assert made == ["train/b", "val/e"]
    again(classes=["a", "b", "c"])
    assert len(made) == 7
    (tmp_path / "masks/train/a.png").write_bytes(b"torn")
    for _ in range(2):  # what has problems is looked at each time
        again()
        assert made == ["train/a"]


def test_records_of_a_killed_process_serve(tmp_path, monkeypatch):
    options, path = splits(tmp_path), tmp_path / "records"
    expected = {s: r.figures() for s, r in check_splits("folder", options, records=path).items()}
    whole = path.read_bytes()
    for harm in (whole[:-50], whole[: len(whole) // 2], b"", b"\xff\x00 no record\n" + whole):
        path.write_bytes(harm)
        found = check_splits("folder", options, records=path)
        assert {s: r.figures() for s, r in found.items()} == expected
        made = []
        with monkeypatch.context() as patch:
            patch.setattr(records, "make_record", lambda data, i, made=made: made.append(i))
            check_splits("folder", options, records=path)
        assert made == []


def test_many_problems_are_cut_in_print_only(tmp_path):
    for index in range(120):
        write(tmp_path / "images" / f"{index}.png", np.full((2, 2, 3), index))
        write(tmp_path / "masks" / f"{index}.png", np.full((2, 2), 9))
    report = check(tmp_path)
    assert len(report.problems) == 120
    assert report.lines()[-2:] == ["… and 20 more; --json FILE keeps all of them", "120 problems"]


def test_samples_cover_rare_classes_first():
    seen = np.zeros((100, 4), bool)
    seen[:, 0] = True
    seen[[3, 70], 1] = True
    seen[70, 2] = True
    assert choose_samples(seen, 1) == [70]
    assert choose_samples(seen, 4) == [0, 14, 28, 70]
    assert choose_samples(seen[:2], 6) == [0, 1]
    assert choose_samples(np.zeros((0, 4), bool), 6) == []


def test_the_sheet_shows_images_masks_and_classes():
    class Two(Masks):
        palette = ((200, 0, 0), (0, 0, 100))

    data = Two([[[0, 255]], [[1, 1]]])
    sheet = np.asarray(draw_sheet({"train": (data, [0, 1])}))
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert {(100, 0, 0), (0, 0, 50), (0, 0, 0), (200, 0, 0), (0, 0, 100)} <= colours
    assert (255, 255, 255) in colours


def test_the_command_writes_figures_sheet_and_records(tmp_path, segdistill):
    options = splits(tmp_path / "data")
    write(tmp_path / "data/masks/train/b.png", np.full((4, 6), 7))
    (tmp_path / "data/images/val/e.png").write_bytes(b"torn")
    (tmp_path / "data/masks/test/f.png").unlink()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {"name": "folder", **options}, **NETWORKS}))
    out = {name: tmp_path / f"{name}.out" for name in ("json", "sheet", "records")}
    arguments = [part for name, path in out.items() for part in (f"--{name}", path)]
    status, printed, err = segdistill("data", "check", tmp_path / "c.yaml", *arguments, "--workers", 2)
    assert status == 2, err
    assert "label values 7" in printed.replace("\n", " ")
    written = json.loads(out["json"].read_text())
    assert written["data"] == "folder"
    assert [split["images"] for split in written["splits"].values()] == [3, 2, 1]
    assert len(written["splits"]["train"]["problems"]) == 1
    assert Image.open(out["sheet"]).format == "PNG"
    assert out["records"].is_file()


def test_the_command_without_anything_to_draw(tmp_path, segdistill):
    options = {"root": str(tmp_path / "gone"), "classes": ["a", "b"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {"name": "folder", **options}, **NETWORKS}))
    status, printed, _ = segdistill("data", "check", tmp_path / "c.yaml", "--sheet", tmp_path / "x.png")
    assert status == 2
    assert " ".join(printed.split()).count("no such folder") == 1  # for all three splits
    assert printed.startswith("train, val, test: ")
    assert printed.endswith("x.png: not drawn, as no image can be read\n")
    assert not (tmp_path / "x.png").exists()
    status, _, err = segdistill("data", "check", tmp_path / "c.yaml", "--records", tmp_path / "gone" / "r")
    assert status == 2
    assert err.startswith("segdistill: cannot write")


def test_progress_is_told():
    seen = []
    check_dataset(build_dataset("synthetic", "val", images=3, size=(32, 32)), progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_nothing_to_check_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        check(tmp_path / "gone")


def test_real_data_have_no_problems(camvid):
    report = check_dataset(CamVid("val", root=str(camvid)))
    assert report.problems == []
    assert report.sizes == {(360, 480): 101}
    assert report.unseen == []
    assert sum(report.share.values()) == pytest.approx(1)
    assert 0.2 < report.share["road"] < 0.4


# The short look before a training.


class Masks(SegmentationDataset):
    """Given masks."""

    def __init__(self, masks, classes=("a", "b")):
        self.masks = [torch.tensor(mask, dtype=torch.uint8) for mask in masks]
        self.classes = list(classes)
        self.names = [str(index) for index in range(len(masks))]
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return torch.zeros(3, 1, 2, dtype=torch.uint8), self.masks[index]


def test_a_short_look_reads_a_few_items_spread_over_all():
    dataset = Masks([[[0, 1]]] * 100)
    assert quick_check(dataset) == []
    assert dataset.read == [0, 12, 25, 37, 50, 62, 75, 87]
    dataset = Masks([[[0, 1]]] * 3)
    assert quick_check(dataset) == []
    assert dataset.read == [0, 1, 2]
    assert quick_check(Masks([])) == []


def test_a_short_look_names_what_may_be_meant_so():
    assert quick_check(Masks([[[0, 255]], [[0, 0]]])) == [
        "all of 2 masks that were looked at hold nothing but 0 and 255, which is ignored; if 255 is a class, set "
        "data.values: {0: 0, 255: 1}"
    ]
    assert quick_check(Masks([[[0, 1]], [[255, 255]]])) == [
        "1 of 2 masks that were looked at are 255 throughout, which is ignored"
    ]
    assert quick_check(Masks([[[0, 0]], [[0, 0]]])) == []


def test_a_short_look_refuses_what_makes_no_sense():
    for mask in ([[0, 255]], [[0, 0]]):
        with pytest.raises(ValueError, match="the only class is 'a': every pixel is right from the start; add a back"):
            quick_check(Masks([mask], classes=["a"]))
    with pytest.raises(
        ValueError, match="all of 2 masks that were looked at are 255 throughout, which is ignored: noth"
    ):
        quick_check(Masks([[[255, 255]]] * 2))


def test_one_class_is_a_problem():
    line = "the only class is 'a': every pixel is right from the start; add a background class"
    assert check_dataset(Masks([[[0, 0]]], classes=["a"])).problems == [line]


@pytest.mark.parametrize("command", ["train", "distill"])
def test_what_is_conspicuous_is_said_before_training(tmp_path, segdistill, command):
    for index in range(4):
        write(tmp_path / "images" / f"{index}.png", np.zeros((32, 32, 3)))
        write(tmp_path / "masks" / f"{index}.png", np.eye(32) * 255)
    data = {"name": "folder", "root": str(tmp_path), "classes": ["a", "b"], "val_fraction": 0.5, "workers": 0}
    config = {"data": {**data, "batch_size": 2}, "student": {"name": "pspnet_resnet18_quarter"}, "method": "none"}
    config |= {"train": {"steps": 1, "precision": "fp32", "device": "cpu"}}
    if command == "distill":
        config["teacher"] = {"name": "pspnet_resnet18_quarter"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    status, _, err = segdistill(command, tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert status == 0, err
    for split in ("train", "val"):
        assert f"data, {split}: all of 2 masks that were looked at hold nothing but 0 and 255" in err
    values = "data.values={0: 0, 255: 1}"
    status, _, err = segdistill(command, tmp_path / "c.yaml", values, "--out", tmp_path / "mapped")
    assert status == 0
    assert "data, " not in err
    for wrong, line in (("data.ignore=[0]", "are 255 throughout"), ("data.classes=[car]", "add a background class")):
        status, _, err = segdistill(command, tmp_path / "c.yaml", wrong, "--out", tmp_path / "other")
        assert status == 2
        assert line in err
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "status", "line"),
    [
        ([], 0, "test: no split 'test'"),
        (["data.only={val: val/d}"], 0, "test: no split 'test'"),
        (["data.only={test: 'f*'}"], 2, "test: no split 'test'"),
        (["data.only={test: 'x*'}"], 2, "test: data.only.test: 'x*' fits none of the 2 names"),
    ],
)
def test_a_test_split_that_patterns_are_given_for_has_to_be_usable(tmp_path, segdistill, changes, status, line):
    options = splits(tmp_path)
    (tmp_path / "images/val/d.bmp").unlink()  # the copy of an image of train
    (tmp_path / "masks/val/d.png").unlink()
    write(tmp_path / "images/val/d.png", np.zeros((4, 6, 3)))
    write(tmp_path / "masks/val/d.png", np.zeros((4, 6)))
    if "no split" in line:
        shutil.rmtree(tmp_path / "images" / "test")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"name": "folder", **options}, **NETWORKS}))
    found, out, _ = segdistill("data", "check", path, *changes, "--workers", 0)
    assert line in " ".join(out.split())
    assert found == status, out
