"""Cityscapes: street scenes of 50 cities, 2048×1024, with 19 classes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from segdistill._types import Colour
from segdistill.data.dataset import check_split
from segdistill.data.files import Bytes
from segdistill.data.standard import StandardDataset
from segdistill.data.walk import check_folder, find_files, found_in, names_below
from segdistill.functional import IGNORE

PALETTE: dict[str, Colour] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label id of each class; all others are void."""

TRAIN_IDS = np.full(256, IGNORE, np.uint8)
"""Label id → class."""
TRAIN_IDS[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))

SNIPPET = 30
"""Frames of a sequence, of which the 20th is that of `leftImg8bit`."""

ENDS = ("_labelids.png", "_labeltrainids.png")

IMAGES = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
"""Images of each split, as published."""


class Cityscapes(StandardDataset):
    """Cityscapes as it is downloaded: streets, with the 19 classes that are evaluated.

    Images are `leftImg8bit/train/aachen/…_leftImg8bit.png`. Masks are `gtFine/train/aachen/…_gtFine_labelIds.png`,
    whose ids 0 … 33 become the 19 classes that are evaluated; where these are missing, `…_gtFine_labelTrainIds.png`,
    which cityscapesScripts make of them. `test` has no labels, and neither has a split without its folder in `gtFine`:
    every pixel is 255.

    Args:
        split: train, val or test.
        root: the folder with `leftImg8bit`; default $SEGDISTILL_CITYSCAPES.
        coarse: true: `train` also has the images of `train_extra` with their labels in `gtCoarse`; `only`: it has none
            but these.
        sequence: the frames of `leftImg8bit_sequence`, without labels, instead of the labelled ones.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, no such split, no image in it, or an image without a mask.

    Source:
        Cordts et al., The Cityscapes dataset for semantic urban scene understanding, 2016; names, colours and ids of
        cityscapesScripts.
    """

    title = "Cityscapes"
    variable = "SEGDISTILL_CITYSCAPES"

    def __init__(
        self,
        split: str,
        *,
        root: str | None = None,
        coarse: bool | Literal["only"] = False,
        sequence: bool = False,
        max_pixels: int | None = None,
    ):
        check_split(split)
        if coarse and sequence:
            raise ValueError(
                "Cityscapes: coarse and sequence do not go together: sequences have no labels; leave out one"
            )
        self.max_pixels = max_pixels
        self.classes = list(PALETTE)
        self.palette = list(PALETTE.values())
        self.kind = "leftImg8bit_sequence" if sequence else "leftImg8bit"
        self.folder = self.find_root(root, [self.kind])
        parts = [split]
        if coarse and split == "train":
            parts = ["train_extra"] if coarse == "only" else ["train", "train_extra"]
        images = {name: path for part in parts for name, path in self._images(part)}
        masks: dict[str, Path] | None = None
        if len(parts) > 1 or parts[0] == "train_extra" or self._has_labels(split):
            masks = {name: path for part in parts for name, path in self._masks(part)}
        super().__init__(images, masks, self._expected)
        self.remark_count(" and ".join(parts), sum(IMAGES[part] for part in parts) * (SNIPPET if sequence else 1))

    def _images(self, part: str) -> Iterator[tuple[str, Path]]:
        place = self.folder / self.kind / part
        package = "trainextra" if part == "train_extra" else "trainvaltest"
        check_folder(place, f"unpack {self.kind}_{package}.zip")
        found = {n: p for n, p in find_files(place, (".png", ".jpg")).items() if n.endswith("_leftImg8bit")}
        if not found:
            raise ValueError(
                f"{place}: no CITY/…_leftImg8bit.png in it, but {found_in(place)}; unpack the images there"
            )
        yield from found.items()

    def _has_labels(self, split: str) -> bool:
        if split == "test" or self.kind == "leftImg8bit_sequence":  # masks of test hold nothing but void
            return False
        place = self.folder / "gtFine" / split
        if not place.is_dir():
            there = found_in(self.folder / "gtFine" if place.parent.is_dir() else self.folder)
            self.remarks = [
                f"{place} is not there, but {there}: images without labels; unpack gtFine_trainvaltest.zip to have them"
            ]
        return place.is_dir()

    def _masks(self, part: str) -> Iterator[tuple[str, Path]]:
        kind = "gtCoarse" if part == "train_extra" else "gtFine"
        place = self.folder / kind / part
        check_folder(place, f"unpack {kind}{'.zip' if kind == 'gtCoarse' else '_trainvaltest.zip'}")
        found = names_below(place, ENDS)
        if not found:
            other = next(iter(names_below(place, ("",))), "nothing")
            raise ValueError(
                f"{place}: no CITY/…_{kind}_labelIds.png in it, but {other}; take the masks of the download"
            )
        for end in reversed(ENDS):  # what comes later counts
            for name in found:
                if name.lower().endswith(end):
                    yield f"{name[: -len(end)].removesuffix(f'_{kind}')}_leftImg8bit", place / name

    def _expected(self, name: str) -> str:
        stem = name.removesuffix("_leftImg8bit")
        return f"…/{stem}_gt{{Fine,Coarse}}_labelIds.png (or …_labelTrainIds.png)"

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask of label ids or of train ids, as its name says."""
        if path.name.lower().endswith(ENDS[1]):
            hint = "void is 255 in …_labelTrainIds.png, which some tools write as 19; make them of …_labelIds.png anew"
            return self.read_values(path, len(self.classes), hint)
        hint = "label ids are meant here; train ids belong into files called …_labelTrainIds.png"
        ids: Bytes = TRAIN_IDS[self.read_values(path, 34, hint)]
        return ids
