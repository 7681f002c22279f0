import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import segdistill.data.sets
from conftest import REPOSITORY
from segdistill.data import SegmentationDataset, build_dataset, dataset_class, dataset_options, list_datasets
from segdistill.data.dataset import check_classes, check_split, distinct_colours
from segdistill.engine.config import load_config

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


# What docs/data.md shows is read as it says.

PAGE = (REPOSITORY / "docs/data.md").read_text()
BLOCKS = re.findall(r"(?:```text\n([^`]*)```\n)?```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("files", "text"), BLOCKS)
def test_configurations_of_the_page_are_valid_and_read_its_layouts(files, text, tmp_path):
    data = {**yaml.safe_load(text)["data"], "root": str(tmp_path)}
    load_config({"data": data, "student": {"name": "pspnet_resnet18"}})
    if not files:
        return
    for name in files.split():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("background:0,0,0::\ncar:9,9,9::\n" if path.stem == "labelmap" else "x\n")
        else:
            Image.new("RGB" if path.suffix == ".jpg" else "L", (8, 8)).save(path)
    told = ("images", "masks", "image_suffix", "mask_suffix")
    seen = [data] + ([] if "photos" in files else [{k: v for k, v in data.items() if k not in told}])
    for options in seen:
        kind = options.pop("name")
        whole = {} if "val/" in files or "valid/" in files or "splits" in options else {"val_fraction": 0.0}
        dataset = build_dataset(kind, "train", **{**options, **whole})
        assert [path.stem.removesuffix("_sat") for path in dataset.images] == ["x"]
        assert dataset[0][1].shape == (8, 8)


def test_the_page_shows_layouts_and_options():
    assert sum(bool(files) for files, _ in BLOCKS) == 8
    for option in dataset_options("folder").model_fields:
        assert f"`{option}`" in PAGE or f"{option}:" in PAGE, option
