"""DeepLabV3+ (Chen et al., ECCV 2018), with separable convolutions as in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models._backbone import Backbone
from segdistill.models._segmenter import Segmenter, conv_bn_relu, separable_conv
from segdistill.models.deeplabv3 import ASPP


class EncoderDecoder(nn.Module):
    """ASPP on the deepest map, joined with the projected stride-4 map and refined by two 3×3 convolutions.

    Args:
        low_channels: of the stride-4 map.
        in_channels: of the deepest map.
        width: channels of the result.
        output_stride: decides the dilations.
        low_width: channels to which the stride-4 map is projected; 48 in the paper.
    """

    def __init__(self, low_channels: int, in_channels: int, width: int, output_stride: int, low_width: int = 48):
        super().__init__()
        self.aspp = ASPP(in_channels, width, output_stride, separable_conv)
        self.low = conv_bn_relu(low_channels, low_width)
        self.fuse = nn.Sequential(separable_conv(width + low_width, width), separable_conv(width, width))

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at stride 4."""
        deep = F.interpolate(self.aspp(deep), size=low1.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([deep, self.low(low1)], dim=1))  # type: ignore[no-any-return]


class DeepLabV3Plus(Segmenter):
    """DeepLabV3+: DeepLabV3 with a decoder at stride 4.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map.
        width: channels of the head; 256 in the paper.
        dropout: probability before the classifier.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        aux: bool = False,
        pretrained: bool | str = False,
        output_stride: int = 16,
        width: int = 256,
        dropout: float = 0.1,
    ):
        body = Backbone(backbone, output_stride=output_stride, pretrained=pretrained)
        decoder = EncoderDecoder(body.channels[0], body.channels[3], width, output_stride)
        super().__init__(body, decoder, width, num_classes, aux=aux, dropout=dropout)
