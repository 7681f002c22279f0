"""Networks. One file per family; `build_model("<family>_<backbone>")` joins most families with any timm backbone.

Networks of other libraries have names with a colon, `smp:Unet:resnet18`; `external.py` builds them.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pydantic
from torch import nn

from segdistill._options import closest, options_model
from segdistill.models._backbone import OURS
from segdistill.models._external import External
from segdistill.models._forms import SOURCES
from segdistill.models._normalisation import Normalisation, normalise_with
from segdistill.models._segmenter import Segmenter
from segdistill.models._weights import read_tensors
from segdistill.models.external import build_external, external_names, external_options, is_external

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
"""Backbones that `list_models` names with each family that has no `names` of its own; other timm names work too."""
OTHERS = ("checkpoints", "external")
"""Files of this folder that are no family."""


def list_families() -> list[str]:
    """Names of the network families: the files of this folder that do not start with an underscore."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_") and name not in OTHERS)


def list_models() -> list[str]:
    """Names that `build_model` takes: each family with the backbones that the papers use, or its own names."""
    return [name for family in list_families() for name in family_names(family)]


def family_names(family: str) -> list[str]:
    """Names of a family's networks.

    Args:
        family: as in `list_families()`. Its class may give full names, `names`; else backbones complete them.
    """
    own: tuple[str, ...] | None = getattr(family_class(family), "names", None)
    return [f"{family}_{backbone}" for backbone in BACKBONES] if own is None else list(own)


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
    """The family and the backbone of a model's name; of a family with names of its own, the family and the name.

    Args:
        name: `<family>_<backbone>`, or one of a family's own names.

    Raises:
        ValueError: if no family has or starts the name.
    """
    for family in list_families():
        if getattr(family_class(family), "names", None) is None:
            if name.startswith(f"{family}_"):
                return family, name.removeprefix(f"{family}_")
        elif name in family_names(family):
            return family, name
    raise ValueError(f"no model {name!r}{closest(name, list_models())}; names are <family>_<timm backbone>")


def model_options(name: str) -> type[pydantic.BaseModel]:
    """The options of a network as a pydantic model, without `num_classes`.

    Args:
        name: as for `build_model`.

    Raises:
        ValueError: if there is no such network.
    """
    if is_external(name):
        return external_options(name)
    return options_model(family_class(split_name(name)[0]), skip=("num_classes",))


def build_model(
    name: str,
    *,
    num_classes: int | None,
    normalisation: Normalisation | Mapping[str, Any] | None = None,
    source: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: `<family>_<backbone>`, for example `pspnet_resnet18`; see `list_models()`. Or a network of another
            library: `smp:Unet:resnet18`, `torchvision:deeplabv3_resnet50`, `hf:nvidia/mit-b0`,
            `python:my_package.my_module:make_model`; see `models/external.py`.
        num_classes: C; None only for what another library publishes.
        normalisation: `{mean: …, std: …, bgr: …}` instead of the network's own.
        source: whose form and normalisation a network of ours takes, for weights from there: `openmmlab`, `skd`,
            `cirkd`, `torchvision`, `espnet`.
        **options: of the family: `aux`, `pretrained`, `output_stride`, `width`, `dropout`; or of the library.

    Returns:
        A network that takes RGB images in 0…1, (N,3,H,W), and gives logits (N,C,H,W). It says where its taps are
        (`taps`) and which module is its classifier (`classifier_path`).

    Raises:
        ValueError: on an unknown name or option, or a backbone that does not fit the family.

    >>> network = build_model("pspnet_resnet18", num_classes=19)
    >>> round(sum(p.numel() for p in network.parameters()) / 1e6, 2)
    12.62
    """
    network: nn.Module
    if is_external(name):
        network = build_external(name, num_classes, options)
    elif num_classes is None:
        raise ValueError(f"{name}: say how many classes it has")
    else:
        network = _build_own(name, num_classes, options)
        if source is not None:
            _take_form(network, source)
    if normalisation is not None:
        normalise_with(network, normalisation)
    return network


def _take_form(network: Segmenter, source: str) -> None:
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}{closest(source, SOURCES)}")
    SOURCES[source].adapt(network)
    network.spec = {**network.spec, "source": source}
    normalisation = SOURCES[source].normalisation
    if normalisation is not None:
        normalise_with(network, normalisation)


def _build_own(name: str, num_classes: int, options: dict[str, Any]) -> Segmenter:
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
    network.spec = {"name": name, **checked, **({"pretrained": False} if "pretrained" in checked else {})}
    return network


__all__ = [
    "External",
    "Normalisation",
    "Segmenter",
    "build_model",
    "external_names",
    "family_class",
    "list_families",
    "list_models",
    "model_options",
    "read_tensors",
    "split_name",
]
