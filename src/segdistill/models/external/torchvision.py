"""torchvision's segmentation networks."""

import importlib
from typing import Any

from torch import Tensor, nn

from segdistill._options import closest
from segdistill._printing import first_line
from segdistill.models.external.wrapper import External
from segdistill.models.normalisation import Normalisation

NAMES = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "fcn_resnet50",
    "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)
EXAMPLES = list(NAMES)


class TorchvisionNetwork(External):
    """A network of torchvision; its auxiliary head, which runs in training only, becomes `aux`.

    Args:
        network: with `backbone`, `classifier` and perhaps `aux_classifier`.
        classes: names, where they are known.
    """

    def __init__(self, network: nn.Module, classes: list[str] | None = None):
        super().__init__(network, normalisation=Normalisation(), classes=classes)
        aux = getattr(network, "aux_classifier", None)
        if aux is not None:
            network.aux_classifier = None  # type: ignore[assignment]
            self.aux = aux

    def run(self, images: Tensor) -> Tensor:
        """Logits of normalised images."""
        features = self.network.backbone(images)  # type: ignore[operator]
        if self.aux is not None and self.training:
            self.aux(features["aux"])  # read through its tap
        if "out" not in features:  # lraspp: its head takes both maps
            return self.network.classifier(features)  # type: ignore[operator, no-any-return]
        return self.network.classifier(features["out"])  # type: ignore[operator, no-any-return]


def build_torchvision(
    name: str, num_classes: int | None, *, aux: bool = False, pretrained: bool | str = False
) -> External:
    """A network of torchvision.

    Args:
        name: as in `torchvision.models.list_models(module=torchvision.models.segmentation)`.
        num_classes: C; None for those of the published weights.
        aux: whether to add the auxiliary head.
        pretrained: True for ImageNet weights of the backbone, `published` for the complete trained network.

    Raises:
        ValueError: on an unknown name, a head that there is not, or weights that cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"no model torchvision:{name}{closest(name, NAMES)}")
    if aux and name.startswith("lraspp"):
        raise ValueError(f"torchvision:{name} has no auxiliary head; leave out aux")
    if isinstance(pretrained, str) and pretrained != "published":
        raise ValueError(f"torchvision:{name}, pretrained: expected true, false or published, got {pretrained}")
    models: Any = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    classes = None
    if pretrained == "published":
        options["weights"] = models.get_model_weights(name).DEFAULT
        classes = list(options["weights"].meta["categories"])
        num_classes = len(classes) if num_classes is None else num_classes
        if num_classes != len(classes):
            raise ValueError(f"torchvision:{name} is published with {len(classes)} classes, not {num_classes}")
    elif pretrained:
        options["weights_backbone"] = "DEFAULT"
    if num_classes is None:
        raise ValueError(f"torchvision:{name}: say how many classes it has")
    if not name.startswith("lraspp"):
        options["aux_loss"] = aux or pretrained == "published"
    try:
        network = models.get_model(name, num_classes=num_classes, **options)
    except OSError as error:
        raise ValueError(f"cannot fetch weights of {name} ({first_line(error)}); give weights: PATH") from error
    if not aux and getattr(network, "aux_classifier", None) is not None:
        network.aux_classifier = None
    wrapped = TorchvisionNetwork(network, classes)
    wrapped.spec = {"num_classes": num_classes, "aux": aux, "pretrained": False}
    return wrapped
