"""DeepLabV3 (Chen et al., 2017), in the form of CIRKD's networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segdistill.models.backbone import Stages, make_backbone
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu

RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Dilations of the three 3×3 branches, by output stride."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1, three dilated 3×3 and a global branch, fused by a convolution.

    Args:
        in_channels: of the deepest map.
        width: channels of each branch and of the result.
        output_stride: decides the dilations.
        conv: makes a dilated 3×3 branch from (in_channels, width, dilation).
        fuse_kernel: of the convolution that joins the branches; 1 in the paper.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        output_stride: int,
        conv: Callable[[int, int, int], nn.Module] = lambda i, o, rate: conv_bn_relu(i, o, 3, rate),
        fuse_kernel: int = 1,
    ):
        super().__init__()
        rates = RATES[output_stride]
        self.branches = nn.ModuleList(
            [conv_bn_relu(in_channels, width), *(conv(in_channels, width, rate) for rate in rates)]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(in_channels, width))
        self.fuse = conv_bn_relu((len(rates) + 2) * width, width, fuse_kernel)

    def forward(self, deep: Tensor) -> Tensor:
        """Fused map, at the same resolution."""
        everywhere = self.pool(deep).expand(-1, -1, *deep.shape[-2:])
        return self.fuse(torch.cat([*(branch(deep) for branch in self.branches), everywhere], dim=1))  # type: ignore[no-any-return]


class ASPPHead(nn.Module):
    """ASPP and a 3×3 convolution on the deepest map.

    Args:
        in_channels: of the deepest map.
        width: channels of the result.
        output_stride: decides the dilations.
    """

    def __init__(self, in_channels: int, width: int, output_stride: int):
        super().__init__()
        self.aspp = ASPP(in_channels, width, output_stride)
        self.fuse = conv_bn_relu(width, width, 3)

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at the deepest map's resolution."""
        return self.fuse(self.aspp(deep))  # type: ignore[no-any-return]


def usual_width(backbone: Stages, width: float) -> int:
    """Channels of a DeepLab head at width 1: 256 on wide backbones (ResNet-50/101), 128 on small ones, as in CIRKD."""
    return 256 if backbone.channels[3] >= 1024 * width else 128


class DeepLabV3(BackboneSegmenter):
    """DeepLabV3: atrous spatial pyramid pooling on a dilated backbone.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of the head; by default 256 on wide backbones (ResNet-50/101), 128 on small ones.
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
        dropout: float = 0.1,
    ):
        body = make_backbone(backbone, output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
        channels = scaled(usual_width(body, width) if head_width is None else head_width, width)
        decoder = ASPPHead(body.channels[3], channels, output_stride)
        super().__init__(body, decoder, channels, num_classes, aux=aux, dropout=dropout)
