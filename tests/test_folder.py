import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import write_image as write
from segdistill.data import build_dataset
from segdistill.data.dataset import MissingMasks
from segdistill.data.sets.folder import Folder

THREE = ["sky", "road", "car"]
COLOURS = {"sky": [10, 20, 30], "road": "#ff0000", "car": [0, 0, 0]}


def palette_image(path, indices, colours):
    image = Image.fromarray(np.asarray(indices, np.uint8), "L").convert("P")
    image.putdata(np.asarray(indices, np.uint8).ravel().tolist())
    image.putpalette([part for colour in colours for part in colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def root(tmp_path):
    """Ten images of 3×2 pixels, a.png … j.png, with masks of ids."""
    for number, name in enumerate("abcdefghij"):
        write(tmp_path / "images" / f"{name}.png", np.full((2, 3, 3), number))
        write(tmp_path / "masks" / f"{name}.png", [[0, 1, 2], [255, 0, number % 3]])
    return tmp_path


def mask_of(root, **options):
    """What becomes of the one mask of a data set."""
    dataset = Folder("train", root=str(root), val_fraction=0.0, **options)
    return dataset[dataset.names.index("a")][1].tolist()


@pytest.fixture
def one(tmp_path):
    """One image a.png of 3×2 pixels, and a function that writes its mask."""
    write(tmp_path / "images" / "a.png", np.zeros((2, 3, 3)))
    (tmp_path / "masks").mkdir()
    return tmp_path


def test_a_config_of_three_lines(root):
    config = yaml.safe_load(f"root: {root}\nclasses: [sky, road, car]\n")
    dataset = build_dataset("folder", "train", **config)
    image, mask = dataset[0]
    assert image.shape == (3, 2, 3)
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.int64)
    number = "abcdefghij".index(dataset.names[0])
    assert (image == number).all()
    assert mask.tolist() == [[0, 1, 2], [255, 0, number % 3]]
    assert dataset.classes == THREE
    assert len(set(dataset.palette)) == 3


# How it is split.


def names(root, split, **options):
    return Folder(split, root=str(root), classes=THREE, **options).names


def test_a_fraction_depends_on_names_and_seed_alone(root):
    train, val = names(root, "train"), names(root, "val")
    assert len(val) == 2
    assert sorted(train + val) == list("abcdefghij")
    assert names(root, "val", split_seed=1) != val or names(root, "val", split_seed=2) != val
    parts = [names(root, split, val_fraction=0.3, test_fraction=0.2) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [5, 3, 2]
    assert sorted(sum(parts, [])) == list("abcdefghij")  # noqa: RUF017
    assert parts[0] == sorted(parts[0])


def test_a_new_image_hardly_moves_the_others(root):
    before = set(names(root, "val", val_fraction=0.5))
    for folder in ("images", "masks"):
        write(root / folder / "k.png", np.zeros((2, 3, 3) if folder == "images" else (2, 3)))
    after = set(names(root, "val", val_fraction=0.5))
    assert len(before ^ after - {"k"}) <= 2


def test_a_small_fraction_still_gets_an_image(root):
    assert len(names(root, "val", val_fraction=0.01)) == 1


def test_a_fraction_without_test_says_so(root):
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; set data.test_fraction, or make"):
        names(root, "test")
    with pytest.raises(ValueError, match="no split 'val'; there is train"):
        names(root, "val", val_fraction=0.0)
    with pytest.raises(ValueError, match=r"val_fraction 0.7 and test_fraction 0.3 must leave some for train"):
        names(root, "val", val_fraction=0.7, test_fraction=0.3)


def test_split_by_folders(tmp_path):
    for split, stem in (("train", "x"), ("train", "deep/y"), ("val", "x")):
        write(tmp_path / "images" / split / f"{stem}.png", np.zeros((2, 2, 3)))
        write(tmp_path / "masks" / split / f"{stem}.png", np.full((2, 2), split == "val"))
    assert names(tmp_path, "train") == ["train/deep/y", "train/x"]
    val = Folder("val", root=str(tmp_path), classes=THREE)
    assert val.names == ["val/x"]
    assert val[0][1].unique().tolist() == [1]
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; make .*images/test"):
        names(tmp_path, "test")


def test_split_by_lists(root):
    (root / "train.txt").write_text("c\nb.png\n\n")
    (root / "val.txt").write_text("a\n")
    assert names(root, "train") == ["c", "b"]
    assert names(root, "val") == ["a"]
    with pytest.raises(ValueError, match=r"no split 'test'; there is train, val; .*write .*test.txt"):
        names(root, "test")
    (root / "val.txt").write_text("a\nz\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: no image 'z'"):
        names(root, "val")
    (root / "val.txt").write_text("a\na.png\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: 'a.png' is listed twice"):
        names(root, "val")
    (root / "val.txt").write_text("")
    with pytest.raises(ValueError, match=r"val\.txt: no image in it for split 'val'"):
        names(root, "val")


# What masks may look like.


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "1", "LA"])
def test_ids_of_every_kind(one, mode):
    ids = [[0, 1, 1], [1, 0, 0]]
    image = Image.fromarray(np.array(ids, np.uint16 if mode == "I;16" else np.uint8) * (255 if mode == "1" else 1))
    (image if mode == "I;16" else image.convert(mode)).save(one / "masks" / "a.tif")
    assert mask_of(one, classes=THREE) == ids


