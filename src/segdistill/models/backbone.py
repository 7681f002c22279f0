"""Backbones: any timm network as four feature maps, with the two low-level ones named for taps."""

import itertools
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill._options import closest
from segdistill.models.scaling import backbone_maker, check_scale
from segdistill.models.weights.files import load_backbone_weights

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's red, green, blue: what networks are normalised with unless their weights say otherwise."""

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    # SKD's stem: 3×3/2→64, 3×3→64, 3×3→128 instead of one 7×7/2→64.
    "resnet18_deepstem": ("resnet18", {"stem_type": "deep", "stem_width": 64}),
    "resnet50_deepstem": ("resnet50", {"stem_type": "deep", "stem_width": 64}),
    "resnet101_deepstem": ("resnet101", {"stem_type": "deep", "stem_width": 64}),
    # OpenMMLab's ResNetV1c: 3×3/2→32, 3×3→32, 3×3→64.
    "resnet18_v1c": ("resnet18", {"stem_type": "deep", "stem_width": 32}),
    "resnet50_v1c": ("resnet50", {"stem_type": "deep", "stem_width": 32}),
    "resnet101_v1c": ("resnet101", {"stem_type": "deep", "stem_width": 32}),
    "mobilenetv2": ("mobilenetv2_100", {}),
    "mobilenetv2_plus": ("mobilenetv2_100", {}),
}
"""Backbones that timm has no such name for: name → (timm's name, arguments)."""

NARROW = {"resnet18_half": ("resnet18", 0.5), "resnet18_quarter": ("resnet18", 0.25)}
"""Other names of backbones of another width: name → (the backbone, its width)."""


