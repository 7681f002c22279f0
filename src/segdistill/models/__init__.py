"""Networks. One file per family; `build_model("<family>_<backbone>")` joins a family with any timm backbone."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from segdistill._options import closest, options_model
from segdistill.models._backbone import OURS
from segdistill.models._segmenter import Segmenter
from segdistill.models._weights import read_tensors

BACKBONES = (
    "resnet18",
    "resnet50",
    "resnet101",
    *OURS,
    "efficientnet_b1",
    "mobilenetv2_100",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite2",
)
"""Backbones that `list_models` names with each family; any other timm name works too."""


def list_families() -> list[str]:
    """Names of the network families: the files of this folder that do not start with an underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def list_models() -> list[str]:
    """Names that `build_model` takes: each family with the backbones that the papers use."""
    return [f"{family}_{backbone}" for family in list_families() for backbone in BACKBONES]


@cache
def family_class(family: str) -> Callable[..., Segmenter]:
    """The class of a family.

    Args:
        family: as in `list_families()`.
    """
    module = importlib.import_module(f"{__name__}.{family}")
    (found,) = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Segmenter) and c.__module__ == module.__name__
    ]
    return found


def split_name(name: str) -> tuple[str, str]:
    """The family and the backbone of a model's name.

    Args:
        name: `<family>_<backbone>`.

    Raises:
        ValueError: if no family starts the name.
    """
    for family in list_families():
        if name.startswith(f"{family}_"):
            return family, name.removeprefix(f"{family}_")
    raise ValueError(f"no model {name!r}{closest(name, list_models())}; names are <family>_<timm backbone>")


def build_model(name: str, *, num_classes: int, **options: Any) -> Segmenter:
    """Build a network by name.

    Args:
        name: `<family>_<backbone>`, for example `pspnet_resnet18`; see `list_models()`.
        num_classes: C.
        **options: of the family: `aux`, `pretrained`, `output_stride`, `width`, `dropout`.

    Returns:
        A network that takes RGB images in 0…1, (N,3,H,W), and gives logits (N,C,H,W). It says where its taps are
        (`taps`) and which module is its classifier (`classifier_path`).

    Raises:
        ValueError: on an unknown name or option, or a backbone that does not fit the family.

    >>> network = build_model("pspnet_resnet18", num_classes=19)
    >>> round(sum(p.numel() for p in network.parameters()) / 1e6, 2)
    12.62
    """
    family, backbone = split_name(name)
    cls = family_class(family)
    model = options_model(cls)
    known = {field for field in model.model_fields if field != "num_classes"}
    for option in options:
        if option not in known:
            raise ValueError(f"{family} has no option {option!r}{closest(option, known)}")
    checked = model.model_validate({"num_classes": num_classes, **options}).model_dump()
    network = cls(backbone, **checked)
    # The architecture alone: what made it, without where its first weights came from.
    network.spec = {"name": name, **checked, "pretrained": False}
    return network


__all__ = ["Segmenter", "build_model", "family_class", "list_families", "list_models", "read_tensors", "split_name"]