def test_mask_suffix_and_other_folders(tmp_path):
    write(tmp_path / "photos" / "a.png", np.zeros((2, 2, 3)))
    write(tmp_path / "labels" / "a_label.tif", np.ones((2, 2)))
    assert mask_of(tmp_path, classes=THREE, images="photos", masks="labels", mask_suffix="_label") == [[1, 1], [1, 1]]


def test_a_palette_masks_indices_are_ids(one):
    palette_image(one / "masks" / "a.png", [[0, 1, 2], [2, 1, 0]], [(9, 9, 9), (8, 8, 8), (7, 7, 7)])
    assert mask_of(one, classes=THREE) == [[0, 1, 2], [2, 1, 0]]
    assert mask_of(one, classes=COLOURS, by_colour=False) == [[0, 1, 2], [2, 1, 0]]


def test_a_palette_mask_is_read_by_its_colours_if_the_classes_have_some(one):
    palette_image(one / "masks" / "a.png", [[0, 1, 2], [2, 1, 0]], [(0, 0, 0), (10, 20, 30), (255, 0, 0)])
    assert mask_of(one, classes=COLOURS) == [[2, 0, 1], [1, 0, 2]]


def test_colours_become_ids(one):
    write(one / "masks" / "a.png", [[(10, 20, 30), (255, 0, 0), (0, 0, 0)], [(1, 1, 1), (0, 0, 0), (2, 2, 2)]])
    assert mask_of(one, classes=COLOURS, ignore=[[1, 1, 1], "#020202"]) == [[0, 1, 2], [255, 2, 255]]


def test_ids_are_ids_even_if_the_classes_have_colours(root):
    assert mask_of(root, classes=COLOURS)[0] == [0, 1, 2]


def test_ignored_and_renamed_values(one):
    write(one / "masks" / "a.png", [[0, 255, 7], [40, 0, 255]])
    assert mask_of(one, classes=THREE, ignore=[7, 40]) == [[0, 255, 255], [255, 0, 255]]
    assert mask_of(one, classes=THREE, values={255: 1, 7: 2, 40: 255}) == [[0, 1, 2], [255, 0, 1]]
    assert mask_of(one, classes=THREE, values={0: 1, 7: 0}, ignore=40) == [[1, 255, 0], [255, 1, 255]]


def test_images_without_masks(root):
    dataset = Folder("train", root=str(root), masks=None)
    assert len(dataset) == 10
    assert (dataset[3][1] == 255).all()
    assert dataset.classes == dataset.palette == []
    with pytest.raises(ValueError, match="no split 'val'; there is train"):
        Folder("val", root=str(root), masks=None)


# Where classes come from.


