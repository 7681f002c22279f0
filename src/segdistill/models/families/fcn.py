"""FCN (Long et al., CVPR 2015) on a dilated backbone, in OpenMMLab's form."""

import torch
from torch import Tensor, nn

from segdistill.models.backbone import make_backbone
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu


class FCNHead(nn.Module):
    """Two 3×3 convolutions on the deepest map, joined with it by a third.

    Args:
        in_channels: of the deepest map.
        width: channels of the result.
    """

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.convs = nn.Sequential(conv_bn_relu(in_channels, width, 3), conv_bn_relu(width, width, 3))
        self.fuse = conv_bn_relu(in_channels + width, width, 3)

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at the deepest map's resolution."""
        return self.fuse(torch.cat([deep, self.convs(deep)], dim=1))  # type: ignore[no-any-return]


class FCN(BackboneSegmenter):
    """Fully convolutional network: convolutions on a dilated backbone, no context module.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of the head; a quarter of the backbone's by default (512 on ResNet-101, 128 on ResNet-18).
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
        channels = body.channels[3] // 4 if head_width is None else scaled(head_width, width)
        super().__init__(body, FCNHead(body.channels[3], channels), channels, num_classes, aux=aux, dropout=dropout)
