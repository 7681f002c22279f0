"""Backbones: any timm network as four feature maps, with the two low-level ones named for taps."""

from typing import Any

import timm
from torch import Tensor, nn

from segdistill._options import closest
from segdistill.models._weights import load_backbone_weights

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    # SKD's stem: 3×3/2→64, 3×3→64, 3×3→128 instead of one 7×7/2→64.
    "resnet18_deepstem": ("resnet18", {"stem_type": "deep", "stem_width": 64}),
    "resnet50_deepstem": ("resnet50", {"stem_type": "deep", "stem_width": 64}),
    "resnet101_deepstem": ("resnet101", {"stem_type": "deep", "stem_width": 64}),
    "resnet18_half": ("resnet18", {"channels": (32, 64, 128, 256)}),
    "resnet18_quarter": ("resnet18", {"channels": (16, 32, 64, 128)}),
}
"""Backbones that timm has no name for: name → (timm's name, arguments)."""


class Backbone(nn.Module):
    """A timm network without its classifier: images (N,3,H,W) → its last four feature maps, shallow to deep.

    Args:
        name: a timm name, or one of `OURS`.
        output_stride: stride of the deepest map (8, 16 or 32); later stages are dilated instead.
        pretrained: True asks timm's hub; a string is a file, or `pip:DISTRIBUTION` for weights in an installed package.

    Raises:
        ValueError: on an unknown name, or a network that has no four maps at that stride.
    """

    def __init__(self, name: str, *, output_stride: int = 8, pretrained: bool | str = False):
        super().__init__()
        timm_name, arguments = OURS.get(name, (name, {}))
        if not timm.is_model(timm_name):
            raise ValueError(f"no backbone {name!r}{closest(name, [*timm.list_models(), *OURS])}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
        try:
            body: Any = timm.create_model(timm_name, features_only=True, output_stride=output_stride, **arguments)
        except (TypeError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"backbone {name} cannot be built with output_stride={output_stride}: {error}") from error
        info = body.feature_info
        if len(info.channels()) < 4 or info.reduction()[-1] != output_stride:
            raise ValueError(
                f"backbone {name} gives maps of strides {info.reduction()}, not four down to {output_stride}; "
                "try another output_stride or backbone"
            )
        self.body: nn.Module = body
        self.channels: list[int] = info.channels()[-4:]
        self.low1 = nn.Identity()
        self.low2 = nn.Identity()
        self.mean: tuple[float, ...] = tuple(body.default_cfg["mean"])
        self.std: tuple[float, ...] = tuple(body.default_cfg["std"])
        if pretrained:
            load_backbone_weights(self.body, timm_name, arguments, pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature maps of four stages.

        Args:
            images: (N,3,H,W), normalised.
        """
        low1, low2, middle, deep = self.body(images)[-4:]
        return self.low1(low1), self.low2(low2), middle, deep
