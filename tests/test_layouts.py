"""How images and masks are laid out: what is seen by itself, what has to be said."""

import numpy as np
import pytest
from PIL import Image

from segdistill.data.sets.folder import Folder
from segdistill.data.splits import split_of

CLASSES = ["a", "b", "c"]


def write(root, *names, value=0):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = any(part in name for part in ("_mask", "masks/", "labels/", "annotations/", "SegmentationClass/"))
        pixels = np.full((4, 4), value, np.uint8)
        Image.fromarray(pixels if mask or path.suffix == ".png" else np.stack([pixels] * 3, -1)).save(path)


def load(root, split="train", **options):
    return Folder(split, root=str(root), **{"classes": CLASSES, "val_fraction": 0.0, **options})


def pairs(dataset):
    return {
        name: (image.name, mask.name)
        for name, image, mask in zip(dataset.names, dataset.images, dataset.masks, strict=True)
    }


# Layouts.


def test_suffixes_in_one_folder(tmp_path):
    write(tmp_path, "x.jpg", "x_mask.png", "deep/y.jpg", "deep/y_mask.png")
    expected = {"x": ("x.jpg", "x_mask.png"), "deep/y": ("y.jpg", "y_mask.png")}
    assert pairs(load(tmp_path)) == expected
    assert pairs(load(tmp_path, images=".", masks=".", mask_suffix="_mask")) == expected


def test_images_and_masks_that_are_png_both(tmp_path):
    write(tmp_path, "x.png", "x_mask.png")
    assert pairs(load(tmp_path)) == {"x": ("x.png", "x_mask.png")}


def test_jpeg_and_png_in_one_folder(tmp_path):
    write(tmp_path, "x.jpg", "x.png", "y.JPEG", "y.png")
    expected = {"x": ("x.jpg", "x.png"), "y": ("y.JPEG", "y.png")}
    assert pairs(load(tmp_path)) == expected
    assert pairs(load(tmp_path, images=".", masks=".")) == expected


def test_two_suffixes_in_one_folder(tmp_path):
    write(tmp_path, "x_sat.jpg", "x_mask.png", "y_sat.jpg", "y_mask.png")
    expected = {"x_sat": ("x_sat.jpg", "x_mask.png"), "y_sat": ("y_sat.jpg", "y_mask.png")}
    assert pairs(load(tmp_path)) == expected
    assert pairs(load(tmp_path, image_suffix="_sat", mask_suffix="_mask")) == expected
    assert pairs(load(tmp_path, images=".", masks=".", image_suffix="_sat", mask_suffix="_mask")) == expected


def test_suffixes_of_ones_own(tmp_path):
    write(tmp_path, "x_photo.jpg", "x_mask_v2.png")
    assert pairs(load(tmp_path, images=".", masks=".", image_suffix="_photo", mask_suffix="_mask_v2")) == {
        "x_photo": ("x_photo.jpg", "x_mask_v2.png")
    }
    write(tmp_path / "two", "x.png", "x_photo.png")
    assert pairs(load(tmp_path / "two", image_suffix="_photo")) == {"x_photo": ("x_photo.png", "x.png")}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev"])
def test_a_folder_per_split_with_images_and_masks_in_it(tmp_path, val):
    write(tmp_path, "train/images/x.jpg", "train/masks/x.png", f"{val}/images/x.jpg", f"{val}/masks/x.png")
    for options in ({}, {"images": "{split}/images", "masks": "{split}/masks"}):
        assert pairs(load(tmp_path, **options)) == {"train/x": ("x.jpg", "x.png")}
        assert load(tmp_path, "val", **options).names == [f"{val}/x"]
        with pytest.raises(ValueError, match=f"no split 'test'; there is train, val; make {tmp_path}/test"):
            load(tmp_path, "test", **options)


def test_a_folder_per_split_with_both_beside_each_other(tmp_path):
    write(tmp_path, "train/x_sat.jpg", "train/x_mask.png", "valid/y_sat.jpg", "valid/y_mask.png")
    assert load(tmp_path).names == ["train/x_sat"]
    assert load(tmp_path, "val").names == ["valid/y_sat"]


@pytest.mark.parametrize("folders", [("images", "labels"), ("imgs", "masks"), ("JPEGImages", "SegmentationClass")])
def test_other_usual_names(tmp_path, folders):
    images, masks = folders
    write(tmp_path, f"{images}/x.jpg", f"{masks}/x.png")
    assert pairs(load(tmp_path)) == {"x": ("x.jpg", "x.png")}


