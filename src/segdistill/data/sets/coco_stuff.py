"""COCO-Stuff of all 164 thousand images of COCO: 80 kinds of things and 91 of stuff, 171 classes."""

from pathlib import Path

import numpy as np

from segdistill.data.dataset import check_split
from segdistill.data.files import Bytes
from segdistill.data.standard import StandardDataset, masks_in, read_table
from segdistill.data.walk import check_folder, find_files, found_in
from segdistill.functional import IGNORE

UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values that no mask holds: things that COCO named and never labelled, such as street sign, hat and shoe."""

USED = np.array([value for value in range(182) if value not in UNUSED])
"""The value of each class in the published masks."""

IDS = np.full(256, IGNORE, np.uint8)
"""Value of a published mask → class."""
IDS[USED] = np.arange(len(USED))

TRAIN_END = "_labelTrainIds"

IMAGES = {"train": 118287, "val": 5000, "test": 40670}
"""Images of each split, as published."""


class CocoStuff(StandardDataset):
    """COCO-Stuff 164k as it is downloaded: things and stuff, 171 classes.

    Images are `images/train2017/*.jpg`, masks those of stuffthingmaps, in `annotations/train2017`; `val2017` likewise.
    The published masks hold 0 … 181, of which 11 values are never used: they become 171 classes without gaps, void
    stays 255. `…_labelTrainIds.png`, which OpenMMLab makes of them, are read where the published ones are missing.
    `test` is `images/test2017`, without labels.

    Differs from the code of CIRKD: it has 182 classes, of which 11 never occur but are counted as 0 in the mean IoU, so
    that its figures are 171/182 of the usual ones at most.

    Args:
        split: train, val or test.
        root: the folder with `images` and `annotations` (or `stuffthingmaps`); default $SEGDISTILL_COCO_STUFF.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, no such split, no image in it, or an image without a mask.

    Source:
        Caesar et al., COCO-Stuff: thing and stuff classes in context, 2018.
    """

    title = "COCO-Stuff"
    variable = "SEGDISTILL_COCO_STUFF"

    def __init__(self, split: str, *, root: str | None = None, max_pixels: int | None = None):
        check_split(split)
        self.max_pixels = max_pixels
        self.classes, self.palette = read_table("coco_stuff")
        part = f"{split}2017"
        folder = self.find_root(root, ["images", part])
        place = folder / part if (folder / part).is_dir() else folder / "images" / part
        check_folder(place, f"unpack {part}.zip there")
        images = find_files(place, (".jpg",))
        if not images:
            raise ValueError(f"{place}: no .jpg in it, but {found_in(place)}; unpack {part}.zip there")
        masks, truth = None, folder / "annotations" / part
        if split != "test":
            other = folder / "stuffthingmaps" / part
            truth = other if other.is_dir() and not truth.is_dir() else truth
            check_folder(truth, f"unpack stuffthingmaps_trainval2017.zip, and call the folder {truth}")
            found = masks_in(truth)
            masks = {name.removesuffix(TRAIN_END): path for name, path in found.items() if name.endswith(TRAIN_END)}
            masks |= {name: path for name, path in found.items() if not name.endswith(TRAIN_END)}
        super().__init__(images, masks, lambda name: f"{truth / name}.png (or …{TRAIN_END}.png)")
        self.remark_count(split, IMAGES[split])

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a published mask, or of one of train ids, as its name says."""
        if path.stem.endswith(TRAIN_END):
            hint = f"values up to 181 are those of the published masks, whose names have no {TRAIN_END}"
            return self.read_values(path, len(USED), hint)
        values = self.read_values(path, 182, "take the PNGs of stuffthingmaps_trainval2017.zip, not COCO's other masks")
        ids: Bytes = IDS[values]
        odd = (ids == IGNORE) & (values != IGNORE)
        if odd.any():
            which = ", ".join(map(str, np.unique(values[odd]).tolist()))
            raise ValueError(
                f"{path}: label values {which} in {odd.sum()} pixels, numbers that COCO-Stuff leaves unused; "
                f"masks of train ids (0 … 170) must be called …{TRAIN_END}.png, and ids that count from 1 (0 is void) "
                "be lessened by one"
            )
        return ids
