import io
import sys

import numpy as np
import pytest
from PIL import Image

import trees
from conftest import needs_package
from segdistill.data import build_dataset, check_dataset

CLASSES = list("abcd")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    needs_package("datasets", "data")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def load(path, split="train", **options):
    return build_dataset("huggingface", split, path=str(path), **{"classes": CLASSES, **options})


def save(folder, **columns):
    import datasets

    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    return folder


def png(values):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_parquet_as_the_hub_has_it(tmp_path):
    root = trees.huggingface(tmp_path / "hub")
    for path, split in ((root, "train"), (root, "val"), (root / "data/train-00000-of-00001.parquet", "train")):
        dataset = load(path, split)
        assert len(dataset) == 2
        image, mask = dataset[1]
        assert image.shape == (3, 64, 128)
        assert mask.unique().tolist() == [0, 1, 2, 3]
        assert mask.tolist() == trees.stripes((0, 1, 2, 3), shift=1).tolist()
    assert load(root, "val").names == ["validation/0", "validation/1"]
    assert check_dataset(load(root)).problems == []


def test_masks_follow_the_rules_of_files(tmp_path):
    root = trees.huggingface(tmp_path / "hub")
    assert load(root, classes=list("abc"), reduce_zero_label=True)[0][1].unique().tolist() == [0, 1, 2, 255]
    assert load(root, ignore=3, values={2: 0})[0][1].unique().tolist() == [0, 1, 255]
    assert load(root, mask=None, classes=None)[0][1].unique().tolist() == [255]
    assert not load(root, mask=None, classes=None).has_mask(0)
    assert load(root).has_mask(0)
    assert load(root, splits={"train": "validation"}).names[0] == "validation/0"


def test_what_save_to_disk_writes(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"image": [png(np.zeros((2, 2, 3)))], "label": [png([[0, 1], [2, 3]])]})
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"dev": table}).save_to_disk(str(tmp_path / "more"))
    assert load(tmp_path / "one")[0][1].tolist() == [[0, 1], [2, 3]]
    assert load(tmp_path / "more", "val")[0][1].tolist() == [[0, 1], [2, 3]]


def test_columns_of_paths(tmp_path):
    trees.picture(tmp_path / "x.jpg")
    trees.mask(tmp_path / "x.png", trees.stripes((0, 3)))
    files = {"image": "x.jpg", "mask": "x.png"}
    cells = {column: [{"bytes": None, "path": str(tmp_path / name)}] for column, name in files.items()}
    assert load(save(tmp_path / "d", **cells))[0][1].unique().tolist() == [0, 3]


def test_mistakes_get_one_line(tmp_path):
    root = trees.huggingface(tmp_path / "hub")
    for options, line in (
        ({"image": "photo"}, "data.image: no column 'photo'; there is image, annotation"),
        ({"mask": "seg"}, "data.mask: no column 'seg'; there is image, annotation"),
        ({"classes": None}, "huggingface: no classes"),
        ({"classes": ["a"]}, "only 'a', which every pixel would be"),
        ({"splits": {"train": "all"}}, "data.splits: no 'all'; there is train, validation"),
        ({"split": "test"}, r"no split 'test'; there is train, val; found train, validation; .* {test: NAME}"),
    ):
        with pytest.raises(ValueError, match=line) as caught:
            load(root, **options)
        assert "\n" not in str(caught.value)
    one = png(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"data.mask: mask or label; say which column holds the masks"):
        load(save(tmp_path / "two", image=[one], mask=[one], label=[one]))
    with pytest.raises(ValueError, match=r"data.mask: no column of a known name; say which .* of image, or null"):
        load(save(tmp_path / "none", image=[one]))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({name: pa.array([], pa.binary()) for name in ("image", "mask")}), tmp_path / "empty.parquet"
    )
    with pytest.raises(ValueError, match=r"empty.parquet.* no row in it|empty.parquet: cannot be loaded"):
        load(tmp_path / "empty.parquet")


def test_wrong_rows_name_themselves(tmp_path):
    small, large = png(np.zeros((2, 2, 3))), png(np.zeros((2, 4, 3)))
    images, masks = [small, large, b"torn", "text", None], [png([[0, 9], [0, 0]]), png([[0, 1], [2, 3]]), b"", b"", b""]
    import datasets

    dataset = load(save(tmp_path / "a", image=images[:3], mask=masks[:3]))
    for index, line in enumerate(
        (
            r"train, row 0, column mask: label values 9 in 1 pixels; expected 0 to 3",
            r"train, row 1: the image is 4×2 but its mask 2×2; they must have one size",
            r"train, row 2, column image: not a readable image",
        )
    ):
        with pytest.raises(ValueError, match=line):
            dataset[index]
    assert len(check_dataset(dataset).problems) == 3
    for value, line in (("text", "str, where the bytes of an image file"), (None, "nothing, where the bytes")):
        table = datasets.Dataset.from_dict({"image": [value], "mask": [b""]})
        table.save_to_disk(str(tmp_path / str(value)))
        with pytest.raises(ValueError, match=rf"row 0, column image: {line}"):
            load(tmp_path / str(value))[0]


def test_offline_and_damaged_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^no/such: cannot be reached; without a connection, give a local") as caught:
        load("no/such")
    assert "\n" not in str(caught.value)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"d: cannot be loaded .*; expected a repository") as caught:
        load(tmp_path / "d")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"huggingface needs datasets; pip install 'segdistill\[data\]'"):
        load(tmp_path / "d")


def test_code_in_a_repository_is_not_run(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(folder)
    assert not (tmp_path / "ran").exists()
