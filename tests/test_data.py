from pathlib import Path

import pytest
import torch

import segdistill.data.sets
from segdistill.data import SegmentationDataset, build_dataset, dataset_class, dataset_options, list_datasets
from segdistill.data.dataset import check_classes, check_split, distinct_colours

FOLDER = Path(segdistill.data.sets.__file__).parent


def test_the_folder_is_the_registry(tmp_path, monkeypatch):
    assert list_datasets() == sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
    (tmp_path / "mine.py").write_text(
        "from segdistill.data import SegmentationDataset\n"
        "class Mine(SegmentationDataset):\n"
        "    def __init__(self, split: str, *, colour: int = 3): self.names = [split] * colour\n"
    )
    (tmp_path / "two.py").write_text(
        "from segdistill.data import SegmentationDataset\n"
        "class One(SegmentationDataset): ...\nclass Two(SegmentationDataset): ...\n"
    )
    monkeypatch.setattr(segdistill.data.sets, "__path__", [*segdistill.data.sets.__path__, str(tmp_path)])
    assert "mine" in list_datasets()
    assert build_dataset("mine", "val", colour=2).names == ["val", "val"]
    assert set(dataset_options("mine").model_fields) == {"colour"}
    with pytest.raises(ValueError, match=r"two.py must define exactly one SegmentationDataset, found \['One', 'Two'\]"):
        dataset_class("two")


@pytest.mark.parametrize("name", list_datasets())
def test_options_are_documented(name):
    for option in dataset_options(name).model_fields:
        assert f" {option}: " in dataset_class(name).__doc__


def test_options_as_a_config_gives_them():
    dataset = build_dataset("synthetic", "val", size=[32, 48], images=2)
    assert dataset.size == (32, 48)
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("camvit", {}, "no data set 'camvit'; did you mean camvid?"),
        ("synthetic", {"sise": 3}, "data set synthetic has no option 'sise'; did you mean size?"),
        ("folder", {"classes": ["a"]}, "data set folder needs the option 'root'"),
        ("synthetic", {"images": "many"}, "data set synthetic, images: .* got 'many'"),
    ],
)
def test_mistakes_in_a_config_get_one_line(name, options, line):
    with pytest.raises(ValueError, match=line) as caught:
        build_dataset(name, "train", **options)
    assert "\n" not in str(caught.value)


def test_splits():
    check_split("val")
    with pytest.raises(ValueError, match="expected train, val or test, got 'valid'"):
        check_split("valid")
    with pytest.raises(ValueError, match="no split 'test'; there is train, val; make one"):
        check_split("test", ["train", "val"], "make one")


def test_classes():
    assert check_classes(("a", "b"), "here") == ["a", "b"]
    with pytest.raises(ValueError, match="here: expected 1 to 255 classes, got 0"):
        check_classes([], "here")
    with pytest.raises(ValueError, match="got 256"):
        check_classes([str(i) for i in range(256)], "here")
    with pytest.raises(ValueError, match="class 'a' is listed 2 times"):
        check_classes(["a", "b", "a"], "here")


def test_colours_differ():
    colours = torch.tensor(distinct_colours(40)).float()
    distances = torch.cdist(colours, colours) + 1e3 * torch.eye(40)
    assert distances.min() > 8
    assert torch.cdist(colours[:8], colours[:8]).add(1e3 * torch.eye(8)).min() > 60


def test_the_default_check_of_an_item_is_to_read_it():
    class Broken(SegmentationDataset):
        def __getitem__(self, index):
            if index:
                raise ValueError("b: torn")
            return torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)

    assert Broken().problems(0) == []
    assert Broken().problems(1) == ["b: torn"]
