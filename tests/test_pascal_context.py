import json

import numpy as np
import pytest

import trees
from conftest import needs_package
from segdistill.data import build_dataset
from segdistill.data.sets.pascal_context import FCN_NAMES, IMAGES, LABELS_459, PascalContext


def facts(standard):
    return json.loads((standard / "pascal_context_classes.json").read_text())


def test_the_tables_are_the_published_ones(standard, tmp_path):
    known = facts(standard)
    root = str(trees.pascal_context(tmp_path))
    plain, wide = PascalContext("train", root=root), PascalContext("train", root=root, background=True)
    assert plain.classes == known["names"]
    assert list(map(list, plain.palette)) == known["palette"]
    assert wide.classes == known["names60"]
    assert list(map(list, wide.palette)) == known["palette60"]
    assert {"0": 255} | {str(label): i for i, label in enumerate(LABELS_459)} == known["label459_to_id59"]
    fcn = PascalContext("train", root=root, background=True, order="fcn")
    assert fcn.classes == known["names_fcn_order"] == ["background", *FCN_NAMES]
    assert known["splits"].items() <= IMAGES.items()


@pytest.mark.parametrize("background", [False, True])
def test_both_orders_of_the_classes(standard, tmp_path, background):
    root = str(trees.pascal_context(tmp_path))
    ours = PascalContext("train", root=root, background=background)
    fcn = PascalContext("train", root=root, background=background, order="fcn")
    position = facts(standard)["fcn_id_to_mmseg59"]
    for index, name in enumerate(fcn.classes[background:]):
        own = int(np.flatnonzero(fcn.ids == index + background)[0])  # the value in a PNG
        assert ours.ids[own] == position[index] + background
        assert fcn.palette[index + background] == ours.palette[position[index] + background], name
    assert ours.ids[0] == fcn.ids[0] == (0 if background else 255)


def test_pngs_and_mat_files_say_the_same(tmp_path):
    needs_package("scipy", "data")
    pngs = PascalContext("train", root=str(trees.pascal_context(tmp_path / "a")))
    mats = PascalContext("train", root=str(trees.pascal_context(tmp_path / "b", converted=False, mat=True)))
    assert pngs.names == mats.names == ["2008_000002", "2008_000003"]
    assert mats.masks[0].suffix == ".mat"
    assert pngs.masks[0].suffix == ".png"
    for (_, png), (_, mat) in zip(pngs, mats, strict=True):
        assert (png == mat).all()
    assert pngs[0][1].unique().tolist() == [0, 1, 2, 58, 255]


def test_every_label_of_459(standard, tmp_path):
    needs_package("scipy", "data")
    from scipy.io import savemat

    dataset = PascalContext(
        "train", root=str(trees.pascal_context(tmp_path, converted=False, mat=True)), background=True
    )
    savemat(dataset.masks[0], {"LabelMap": np.arange(460, dtype=np.uint16)[None]})
    table = facts(standard)["label459_to_mask60"]
    assert dataset.read_ids(dataset.masks[0])[0].tolist() == [table.get(str(label), 0) for label in range(460)]
    savemat(dataset.masks[0], {"LabelMap": np.array([[1, 460]], np.uint16)})
    with pytest.raises(ValueError, match=r"2008_000002.mat: label values 460 in 1 pixels"):
        dataset.read_ids(dataset.masks[0])


def test_roots_and_folders_of_mat_files(tmp_path, monkeypatch):
    needs_package("scipy", "data")
    root = trees.pascal_context(tmp_path, converted=False, mat=True)
    (root / "VOC2010/trainval").rename(tmp_path / "trainval")
    monkeypatch.setenv("SEGDISTILL_PASCAL_CONTEXT", str(root))
    assert len(build_dataset("pascal_context", "val")) == 2
    (tmp_path / "trainval").rename(tmp_path / "context")
    with pytest.raises(ValueError, match=r"2008_000009.jpg has no mask; expected .*SegmentationClassContext/2008_0000"):
        build_dataset("pascal_context", "val")
    assert len(build_dataset("pascal_context", "val", mat=str(tmp_path / "context"))) == 2
    with pytest.raises(ValueError, match=r"none: no such folder; .* set data.mat"):
        build_dataset("pascal_context", "val", mat=str(tmp_path / "none"))


def test_test_has_no_labels(tmp_path):
    root = trees.pascal_context(tmp_path)
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; looked for test.txt in .*Context and"):
        PascalContext("test", root=str(root))
    trees.lines(root / "VOC2010/ImageSets/Main/test.txt", trees.CONTEXT_TRAIN[:1])
    dataset = PascalContext("test", root=str(root))
    assert dataset[0][1].unique().tolist() == [255]
    assert dataset.remarks == ["Pascal Context: 1 image, where the official test has 9637"]


def test_mistakes_get_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no Pascal Context: expected JPEGImages/ \(or that in VOC2010 or VOCdevkit/"):
        PascalContext("train", root=str(tmp_path))
    dataset = PascalContext("train", root=str(trees.pascal_context(tmp_path)))
    trees.mask(dataset.masks[0], trees.stripes((0, 60)))
    with pytest.raises(ValueError, match=r"label values 60 .* expected 0 to 59, .* 0 is background, 1 to 59 are"):
        dataset[0]
    with pytest.raises(ValueError, match=r"data set pascal_context, order: .* got 'voc'"):
        build_dataset("pascal_context", "train", root=str(tmp_path), order="voc")
