"""From an image and a mask to network input: scale, crop, flip, colours; for evaluation only an optional resize."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from segdistill._types import Box, Size
from segdistill.data.dataset import Held, Source
from segdistill.data.photometric import distort
from segdistill.functional import IGNORE

Colours = tuple[float, float, float]
Photometric = Literal["fast", "mmseg"] | bool
Padding = Literal["random", "end", "mirrored"]

TRIES = 11
"""Crops that are drawn for `cat_max_ratio`: the first, and ten more, the last of which is taken as it is."""


class TrainTransform:
    """Random scale, crop and flip of an image with its mask, and changes of its colours.

    All randomness comes from torch's global CPU generator, so that a loader can seed it sample by sample.

    Args:
        crop: (H,W) of the output; None: that of the image. A smaller image is padded.
        scale: range of the factor by which the image is resized before cropping, uniform.
        flip: mirror left and right in half of the cases.
        photometric: change colours. `fast`, or true: brightness by up to 12.5 %, contrast and saturation by up to 50 %,
            no hue. `mmseg`: OpenMMLab's `PhotoMetricDistortion`, which takes several times as long.
        colour: probability that the colours of an image are changed at all.
        size: (H,W) that the image is resized to before anything else, for cheaper experiments.
        fill: RGB colour of padding, in 0 … 1; ImageNet's mean as a default. The mask is padded with 255.
        scale_step: distance of the factors that are drawn, from the least to the largest of `scale`; None: any factor.
        fit: (long, short), the sides of a rectangle, lying or standing, that the image would just fit into at factor 1,
            its proportions kept; None: factors are of the image itself.
        cat_max_ratio: a crop is drawn anew, up to ten times, while it has fewer than two classes, or one that covers
            this share of its labelled pixels; None: the first one is taken.
        padding: where a small image lies. `random`: anywhere; `end`: above and left, so that the padding is below and
            right; `mirrored`: the same before the flip, which takes the padding along.
        draft: let JPEGs be decoded at a half, a quarter or an eighth of their size where twice the rows and columns of
            the output remain. It saves time where images are much larger than what is trained on, and changes pixels a
            little.

    Raises:
        ValueError: if a size is not positive, a range is upside down, or a step does not fit into it.
    """

    def __init__(
        self,
        *,
        crop: Size | None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        photometric: Photometric = False,
        colour: float = 1.0,
        size: Size | None = None,
        fill: Colours = (0.485, 0.456, 0.406),
        scale_step: float | None = None,
        fit: tuple[int, int] | None = None,
        cat_max_ratio: float | None = None,
        padding: Padding = "random",
        draft: bool = False,
    ):
        _check_size("crop", crop)
        _check_size("size", size)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale: expected a range such as [0.5, 2.0], got {list(scale)}")
        if fit is not None and not 0 < fit[1] <= fit[0]:
            raise ValueError(f"fit: expected [long, short] in pixels, such as [2048, 512], got {list(fit)}")
        if cat_max_ratio is not None and not 0 < cat_max_ratio < 1:
            raise ValueError(f"cat_max_ratio: expected a share between 0 and 1, such as 0.75, got {cat_max_ratio}")
        self.crop = crop
        self.scale = scale
        self.factors = None if scale_step is None else _steps(scale, scale_step)
        self.flip = flip
        self.fast = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5)
        self.photometric = "fast" if photometric is True else photometric
        self.colour = colour
        self.size = size
        self.fill = fill
        self.fit = fit
        self.cat_max_ratio = cat_max_ratio
        self.padding = padding
        self.draft = draft

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A float32 image (3,h,w) in 0 … 1, not normalised, and an int64 mask (h,w).

        Args:
            image: uint8 (3,H,W).
            mask: uint8 (H,W).
        """
        images, masks = stack([self.draw(Held(image, mask))]).numbers()
        return images[0], masks[0]

    def draw(self, source: Source) -> "Crop":
        """All that is random, of an item that is read in pieces: what is drawn says how much of it is read.

        Args:
            source: image and mask.
        """
        full = self.size or source.size
        crop = self.crop or full
        factor = self._factor(full)
        reduce = self._reduction(source.size, full, factor)
        # Drawn for all tries at once, so that the number of draws depends on nothing.
        for starts in torch.rand(1 if self.cat_max_ratio is None else TRIES, 2).tolist():
            windows = [_window(full[i], source.size[i], crop[i], factor, starts[i], reduce) for i in (0, 1)]
            box = slice(*windows[0][:2]), slice(*windows[1][:2])
            output = windows[0][2], windows[1][2]
            mask = _resize_mask(source.mask(box), output)
            if self.cat_max_ratio is None or _varied(mask, self.cat_max_ratio):
                break
        # The window is cut out of the source first, so that only what is seen is resized, and only once.
        image = _resize_image(source.image(box, reduce), output)
        flipped = self.flip and bool(torch.rand(()) < 0.5)
        if flipped:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.colour == 1 or float(torch.rand(())) < self.colour:
            image = self._recolour(image)
        return Crop(image, mask, (crop[0], crop[1]), self._place(output, crop, flipped), self.fill)

    def _recolour(self, image: Tensor) -> Tensor:
        if self.photometric == "fast":
            changed: Tensor = self.fast(tv_tensors.Image(image)).as_subclass(Tensor)
            return changed
        return distort(image) if self.photometric == "mmseg" else image

    def _factor(self, full: Size) -> float:
        """How many times the output's pixels are as many as those of an image of the size `full`."""
        share = float(torch.rand(()))
        if self.factors is None:
            factor = self.scale[0] + (self.scale[1] - self.scale[0]) * share
        else:
            factor = self.factors[min(int(share * len(self.factors)), len(self.factors) - 1)]
        if self.fit is None:
            return factor
        long, short = (int(side * factor) for side in self.fit)
        return min(long / max(full), short / min(full))

    def _reduction(self, source: Size, full: Size, factor: float) -> int:
        """By how much the source may be reduced, so that twice the output's rows and columns remain."""
        if not self.draft:
            return 1
        spare = min(have / (want * factor) for have, want in zip(source, full, strict=True)) / 2
        return max(reduce for reduce in (1, 2, 4, 8) if reduce == 1 or (spare >= reduce and min(source) >= 16 * reduce))

    def _place(self, size: Size, crop: Size, flipped: bool) -> Box:
        """Where an image lies in the output; it fills it, unless it is smaller."""
        down, right = crop[0] - size[0], crop[1] - size[1]
        top, left = 0, right if self.padding == "mirrored" and flipped else 0
        if self.padding == "random" and (down or right):
            top, left = (int(_uniform(0, free + 1)) for free in (down, right))
        return slice(top, top + size[0]), slice(left, left + size[1])


