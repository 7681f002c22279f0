import json
import shutil

import numpy as np
import pytest
from PIL import Image

import trees
from segdistill.data import build_dataset, check_dataset, quick_check
from segdistill.data.sets.cityscapes import LABEL_IDS, PALETTE, TRAIN_IDS, Cityscapes


def values(dataset, index=0):
    return dataset[index][1].unique().tolist()


def test_the_table_is_that_of_cityscapes_scripts(standard):
    facts = json.loads((standard / "cityscapes_classes.json").read_text())
    assert list(PALETTE) == facts["names"]
    assert [list(colour) for colour in PALETTE.values()] == facts["palette"]
    assert list(LABEL_IDS) == facts["train_id_to_label_id"]
    lookup = np.load(standard / "protocol_cases/cityscapes_lookup.npz")
    tables = [lookup[key] for key in lookup if lookup[key].size == 256 and (lookup[key] == 18).sum() == 1]
    assert any((table == TRAIN_IDS).all() for table in tables)


def test_masks_drawn_by_cityscapes_scripts(standard, tmp_path):
    source = standard / "protocol_cases/cityscapes_polygons"
    place = tmp_path / "gtFine/val/city"
    place.mkdir(parents=True)
    for path in source.glob("*.png"):
        shutil.copy(path, place)
    truth = np.asarray(Image.open(source / "city_000000_000019_gtFine_labelTrainIds.png"))
    trees.picture(tmp_path / "leftImg8bit/val/city/city_000000_000019_leftImg8bit.png", truth.shape)
    dataset = Cityscapes("val", root=str(tmp_path))
    assert dataset.masks == [place / "city_000000_000019_gtFine_labelIds.png"]
    assert (dataset[0][1].numpy() == truth).all()
    expected = json.loads((source / "expected.json").read_text())
    row, column = expected["licence_plate_pixel_yx"]
    assert dataset[0][1][row, column] == expected["train_id_there"]


def test_the_real_format(standard):
    root = standard / "samples/cityscapes/mmseg_pseudo"
    dataset = Cityscapes("val", root=str(root))
    truth = root / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png"
    assert dataset.names == ["frankfurt/frankfurt_000000_000294_leftImg8bit"]
    # Both masks were scaled down by themselves there, so that 77 of 32768 pixels differ.
    assert (dataset[0][1].numpy() != np.asarray(Image.open(truth))).sum() == 77


@pytest.mark.parametrize("labels", [["labelIds"], ["labelTrainIds"], ["labelIds", "labelTrainIds"]])
def test_label_ids_and_train_ids(tmp_path, labels):
    dataset = Cityscapes("train", root=str(trees.cityscapes(tmp_path, labels=labels)))
    assert values(dataset) == [0, 1, 2, 3, 13, 18, 255]
    assert all(f"_{labels[0]}.png" in path.name for path in dataset.masks)
    assert dataset[0][0].shape == (3, 64, 128)


def test_the_root_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_CITYSCAPES", str(trees.cityscapes(tmp_path)))
    assert len(build_dataset("cityscapes", "val")) == 2
    monkeypatch.delenv("SEGDISTILL_CITYSCAPES")
    with pytest.raises(ValueError, match=r"Cityscapes: no folder given; set data.root, or SEGDISTILL_CITYSCAPES"):
        build_dataset("cityscapes", "val")


def test_test_and_a_split_without_gt_fine_have_no_labels(tmp_path):
    trees.cityscapes(tmp_path)
    assert values(Cityscapes("test", root=str(tmp_path))) == [255]
    shutil.rmtree(tmp_path / "gtFine/train")
    dataset = Cityscapes("train", root=str(tmp_path))
    assert values(dataset) == [255]
    with pytest.raises(
        ValueError, match=r"without labels: .*gtFine/train is not there, but test, val: .* unpack gtFine"
    ):
        quick_check(dataset)


def test_coarse_labels(tmp_path):
    trees.cityscapes(tmp_path, coarse=True)
    both = build_dataset("cityscapes", "train", root=str(tmp_path), coarse=True)
    assert [path.parts[-4] for path in both.masks] == ["gtFine"] * 2 + ["gtCoarse"] * 2
    only = build_dataset("cityscapes", "train", root=str(tmp_path), coarse="only")
    assert [name.split("/")[0] for name in only.names] == ["augsburg", "bad-honnef"]
    assert values(only) == values(both) == [0, 1, 2, 3, 13, 18, 255]
    val = build_dataset("cityscapes", "val", root=str(tmp_path), coarse="only")
    assert [path.parts[-4] for path in val.masks] == ["gtFine"] * 2
    assert both.remarks == ["Cityscapes: 4 images, where the official train and train_extra has 22973"]


