"""From an image and a mask to network input: scale, crop, flip; for evaluation only an optional resize."""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from segdistill._types import Size
from segdistill.functional import IGNORE


class TrainTransform:
    """Random scale, crop and flip of an image with its mask.

    All randomness comes from torch's global CPU generator, so that a loader can seed it sample by sample.

    Args:
        crop: (H,W) of the output; None: that of the image. A smaller image is padded, at a random place.
        scale: range of the factor by which the image is resized before cropping, uniform.
        flip: mirror left and right in half of the cases.
        photometric: change brightness by up to 12.5 %, contrast and saturation by up to 50 %. There is no change of
            hue: it takes seven times as long as these together.
        size: (H,W) that the image is resized to before anything else, for cheaper experiments.
        fill: RGB colour of padding, in 0 … 1; ImageNet's mean as a default. The mask is padded with 255.

    Raises:
        ValueError: if a size is not positive or the range is upside down.
    """

    def __init__(
        self,
        *,
        crop: Size | None,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
        photometric: bool = False,
        size: Size | None = None,
        fill: tuple[float, float, float] = (0.485, 0.456, 0.406),
    ):
        _check_size("crop", crop)
        _check_size("size", size)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale: expected a range such as [0.5, 2.0], got {list(scale)}")
        self.crop = crop
        self.scale = scale
        self.flip = flip
        self.photometric = v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5) if photometric else None
        self.size = size
        self.fill = fill

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A float32 image (3,h,w) in 0 … 1, not normalised, and an int64 mask (h,w).

        Args:
            image: uint8 (3,H,W).
            mask: uint8 (H,W).
        """
        full = self.size or (image.shape[1], image.shape[2])
        crop = self.crop or full
        factor = _uniform(*self.scale)
        rows, columns = (_window(full[i], image.shape[1 + i], crop[i], factor) for i in (0, 1))
        # The window is cut out of the source first, so that only what is seen is resized, and only once.
        box = (slice(rows[0], rows[0] + rows[1]), slice(columns[0], columns[0] + columns[1]))
        image, mask = _resize(image[:, *box], mask[box], (rows[2], columns[2]))
        if self.flip and torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        if self.photometric is not None:
            image = self.photometric(tv_tensors.Image(image)).as_subclass(Tensor)
        return self._pad(tv.to_dtype(image, torch.float32, scale=True), mask.long(), crop)

    def _pad(self, image: Tensor, mask: Tensor, crop: Size) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        if (height, width) == tuple(crop):
            return image, mask
        top, left = (int(_uniform(0, want - have + 1)) for want, have in zip(crop, (height, width), strict=True))
        padding = [left, top, crop[1] - width - left, crop[0] - height - top]
        return tv.pad(image, padding, fill=list(self.fill)), tv.pad(mask[None], padding, fill=IGNORE)[0]


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
            image, mask = _resize(image, mask, self.size)
        return tv.to_dtype(image, torch.float32, scale=True), mask.long()


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _window(full: int, source: int, crop: int, factor: float) -> tuple[int, int, int]:
    """Along one axis: a random window's start and length in source pixels, and its length in the output.

    `full` is the length after the first resize, `factor` that of the random scale. The start is drawn even if there is
    no choice, so that the number of draws depends on nothing.
    """
    length = min(full, crop / factor)
    start = _uniform(0, full - length)
    pixels = max(1, round(length * source / full))
    first = min(round(start * source / full), source - pixels)
    return first, pixels, max(1, min(crop, round(length * factor)))


def _resize(image: Tensor, mask: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    # nearest-exact takes the pixel under the centre, as the bilinear filter does; plain nearest shifts the mask.
    image = tv.resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=True)
    return image, tv.resize(mask[None], list(size), v2.InterpolationMode.NEAREST_EXACT, antialias=False)[0]


def _check_size(name: str, size: Size | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"{name}: expected [height, width] in pixels, got {list(size)}")
