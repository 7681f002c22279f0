"""Pascal VOC 2012: photographs with 20 kinds of objects and background, extended by SBD if asked for."""

import os
from pathlib import Path

import numpy as np

from segdistill._types import Colour
from segdistill.data.dataset import check_split
from segdistill.data.files import Bytes
from segdistill.data.standard import StandardDataset, choose_images, masks_in, read_list
from segdistill.data.walk import check_folder
from segdistill.functional import IGNORE

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

VOID_COLOUR = (224, 224, 192)


def voc_colour(index: int) -> Colour:
    """The colour of an index in VOC's palette: its bits, spread over red, green and blue from the high bit down.

    Args:
        index: 0 … 255.

    >>> voc_colour(15), voc_colour(255)
    ((192, 128, 128), (224, 224, 192))
    """
    red, green, blue = (sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))
    return red, green, blue


PALETTE = [voc_colour(index) for index in range(len(NAMES))]

GREYS = {(299 * r + 587 * g + 114 * b + 500) // 1000 for r, g, b in [*PALETTE, VOID_COLOUR]}
"""What the colours of the palette look like in grey: 0, 38, 75, 113, 15, …, 220."""

SBD_VARIABLE = "SEGDISTILL_SBD"

AUG_LISTS = ("trainaug.txt", "train_aug.txt")

IMAGES = {
    "train": 1464,
    "val": 1449,
    "test": 1456,
    "trainval": 2913,
    "train with aug": 10582,
    "trainval with aug": 12031,
}
"""Images of each split, as published."""


class Voc2012(StandardDataset):
    """Pascal VOC 2012 as it is downloaded, with SBD's images if asked for: 21 classes.

    It lies in `VOCdevkit/VOC2012`: `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation`. Masks are PNGs with a
    palette, of which the indices are read: 0 … 20, and 255 for the border of objects. `test` has images if its list is
    there, and no labels.

    With `aug`, training has SBD's images besides (10 582 instead of 1464): those of the list `trainaug.txt` or
    `train_aug.txt` beside VOC's, else all that have a mask in SBD and are not in `val`. VOC's own masks are taken where
    there are some, else those of `SegmentationClassAug`, or SBD's own `.mat` files (extra `data`).

    Args:
        split: train, val or test.
        root: the folder with `JPEGImages`, or `VOCdevkit`, or the one around it; default $SEGDISTILL_VOC2012.
        aug: whether `train` has SBD's images, too.
        trainval: whether `train` has the images of `val`, too, as for a submission to the server.
        sbd: SBD's folder (`benchmark_RELEASE`), whose `.mat` files are read; left out, `SegmentationClassAug` is
            looked for, then $SEGDISTILL_SBD counts, then `benchmark_RELEASE` beside `VOC2012` or `VOCdevkit`.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.

    Raises:
        ValueError: if there is no root, list or image, an image has no mask, or the list of `aug` holds images of val.

    Source:
        Everingham et al., The Pascal visual object classes challenge, 2015; Hariharan et al., Semantic contours from
        inverse detectors, 2011 (SBD).
    """

    title = "VOC 2012"
    variable = "SEGDISTILL_VOC2012"
    mat_keys = ("GTcls", "Segmentation")

    def __init__(
        self,
        split: str,
        *,
        root: str | None = None,
        aug: bool = False,
        trainval: bool = False,
        sbd: str | None = None,
        max_pixels: int | None = None,
    ):
        check_split(split)
        if sbd is not None and not aug:
            raise ValueError("VOC 2012: sbd is of no use without aug: true; set that, or leave sbd out")
        self.max_pixels = max_pixels
        self.classes, self.palette = list(NAMES), list(PALETTE)
        folder = self.find_root(root, ["JPEGImages"], ["VOC2012", "VOCdevkit/VOC2012"])
        lists = folder / "ImageSets" / "Segmentation"
        check_folder(lists, "unpack VOCtrainval_11-May-2012.tar")
        part = "trainval" if trainval and split == "train" else split
        check_split(
            split, [s for s in ("train", "val", "test") if (lists / f"{s}.txt").is_file()], f"looked in {lists}"
        )
        names = read_list(lists / f"{part}.txt")
        masks = masks_in(folder / "SegmentationClass")
        more: Path | None = None
        if aug:
            added, more = _sbd_masks(folder, sbd)
            masks = added | masks
        if aug and split == "train":
            names = with_sbd(lists, names, added, leave_out=[] if trainval else read_list(lists / "val.txt"))
            part += " with aug"
        images = choose_images(folder / "JPEGImages", names, lists, more)
        place = folder / "SegmentationClass"
        super().__init__(images, None if split == "test" else masks, lambda name: f"{place / name}.png")
        self.remark_count(part, IMAGES[part])

    def read_ids(self, path: Path) -> Bytes:
        """The class ids: the indices of a palette PNG, or SBD's labels."""
        values = self.read_mask(path)
        bad = (values >= len(NAMES)) & (values != IGNORE)
        hint = "the indices of VOC's palette are meant here"
        if bad.any() and values.ndim == 2 and set(np.unique(values).tolist()) <= GREYS:
            hint = (
                "these are the brightnesses of VOC's colours: the mask was turned to grey, by cv2.IMREAD_GRAYSCALE or "
                '.convert("L"); take the palette PNG of the download'
            )
        return self.check_values(values, len(NAMES), path, hint)


def _sbd_masks(folder: Path, sbd: str | None) -> tuple[dict[str, Path], Path | None]:
    """The masks that SBD adds, by name, and the folder of its images."""
    if sbd is None and (folder / "SegmentationClassAug").is_dir():
        return masks_in(folder / "SegmentationClassAug"), None
    sbd = sbd or os.environ.get(SBD_VARIABLE) or None
    if sbd is None:
        places = [parent / "benchmark_RELEASE" for parent in (folder, folder.parent, folder.parent.parent)]
    else:
        places = [Path(sbd).expanduser(), Path(sbd).expanduser() / "benchmark_RELEASE"]
    dataset = next((p for place in places for p in (place / "dataset", place) if (p / "cls").is_dir()), None)
    if dataset is None and sbd is None:
        raise ValueError(
            f"aug: true needs SBD's masks: {folder / 'SegmentationClassAug'}/*.png, or SBD itself as {places[0]} or "
            f"{places[-1]}, or elsewhere with data.sbd or {SBD_VARIABLE}"
        )
    if dataset is None:
        check_folder(places[0], f"set data.sbd, or {SBD_VARIABLE}, to SBD's folder benchmark_RELEASE")
        raise ValueError(
            f"{places[0]}: no dataset/cls/ in it; set data.sbd, or {SBD_VARIABLE}, to SBD's folder benchmark_RELEASE"
        )
    return masks_in(dataset / "cls", ".mat"), dataset / "img"


def with_sbd(lists: Path, names: list[str], masks: dict[str, Path], leave_out: list[str]) -> list[str]:
    """The training images with SBD's: those that are listed, else all that have a mask and are not in `leave_out`.

    Args:
        lists: the folder of lists.
        names: VOC's training images.
        masks: name → mask, of SBD's images.
        leave_out: the images of val.

    Raises:
        ValueError: if the list holds images of val.
    """
    listed = next((lists / name for name in AUG_LISTS if (lists / name).is_file()), None)
    if listed is None:
        more = sorted(set(masks) - set(leave_out))
    else:
        more = read_list(listed)
        leaked = sorted(set(more) & set(leave_out))
        if leaked:
            raise ValueError(
                f"{listed}: {len(leaked)} of its images are in val, {leaked[0]} for example, which must not be trained "
                "on; take the list of 10582 images, or remove the file, so that the images are chosen anew"
            )
    return list(dict.fromkeys([*names, *more]))