def test_a_mask_suffix_in_a_folder_of_masks(tmp_path):
    write(tmp_path, "images/x.jpg", "masks/x_mask.png")
    assert pairs(load(tmp_path)) == {"x": ("x.jpg", "x_mask.png")}
    write(tmp_path, "masks/x.png")
    with pytest.raises(
        ValueError, match=r'masks of two kinds .*mask_suffix: ""} or {image_suffix: "", mask_suffix: "_m'
    ):
        load(tmp_path)
    assert pairs(load(tmp_path, mask_suffix="")) == {"x": ("x.jpg", "x.png")}


@pytest.mark.parametrize(
    ("names", "one", "other"),
    [
        (["x.jpg", "x.png", "x_mask.png"], 'image_suffix: "", mask_suffix: ""}', 'mask_suffix: "_mask"}'),
        (["images/x.jpg", "masks/x.png", "labels/x.png"], 'masks: "masks"}', 'masks: "labels"}'),
        (
            ["images/x.jpg", "masks/x.png", "train/images/x.jpg", "train/masks/x.png"],
            '{images: "images", masks: "masks"}',
            '{images: "{split}/images", masks: "{split}/masks"}',
        ),
        (["images/x.jpg", "masks/x.png", "y.jpg", "y_mask.png"], 'images: "images"', 'images: ".", masks: "."'),
    ],
)
def test_two_ways_to_read_a_folder(tmp_path, names, one, other):
    write(tmp_path, *names)
    with pytest.raises(ValueError, match="can be read in two ways; say in data: which one is meant") as caught:
        load(tmp_path)
    assert one in str(caught.value)
    assert other in str(caught.value)
    assert load(tmp_path, images=names[0].rpartition("/")[0] or ".", masks=names[1].rpartition("/")[0] or ".",
                mask_suffix="").names  # fmt: skip


def test_a_folder_of_masks_beside_one_of_images_is_no_split(tmp_path):
    write(tmp_path, "train/x.jpg", "train_masks/x_mask.png")
    with pytest.raises(
        ValueError, match=r"images: no such folder; in .* there is train, train_masks; set data\.images"
    ):
        load(tmp_path)
    assert pairs(load(tmp_path, images="train", masks="train_masks")) == {"x": ("x.jpg", "x_mask.png")}


def test_masks_within_the_folder_of_images_are_no_images(tmp_path):
    write(tmp_path, "x.jpg", "masks/x.png")
    assert pairs(load(tmp_path, images=".", masks="masks")) == {"x": ("x.jpg", "x.png")}


def test_an_image_beside_others_without_its_mask(tmp_path):
    write(tmp_path, "x.jpg", "x_mask.png", "y.jpg")
    with pytest.raises(ValueError, match=r"y\.jpg has no mask; expected .*y_mask\.png$"):
        load(tmp_path)
    (tmp_path / "y_mask.png").mkdir()
    with pytest.raises(ValueError, match=r"y_mask\.png; what has that name is a folder"):
        load(tmp_path)


def test_masks_as_jpeg_are_named(tmp_path):
    write(tmp_path, "x.jpg", "x_mask.jpg")
    with pytest.raises(
        ValueError, match=r"x\.jpg has no mask; expected .*x_mask\.png; x_mask\.jpg does not count, since"
    ):
        load(tmp_path)


def test_nothing_that_is_known(tmp_path):
    write(tmp_path, "photos/x.jpg", "truth/x.png")
    with pytest.raises(ValueError, match=r"images: no such folder; in .* there is photos, truth; set data.images"):
        load(tmp_path)
    assert len(load(tmp_path, images="photos", masks="truth")) == 1


def test_linked_subfolders(tmp_path):
    write(tmp_path / "disk", "one/x.jpg", "one_masks/x.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images/one").symlink_to(tmp_path / "disk/one")
    (tmp_path / "masks/one").symlink_to(tmp_path / "disk/one_masks")
    assert load(tmp_path).names == ["one/x"]


def test_hidden_copies_are_no_images(tmp_path):
    write(tmp_path, "images/x.jpg", "masks/x.png", "images/.ipynb_checkpoints/x.jpg", "images/._x.jpg",
          "__MACOSX/images/x.jpg")  # fmt: skip
    assert load(tmp_path).names == ["x"]


# Splits.


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("training", "validation", "testing"),
        ("Train", "Valid", "Test"),
        ("training", "dev", "test"),
    ],
)
def test_known_names_of_splits(tmp_path, train, val, test):
    for split in (train, val, test):
        write(tmp_path, f"images/{split}/x.jpg", f"annotations/{split}/x.png")
    for split, folder in (("train", train), ("val", val), ("test", test)):
        assert load(tmp_path, split, val_fraction=0.2).names == [f"{folder}/x"]