@pytest.mark.parametrize(
    ("file", "text", "colours"),
    [
        ("classes.txt", "sky\n\nroad\ncar\n", False),
        ("classes.txt", "# names\nsky 10 20 30\nroad 255 0 0\ncar 0, 0, 0\n", True),
        ("classes.yaml", "[sky, road, car]", False),
        ("classes.yml", "{0: sky, 1: road, 2: car}", False),
        ("classes.yaml", "sky: [10, 20, 30]\nroad: '#ff0000'\ncar: [0, 0, 0]\n", True),
        ("classes.json", json.dumps(THREE), False),
        ("classes.json", json.dumps(COLOURS), True),
    ],
)
def test_classes_from_a_file(root, file, text, colours):
    (root / file).write_text(text)
    for place in (file, str(root / file)):
        dataset = Folder("train", root=str(root), classes=place)
        assert dataset.classes == THREE
        assert (dataset.palette == [(10, 20, 30), (255, 0, 0), (0, 0, 0)]) is colours


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[sky, [", "classes.yaml: while parsing"),
        ("{0: sky, 2: road}", r"classes.yaml: ids must be 0, 1, 2, …, got \[0, 2\]"),
        ("3", "classes.yaml: expected a list of names, or name: colour, got 3"),
        ("[sky, sky]", "classes.yaml: class 'sky' is listed 2 times"),
        ("[]", "classes.yaml: expected 1 to 255 classes, got 0"),
        ("{sky: [1, 2]}", r"classes.yaml: expected a colour as \[r, g, b\] or \"#rrggbb\", got \[1, 2\]"),
        ("{sky: [1, 2, 300]}", "classes.yaml: colour .* is not within 0 … 255"),
        ("{sky: greenish}", "classes.yaml: expected a colour"),
        ("!!python/object/apply:os.getcwd []", "classes.yaml: could not determine a constructor"),
    ],
)
def test_mistakes_in_a_file_of_classes(root, text, line):
    (root / "classes.yaml").write_text(text)
    with pytest.raises(ValueError, match=line) as caught:
        Folder("train", root=str(root), classes="classes.yaml")
    assert "\n" not in str(caught.value)


def test_no_classes(root):
    with pytest.raises(ValueError, match=r"folder: no classes; set data.classes"):
        Folder("train", root=str(root))
    with pytest.raises(ValueError, match=r"data.classes: no file 'gone.txt', here or in"):
        Folder("train", root=str(root), classes="gone.txt")
    (root / "half.txt").write_text("sky 1 2 3\nroad\n")
    with pytest.raises(ValueError, match=r"half.txt: 'road' has no colour, others have"):
        Folder("train", root=str(root), classes="half.txt")


# Images.


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".bmp", ".gif", ".PNG"])
def test_images_of_every_kind(tmp_path, suffix):
    write(tmp_path / "images" / f"a{suffix}", np.full((8, 8, 3), 100))
    write(tmp_path / "masks" / "a.png", np.zeros((8, 8)))
    image = Folder("train", root=str(tmp_path), classes=THREE, val_fraction=0.0)[0][0]
    assert (image.int() - 100).abs().max() <= 2


# Mistakes.


def test_an_image_without_a_mask(root):
    (root / "masks" / "d.png").unlink()
    with pytest.raises(MissingMasks, match=r"images/d\.png has no mask; expected .*masks/d\.png$"):
        Folder("train", root=str(root), classes=THREE, val_fraction=0.0)
    (root / "masks" / "e.png").unlink()
    with pytest.raises(ValueError, match=r"d\.png has no mask; .*\(and 1 more; `segdistill data check` lists them\)"):
        Folder("train", root=str(root), classes=THREE, val_fraction=0.0)


def test_a_mask_as_jpeg(root):
    (root / "masks" / "d.png").rename(root / "masks" / "d.jpg")
    with pytest.raises(ValueError, match=r"d\.jpg does not count, since JPEG changes label values"):
        Folder("train", root=str(root), classes=THREE, val_fraction=0.0)


def test_sizes_that_differ(one):
    write(one / "masks" / "a.png", np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"images/a\.png is 3×2 but its mask .*masks/a\.png is 3×4; they must"):
        mask_of(one, classes=THREE)
    write(one / "masks" / "a.png", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"is 2×3 \(turned: does the image have EXIF orientation\?\)"):
        mask_of(one, classes=THREE)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([[0, 1, 9], [8, 8, 0]], r"masks/a\.png: label values 8, 9 in 3 pixels; expected 0 to 2, or 255 for void; map"),
        (
            [[0, 1, 3], [3, 2, 255]],
            r"label values 3 in 2 pixels; .* set data.ignore: \[3\]; if ids count from 1, set data.reduce_zero_label",
        ),
        ([[0, 128, 255], [0, 0, 0]], r"label values 128 .* grey levels rather than ids\?"),
        (np.arange(6).reshape(2, 3) * 40, "label values 40, 80, 120, 160, 200 in 5 pixels"),
        (np.arange(3, 9).reshape(2, 3), "label values 3, 4, 5, 6, 7 and 1 more in 6 pixels"),
    ],
)
def test_values_out_of_range(one, values, line):
    write(one / "masks" / "a.png", values)
    with pytest.raises(ValueError, match=line):
        mask_of(one, classes=THREE)


