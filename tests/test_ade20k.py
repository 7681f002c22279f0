import json
import shutil

import numpy as np
import pytest
from PIL import Image

import trees
from segdistill.data import build_dataset
from segdistill.data.sets.ade20k import IMAGES, Ade20k


def test_the_table_is_the_published_one(standard, tmp_path):
    facts = json.loads((standard / "ade20k_classes.json").read_text())
    dataset = Ade20k("train", root=str(trees.ade20k(tmp_path)))
    assert dataset.classes == facts["names"]
    assert [list(colour) for colour in dataset.palette] == facts["palette"]
    assert facts["splits"] == IMAGES


def test_values_count_from_one(standard, tmp_path):
    case = json.loads((standard / "protocol_cases/reduce_zero_label.json").read_text())
    dataset = Ade20k("train", root=str(trees.ade20k(tmp_path, size=(1, 4))))
    pairs = [(v, r) for v, r in zip(case["mask"][0], case["result"], strict=True) if v <= 150 or v == 255]
    trees.mask(dataset.masks[0], np.array([[v for v, _ in pairs]]))
    assert dataset.read_ids(dataset.masks[0]).tolist() == [[r for _, r in pairs]]


def test_the_real_pairs(standard):
    root = standard / "samples/ade20k/ADEChallengeData2016"
    dataset = Ade20k("val", root=str(root))
    assert len(dataset) == len(dataset.remarks) + 1 == len(list((root / "images/validation").iterdir()))
    for index, (image, mask) in enumerate(dataset):
        truth = np.asarray(Image.open(dataset.masks[index])).astype(int) - 1
        assert image.shape[1:] == mask.shape
        assert (np.where(truth == -1, 255, truth) == mask.numpy()).all()


def test_splits_and_roots(tmp_path, monkeypatch):
    root = trees.ade20k(tmp_path, test=True)
    for given in (root, tmp_path):
        assert Ade20k("val", root=str(given)).names == ["ADE_val_00000001", "ADE_val_00000002"]
        assert Ade20k("test", root=str(given))[0][1].unique().tolist() == [255]
    monkeypatch.setenv("SEGDISTILL_ADE20K", str(root))
    assert build_dataset("ade20k", "train").names[0] == "ADE_train_00000001"
    assert build_dataset("ade20k", "train").remarks == ["ADE20K: 2 images, where the official train has 20210"]


def test_grey_photographs_are_read(tmp_path):
    dataset = Ade20k("train", root=str(trees.ade20k(tmp_path)))
    Image.open(dataset.images[0]).convert("L").save(dataset.images[0])
    assert dataset[0][0].shape == (3, 64, 128)


def test_the_full_version_is_known(standard, tmp_path):
    for name in ("full_2017_datumaro", "full_2021_datumaro"):
        with pytest.raises(ValueError, match=r"the full ADE20K .* take ADEChallengeData2016.zip"):
            Ade20k("train", root=str(standard / "samples/ade20k" / name))
    place = tmp_path / "images/training/a/abbey"
    trees.picture(place / "ADE_train_00000970.jpg")
    trees.picture(place / "ADE_train_00000970_seg.png")
    with pytest.raises(ValueError, match="the full ADE20K"):
        Ade20k("train", root=str(tmp_path))


def test_wrong_trees_get_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no ADE20K: expected images/ \(or that in ADEChallengeData2016\), found n"):
        Ade20k("train", root=str(tmp_path))
    root = trees.ade20k(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; unpack release_test.zip"):
        Ade20k("test", root=str(root))
    (root / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(ValueError, match=r"ADE_train_00000002.jpg has no mask; expected .*annotations/training/ADE"):
        Ade20k("train", root=str(root))
    shutil.rmtree(root / "annotations/training")
    with pytest.raises(ValueError, match=r"annotations/training: no such folder; in .*annotations there is validation"):
        Ade20k("train", root=str(root))
    shutil.rmtree(root / "images/validation")
    (root / "images/validation/x").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"images/validation: no ADE_….jpg in it, but x"):
        Ade20k("val", root=str(root))


def test_wrong_values_get_one_line(tmp_path):
    dataset = Ade20k("train", root=str(trees.ade20k(tmp_path)))
    trees.mask(dataset.masks[0], trees.stripes((0, 151, 254)))
    with pytest.raises(ValueError, match=r"label values 151, 254 .* expected 0 to 150, .* 0 means other"):
        dataset[0]
    trees.picture(dataset.masks[0])
    with pytest.raises(ValueError, match="a mask of colours, where ADE20K has"):
        dataset[0]
