"""Pascal Context: the photographs of VOC 2010, labelled throughout, with 59 classes."""

from pathlib import Path
from typing import Literal

import numpy as np

from segdistill.data.dataset import check_split
from segdistill.data.files import Bytes
from segdistill.data.standard import StandardDataset, choose_images, masks_in, read_list, read_table
from segdistill.data.walk import check_folder
from segdistill.functional import IGNORE

BACKGROUND = ("background", (120, 120, 120))

LABELS_459 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
    397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip
"""Which of the 459 labels each of the 59 classes is; all others are background."""

FCN_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench",
    "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door", "fence", "floor", "flower",
    "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate",
    "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree", "truck", "wall", "water",
    "window", "wood",
)  # fmt: skip
"""The classes in the order of FCN's release, which begins with VOC's own 20."""

FCN_ALIASES = {"diningtable": "table", "clothes": "cloth", "bedcloth": "bedclothes"}
"""FCN's names of classes that OpenMMLab calls otherwise."""

IMAGES = {"train": 4998, "val": 5105, "test": 9637}
"""Images of each split, as published."""


class PascalContext(StandardDataset):
    """Pascal Context: the photographs of VOC 2010, with 59 or 60 classes.

    It lies in `VOCdevkit/VOC2010`, as OpenMMLab's converted PNGs or as the published `.mat` files.
    `SegmentationClassContext/*.png` hold 0 for background and 1 … 59. Where a mask is not there, `trainval/*.mat` is
    read (in `VOC2010`, in a folder around it, or in `mat`), of whose 459 labels 59 are kept (extra `data`). The splits
    are `ImageSets/SegmentationContext/{train,val}.txt`, else VOC's own `ImageSets/Main`, which are the same.

    Args:
        split: train, val or test.
        root: the folder with `JPEGImages`, or `VOCdevkit`, or the one around it; default $SEGDISTILL_PASCAL_CONTEXT.
        background: false: 59 classes, the background is ignored; true: 60, and it is the first.
        order: of the classes: `mmseg`, by their number among the 459, or `fcn`, VOC's 20 first.
        mat: the folder of the `.mat` files, where it is not called `trainval`.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, list or image, or an image without a mask.

    Source:
        Mottaghi et al., The role of context for object detection and semantic segmentation in the wild, 2014.
    """

    title = "Pascal Context"
    variable = "SEGDISTILL_PASCAL_CONTEXT"
    mat_keys = ("LabelMap",)

    def __init__(
        self,
        split: str,
        *,
        root: str | None = None,
        background: bool = False,
        order: Literal["mmseg", "fcn"] = "mmseg",
        mat: str | None = None,
        max_pixels: int | None = None,
    ):
        check_split(split)
        self.max_pixels = max_pixels
        names, colours = read_table("pascal_context")
        ordered = names if order == "mmseg" else [FCN_ALIASES.get(name, name) for name in FCN_NAMES]
        first = [BACKGROUND] if background else []
        self.classes = [name for name, _ in first] + (names if order == "mmseg" else list(FCN_NAMES))
        self.palette = [colour for _, colour in first] + [colours[names.index(name)] for name in ordered]
        self.ids = np.full(256, IGNORE, np.uint8)
        """Value of a PNG → class."""
        self.ids[1:60] = [len(first) + ordered.index(name) for name in names]
        self.ids[0] = 0 if background else IGNORE

        folder = self.find_root(root, ["JPEGImages"], ["VOC2010", "VOCdevkit/VOC2010"])
        lists = _list_folder(folder, split)
        chosen = read_list(lists / f"{split}.txt")
        images = choose_images(folder / "JPEGImages", chosen, lists)
        place = folder / "SegmentationClassContext"
        masks = None if split == "test" else _mat_files(folder, mat) | masks_in(place)
        expected = "(OpenMMLab's), or trainval/NAME.mat (the published file)"
        super().__init__(images, masks, lambda name: f"{place / name}.png {expected}")
        self.remark_count(split, IMAGES[split])

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a PNG of 59 classes and background, or of 459 labels."""
        values = self.read_mask(path)
        if path.suffix == ".mat" and values.max(initial=0) <= 459:
            kept = np.searchsorted(LABELS_459, values).clip(max=len(LABELS_459) - 1)
            values = np.where(np.asarray(LABELS_459)[kept] == values, kept + 1, 0)
        ids: Bytes = self.ids[self.check_values(values, 60, path, "0 is background, 1 to 59 are the classes")]
        return ids


def _list_folder(folder: Path, split: str) -> Path:
    sets = folder / "ImageSets"
    check_folder(sets, "unpack VOCtrainval_03-May-2010.tar")
    places = [sets / "SegmentationContext", sets / "Main"]
    found = next((place for place in places if (place / f"{split}.txt").is_file()), None)
    if found is None:
        there = [s for s in ("train", "val", "test") if any((place / f"{s}.txt").is_file() for place in places)]
        check_split(split, there, f"looked for {split}.txt in {places[0]} and {places[1]}")
    assert found is not None
    return found


def _mat_files(folder: Path, mat: str | None) -> dict[str, Path]:
    if mat is not None:
        check_folder(Path(mat).expanduser(), "set data.mat to the folder of Pascal Context's .mat files")
        return masks_in(Path(mat).expanduser(), ".mat")
    places = [parent / "trainval" for parent in (folder, folder.parent, folder.parent.parent)]
    return next((found for place in places if (found := masks_in(place, ".mat"))), {})
