import numpy as np
import pytest
import torch
import yaml

from conftest import write_image as write
from segdistill.data import build_dataset, check_data, check_dataset, quick_check
from segdistill.data.dataset import SegmentationDataset
from segdistill.data.sets.camvid import CamVid


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
        " 50.000%  a",
        " 50.000%  b",
        "  0.000%  c",
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
        "masks hold nothing but 0 and 255, which is ignored; if 255 is a class, set values: {0: 0, 255: 1}"
    ]
    assert check(tmp_path, values={255: 1}).problems == []


def test_images_without_labels_are_fine(tmp_path):
    write(tmp_path / "images" / "x.png", np.zeros((2, 2, 3)))
    for classes in (None, ["unlabelled"]):
        report = check(tmp_path, masks=None, classes=classes)
        assert report.problems == []
        assert report.ignored == 1


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
        "values: {0: 0, 255: 1}"
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
