"""ISANet: interlaced sparse self-attention (Huang et al., arXiv:1907.12273), in OpenMMLab's form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models.backbone import make_backbone
from segdistill.models.scaling import scaled
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu


class SelfAttention(nn.Module):
    """Every position of a map becomes a mixture of all positions: softmax(q·k/√A) v, then a 1×1 convolution.

    Args:
        channels: of the map.
        attention_channels: A, of queries and keys.
    """

    def __init__(self, channels: int, attention_channels: int):
        super().__init__()
        a = attention_channels
        self.key = nn.Sequential(conv_bn_relu(channels, a), conv_bn_relu(a, a))
        self.query = nn.Sequential(conv_bn_relu(channels, a), conv_bn_relu(a, a))
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = conv_bn_relu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attended map, same shape (N,C,H,W)."""
        query, key, value = (part(x).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return self.out(mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class InterlacedAttention(nn.Module):
    """Long-range, then short-range attention: among pixels of equal place in their cells, then within each cell.

    Args:
        channels: of the map.
        attention_channels: of queries and keys.
        cell: pixels along each side of a cell; 8 in the paper.
    """

    def __init__(self, channels: int, attention_channels: int, cell: int = 8):
        super().__init__()
        self.cell = cell
        self.far = SelfAttention(channels, attention_channels)
        self.near = SelfAttention(channels, attention_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attended map, same shape (N,C,H,W); H and W are zero-padded to whole cells in between."""
        h, w, p = x.shape[-2], x.shape[-1], self.cell
        pad_h, pad_w = -h % p, -w % p
        top, left = pad_h // 2, pad_w // 2
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))
        cells = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # type: ignore[no-untyped-call]
        cells = cells.permute(0, 3, 5, 1, 2, 4)  # (N,p,p,C,rows,columns)
        far = self.far(cells.flatten(0, 2)).view(cells.shape)  # a group per place in the cell
        cells = far.permute(0, 4, 5, 3, 1, 2)  # (N,rows,columns,C,p,p)
        near = self.near(cells.flatten(0, 2)).view(cells.shape)  # a group per cell
        x = near.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return x[..., top : top + h, left : left + w]


class ISAHead(nn.Module):
    """A 3×3 convolution on the deepest map and interlaced attention, joined by a 1×1 convolution.

    Args:
        in_channels: of the deepest map.
        width: channels of the result.
        attention_channels: of queries and keys.
    """

    def __init__(self, in_channels: int, width: int, attention_channels: int):
        super().__init__()
        self.reduce = conv_bn_relu(in_channels, width, 3)
        self.attention = InterlacedAttention(width, attention_channels)
        self.fuse = conv_bn_relu(2 * width, width)

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at the deepest map's resolution."""
        reduced = self.reduce(deep)
        return self.fuse(torch.cat([self.attention(reduced), reduced], dim=1))  # type: ignore[no-any-return]


class ISANet(BackboneSegmenter):
    """Interlaced sparse self-attention network.

    Args:
        backbone: a timm name or one of ours.
        num_classes: C.
        aux: whether to add the auxiliary head.
        pretrained: ImageNet weights of the backbone: True, False, a path, or `pip:DISTRIBUTION`.
        output_stride: of the deepest map.
        width: multiplies channels, of the backbone and of the heads.
        depth: multiplies the blocks of each stage of the backbone.
        head_width: channels of the head; a quarter of the backbone's by default (512 on ResNet-101, 128 on ResNet-18).
        attention_channels: of queries and keys.
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
        attention_channels: int = 256,
        dropout: float = 0.1,
    ):
        body = make_backbone(backbone, output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
        channels = body.channels[3] // 4 if head_width is None else scaled(head_width, width)
        decoder = ISAHead(body.channels[3], channels, scaled(attention_channels, width))
        super().__init__(body, decoder, channels, num_classes, aux=aux, dropout=dropout)
