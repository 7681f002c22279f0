import json
import shutil

import numpy as np
import pytest

import trees
from segdistill.data import build_dataset
from segdistill.data.sets.coco_stuff import IDS, IMAGES, UNUSED, CocoStuff


def test_the_table_is_the_published_one(standard, tmp_path):
    facts = json.loads((standard / "coco_stuff164k_classes.json").read_text())
    dataset = CocoStuff("train", root=str(trees.coco_stuff(tmp_path)))
    assert dataset.classes == facts["names"]
    assert [list(colour) for colour in dataset.palette] == facts["palette"]
    assert {str(v): int(IDS[v]) for v in range(256) if v == 255 or IDS[v] != 255} == facts["mask_value_to_id"]
    assert list(UNUSED) == facts["never_used_values"]
    assert facts["splits"].items() <= IMAGES.items()


@pytest.mark.parametrize("labels", [["raw"], ["labelTrainIds"], ["raw", "labelTrainIds"]])
@pytest.mark.parametrize("annotations", ["annotations", "stuffthingmaps"])
def test_published_masks_and_train_ids(tmp_path, labels, annotations):
    dataset = CocoStuff("val", root=str(trees.coco_stuff(tmp_path, labels=labels, annotations=annotations)))
    assert dataset.names == ["000000000139", "000000000285"]
    assert dataset[0][1].unique().tolist() == [0, 11, 80, 170, 255]
    assert dataset.masks[0].stem == ("000000000139" if "raw" in labels else "000000000139_labelTrainIds")


def test_roots_and_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_COCO_STUFF", str(trees.coco_stuff(tmp_path)))
    dataset = build_dataset("coco_stuff", "train")
    assert dataset.remarks == ["COCO-Stuff: 2 images, where the official train has 118287"]
    for split in ("train2017", "val2017"):
        (tmp_path / "images" / split).rename(tmp_path / split)
    (tmp_path / "images").rmdir()
    assert len(build_dataset("coco_stuff", "val")) == 2
    trees.picture(tmp_path / "test2017/000000000001.jpg")
    assert build_dataset("coco_stuff", "test")[0][1].unique().tolist() == [255]


def test_the_trap_of_182_numbers(tmp_path):
    dataset = CocoStuff("val", root=str(trees.coco_stuff(tmp_path)))
    path = dataset.masks[0]
    trees.mask(path, trees.stripes((0, 11, 90)))
    with pytest.raises(ValueError, match=r"label values 11, 90 in .* numbers that COCO-Stuff leaves unused; masks"):
        dataset[0]
    trees.mask(path, trees.stripes((0, 182)))
    with pytest.raises(ValueError, match=r"label values 182 in .* expected 0 to 181, .* stuffthingmaps_trainval2017"):
        dataset[0]
    trees.mask(path.with_name(f"{path.stem}_labelTrainIds.png"), trees.stripes((0, 181)))
    path.unlink()
    with pytest.raises(ValueError, match=r"label values 181 in .* expected 0 to 170, .* have no _labelTrainIds"):
        CocoStuff("val", root=str(tmp_path))[0]


def test_other_files_of_coco_get_one_line(tmp_path, standard):
    panoptic = standard / "samples/coco_stuff/datumaro_panoptic"
    with pytest.raises(ValueError, match=r"images/val2017: no such folder; in .*images there is train, val; unpack"):
        CocoStuff("val", root=str(panoptic))
    trees.coco_stuff(tmp_path)
    (tmp_path / "annotations/val2017").rename(tmp_path / "annotations/panoptic_val2017")
    with pytest.raises(ValueError, match=r"annotations/val2017: no such folder; .* there is panoptic_val2017, "):
        CocoStuff("val", root=str(tmp_path))
    (tmp_path / "annotations/train2017/000000000009.png").unlink()
    with pytest.raises(ValueError, match=r"000000000009.jpg has no mask; expected .*/000000000009.png \(or …_labelTr"):
        CocoStuff("train", root=str(tmp_path))
    shutil.rmtree(tmp_path / "images/val2017")
    (tmp_path / "images/val2017").mkdir()
    (tmp_path / "images/val2017/x.txt").touch()
    with pytest.raises(ValueError, match=r"images/val2017: no .jpg in it, but x.txt; unpack val2017.zip there"):
        CocoStuff("val", root=str(tmp_path))
    with pytest.raises(ValueError, match=r"no COCO-Stuff: expected images/ or val2017/, found"):
        CocoStuff("val", root=str(tmp_path / "annotations/panoptic_val2017"))


def test_a_mask_of_colours(tmp_path):
    dataset = CocoStuff("val", root=str(trees.coco_stuff(tmp_path)))
    trees.picture(dataset.masks[0])
    with pytest.raises(ValueError, match="a mask of colours, where COCO-Stuff has"):
        dataset[0]
    assert np.asarray(dataset.palette).shape == (171, 3)
