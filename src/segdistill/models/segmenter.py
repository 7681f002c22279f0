"""What the networks of the catalogue have in common: normalisation, taps, and mostly backbone, decoder, classifier."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from segdistill.models.backbone import MEAN, STD, Stages
from segdistill.taps import resize_logits


class Normalise(nn.Module):
    """Images in 0…1 → (images − mean) / std, per channel.

    Args:
        mean: of red, green, blue.
        std: of red, green, blue.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N,3,H,W)."""
        return (images - self.mean) / self.std


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps H×W, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3×3 and pointwise 1×1 convolution, each with batch norm and ReLU."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(
        depthwise,
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn_relu(in_channels, out_channels),
    )


class Segmenter(nn.Module):
    """A segmentation network: RGB images in 0…1 (N,3,H,W) → logits (N,C,H,W), any H×W.

    It normalises its input itself, and says where its taps are and which module is its final 1×1 classifier.

    Args:
        num_classes: C.
        mean: of red, green, blue.
        std: of red, green, blue.
    """

    names: ClassVar[tuple[str, ...] | None] = None
    """Names of the family's networks, where they are not `<family>_<backbone>` for any backbone."""
    taps: ClassVar[dict[str, str]]
    """Tap name → path of a submodule whose output is meant; with `:input` behind it, what enters it."""
    classifier_path: str | None = "classifier"
    """Path of the final 1×1 classifier; None where there is none."""
    align_corners: bool = False
    """Whether its logits, and the maps in its decoder, are resized with aligned corners."""
    spec: dict[str, Any]
    """Arguments of `build_model` that make this architecture again."""

    def __init__(self, num_classes: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
        super().__init__()
        self.num_classes = num_classes
        self.mean, self.std = tuple(mean), tuple(std)
        self.normalise = Normalise(self.mean, self.std)


class BackboneSegmenter(Segmenter):
    """A backbone of four maps, a decoder, a 1×1 classifier; logits are resized bilinearly to the images' resolution.

    With an auxiliary head, the head runs in training mode and its logits are the tap `aux`.

    Args:
        backbone: gives four maps.
        decoder: maps (low1, low2, middle, deep) → the tensor that the classifier reads.
        width: channels of that tensor.
        num_classes: C.
        aux: whether to add an auxiliary head on the third map, for training.
        aux_width: its channels; a quarter of the third map's by default.
        dropout: probability before the classifier, whole channels at a time.
    """

    taps: ClassVar[dict[str, str]] = {
        "low1": "backbone.low1",
        "low2": "backbone.low2",
        "features": "classifier:input",
        "logits": "classifier",
    }

    def __init__(
        self,
        backbone: Stages,
        decoder: nn.Module,
        width: int,
        num_classes: int,
        *,
        aux: bool = False,
        aux_width: int | None = None,
        dropout: float = 0.1,
    ):
        super().__init__(num_classes, backbone.mean, backbone.std)
        self.backbone = backbone
        self.decoder = decoder
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.aux: nn.Module | None = None
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]
        if aux:
            middle = backbone.channels[2]
            hidden = middle // 4 if aux_width is None else aux_width
            self.aux = nn.Sequential(
                conv_bn_relu(middle, hidden, 3), nn.Dropout2d(dropout), nn.Conv2d(hidden, num_classes, 1)
            )
            self.taps = {**self.taps, "aux": "aux"}  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the images' resolution."""
        low1, low2, middle, deep = self.backbone(self.normalise(images))
        logits = self.classifier(self.dropout(self.decoder(low1, low2, middle, deep)))
        if self.aux is not None and self.training:
            self.aux(middle)  # read through its tap
        return resize_logits(logits, (images.shape[-2], images.shape[-1]), self.align_corners)