def test_large_values_do_not_wrap_around(one):
    Image.fromarray(np.array([[0, 256, 1], [0, 511, 0]], np.uint16)).save(one / "masks" / "a.png")
    with pytest.raises(ValueError, match="label values 256, 511 in 2 pixels"):
        mask_of(one, classes=THREE)


def test_values_may_not_be_mapped_to_a_class_that_is_not_there(one):
    write(one / "masks" / "a.png", np.full((2, 3), 7))
    with pytest.raises(ValueError, match="label values 5"):
        mask_of(one, classes=THREE, values={7: 5})


def test_colours_where_ids_are_expected(one):
    write(one / "masks" / "a.png", np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"a\.png: a mask of colours, but the classes have none; give each a colour"):
        mask_of(one, classes=THREE)


def test_a_palette_mask_that_was_meant_otherwise(one):
    palette_image(one / "masks" / "a.png", [[0, 1, 2], [2, 1, 0]], [(1, 1, 1), (2, 2, 2), (3, 3, 3)])
    with pytest.raises(ValueError, match=r"\(1,1,1\), \(2,2,2\), \(3,3,3\) in 6 pixels, .* set data.by_colour: false"):
        mask_of(one, classes=COLOURS)
    palette_image(one / "masks" / "a.png", [[0, 1, 2], [2, 1, 7]], [(i, i, i) for i in range(8)])
    with pytest.raises(ValueError, match=r"label values 7 in 1 pixels; .* give colours in data.classes for a palette"):
        mask_of(one, classes=THREE)


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_file_that_cannot_be_read(one, content):
    write(one / "masks" / "a.png", np.random.default_rng(0).integers(0, 3, (2, 3)))
    good = (one / "masks" / "a.png").read_bytes()
    for folder in ("images", "masks"):
        path = one / folder / "a.png"
        kept = path.read_bytes()
        path.write_bytes(good[: len(good) // 2] if content == "half" else content)
        with pytest.raises(
            ValueError, match=rf"{folder}/a\.png: not a readable image \(.*\); replace or remove it"
        ) as e:
            mask_of(one, classes=THREE)
        assert "\n" not in str(e.value)
        path.write_bytes(kept)


def test_floats_are_no_ids(one):
    Image.fromarray(np.zeros((2, 3), np.float32)).save(one / "masks" / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: a mask of mode F; save class ids as an 8-bit PNG"):
        mask_of(one, classes=THREE)


def test_folders_that_are_missing(root, tmp_path):
    with pytest.raises(ValueError, match=r"gone: no such folder; in .* there is images, masks; set data.root"):
        Folder("train", root=str(root / "gone"), classes=THREE)
    with pytest.raises(ValueError, match=r"photos: no such folder; in .* there is images, masks; set data.images"):
        Folder("train", root=str(root), classes=THREE, images="photos")
    with pytest.raises(ValueError, match=r"labels: no such folder; .* set data.masks, or `masks: null`"):
        Folder("train", root=str(root), classes=THREE, masks="labels")


def test_an_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "images" / "._a.png").write_bytes(b"")
    (tmp_path / "images" / "notes.md").write_text("")
    with pytest.raises(ValueError, match="images: no image in it for split 'train'"):
        names(tmp_path, "train")


def test_two_images_of_one_name(root):
    write(root / "images" / "a.jpg", np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"images/a\.png and a\.jpg have one name; keep one of the two"):
        names(root, "train")


def test_home_and_relative_paths(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.chdir(root.parent)
    for place in (f"~/{root.name}", root.name):
        assert len(Folder("train", root=place, classes=THREE)) == 8


# Formats of classes and masks that other tools write.


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:10,20,30::\nroad:255,0,0::\ncar:0,0,0:wheel:drive\n"),
        ("class_dict.csv", "name,r,g,b\nsky,10,20,30\nroad,255,0,0\ncar,0,0,0\n"),
        ("class_dict.csv", 'Name, R, G, B\n"sky", 10, 20, 30\nroad, 255, 0, 0\n\ncar, 0, 0, 0\n'),
        ("class_dict.csv", "sky,10,20,30\nroad,255,0,0\ncar,0,0,0\n"),
    ],
)
def test_classes_as_other_tools_write_them(root, file, text):
    (root / file).write_text(text)
    dataset = Folder("train", root=str(root), classes=file)
    assert dataset.classes == THREE
    assert dataset.palette == [(10, 20, 30), (255, 0, 0), (0, 0, 0)]


def test_names_with_commas_and_names_alone(root):
    (root / "class_dict.csv").write_text('"sky, clouds",10,20,30\nroad,255,0,0\ncar,0,0,0\n')
    assert Folder("train", root=str(root), classes="class_dict.csv").classes[0] == "sky, clouds"
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nsky:::\nroad:::\ncar:::\n")
    assert Folder("train", root=str(root), classes="labelmap.txt").classes == THREE
    (root / "names.csv").write_text("sky\nroad\ncar\n")
    assert Folder("train", root=str(root), classes="names.csv").classes == THREE


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("c.csv", "name,red\nsky,1", "expected the columns name,r,g,b, got name,red"),
        ("c.csv", "name,r,g,b\nsky,1,2", "expected name,r,g,b in each line, got sky,1,2"),
        ("c.csv", "name,r,g,b\nsky,1,2,3\nroad", "'road' has no colour, others have"),
        ("c.csv", "name,r,g,b\nsky,1,2,3\nsky,4,5,6", "class 'sky' is listed 2 times"),
        ("c.csv", "name,r,g,b\nsky,1,2,300\nroad,1,2,3", "is not within 0 … 255"),
        ("labelmap.txt", "a:1,2,3::\nb:::", "'b' has no colour, others have"),
        ("c.txt", "sky 1 2 3\nsky 4 5 6", "class 'sky' is listed 2 times"),
        ("c.csv", "", "expected 1 to 255 classes, got 0"),
    ],
)
def test_mistakes_in_files_of_other_tools(root, file, text, line):
    (root / file).write_text(text)
    with pytest.raises(ValueError, match=line) as caught:
        Folder("train", root=str(root), classes=file)
    assert str(caught.value).startswith(str(root / file))


