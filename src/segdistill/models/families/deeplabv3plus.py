"""DeepLabV3+ (Chen et al., ECCV 2018), with separable convolutions as in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models.backbone import make_backbone
from segdistill.models.families.deeplabv3 import ASPP
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu, separable_conv

OPENMMLAB = ("mobilenetv2", "mobilenetv2_100")
"""Backbones that have OpenMMLab's form by default, which FAKD's student is: output stride 8, a head of 512 channels
whose ASPP branches are joined by a 3×3 convolution (15.24 M parameters at 19 classes with auxiliary head)."""


class EncoderDecoder(nn.Module):
    """ASPP on the deepest map, joined with the projected stride-4 map and refined by two 3×3 convolutions.

    Args:
        low_channels: of the stride-4 map.
        in_channels: of the deepest map.
        width: channels of the result.
        output_stride: decides the dilations.
        fuse_kernel: of the convolution that joins the branches of ASPP.
        low_width: channels to which the stride-4 map is projected; 48 in the paper.
    """

    align_corners = False
    """Whether the map of ASPP is resized to the stride-4 map with aligned corners."""

    def __init__(
        self,
        low_channels: int,
        in_channels: int,
        width: int,
        output_stride: int,
        fuse_kernel: int = 1,
        low_width: int = 48,
    ):
        super().__init__()
        self.aspp = ASPP(in_channels, width, output_stride, separable_conv, fuse_kernel)
        self.low = conv_bn_relu(low_channels, low_width)
        self.fuse = nn.Sequential(separable_conv(width + low_width, width), separable_conv(width, width))

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at stride 4."""
        aligned = self.align_corners
        deep = F.interpolate(self.aspp(deep), size=low1.shape[-2:], mode="bilinear", align_corners=aligned)
        return self.fuse(torch.cat([deep, self.low(low1)], dim=1))  # type: ignore[no-any-return]


class DeepLabV3Plus(BackboneSegmenter):
    """DeepLabV3+: DeepLabV3 with a decoder at stride 4.

    On `OPENMMLAB` backbones `output_stride`, `head_width`, `fuse_kernel` and `aux_width` are 8, 512, 3 and 256 by
    default.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map; 16 by default.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of the head; 256 by default, as in the paper.
        fuse_kernel: of the convolution that joins the branches of ASPP; 1 by default, as in the paper.
        aux_width: channels of the auxiliary head; a quarter of the third map's by default.
        dropout: probability before the classifier.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        aux: bool = False,
        pretrained: bool | str = False,
        output_stride: int | None = None,
        width: float = 1.0,
        depth: float = 1.0,
        head_width: int | None = None,
        fuse_kernel: int | None = None,
        aux_width: int | None = None,
        dropout: float = 0.1,
    ):
        openmmlab = backbone in OPENMMLAB
        output_stride = (8 if openmmlab else 16) if output_stride is None else output_stride
        channels = scaled((512 if openmmlab else 256) if head_width is None else head_width, width)
        fuse_kernel = (3 if openmmlab else 1) if fuse_kernel is None else fuse_kernel
        aux_width = 256 if openmmlab and aux_width is None else aux_width
        body = make_backbone(backbone, output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
        aux_width = None if aux_width is None else scaled(aux_width, width)
        decoder = EncoderDecoder(
            body.channels[0], body.channels[3], channels, output_stride, fuse_kernel, low_width=scaled(48, width)
        )
        super().__init__(body, decoder, channels, num_classes, aux=aux, aux_width=aux_width, dropout=dropout)
