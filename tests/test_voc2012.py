import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import trees
from conftest import needs_package
from segdistill.data import build_dataset
from segdistill.data.sets.voc2012 import GREYS, IMAGES, NAMES, PALETTE, Voc2012, voc_colour, with_sbd
from segdistill.data.standard import read_list


def test_names_and_palette_are_voc_s(standard):
    facts = json.loads((standard / "voc2012_classes.json").read_text())
    assert list(NAMES) == facts["names"]
    assert [list(voc_colour(index)) for index in range(256)] == facts["palette256"]
    assert list(map(list, PALETTE)) == facts["palette"]
    sizes = facts["splits"]
    assert IMAGES["train with aug"] == sizes["trainaug"] == sizes["train"] + sizes["aug"]
    assert IMAGES["trainval with aug"] == sizes["trainaug"] + sizes["val"]
    assert {key: sizes[key] for key in ("train", "val", "test", "trainval")}.items() <= IMAGES.items()
    assert {38, 75, 113, 128, 147, 220} <= GREYS


def test_the_real_masks_are_indices(standard):
    folder = standard / "samples/voc/trainaug/VOCdevkit/VOC2012/SegmentationClassAug"
    dataset = Voc2012.__new__(Voc2012)
    for path in folder.iterdir():
        mask = Image.open(path)
        assert mask.mode == "P"
        assert (dataset.read_ids(path) == np.asarray(mask)).all()


def test_trainaug_is_what_everybody_trains_on(standard, tmp_path):
    source = standard / "samples/voc/lists"
    train, val = (read_list(source / name) for name in ("voc2012_train_1464_derived.txt", "val.txt"))
    published = read_list(source / "skd_train_aug.txt")
    masks = {name: tmp_path for name in (*published, *val)}  # SegmentationClassAug has those of val, too
    computed = with_sbd(tmp_path, train, masks, leave_out=val)
    assert len(computed) == IMAGES["train with aug"] == 10582
    assert set(computed) == set(published)
    shutil.copy(source / "train_aug.txt", tmp_path)
    assert set(with_sbd(tmp_path, train, {}, leave_out=val)) == set(published)
    assert len(with_sbd(tmp_path, [*train, *val], {}, leave_out=[])) == IMAGES["trainval with aug"]


@pytest.mark.parametrize("up", [".", "..", "VOC2012"])
def test_roots_and_splits(tmp_path, up):
    root = str(trees.voc2012(tmp_path, test=True) / up)
    assert Voc2012("train", root=root).names == ["2007_000032", "2007_000039"]
    assert Voc2012("val", root=root)[0][1].unique().tolist() == [0, 1, 15, 20, 255]
    assert Voc2012("test", root=root)[0][1].unique().tolist() == [255]
    assert len(Voc2012("train", root=root, trainval=True)) == 4


def test_sbd_as_pngs(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_VOC2012", str(trees.voc2012(tmp_path, aug=True)))
    dataset = build_dataset("voc2012", "train", aug=True)
    assert dataset.names == ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]
    assert [path.parent.name for path in dataset.masks] == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    assert dataset[2][1].unique().tolist() == [0, 1, 4, 19, 20]
    assert len(build_dataset("voc2012", "val", aug=True)) == 2
    assert len(build_dataset("voc2012", "train", aug=True, trainval=True)) == 6


