"""HRNet (Sun et al., CVPR 2019; Wang et al., TPAMI 2021) with its FCN head; layers are named as in its checkpoints."""

from functools import partial
from typing import ClassVar, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from segdistill.models.backbone import Stages
from segdistill.models.scaling import check_scale, scaled, shortened
from segdistill.models.segmenter import BackboneSegmenter, conv_bn_relu
from segdistill.models.weights.files import load_backbone_weights


class Plan(NamedTuple):
    """What sets one HRNet apart: channels of the finest branch, blocks per branch and stage, modules per stage."""

    width: int
    blocks: tuple[int, int, int, int]
    modules: tuple[int, int, int]
    timm_name: str
    scale: float = 1.0
    """Multiplies all channels."""

    @property
    def channels(self) -> list[int]:
        """Of the four branches, fine to coarse."""
        return [scaled(self.width * 2**i, self.scale) for i in range(4)]

    def scaled(self, width: float, depth: float) -> "Plan":
        """The same with other channels, and other numbers of residual blocks; modules, which exchange, stay.

        Args:
            width: multiplies channels.
            depth: multiplies blocks.
        """
        one, two, three, four = (shortened(count, depth) for count in self.blocks)
        return self._replace(blocks=(one, two, three, four), scale=width)


SIZES = {
    # The W18-small of segmentation (OpenMMLab's hrnetv2_w18_small) is what timm calls v2.
    "hrnet_w18_small": Plan(18, (2, 2, 2, 2), (1, 3, 2), "hrnet_w18_small_v2"),
    "hrnet_w48": Plan(48, (4, 4, 4, 4), (1, 4, 3), "hrnet_w48"),
}


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, relu: bool = True) -> nn.Module:
    """Convolution without bias, batch norm, and ReLU unless told otherwise."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), *([nn.ReLU(inplace=True)] if relu else []))


class Exchange(nn.Module):
    """One module: residual blocks in each branch, then every branch becomes the sum of all, resampled to it.

    Args:
        channels: of the branches, fine to coarse.
        blocks: residual blocks per branch.
    """

    def __init__(self, channels: list[int], blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(c, c) for _ in range(blocks))) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    @staticmethod
    def _path(channels: list[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return conv_bn(channels[source], channels[target], 1, relu=False)
        steps = [conv_bn(channels[source], channels[source], stride=2) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, conv_bn(channels[source], channels[target], stride=2, relu=False))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Exchanged maps, of the same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            assert isinstance(paths, nn.ModuleList)
            parts = [path(x) for path, x in zip(paths, maps, strict=True)]
            total = parts[target]
            for source, part in enumerate(parts):
                if source != target:
                    total = total + resized(part, maps[target])
            fused.append(F.relu(total))
        return fused


def resized(x: Tensor, like: Tensor, aligned: bool = False) -> Tensor:
    """Resize a coarser map bilinearly to another's H×W; any size, also odd ones."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=aligned)


