"""LightNet (github.com/ansleliu/LightNet): the whole network that SKD calls MobileNetV2Plus."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models.backbone import Excitation, MobileNetV2Plus
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter


def norm_act(channels: int) -> nn.Sequential:
    """Batch norm and leaky ReLU, as in-place activated batch norm computes them."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(0.01, inplace=True))


class LightHead(nn.Module):
    """ASPP on the deepest map, joined with the stride-4 map, excited and refined by a dilated 3×3 convolution.

    Args:
        low_channels: of the stride-4 map.
        in_channels: of the deepest map.
        width: channels of ASPP.
        output_stride: of the deepest map; the dilations of ASPP are 12, 24, 36 at stride 8.
        dropout: probability after ASPP, whole channels at a time.
    """

    align_corners = False
    """Whether the map of ASPP is resized to the stride-4 map with aligned corners."""

    def __init__(self, low_channels: int, in_channels: int, width: int, output_stride: int, dropout: float):
        super().__init__()
        rates = [rate * 8 // output_stride for rate in (12, 24, 36)]
        joined = width + low_channels
        self.norm = norm_act(in_channels)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, width, 1, bias=False))
        self.branches = nn.ModuleList(
            [
                nn.Conv2d(in_channels, width, 1, bias=False),
                *(nn.Conv2d(in_channels, width, 3, padding=r, dilation=r, bias=False) for r in rates),
            ]
        )
        self.fuse = nn.Sequential(norm_act(5 * width), nn.Conv2d(5 * width, width, 1, bias=False))
        self.dropout = nn.Dropout2d(dropout)
        self.excite = Excitation(joined)
        self.refine = nn.Sequential(
            norm_act(joined),
            nn.Conv2d(joined, joined, 3, padding=2, dilation=2, bias=False),
            norm_act(joined),
        )

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Refined map, at stride 4."""
        x = self.norm(deep)
        everywhere = self.pool(x).expand(-1, -1, *x.shape[-2:])
        x = self.dropout(self.fuse(torch.cat([everywhere, *(branch(x) for branch in self.branches)], dim=1)))
        x = F.interpolate(x, size=low1.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return self.refine(self.excite(torch.cat([x, low1], dim=1)))  # type: ignore[no-any-return]


class LightNet(BackboneSegmenter):
    """LightNet: MobileNetV2Plus, pre-activated ASPP, a decoder at stride 4 with spatial and channel excitation.

    Args:
        name: `lightnet_mobilenetv2_plus`.
        num_classes: C.
        aux: whether to add an auxiliary head; LightNet has none.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of ASPP.
        dropout: probability after ASPP.
    """

    names: ClassVar[tuple[str, ...]] = ("lightnet_mobilenetv2_plus",)

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        aux: bool = False,
        pretrained: bool | str = False,
        output_stride: int = 8,
        width: float = 1.0,
        depth: float = 1.0,
        head_width: int = 256,
        dropout: float = 0.2,
    ):
        body = MobileNetV2Plus(output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
        channels = scaled(head_width, width)
        decoder = LightHead(body.channels[0], body.channels[3], channels, output_stride, dropout)
        super().__init__(body, decoder, channels + body.channels[0], num_classes, aux=aux, dropout=0.0)
