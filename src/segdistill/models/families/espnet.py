"""ESPNet (Mehta et al., ECCV 2018). Layers are named as in its released checkpoints, in their order."""

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn

from segdistill.models.scaling import check_scale, scaled, shortened
from segdistill.models.segmenter import Segmenter

EPS = 1e-3
DILATIONS = (1, 2, 4, 8, 16)


class Conv(nn.Module):
    """A convolution without bias; stride 1 keeps H×W, stride 2 gives ⌈H/2⌉×⌈W/2⌉."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)  # type: ignore[no-any-return]


class NormAct(nn.Module):
    """Batch norm and PReLU with a slope per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        return self.act(self.bn(x))  # type: ignore[no-any-return]


class ConvNormAct(NormAct):
    """Convolution without bias, batch norm, PReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__(out_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise and activate."""
        return super().forward(self.conv(x))


class Pyramid(nn.Module):
    """Reduce, then five dilated 3×3 convolutions, summed up one after the other and concatenated.

    The sums (hierarchical feature fusion) take away the grid that dilated convolutions leave. A fifth of the
    channels goes to each convolution, the remainder to the one without dilation.

    Args:
        in_channels: of the input.
        out_channels: of the result.
        kernel: of the reduction.
        stride: of the reduction.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        n = out_channels // 5
        self.c1 = Conv(in_channels, n, kernel, stride)
        for d in DILATIONS:
            self.add_module(f"d{d}", Conv(n, out_channels - 4 * n if d == 1 else n, 3, dilation=d))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenated sums."""
        x = self.c1(x)
        first, *branches = (self.get_submodule(f"d{d}")(x) for d in DILATIONS)
        return torch.cat([first, *itertools.accumulate(branches)], dim=1)


class Down(Pyramid):
    """ESP module that halves the resolution: a strided pyramid, batch norm, PReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map of half the resolution."""
        return self.act(self.bn(super().forward(x)))  # type: ignore[no-any-return]


class ESP(Pyramid):
    """ESP module: a pyramid, a residual connection where channels agree, batch norm, PReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels)
        self.residual = in_channels == out_channels
        self.bn = NormAct(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map of the same resolution."""
        y = super().forward(x)
        return self.bn(x + y if self.residual else y)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """ESPNet's encoder, three resolutions with the image beside the first two; with its classifier it is ESPNet-C.

    Args:
        num_classes: C.
        p: ESP modules at stride 4.
        q: ESP modules at stride 8.
        width: multiplies channels.
        depth: multiplies p and q.
    """

    def __init__(self, num_classes: int, p: int, q: int, width: float = 1.0, depth: float = 1.0):
        check_scale(width, depth)
        super().__init__()
        one, two, three = self.channels = tuple(scaled(channels, width) for channels in (16, 64, 128))
        self.level1 = ConvNormAct(3, one, 3, 2)
        self.sample = nn.AvgPool2d(3, stride=2, padding=1)
        self.b1 = NormAct(one + 3)
        self.level2_0 = Down(one + 3, two)
        self.level2 = nn.Sequential(*(ESP(two, two) for _ in range(shortened(p, depth))))
        self.b2 = NormAct(two + two + 3)
        self.level3_0 = Down(two + two + 3, three)
        self.level3 = nn.Sequential(*(ESP(three, three) for _ in range(shortened(q, depth))))
        self.b3 = NormAct(three + three)
        self.classifier = Conv(three + three, num_classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at stride 2 (19 channels at width 1) and at stride 4 (131), and logits at stride 8.

        Args:
            images: (N,3,H,W), normalised.
        """
        half = self.sample(images)
        quarter = self.sample(half)
        one = self.b1(torch.cat([self.level1(images), half], dim=1))
        start = self.level2_0(one)
        two = self.b2(torch.cat([self.level2(start), start, quarter], dim=1))
        start = self.level3_0(two)
        three = self.b3(torch.cat([start, self.level3(start)], dim=1))
        return one, two, self.classifier(three)


def check_depth(p: int, q: int) -> None:
    """Refuse empty levels.

    Args:
        p: ESP modules at stride 4.
        q: ESP modules at stride 8.

    Raises:
        ValueError: if a level is empty.
    """
    if p < 1 or q < 1:
        raise ValueError(f"p, q: expected at least one ESP module each, got {p} and {q}")


class ESPNet(Segmenter):
    """ESPNet: efficient spatial pyramids of dilated convolutions, and a light decoder up to the full resolution.

    The decoder has as many channels as there are classes, but five at least. Its last layer is a 2×2 transposed
    convolution; there is no 1×1 classifier, hence no tap `weight`.

    Args:
        name: `espnet`.
        num_classes: C.
        p: ESP modules at stride 4; 2 in the paper.
        q: ESP modules at stride 8; 8 in the paper's largest network.
        width: multiplies channels, but those of the decoder, which are the classes'.
        depth: multiplies p and q.
    """

    names: ClassVar[tuple[str, ...]] = ("espnet",)
    taps: ClassVar[dict[str, str]] = {
        "low1": "encoder.b2",
        "low2": "encoder.b3",
        "features": "classifier:input",
        "logits": "logits",
    }
    classifier_path = None

    def __init__(
        self,
        name: str = "espnet",
        *,
        num_classes: int,
        p: int = 2,
        q: int = 8,
        width: float = 1.0,
        depth: float = 1.0,
    ):
        check_depth(p, q)
        super().__init__(num_classes)
        c = max(num_classes, len(DILATIONS))  # the decoder's ESP module gives each dilation a channel at least
        self.encoder = Encoder(c, p, q, width, depth)
        one, two, _ = self.encoder.channels
        self.level3_C = Conv(two + two + 3, c, 1)
        self.br = nn.BatchNorm2d(c, eps=EPS)
        self.conv = ConvNormAct(one + 3 + c, c, 3)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(c, c, 2, stride=2, bias=False))
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * c), ESP(2 * c, c))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(c, c, 2, stride=2, bias=False), NormAct(c))
        self.classifier = nn.ConvTranspose2d(c, num_classes, 2, stride=2, bias=False)
        self.logits = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the images' resolution; odd sizes are cropped after each doubling."""
        one, two, three = self.encoder(self.normalise(images))
        up = cropped(self.up_l3(self.br(three)), two)
        up = cropped(self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(two), up], dim=1))), one)
        logits = self.classifier(self.conv(torch.cat([up, one], dim=1)))
        return self.logits(cropped(logits, images))  # type: ignore[no-any-return]


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """The upper left part of a map, of another's H×W."""
    return x[..., : like.shape[-2], : like.shape[-1]]