class Transition(nn.ModuleList):
    """Start a new branch, of half the coarsest one's resolution; the finest may change its channels on the way.

    Args:
        before: channels of the branches so far.
        after: channels of the branches from here on, one more.
    """

    def __init__(self, before: list[int], after: list[int]):
        kept = [nn.Identity() if a == b else conv_bn(a, b) for a, b in zip(before, after[:-1], strict=True)]
        super().__init__([*kept, nn.Sequential(conv_bn(before[-1], after[-1], stride=2))])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps with the new one at the end."""
        return [layer(x) for layer, x in zip(self, [*maps, maps[-1]], strict=True)]


class Body(nn.Module):
    """HRNet's layers: images (N,3,H,W) → its four branches, and two early maps.

    Args:
        size: one of `SIZES`.
    """

    def __init__(self, size: Plan):
        super().__init__()
        channels = size.channels
        stem = scaled(64, size.scale)
        wide = 4 * stem
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        first = Bottleneck(stem, stem, downsample=conv_bn(stem, wide, 1, relu=False))
        self.layer1 = nn.Sequential(first, *(Bottleneck(wide, stem) for _ in range(size.blocks[0] - 1)))
        self.transition1 = Transition([wide], channels[:2])
        self.stage2 = self._stage(size, 2)
        self.transition2 = Transition(channels[:2], channels[:3])
        self.stage3 = self._stage(size, 3)
        self.transition3 = Transition(channels[:3], channels)
        self.stage4 = self._stage(size, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(size: Plan, stage: int) -> nn.Sequential:
        branches, blocks = size.channels[:stage], size.blocks[stage - 1]
        return nn.Sequential(*(Exchange(branches, blocks) for _ in range(size.modules[stage - 2])))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Output of the first stage, coarse branch of the second, then the four branches, fine to coarse."""
        x = F.relu(self.bn1(self.conv1(images)))
        first = self.layer1(F.relu(self.bn2(self.conv2(x))))
        two = self.stage2(self.transition1([first]))
        one, half, quarter, eighth = self.stage4(self.transition3(self.stage3(self.transition2(two))))
        return first, two[1], one, half, quarter, eighth


class HighResolution(Stages):
    """HRNet without a classifier: images (N,3,H,W) → its four branches at strides 4, 8, 16 and 32.

    The taps `low1` and `low2` are early ones, as in other backbones: the output of the first stage (256 channels,
    stride 4), and the coarse branch of the second (stride 8).

    Args:
        size: one of `SIZES`, perhaps scaled.
        pretrained: True asks timm's hub; a string is a file, or `pip:DISTRIBUTION`.
    """

    def __init__(self, size: Plan, *, pretrained: bool | str = False):
        super().__init__(size.channels)
        self.body = Body(size)
        if pretrained:
            load_backbone_weights(self.body, size.timm_name, partial(timm.create_model, size.timm_name), pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Branches after the last stage, fine to coarse.

        Args:
            images: (N,3,H,W), normalised.
        """
        first, second, *branches = self.body(images)
        self.low1(first)  # read through the taps
        self.low2(second)
        one, half, quarter, eighth = branches
        return one, half, quarter, eighth


class HRNetHead(nn.Module):
    """All branches, resized to the finest, joined by a 1×1 convolution.

    Args:
        width: channels of all branches together.
    """

    align_corners = False
    """Whether branches are resized with aligned corners; those that exchange what they see never are."""

    def __init__(self, width: int):
        super().__init__()
        self.fuse = conv_bn_relu(width, width)

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Joined map, at stride 4."""
        finest = [resized(x, low1, self.align_corners) for x in (low2, middle, deep)]
        return self.fuse(torch.cat([low1, *finest], dim=1))  # type: ignore[no-any-return]


class HRNet(BackboneSegmenter):
    """High-resolution network: four resolutions side by side that exchange what they see.

    Args:
        name: one of `SIZES`.
        num_classes: C.
        pretrained: ImageNet weights: True, False, a path, or `pip:DISTRIBUTION`.
        width: multiplies channels.
        depth: multiplies the residual blocks of each branch.
        dropout: probability before the classifier; none in the papers.

    Raises:
        ValueError: if width or depth is no multiplier, or a scaled network is to have ImageNet weights.
    """

    names: ClassVar[tuple[str, ...]] = tuple(SIZES)

    def __init__(
        self,
        name: str,
        *,
        num_classes: int,
        pretrained: bool | str = False,
        width: float = 1.0,
        depth: float = 1.0,
        dropout: float = 0.0,
    ):
        check_scale(width, depth)
        if pretrained and (width, depth) != (1, 1):
            raise ValueError(f"pretrained: ImageNet weights of {name} fit width 1 and depth 1 only; leave one out")
        body = HighResolution(SIZES[name].scaled(width, depth), pretrained=pretrained)
        channels = sum(body.channels)
        super().__init__(body, HRNetHead(channels), channels, num_classes, dropout=dropout)