@dataclass(frozen=True)
class Crop:
    """A training image that is cut out, resized and coloured, in bytes and not yet padded.

    Attributes:
        image: uint8 (3,h,w).
        mask: uint8 (h,w).
        size: (H,W) of the output.
        place: where the image lies in the output.
        fill: RGB colour of the rest, in 0 … 1.
    """

    image: Tensor
    mask: Tensor
    size: Size
    place: Box
    fill: Colours


class Crops(NamedTuple):
    """A batch of training images in bytes, as it travels from one process to another: a fifth as long as its numbers.

    Attributes:
        images: uint8 (N,3,H,W); what their padding holds means nothing.
        masks: uint8 (N,H,W).
        places: where each image lies in the output.
        fill: RGB colour of the padding, in 0 … 1.
    """

    images: Tensor
    masks: Tensor
    places: tuple[Box, ...]
    fill: Colours

    def numbers(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """What networks take: float32 images (N,3,H,W) in 0 … 1, not normalised, and int64 masks (N,H,W).

        Args:
            device: where to; None: where they are.
        """
        images = self.images.to(device, non_blocking=True).float().mul_(1 / 255)  # as torchvision computes it
        masks = self.masks.to(device, non_blocking=True).long()
        fill = torch.tensor(self.fill).view(3, 1, 1).to(images.device, non_blocking=True)
        for image, (rows, columns) in zip(images, self.places, strict=True):
            for rest in (image[:, : rows.start], image[:, rows.stop :]):
                rest.copy_(fill.expand_as(rest))
            for rest in (image[:, rows, : columns.start], image[:, rows, columns.stop :]):
                rest.copy_(fill.expand_as(rest))
        return images, masks


def stack(crops: Sequence[Crop], empty: Callable[[tuple[int, ...]], Tensor] | None = None) -> Crops:
    """Put crops of one size into a batch.

    Args:
        crops: of one transform.
        empty: makes the batch's tensors of bytes, by their shape.
    """
    count, size = len(crops), crops[0].size
    empty = empty or (lambda shape: torch.empty(shape, dtype=torch.uint8))
    images, masks = empty((count, 3, *size)), empty((count, *size))
    for crop, image, mask in zip(crops, images, masks, strict=True):
        if crop.mask.shape != mask.shape:
            mask.fill_(IGNORE)
        image[:, *crop.place] = crop.image
        mask[crop.place] = crop.mask
    return Crops(images, masks, tuple(crop.place for crop in crops), crops[0].fill)


class EvalTransform:
    """The whole image with its mask, as they are.

    Args:
        size: (H,W) that both are resized to; None: none.

    Raises:
        ValueError: if the size is not positive.
    """

    def __init__(self, *, size: Size | None = None):
        _check_size("size", size)
        self.size = size

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A float32 image (3,h,w) in 0 … 1, not normalised, and an int64 mask (h,w).

        Args:
            image: uint8 (3,H,W).
            mask: uint8 (H,W).
        """
        if self.size:
            image, mask = _resize_image(image, self.size), _resize_mask(mask, self.size)
        return tv.to_dtype(image, torch.float32, scale=True), mask.long()


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _steps(scale: tuple[float, float], step: float) -> list[float]:
    """The factors from the least to the largest, both included."""
    count = round((scale[1] - scale[0]) / step) if step > 0 else 0
    if count < 1 or abs(scale[0] + count * step - scale[1]) > 1e-6:
        raise ValueError(
            f"scale_step: {step} does not lead from {scale[0]} to {scale[1]}; give a step that does, or null"
        )
    return [scale[0] + (scale[1] - scale[0]) * index / count for index in range(count + 1)]


def _window(full: int, source: int, crop: int, factor: float, share: float, reduce: int) -> tuple[int, int, int]:
    """Along one axis: a window's start and stop in source pixels, and its length in the output.

    `full` is the length after the first resize, `factor` that of the random scale, `share` says where the window lies
    among all places that it could have. Where pixels are to be reduced, start and stop are multiples of that.
    """
    length = min(full, crop / factor)
    start = share * (full - length)
    pixels = max(1, round(length * source / full))
    first = min(round(start * source / full), source - pixels)
    stop = first + pixels
    if reduce > 1:
        first, stop = first // reduce * reduce, stop // reduce * reduce
    return first, stop, max(1, min(crop, int(length * factor + 0.5)))


def _varied(mask: Tensor, most: float) -> bool:
    """Whether a mask has two classes, none of which covers more than a share of what is labelled."""
    counts = torch.bincount(mask.flatten(), minlength=IGNORE + 1)[:IGNORE]
    return bool(counts.count_nonzero() > 1) and counts.max().item() / counts.sum().item() < most


def _resize_image(image: Tensor, size: Size) -> Tensor:
    resized: Tensor = tv.resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=True)
    return resized


def _resize_mask(mask: Tensor, size: Size) -> Tensor:
    # nearest-exact takes the pixel under the centre, as the bilinear filter does; plain nearest shifts the mask.
    resized: Tensor = tv.resize(
        mask[None].to(torch.uint8), list(size), v2.InterpolationMode.NEAREST_EXACT, antialias=False
    )[0]
    return resized


def _check_size(name: str, size: Size | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"{name}: expected [height, width] in pixels, got {list(size)}")
