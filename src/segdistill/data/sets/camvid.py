"""CamVid: 701 frames from a car in Cambridge, with the 11 classes that SegNet made of the original 32."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segdistill._types import Colour
from segdistill.data.dataset import SPLITS, check_split
from segdistill.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES, Bytes
from segdistill.data.pairs import FileDataset, check_ids, colours_to_ids
from segdistill.data.walk import check_folder, find_files
from segdistill.functional import IGNORE

PALETTE: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "signsymbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

# The 31 colours of the original masks that mean something, in SegNet's 11 groups.
GROUPS: dict[str, list[Colour]] = {
    "sky": [(128, 128, 128)],
    "building": [
        (128, 0, 0),  # building
        (0, 128, 64),  # bridge
        (64, 192, 0),  # wall
        (64, 0, 64),  # tunnel
        (192, 0, 128),  # archway
    ],
    "pole": [(192, 192, 128), (0, 0, 64)],  # column or pole, traffic cone
    "road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],  # road, lane markings to drive on and not
    "pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],  # sidewalk, parking block, road shoulder
    "tree": [(128, 128, 0), (192, 192, 0)],  # tree, other vegetation
    "signsymbol": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],  # sign, other text, traffic light
    "fence": [(64, 64, 128)],
    "car": [
        (64, 0, 128),  # car
        (64, 128, 192),  # SUV, pick-up truck
        (192, 128, 192),  # truck, bus
        (192, 64, 128),  # train
        (128, 64, 64),  # other moving thing
    ],
    "pedestrian": [
        (64, 64, 0),  # pedestrian
        (192, 128, 64),  # child
        (64, 0, 192),  # cart, luggage, pram
        (64, 128, 64),  # animal
    ],
    "bicyclist": [(0, 128, 192), (192, 0, 192)],  # bicyclist, motorcycle or scooter
}

IDS = {colour: index for index, group in enumerate(GROUPS.values()) for colour in group}
IDS |= {colour: index for index, colour in enumerate(PALETTE.values())}  # masks painted with our own palette
IDS[(0, 0, 0)] = IGNORE

SEGNET_VOID = 11


class CamVid(FileDataset):
    """CamVid in SegNet's folders, or as it was released.

    SegNet's: `train/ trainannot/ val/ valannot/ test/ testannot/`. The original: `701_StillsRaw_full/`, the masks
    `LabeledApproved_full/*_L.png`, and lists `train.txt val.txt test.txt` that name the frames of each split.
    Masks hold ids (0 … 10, 11 is void) or the original colours; which of the two is seen file by file.

    Args:
        split: train, val or test.
        root: the folder; default $SEGDISTILL_CAMVID.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, no such split, no image in it, or an image without a mask.

    Source:
        Brostow et al., Semantic object classes in video, 2009. The grouping is that of MathWorks' SegNet example, which
        publishes it colour by colour; SegNet's own masks come grouped.
    """

    def __init__(self, split: str, *, root: str | None = None, max_pixels: int | None = None):
        check_split(split)
        self.max_pixels = max_pixels
        self.classes = list(PALETTE)
        self.palette = list(PALETTE.values())
        given = root or os.environ.get("SEGDISTILL_CAMVID")
        if not given:
            raise ValueError("CamVid: no folder given; set data.root, or SEGDISTILL_CAMVID, to the folder with train/")
        folder = Path(given).expanduser()
        check_folder(folder, "set data.root, or SEGDISTILL_CAMVID, to CamVid's folder")
        if (folder / "701_StillsRaw_full").is_dir():
            images, masks = _released(folder, split)
            annotations = "LabeledApproved_full"
        else:
            check_split(split, [s for s in SPLITS if (folder / s).is_dir()], f"looked for {folder / split}")
            check_folder(folder / f"{split}annot", f"it should hold the masks of {split}/")
            images = find_files(folder / split, IMAGE_SUFFIXES)
            masks = find_files(folder / f"{split}annot", MASK_SUFFIXES)
            annotations = f"{split}annot"
        if not images:
            raise ValueError(f"{folder / split}: no image in it; CamVid has .png or .jpg files there")
        masks = {name.removesuffix("_L"): path for name, path in masks.items()}
        super().__init__(images, masks, lambda name: f"{folder / annotations / name}.png (or …_L.png)")

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask of ids or of colours."""
        values = self.read_mask(path)
        if values.ndim == 3:
            return colours_to_ids(values.astype(np.uint8), IDS, path, "CamVid has 32 colours")
        values = np.where(values == SEGNET_VOID, IGNORE, values)
        return check_ids(values, len(self.classes), path, f"in CamVid {SEGNET_VOID} is void too")


def _released(root: Path, split: str) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    lists = [s for s in SPLITS if (root / f"{s}.txt").is_file()]
    check_split(split, lists, f"the original release has no split of its own: write {root / split}.txt, a frame a line")
    images = find_files(root / "701_StillsRaw_full", IMAGE_SUFFIXES)
    masks = find_files(root / "LabeledApproved_full", MASK_SUFFIXES)
    # SegNet's lists name image and mask in a line, with paths of another machine; the frame's name is enough.
    lines = (root / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    names = [Path(line.split()[0]).stem.removesuffix("_L") for line in lines if line.strip()]
    absent = [name for name in names if name not in images]
    if absent:
        raise ValueError(f"{root / split}.txt: no frame {absent[0]!r} in {root / '701_StillsRaw_full'}")
    return {name: images[name] for name in names}, masks
