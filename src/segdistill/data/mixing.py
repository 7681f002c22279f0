"""Training images of two: a box of one in the other (CutMix), or half of one's classes (ClassMix)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from segdistill._types import Box, Size
from segdistill.data.dataset import SegmentationDataset, Source
from segdistill.data.transforms import Crop, TrainTransform
from segdistill.functional import IGNORE

SHARE = 0.5
"""How much of the picture a box of CutMix covers."""


class Mixing:
    """Puts parts of other images, with their labels, into a training image.

    All randomness comes from torch's global CPU generator; each of the two happens or not for itself, CutMix first.

    Args:
        cutmix: probability that a box of another image is put in.
        classmix: probability that half of the classes of an image with labels are put in.
    """

    def __init__(self, *, cutmix: float = 0.0, classmix: float = 0.0):
        self.cutmix = cutmix
        self.classmix = classmix

    def __call__(self, crop: Crop, other: Callable[[], Crop], labelled: Callable[[], Crop]) -> Crop:
        """The image with whatever is put in; its labels are those of what is seen, 255 where that has none.

        Args:
            crop: the image.
            other: draws another one, for CutMix.
            labelled: draws one that has labels, for ClassMix.

        Raises:
            ValueError: if images are of different sizes.
        """
        boxed, classed = (float(torch.rand(())) < probability for probability in (self.cutmix, self.classmix))
        if boxed:
            found = other()
            crop = paste(crop, found, _box(found))
        if classed:
            found = labelled()
            crop = paste(crop, found, _classes(found))
        return crop


class Mixer:
    """Draws the images that are put in.

    Args:
        mixing: what happens.
        labelled: the images of which some have labels.

    Raises:
        ValueError: if classes are to be put in and no image has labels.
    """

    def __init__(self, mixing: Mixing, labelled: SegmentationDataset):
        self.mixing = mixing
        self.labelled = labelled
        self.indices = [index for index in range(len(labelled)) if mixing.classmix and labelled.has_mask(index)]
        if mixing.classmix and not self.indices:
            raise ValueError("data.augment.classmix puts in classes by their labels, and no training image has any")

    def __call__(self, crop: Crop, transform: TrainTransform, source: Callable[[int], Source], count: int) -> Crop:
        """The image with whatever is put in, drawn from torch's generator as it stands.

        Args:
            crop: the image.
            transform: that it was drawn by, as the others are.
            source: gives any image of its data set.
            count: how many there are.
        """
        return self.mixing(
            crop,
            lambda: transform.draw(source(_lot(count))),
            lambda: transform.draw(self.labelled.source(self.indices[_lot(len(self.indices))])),
        )


def _lot(count: int) -> int:
    return int(torch.randint(count, ()))


def paste(crop: Crop, other: Crop, where: Tensor) -> Crop:
    """Put a part of one crop, image and labels, into another; padding is never put in.

    Args:
        crop: into which.
        other: whose part.
        where: (H,W) bool, in the output.

    Raises:
        ValueError: if their outputs have different sizes.
    """
    if crop.size != other.size:
        shown = " and ".join(f"{width}×{height}" for height, width in (crop.size, other.size))
        raise ValueError(f"images of {shown} cannot be mixed; set data.crop (or data.size)")
    picture = torch.zeros_like(where)
    picture[other.place] = where[other.place]
    if not bool(picture.any()):
        return crop
    (image, mask), (other_image, other_mask) = _whole(crop), _whole(other)
    return replace(
        crop,
        image=torch.where(picture, other_image, image),
        mask=torch.where(picture, other_mask, mask),
        place=_all(crop.size),
    )


def _box(other: Crop) -> Tensor:
    """A box of half the picture, of random proportions and at a random place, as in Britefury/cutmix-semisup-seg."""
    share, down, right = torch.rand(3).tolist()
    rows = SHARE**share
    size = round(rows * other.size[0]), round(SHARE / rows * other.size[1])
    top, left = (
        round(place * (full - part)) for place, full, part in zip((down, right), other.size, size, strict=True)
    )
    where = torch.zeros(other.size, dtype=torch.bool)
    where[top : top + size[0], left : left + size[1]] = True
    return where


def _classes(other: Crop) -> Tensor:
    """The pixels of half of the classes, rounded up, chosen by lot; none where there are no labels."""
    classes = torch.bincount(other.mask.flatten(), minlength=IGNORE + 1)[:IGNORE].nonzero().flatten()
    chosen = torch.zeros(IGNORE + 1, dtype=torch.bool)
    chosen[classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2]]] = True
    where = torch.zeros(other.size, dtype=torch.bool)
    where[other.place] = chosen[other.mask.int()]
    return where


def _whole(crop: Crop) -> tuple[Tensor, Tensor]:
    """Image and mask at the size of the output, with the padding in bytes."""
    if crop.place == _all(crop.size):
        return crop.image, crop.mask
    fill = (255 * torch.tensor(crop.fill)).round().to(torch.uint8)
    image = fill.view(3, 1, 1).repeat(1, *crop.size)
    mask = torch.full(crop.size, IGNORE, dtype=torch.uint8)
    image[:, *crop.place] = crop.image
    mask[crop.place] = crop.mask
    return image, mask


def _all(size: Size) -> Box:
    return slice(0, size[0]), slice(0, size[1])