def test_frames_of_sequences(tmp_path):
    trees.cityscapes(tmp_path, sequence=True)
    dataset = Cityscapes("train", root=str(tmp_path), sequence=True)
    assert len(dataset) == 6
    assert values(dataset) == [255]
    assert dataset.remarks == ["Cityscapes: 6 images, where the official train has 89250"]
    with pytest.raises(ValueError, match="coarse and sequence do not go together"):
        Cityscapes("train", root=str(tmp_path), sequence=True, coarse=True)


def test_a_miniature_is_usable_and_says_that_it_is_one(tmp_path):
    dataset = Cityscapes("val", root=str(trees.cityscapes(tmp_path)))
    line = "Cityscapes: 2 images, where the official val has 500"
    assert dataset.remarks == [line]
    assert quick_check(dataset) == [line]
    assert f"note: {line}" in check_dataset(dataset).lines()
    assert check_dataset(dataset).problems == []


def test_the_official_sizes(standard):
    from segdistill.data.sets.cityscapes import IMAGES

    for split in ("train", "val", "test"):
        lines = (standard / f"samples/cityscapes/lists/{split}.lst").read_text().splitlines()
        assert len(lines) == IMAGES[split]


def test_wrong_trees_get_one_line(tmp_path, standard):
    root = str(tmp_path)
    (tmp_path / "gtFine").mkdir()
    with pytest.raises(ValueError, match=f"{root}: no Cityscapes: expected leftImg8bit/, found gtFine; set data.root"):
        Cityscapes("train", root=root)
    (tmp_path / "leftImg8bit/val/frankfurt").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"leftImg8bit: a folder inside Cityscapes; set data.root, .* to {root}$"):
        Cityscapes("train", root=f"{root}/leftImg8bit")
    with pytest.raises(ValueError, match=r"leftImg8bit/train: no such folder; in .*leftImg8bit there is val; unpack"):
        Cityscapes("train", root=root)
    with pytest.raises(ValueError, match=r"val: no CITY/…_leftImg8bit.png in it, but frankfurt; unpack"):
        Cityscapes("val", root=root)
    trees.cityscapes(tmp_path)
    next((tmp_path / "gtFine/val/lindau").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"lindau_000001_000019_leftImg8bit.png has no mask; expected .*_labelIds.png"):
        Cityscapes("val", root=root)
    with pytest.raises(ValueError, match=r"leftImg8bit/train_extra: no such folder; .* leftImg8bit_trainextra.zip"):
        Cityscapes("train", root=root, coarse=True)
    trees.picture(tmp_path / "leftImg8bit/train_extra/x/x_leftImg8bit.png")
    with pytest.raises(ValueError, match=r"gtCoarse/train_extra: no such folder; .* unpack gtCoarse.zip"):
        Cityscapes("train", root=root, coarse=True)
    with pytest.raises(ValueError, match=r"no CITY/…_gtFine_labelIds.png in it, but defaultcity/.*_instanceIds.png"):
        Cityscapes("val", root=str(standard / "samples/cityscapes/datumaro"))


def test_wrong_values_get_one_line(tmp_path, standard):
    dataset = Cityscapes("train", root=str(standard / "samples/cityscapes/datumaro_trainids"))
    with pytest.raises(ValueError, match=r"label values 19 in .* expected 0 to 18, .* which some tools write as 19"):
        dataset[0]
    trees.cityscapes(tmp_path)
    dataset = Cityscapes("train", root=str(tmp_path))
    trees.mask(dataset.masks[0], trees.stripes((7, 34)))
    with pytest.raises(ValueError, match=r"label values 34 in .* expected 0 to 33, .* label ids are meant here"):
        dataset[0]
    trees.picture(dataset.masks[0])
    with pytest.raises(ValueError, match="a mask of colours, where Cityscapes has PNGs of one channel"):
        dataset[0]
    assert len(dataset.problems(0)) == 1
