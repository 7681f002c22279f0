"""PSPNet (Zhao et al., CVPR 2017), in the form of SKD's released networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models.backbone import make_backbone
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu

WIDTHS = {"resnet18_half": 128, "mobilenetv2_plus": 312}
"""Backbones whose head is not a quarter of their width: SKD's R18 of half width keeps R18's head (3.835 M parameters);
with 312 channels MobileNetV2Plus comes to the 8.3 M of SKD's table, whose own head is `lightnet`'s."""


class PyramidPooling(nn.Module):
    """The deepest map beside its averages over 1, 2×2, 3×3 and 6×6 cells, fused by a 3×3 convolution.

    Args:
        in_channels: of the deepest map.
        width: channels of each pooled branch and of the result.
        bins: cells along each side.
    """

    align_corners = False
    """Whether cells are resized to the map with aligned corners."""

    def __init__(self, in_channels: int, width: int, bins: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), conv_bn_relu(in_channels, width)) for b in bins
        )
        self.fuse = conv_bn_relu(in_channels + len(bins) * width, width, 3)

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at the deepest map's resolution."""
        size = deep.shape[-2:]
        aligned = self.align_corners
        pooled = [F.interpolate(b(deep), size=size, mode="bilinear", align_corners=aligned) for b in self.branches]
        return self.fuse(torch.cat([deep, *pooled], dim=1))  # type: ignore[no-any-return]


class PSPNet(BackboneSegmenter):
    """Pyramid scene parsing network.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map; 8 in the paper.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of the head; a quarter of the backbone's by default (512 on ResNet-101, 128 on ResNet-18),
            but for `WIDTHS`.
        aux_width: channels of the auxiliary head; half the third map's by default, as in SKD's released networks
            (512 and 128). OpenMMLab's networks have a quarter: 256 on ResNet-50/101, 64 on ResNet-18.
        dropout: probability before the classifier.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        aux: bool = False,
        pretrained: bool | str = False,
        output_stride: int = 8,
        width: float = 1.0,
        depth: float = 1.0,
        head_width: int | None = None,
        aux_width: int | None = None,
        dropout: float = 0.1,
    ):
        body = make_backbone(backbone, output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
        head_width = WIDTHS.get(backbone) if head_width is None else head_width
        channels = body.channels[3] // 4 if head_width is None else scaled(head_width, width)
        decoder = PyramidPooling(body.channels[3], channels)
        aux_width = body.channels[2] // 2 if aux_width is None else scaled(aux_width, width)
        super().__init__(body, decoder, channels, num_classes, aux=aux, aux_width=aux_width, dropout=dropout)
