"""ADE20K as of the scene parsing challenge: scenes of all kinds, with 150 classes."""

from pathlib import Path

import numpy as np

from segdistill.data.dataset import check_split
from segdistill.data.files import Bytes
from segdistill.data.standard import StandardDataset, masks_in, read_table
from segdistill.data.walk import check_folder, find_files, found_in, holds_files
from segdistill.functional import IGNORE

FOLDERS = {"train": "training", "val": "validation"}

IMAGES = {"train": 20210, "val": 2000, "test": 3352}
"""Images of each split, as published."""


class Ade20k(StandardDataset):
    """ADE20K, the challenge version of 150 classes, as it is downloaded.

    `ADEChallengeData2016` holds `images/training/*.jpg` and `annotations/training/*.png`, `validation` likewise. In the
    masks 0 means other, which is ignored, and 1 … 150 are the classes 0 … 149. Names are the short ones that OpenMMLab
    uses, the first synonym of the official list as a rule. `test` is `release_test/testing`, without labels.

    Args:
        split: train, val or test.
        root: the folder with `images` and `annotations`, or the one around it; default $SEGDISTILL_ADE20K.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, no such split, no image in it, or an image without a mask; or if the folder
            holds the full ADE20K, which has thousands of classes in other files.

    Source:
        Zhou et al., Scene parsing through ADE20K dataset, 2017; classes of github.com/CSAILVision/sceneparsing.
    """

    title = "ADE20K"
    variable = "SEGDISTILL_ADE20K"

    def __init__(self, split: str, *, root: str | None = None, max_pixels: int | None = None):
        check_split(split)
        self.max_pixels = max_pixels
        self.classes, self.palette = read_table("ade20k")
        folder = self.find_root(root, ["images"], ["ADEChallengeData2016"])
        if split == "test":
            images, masks = find_files(_test_folder(folder), (".jpg",)), None
        else:
            place, truth = folder / "images" / FOLDERS[split], folder / "annotations" / FOLDERS[split]
            if not place.is_dir() or not truth.is_dir():
                self.refuse_other(folder)
            check_folder(place, "unpack ADEChallengeData2016.zip")
            check_folder(truth, "unpack ADEChallengeData2016.zip")
            images, masks = find_files(place, (".jpg",)), masks_in(truth)
            if not images:
                self.refuse_other(folder)
                raise ValueError(f"{place}: no ADE_….jpg in it, but {found_in(place)}; unpack ADEChallengeData2016.zip")
        super().__init__(images, masks, lambda name: f"{truth / name}.png")
        self.remark_count(split, IMAGES[split])

    def refuse_other(self, folder: Path) -> None:
        """Refuse the full ADE20K by its name."""
        if holds_files(folder, ("_seg.png",)):
            raise ValueError(
                f"{folder}: the full ADE20K (*_seg.png, thousands of classes), where the challenge version with 150 "
                "classes is meant; take ADEChallengeData2016.zip, from data.csail.mit.edu/places/ADEchallenge"
            )

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask that counts from 1."""
        hint = "0 means other and 1 to 150 are the classes; a mask of the full ADE20K has other values"
        values = self.read_values(path, len(self.classes) + 1, hint)
        ids: Bytes = np.where(values == IGNORE, values, values - np.uint8(1))  # 0 becomes 255 by itself
        return ids


def _test_folder(folder: Path) -> Path:
    places = [
        folder / "images" / "testing",
        folder / "images" / "test",
        folder / "release_test" / "testing",
        folder.parent / "release_test" / "testing",
    ]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        check_split("test", [s for s, name in FOLDERS.items() if (folder / "images" / name).is_dir()],
                    f"unpack release_test.zip, so that there is {places[2]}")  # fmt: skip
    assert found is not None
    return found