@pytest.mark.parametrize("named", [None, ".", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_sbd_as_it_was_released(tmp_path, named):
    needs_package("scipy", "data")
    root = trees.voc2012(tmp_path, sbd=True)
    (root / "VOC2012/JPEGImages/2008_000003.jpg").unlink()  # SBD has it, too
    sbd = None if named is None else str(tmp_path / named)
    dataset = Voc2012("train", root=str(root), aug=True, sbd=sbd)
    assert dataset.names == ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]  # SBD's image of val is not
    assert dataset[3][1].unique().tolist() == [0, 1, 4, 19, 20]
    assert dataset.masks[3].suffix == ".mat"
    assert dataset.images[3].parent.name == "img"


def test_lists_with_folders_and_masks(tmp_path):
    root = trees.voc2012(tmp_path)
    lists = root / "VOC2012/ImageSets/Segmentation"
    (lists / "train.txt").write_text("/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n\n")
    assert Voc2012("train", root=str(root)).names == ["2007_000039"]
    (lists / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"train.txt: an empty list"):
        Voc2012("train", root=str(root))
    (lists / "train.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"train.txt: not a readable list"):
        Voc2012("train", root=str(root))


def test_a_list_that_holds_val_is_refused(tmp_path):
    root = trees.voc2012(tmp_path, aug=True)
    trees.lines(root / "VOC2012/ImageSets/Segmentation/trainaug.txt", ["2008_000002", "2007_000033"])
    with pytest.raises(ValueError, match=r"trainaug.txt: 1 of its images are in val, 2007_000033 for example"):
        Voc2012("train", root=str(root), aug=True)
    assert len(Voc2012("train", root=str(root), aug=True, trainval=True)) == 5


def test_grey_masks_are_explained(tmp_path):
    dataset = Voc2012("train", root=str(trees.voc2012(tmp_path)))
    path = dataset.masks[0]
    Image.open(path).convert("RGB").convert("L").save(path)
    with pytest.raises(ValueError, match=r"label values 38, 52, 147, 220 .* the brightnesses of VOC's colours"):
        dataset[0]
    trees.mask(path, trees.stripes((0, 21)))
    with pytest.raises(ValueError, match=r"label values 21 .* expected 0 to 20.* the indices of VOC's palette"):
        dataset[0]


def test_a_mask_of_colours(standard, tmp_path):
    root = tmp_path / "VOC2012"
    shutil.copytree(standard / "samples/voc/datumaro", root)
    dataset = Voc2012("train", root=str(tmp_path))
    with pytest.raises(ValueError, match="a mask of colours, where VOC 2012 has PNGs of one channel or with a palette"):
        dataset[0]


def test_wrong_trees_get_one_line(tmp_path):
    root = trees.voc2012(tmp_path)
    folder = str(root)
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; looked in .*ImageSets/Segmentation"):
        Voc2012("test", root=folder)
    with pytest.raises(ValueError, match=r"aug: true needs SBD's masks: .*SegmentationClassAug/\*.png, or SBD itself"):
        Voc2012("train", root=folder, aug=True)
    with pytest.raises(ValueError, match=r"none: no such folder; .* set data.sbd, or SEGDISTILL_SBD, to SBD's folder"):
        Voc2012("train", root=folder, aug=True, sbd=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"VOCdevkit: no dataset/cls/ in it; set data.sbd"):
        Voc2012("train", root=folder, aug=True, sbd=folder)
    with pytest.raises(ValueError, match="sbd is of no use without aug: true"):
        Voc2012("train", root=folder, sbd=folder)
    (root / "VOC2012/SegmentationClass/2007_000032.png").unlink()
    with pytest.raises(ValueError, match=r"2007_000032.jpg has no mask; expected .*SegmentationClass/2007_000032.png"):
        Voc2012("train", root=folder)
    for path in (root / "VOC2012/JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"2007_000032.jpg: no such image, but .* names it \(2 of 2 are missing\)"):
        Voc2012("train", root=folder)
    shutil.rmtree(root / "VOC2012/ImageSets")
    with pytest.raises(ValueError, match=r"ImageSets/Segmentation: no such folder; in .*VOC2012 there is JPEGImages, "):
        Voc2012("train", root=folder)


def test_damaged_mat_files(tmp_path, monkeypatch):
    needs_package("scipy", "data")
    from scipy.io import savemat

    dataset = Voc2012("train", root=str(trees.voc2012(tmp_path, sbd=True)), aug=True)
    path = dataset.masks[2]
    savemat(path, {"other": 1})
    with pytest.raises(ValueError, match=r"no GTcls.Segmentation in it, but nothing"):
        dataset[2]
    savemat(path, {"GTcls": {"Other": 1}})
    with pytest.raises(ValueError, match=r"no GTcls.Segmentation in it, but GTcls"):
        dataset[2]
    savemat(path, {"GTcls": {"Segmentation": np.zeros((2, 3))}})
    with pytest.raises(ValueError, match=r"holds float64 of shape 2×3, where a map of whole numbers"):
        dataset[2]
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"not a readable .mat file .*; replace or remove it") as caught:
        dataset[2]
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"need scipy; pip install 'segdistill\[data\]'"):
        dataset[2]
