"""What a network wants its images to be like: colour order, range, mean and standard deviation."""

import pydantic

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]


class Normalisation(pydantic.BaseModel):
    """Images in 0…1, RGB → (range · images − mean) / std, per channel.

    Args:
        mean: in the order and range that the network sees: blue first with `bgr`, up to 255 with `range: 255`.
        std: likewise.
        range: what white is: 1, or 255.
        bgr: whether the network wants blue, green, red.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    range: float = 1.0
    bgr: bool = False

    def rgb(self, values: Triple) -> Triple:
        """Values per channel in the images' own order and range."""
        first, second, third = (value / self.range for value in values)
        return (third, second, first) if self.bgr else (first, second, third)