def test_a_file_of_classes_that_is_no_text(root):
    (root / "classes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=r"classes\.txt: "):
        Folder("train", root=str(root), classes="classes.txt")


def test_ids_that_count_from_1(one):
    write(one / "masks" / "a.png", [[0, 1, 2], [3, 255, 1]])
    assert mask_of(one, classes=THREE, reduce_zero_label=True) == [[255, 0, 1], [2, 255, 0]]
    assert mask_of(one, classes=THREE, reduce_zero_label=True, ignore=[3], values={0: 2}) == [[2, 0, 1], [255, 255, 0]]
    write(one / "masks" / "a.png", [[0, 1, 2], [4, 255, 1]])
    with pytest.raises(ValueError, match="label values 3 in 1 pixels"):
        mask_of(one, classes=THREE, reduce_zero_label=True)
    Image.fromarray(np.array([[1, 2], [256, 3]], np.uint16)).save(one / "masks" / "a.png")
    with pytest.raises(ValueError, match="label values 256 in 1 pixels"):  # one less would be void
        mask_of(one, classes=THREE, reduce_zero_label=True)
    write(one / "masks" / "a.png", np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"a mask of colours, but data\.reduce_zero_label is about ids; remove it"):
        mask_of(one, classes=COLOURS, reduce_zero_label=True)


def test_one_class_is_refused(one):
    write(one / "masks" / "a.png", np.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=r"only 'car', which every pixel would be; add a background class, as in \[back"
    ):
        mask_of(one, classes=["car"])


def test_a_range_and_a_limit_reach_the_images(one):
    Image.fromarray(np.array([[0, 0.5, 1], [1, 2, -1]], np.float32)).save(one / "images" / "a.tif")
    (one / "images" / "a.png").unlink()
    write(one / "masks" / "a.png", np.zeros((2, 3)))
    dataset = Folder("train", root=str(one), classes=THREE, val_fraction=0.0, image_range=(0, 1))
    assert dataset[0][0][0].tolist() == [[0, 128, 255], [255, 255, 0]]
    with pytest.raises(ValueError, match=r"a\.tif: an image of floats \(-1 to 2\)"):
        Folder("train", root=str(one), classes=THREE, val_fraction=0.0)[0]
    assert "floats" in Folder("train", root=str(one), classes=THREE, val_fraction=0.0).problems(0)[0]
    assert dataset.problems(0) == []