def test_masks_may_be_split_by_another_name(tmp_path):
    write(tmp_path, "images/training/x.jpg", "masks/train/x.png")
    assert load(tmp_path).names == ["training/x"]


@pytest.mark.parametrize("kind", ["images/{}/x.jpg masks/{}/x.png", "{}/images/x.jpg {}/masks/x.png"])
@pytest.mark.parametrize(
    "odd",
    ["train2017", "train_extra", "trainval", "holdout", "held-out", "eval", "evaluation", "val2", "minival", "test-dev",
     "fold1", "split_2"],
)  # fmt: skip
def test_folders_that_look_like_splits_are_refused_by_name(tmp_path, kind, odd):
    for split in ("train", odd):
        write(tmp_path, *kind.format(split, split).split())
    with pytest.raises(
        ValueError, match=rf"folder {odd} looks like a split, but known are train, training, val, .*data"
    ):
        load(tmp_path)
    assert load(tmp_path, splits={"train": odd}).names == [f"{odd}/x"]
    assert load(tmp_path, "val", splits={"train": "train", "val": odd}).names == [f"{odd}/x"]


def test_official_validation_images_are_not_trained_on(tmp_path):
    write(tmp_path, *(f"images/{s}/{i}.jpg" for s in ("train2017", "val2017") for i in range(5)))
    write(tmp_path, *(f"masks/{s}/{i}.png" for s in ("train2017", "val2017") for i in range(5)))
    with pytest.raises(ValueError, match="folder train2017 looks like a split"):
        load(tmp_path, val_fraction=0.2)
    splits = {"train": "train2017", "val": "val2017"}
    assert load(tmp_path, splits=splits).names == [f"train2017/{i}" for i in range(5)]
    assert load(tmp_path, "val", splits=splits).names == [f"val2017/{i}" for i in range(5)]
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; add it to data.splits"):
        load(tmp_path, "test", splits=splits)
    assert len(load(tmp_path, splits={"train": "."})) == 10


@pytest.mark.parametrize("inside", ["images/x.jpg masks/x.png", "x.jpg x_mask.png"])
def test_a_folder_per_split_of_other_names(tmp_path, inside):
    for split in ("train2017", "val2017"):
        write(tmp_path, *(f"{split}/{name}" for name in inside.split()))
    with pytest.raises(ValueError, match="folder train2017 looks like a split"):
        load(tmp_path)
    assert load(tmp_path, splits={"train": "train2017"}).names == ["train2017/x"]
    (tmp_path / "val2017").rename(tmp_path / "london")
    (tmp_path / "train2017").rename(tmp_path / "paris")
    splits = {"train": "paris", "val": "london"}
    assert load(tmp_path, "val", splits=splits).names == ["london/x"]


def test_other_subfolders_are_no_splits(tmp_path):
    for folder in ("trains", "valley", "testbed", "devices", "london", "2017"):
        assert split_of(folder) is None
        write(tmp_path, f"images/{folder}/x.jpg", f"masks/{folder}/x.png")
    assert len(load(tmp_path)) == 6


def test_folders_and_lists_that_are_said_to_be_no_splits(tmp_path):
    write(tmp_path, *(f"images/test_{i}/x.jpg" for i in range(5)), *(f"masks/test_{i}/x.png" for i in range(5)))
    (tmp_path / "train_log.txt").write_text("loss 1\n")
    with pytest.raises(ValueError, match=r"folder test_0 looks like a split.* or \{\} if nothing there is a split"):
        load(tmp_path)
    assert len(load(tmp_path, splits={}, val_fraction=0.2)) == 4
    assert len(load(tmp_path, "val", splits={}, val_fraction=0.2)) == 1
    write(tmp_path / "other", "images/x.jpg", "masks/x.png")
    (tmp_path / "other/train_log.txt").write_text("loss 1\n")
    with pytest.raises(ValueError, match=r"list train_log\.txt looks like a split"):
        load(tmp_path / "other")
    assert load(tmp_path / "other", splits={}).names == ["x"]


def test_two_folders_of_one_split(tmp_path):
    write(tmp_path, "images/train/x.jpg", "images/val/x.jpg", "images/valid/x.jpg", "masks/train/x.png")
    with pytest.raises(
        ValueError, match=r"val and valid are both val; say which one is meant: data\.splits: {val: val, …}"
    ):
        load(tmp_path)
    assert load(tmp_path, splits={"train": "train", "val": "valid"}).names == ["train/x"]


