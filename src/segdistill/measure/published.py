"""What the papers say of their networks' sizes, and how `build_model` makes each of them."""

from typing import Any, NamedTuple


class Published(NamedTuple):
    """A network of a paper."""

    name: str
    """For `build_model`."""
    options: dict[str, Any]
    """For `build_model`."""
    classes: int
    """With which its parameters were counted."""
    params: float
    """Parameters in millions, as published, with the auxiliary head where `options` has one."""
    multiply_adds: float | None
    """In 10⁹ at 512×1024, as published (there called FLOPs, counted with the auxiliary head); None if not given so."""
    source: str
    """Who says so."""


AUX = {"aux": True}

PUBLISHED = (
    Published("pspnet_resnet101_deepstem", AUX, 19, 70.43, 574.9, "SKD"),
    Published("pspnet_resnet18_deepstem", AUX, 19, 13.07, 125.8, "SSTKD"),
    Published("pspnet_resnet18_half", {}, 19, 3.835, 33.35, "SKD"),
    Published("pspnet_efficientnet_b1", AUX, 19, 6.70, None, "SSTKD"),
    Published("lightnet_mobilenetv2_plus", {}, 19, 8.301, 86.12, "SKD"),
    Published("pspnet_mobilenetv2_plus", {}, 19, 8.301, None, "SKD, whose head is LightNet's"),
    Published("espnet", {}, 19, 0.3635, 4.422, "SKD"),
    Published("espnet_c", {}, 19, 0.3492, 3.468, "SKD"),
    Published("deeplabv3_resnet101_deepstem", AUX, 19, 61.1, None, "CIRKD, I2CKD"),
    Published("deeplabv3_resnet18_deepstem", AUX, 19, 13.6, None, "CIRKD, I2CKD"),
    Published("pspnet_resnet18_v1c", {**AUX, "aux_width": 64}, 150, 12.82, None, "FAKD"),
    Published("hrnet_w18_small", {}, 150, 3.97, None, "FAKD"),
    Published("deeplabv3plus_mobilenetv2", AUX, 150, 15.35, None, "FAKD"),
    Published("isanet_resnet18_v1c", AUX, 150, 12.46, None, "FAKD"),
)
"""FAKD's figures are those of OpenMMLab's forms with ADE20K's 150 classes; with 19 classes they are within 1 %."""
