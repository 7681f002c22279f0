from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.data import build_dataset
from segdistill.data.sets.camvid import GROUPS, IDS, PALETTE, CamVid


def write(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8), mode).save(path)


def make(root, split="train", mask=((0, 10), (11, 255)), name="a", suffix=".png"):
    write(root / split / f"{name}{suffix}", np.full((2, 2, 3), 90))
    write(root / f"{split}annot" / f"{name}.png", mask)


def test_the_real_one(camvid):
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        dataset = CamVid(split, root=str(camvid))
        assert len(dataset) == len(dataset.names) == count
        image, mask = dataset[count - 1]
        assert image.shape == (3, 360, 480)
        assert mask.shape == (360, 480)
        assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
        assert set(mask.unique().tolist()) <= {*range(11), 255}
    assert dataset.classes[:4] == ["sky", "building", "pole", "road"]
    assert len(dataset.palette) == 11


def test_real_images_belong_to_their_masks(camvid):
    # Sky is bright, road is dark and below: a shift of the file lists against each other would show.
    dataset = CamVid("val", root=str(camvid))
    for index in (0, 50, 100):
        image, mask = dataset[index]
        grey = image.float().mean(0)
        assert grey[mask == 0].mean() > grey[mask == 3].mean() + 30
        rows = torch.arange(360.0).view(-1, 1).expand(360, 480)
        assert rows[mask == 3].mean() > rows[mask == 0].mean() + 100


def test_void_is_ignored(tmp_path):
    make(tmp_path)
    assert CamVid("train", root=str(tmp_path))[0][1].tolist() == [[0, 10], [255, 255]]


def test_the_root_may_come_from_the_environment_and_from_home(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setenv("SEGDISTILL_CAMVID", str(tmp_path))
    assert len(CamVid("train")) == 1
    monkeypatch.delenv("SEGDISTILL_CAMVID")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(CamVid("train", root="~")) == 1
    monkeypatch.chdir(tmp_path.parent)
    assert len(CamVid("train", root=tmp_path.name)) == 1


def test_the_groups_hold_the_32_colours_once():
    colours = [colour for group in GROUPS.values() for colour in group]
    assert len(colours) == len(set(colours)) == 31
    assert list(GROUPS) == list(PALETTE)
    assert IDS[(0, 0, 0)] == 255


def test_original_colours_become_classes(tmp_path):
    # truck, lane marking, sidewalk; SegNet's own pavement colour, void, animal
    colours = [[(192, 128, 192), (128, 0, 192), (0, 0, 192)], [(60, 40, 222), (0, 0, 0), (64, 128, 64)]]
    make(tmp_path, mask=colours)
    write(tmp_path / "train" / "a.png", np.zeros((2, 3, 3)))
    assert CamVid("train", root=str(tmp_path))[0][1].tolist() == [[8, 3, 4], [4, 255, 9]]


def test_the_original_folders_with_lists(tmp_path):
    for name, colour in (("x1", (128, 64, 128)), ("x2", (128, 0, 0)), ("x3", (0, 0, 0))):
        write(tmp_path / "701_StillsRaw_full" / f"{name}.png", np.zeros((2, 2, 3)))
        write(tmp_path / "LabeledApproved_full" / f"{name}_L.png", np.full((2, 2, 3), colour))
    with pytest.raises(ValueError, match=r"no split 'train'; there is none at all; the original release has no split"):
        CamVid("train", root=str(tmp_path))
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/x2.png /SegNet/CamVid/trainannot/x2.png\n")
    (tmp_path / "val.txt").write_text("x1\n\nx3_L.png\n")
    assert CamVid("train", root=str(tmp_path))[0][1].unique().tolist() == [1]
    val = CamVid("val", root=str(tmp_path))
    assert val.names == ["x1", "x3"]
    assert [mask.unique().tolist() for _, mask in val] == [[3], [255]]
    (tmp_path / "test.txt").write_text("x9\n")
    with pytest.raises(ValueError, match=r"test\.txt: no frame 'x9'"):
        CamVid("test", root=str(tmp_path))


def test_jpeg_images_and_suffixed_masks(tmp_path):
    write(tmp_path / "val" / "b.JPG", np.full((4, 4, 3), 7))
    write(tmp_path / "valannot" / "b_L.png", np.zeros((4, 4)))
    assert CamVid("val", root=str(tmp_path)).names == ["b"]


def test_no_root(monkeypatch):
    monkeypatch.delenv("SEGDISTILL_CAMVID", raising=False)
    with pytest.raises(ValueError, match=r"CamVid: no folder given; set data.root, or SEGDISTILL_CAMVID"):
        build_dataset("camvid", "train")


def test_mistakes_get_one_line(tmp_path):
    root = str(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/none: no such folder; in {tmp_path} there is no folder"):
        CamVid("train", root=f"{root}/none")
    with pytest.raises(ValueError, match="no split 'train'; there is none at all"):
        CamVid("train", root=root)
    Path(tmp_path, "train").mkdir()
    with pytest.raises(ValueError, match=r"trainannot: no such folder; .* it should hold the masks of train/"):
        CamVid("train", root=root)
    Path(tmp_path, "trainannot").mkdir()
    with pytest.raises(ValueError, match="train: no image in it"):
        CamVid("train", root=root)
    make(tmp_path)
    write(tmp_path / "train" / "b.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"b\.png has no mask; expected .*trainannot/b\.png \(or …_L\.png\)"):
        CamVid("train", root=root)
    with pytest.raises(ValueError, match="no split 'test'; there is train"):
        CamVid("test", root=root)


def test_wrong_values_and_colours(tmp_path):
    make(tmp_path, mask=[[0, 12], [13, 13]])
    with pytest.raises(ValueError, match=r"a\.png: label values 12, 13 in 3 pixels; expected 0 to 10, or 255 for void"):
        CamVid("train", root=str(tmp_path))[0]
    make(tmp_path, mask=[[(128, 0, 0), (1, 2, 3)]] * 2)
    with pytest.raises(ValueError, match=r"a\.png: \(1,2,3\) in 2 pixels, which is no class's colour"):
        CamVid("train", root=str(tmp_path))[0]
