"""OpenMMLab's photometric distortion of an image: brightness, contrast, saturation and hue, each every second time."""

import math

import torch
from torch import Tensor

BRIGHTNESS, HUE = 32, 18
CONTRAST = SATURATION = (0.5, 1.5)
ROWS = 32


def distort(image: Tensor) -> Tensor:
    """Change an image's light and colours at random.

    Brightness moves by up to ±32 of 255; contrast multiplies colours by 0.5 to 1.5, before saturation and hue or after
    them; saturation, that of HSV, is multiplied by 0.5 to 1.5; hue turns by −36° to 34° in steps of 2°. Each happens
    with probability 0.5; after each, values are cut off at 0 and 255. Nine numbers are drawn whatever happens.

    Differs from the source: it rounds to bytes after each of the four, towards 0 after brightness and contrast; here
    bytes are rounded to once, to the nearest.

    Args:
        image: uint8 (3,H,W) RGB; it is left as it is.

    Source:
        `PhotoMetricDistortion` of mmsegmentation 1.2.2, with its defaults.
    """
    drawn = torch.rand(9).tolist()
    result = torch.empty(image.shape, dtype=torch.uint8)
    # Some rows at a time, so that what one operation writes is still in the processor's cache for the next.
    for source, target in zip(torch.split(image, ROWS, 1), torch.split(result, ROWS, 1), strict=True):
        target.copy_(_distorted(torch.empty(source.shape).copy_(source), *drawn).round_())
    return result


def _distorted(
    colours: Tensor,
    brightness: float,
    delta: float,
    late: float,
    contrast: float,
    gain: float,
    saturation: float,
    depth: float,
    hue: float,
    turn: float,
) -> Tensor:
    def change_contrast() -> None:
        if contrast < 0.5:
            colours.mul_(_between(CONTRAST, gain)).clamp_(0, 255)

    if brightness < 0.5:
        colours.add_(_between((-BRIGHTNESS, BRIGHTNESS), delta)).clamp_(0, 255)
    if late >= 0.5:
        change_contrast()
    if saturation < 0.5:
        colours = saturate(colours, _between(SATURATION, depth))
    if hue < 0.5:
        colours = turn_hue(colours, 2.0 * math.floor(_between((-HUE, HUE), turn)))
    if late < 0.5:
        change_contrast()
    return colours


def saturate(image: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, up to 1, and keep hue and value.

    A colour's distance from its greatest component is proportional to the saturation, so that HSV need not be computed.

    Args:
        image: (3,H,W), no component below 0.
        factor: of the saturation.
    """
    value, chroma = _value_and_chroma(image)
    # S·factor ≤ 1, that is chroma·factor ≤ value.
    by = (value / chroma.clamp(min=1e-12)).clamp_(max=factor)
    return torch.addcmul(value, image - value, by)


def turn_hue(image: Tensor, degrees: float) -> Tensor:
    """Add to the hue of HSV, and keep saturation and value.

    Args:
        image: (3,H,W), no component below 0.
        degrees: of the circle of colours.
    """
    value, chroma = _value_and_chroma(image)
    red, green, blue = image
    scale = chroma.clamp(min=1e-12).reciprocal_()
    # In sextants of the circle: red is 0, green 2, blue 4.
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    places = torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + degrees / 60
    place = (hue + places).remainder_(6)
    return torch.addcmul(value, chroma, torch.minimum(place, 4 - place).clamp_(0, 1), value=-1)


def _value_and_chroma(image: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's greatest component, and how far the least lies below it, (H,W)."""
    least, value = image.aminmax(dim=0)
    return value, value - least


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