class Stages(nn.Module):
    """Base of what gives four feature maps, shallow to deep, the first two of them named for taps.

    Args:
        channels: of the four maps.
        mean: of red, green, blue, that its weights were trained with.
        std: likewise.
    """

    def __init__(self, channels: list[int], mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
        super().__init__()
        self.channels = channels
        self.mean, self.std = tuple(mean), tuple(std)
        self.low1 = nn.Identity()
        self.low2 = nn.Identity()


class Backbone(Stages):
    """A timm network without its classifier: images (N,3,H,W) → its last four feature maps, shallow to deep.

    Args:
        name: a timm name, or one of `OURS` or `NARROW`.
        output_stride: stride of the deepest map (8, 16 or 32); later stages are dilated instead.
        pretrained: True asks timm's hub; a string is a file, or `pip:DISTRIBUTION` for weights in an installed package.
        width: multiplies channels, as in `segdistill.models.scaling`.
        depth: multiplies the blocks of each stage, likewise.

    Raises:
        ValueError: on an unknown name, a network that has no four maps at that stride or cannot be scaled, or a scaled
            one that is to fetch weights.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 8,
        pretrained: bool | str = False,
        width: float = 1.0,
        depth: float = 1.0,
    ):
        check_scale(width, depth)
        whole, narrow = NARROW.get(name, (name, 1.0))
        width *= narrow
        timm_name, arguments = OURS.get(whole, (whole, {}))
        if not timm.is_model(timm_name):
            raise ValueError(f"no backbone {name!r}{closest(name, [*timm.list_models(), *OURS, *NARROW])}")
        if pretrained is True and (width, depth) != (1, 1):
            raise ValueError(
                f"pretrained: nobody publishes weights of {whole} with width {width:g} and depth {depth:g}; leave "
                "pretrained out, or give a file of that very network"
            )
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        try:
            make = backbone_maker(timm_name, arguments, width, depth)
            body: Any = make(features_only=True, output_stride=output_stride)
        except (TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
            scale = "" if (width, depth) == (1, 1) else f", width={width:g}, depth={depth:g}"
            told = str(error) or "timm does not take these numbers; try others"
            raise ValueError(
                f"backbone {name} cannot be built with output_stride={output_stride}{scale}: {told}"
            ) from error
        info = body.feature_info
        if len(info.channels()) < 4 or info.reduction()[-1] != output_stride:
            raise ValueError(
                f"backbone {name} gives maps of strides {info.reduction()}, not four down to {output_stride}; "
                "try another output_stride or backbone"
            )
        super().__init__(info.channels()[-4:], body.default_cfg["mean"], body.default_cfg["std"])
        self.body: Any = body
        if pretrained:
            load_backbone_weights(self.body, timm_name, make, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature maps of four stages.

        Args:
            images: (N,3,H,W), normalised.
        """
        low1, low2, middle, deep = self.body(images)[-4:]
        return self.low1(low1), self.low2(low2), middle, deep


class Excitation(nn.Module):
    """Concurrent spatial and channel excitation (Roy et al., MICCAI 2018): x · channel gate + x · pixel gate.

    Args:
        channels: of the map.
        reduction: of the channel gate's hidden layer.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        self.pixel = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Excited map, same shape."""
        return x * self.channel(x) + x * self.pixel(x)  # type: ignore[no-any-return]


class SevenStages(nn.Module):
    """The layers of timm's MobileNetV2, with the maps of all its stages.

    Args:
        features: timm's network.
    """

    def __init__(self, features: Any):
        super().__init__()
        self.conv_stem, self.bn1, self.blocks = features.conv_stem, features.bn1, features.blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of the seven stages, shallow to deep."""
        x = self.bn1(self.conv_stem(images))
        return list(itertools.accumulate(self.blocks, lambda x, stage: stage(x), initial=x))[1:]


class MobileNetV2Plus(Backbone):
    """MobileNetV2Plus, SKD's student (LightNet, github.com/ansleliu/LightNet): MobileNetV2 with growing dilation.

    The seven stages are joined at the deepest map's resolution, shallow ones max-pooled, and excited: 712 channels.
    At output stride 8 the stages 64, 96, 160 and 320 have dilations 2, 4, 8 and 16; at larger strides
    proportionally less. The first map is stage two (24 channels) with the pooled stage one (16).

    Args:
        output_stride: stride of the deepest map (8, 16 or 32); 8 in LightNet.
        pretrained: as in `Backbone`, of timm's mobilenetv2_100.
        width: multiplies channels.
        depth: multiplies the blocks of each stage.
    """

    def __init__(
        self, *, output_stride: int = 8, pretrained: bool | str = False, width: float = 1.0, depth: float = 1.0
    ):
        scale = {"width": width, "depth": depth}
        super().__init__("mobilenetv2_plus", output_stride=output_stride, pretrained=pretrained, **scale)
        stages = [_out_channels(stage) for stage in self.body.blocks]  # 16, 24, 32, 64, 96, 160, 320
        self.channels = [stages[1] + stages[0], stages[2], stages[4], sum(stages)]
        strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 16, 32, 32)]
        self.halvings = [(output_stride // stride).bit_length() - 1 for stride in strides]
        self.body = SevenStages(self.body)
        for stage, dilation in zip(self.body.blocks[3:], (2, 4, 8, 16), strict=True):
            _dilate(stage, max(1, dilation * 8 // output_stride))
        self.excite = Excitation(self.channels[3])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature maps of stages two (with one), three, five, and of all seven together.

        Args:
            images: (N,3,H,W), normalised.
        """
        maps = self.body(images)
        low1 = torch.cat([maps[1], _halved(maps[0], 1)], dim=1)
        joined = torch.cat([_halved(x, times) for x, times in zip(maps, self.halvings, strict=True)], dim=1)
        return self.low1(low1), self.low2(maps[2]), maps[4], self.excite(joined)


def _out_channels(stage: nn.Module) -> int:
    return [module.out_channels for module in stage.modules() if isinstance(module, nn.Conv2d)][-1]


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Set the dilation of a stage's depthwise convolutions that do not stride."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (1, 1):
            module.dilation = module.padding = (dilation, dilation)


def _halved(x: Tensor, times: int) -> Tensor:
    """Max-pool to half the resolution, several times; odd sizes as a convolution of stride 2 rounds them."""
    for _ in range(times):
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    return x


def make_backbone(
    name: str,
    *,
    output_stride: int = 8,
    pretrained: bool | str = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> Backbone:
    """The backbone of a name.

    Args:
        name: a timm name, or one of `OURS` or `NARROW`.
        output_stride: stride of the deepest map.
        pretrained: True, False, a path, or `pip:DISTRIBUTION`.
        width: multiplies channels.
        depth: multiplies the blocks of each stage.
    """
    if name == "mobilenetv2_plus":
        return MobileNetV2Plus(output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
    return Backbone(name, output_stride=output_stride, pretrained=pretrained, width=width, depth=depth)