def test_lists_of_known_names(tmp_path):
    write(tmp_path, *(f"images/{n}.jpg" for n in "abcd"), *(f"masks/{n}.png" for n in "abcd"))
    (tmp_path / "trainval.txt").write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"list trainval\.txt looks like a split"):
        load(tmp_path)
    assert load(tmp_path, splits={"train": "trainval.txt"}).names == list("abc")
    (tmp_path / "training.txt").write_text("a\n")
    (tmp_path / "validation.txt").write_text("b\nc\n")
    assert load(tmp_path).names == ["a"]
    assert load(tmp_path, "val").names == ["b", "c"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/mine.txt").write_text("d\n")
    assert load(tmp_path, splits={"train": "lists/mine.txt"}).names == ["d"]
    with pytest.raises(ValueError, match=r"gone\.txt: not a readable list"):
        load(tmp_path, splits={"train": "gone.txt"})


def test_lists_may_name_what_image_and_mask_share(tmp_path):
    write(tmp_path, "imgs/0_img.jpg", "imgs/1_img.jpg", "labels/0_gt.png", "labels/1_gt.png")
    (tmp_path / "train.txt").write_text("0\n")
    (tmp_path / "val.txt").write_text("1_img.jpg\n")
    options = {"image_suffix": "_img", "mask_suffix": "_gt"}
    assert pairs(load(tmp_path, **options)) == {"0_img": ("0_img.jpg", "0_gt.png")}
    assert load(tmp_path, "val", **options).names == ["1_img"]


def test_a_split_that_is_none(tmp_path):
    from segdistill.data import build_dataset

    write(tmp_path, "images/x.jpg", "masks/x.png")
    with pytest.raises(ValueError, match=r"splits\.training"):
        build_dataset("folder", "train", root=str(tmp_path), classes=CLASSES, splits={"training": "a"})
    with pytest.raises(ValueError, match=r"images/a: no such folder"):
        load(tmp_path, splits={"train": "a"})


def test_unlabelled_images_are_all_taken_and_read_like_the_others(tmp_path):
    from segdistill.engine.build import build_unlabelled
    from segdistill.engine.config import load_config

    write(tmp_path, "images/x.jpg", "masks/x.png")
    for folder in ("train", "train_extra", "2017"):
        path = tmp_path / "more" / folder / "x.tif"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(path)
    data = {"name": "folder", "root": str(tmp_path), "classes": CLASSES, "image_range": [0, 1]}
    data["unlabelled"] = {"root": str(tmp_path / "more"), "batch_size": 1}
    dataset = build_unlabelled(load_config({"data": data, "student": {"name": "pspnet_resnet18"}}).data)
    assert dataset.names == ["2017/x", "train/x", "train_extra/x"]
    image, mask = dataset[0]
    assert image.unique().tolist() == [128]
    assert mask.unique().tolist() == [255]


def test_unlabelled_images_of_any_data_set(tmp_path):
    import trees
    from segdistill.engine.build import build_unlabelled
    from segdistill.engine.config import load_config

    def unlabelled(**options):
        data = {"name": "synthetic", "size": [32, 64], "unlabelled": {"batch_size": 1, **options}}
        return build_unlabelled(load_config({"data": data, "student": {"name": "pspnet_resnet18"}}).data)

    root = str(trees.cityscapes(tmp_path / "city", sequence=True, coarse=True))
    assert len(unlabelled(name="cityscapes", root=root, sequence=True)) == 6
    labelled = unlabelled(name="cityscapes", root=root, coarse="only")
    assert labelled.masks is None  # they would be read in vain
    assert labelled[0][1].unique().tolist() == [255]
    assert unlabelled(name="synthetic", images=3)[0][0].shape == (3, 32, 64)
    with pytest.raises(ValueError, match=r"data.unlabelled: data set folder needs the option 'root'"):
        unlabelled()
    with pytest.raises(ValueError, match=r"unknown key data.unlabelled.sequense; did you mean sequence"):
        unlabelled(name="cityscapes", root=root, sequense=True)
    with pytest.raises(ValueError, match=r"no data set 'cityscape'; did you mean cityscapes"):
        unlabelled(name="cityscape", root=root)
    with pytest.raises(ValueError, match=r"data.unlabelled: data set cityscapes, sequence: .* got 'x'"):
        unlabelled(name="cityscapes", root=root, sequence="x")
