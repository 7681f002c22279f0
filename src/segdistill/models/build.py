"""Networks by name: a family of ours on a backbone, or another library's."""

from collections.abc import Mapping
from typing import Any

import pydantic
from torch import nn

from segdistill._options import closest
from segdistill.models.backbone import NARROW, OURS
from segdistill.models.external import build_external, external_options, is_external
from segdistill.models.families import FAMILIES, list_families
from segdistill.models.forms import form_of
from segdistill.models.normalisation import Normalisation
from segdistill.models.normaliser import normalise_with
from segdistill.models.segmenter import Segmenter
from segdistill.models.weights.files import tensors_only

BACKBONES = (
    "resnet18",
    "resnet50",
    "resnet101",
    *OURS,
    *NARROW,
    "efficientnet_b1",
    "mobilenetv2_100",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite2",
)
"""Backbones that `list_models` names with each family that has no `names` of its own; other timm names work too."""


def list_models() -> list[str]:
    """Names that `build_model` takes: each family with the backbones that the papers use, or its own names."""
    return [name for family in list_families() for name in family_names(family)]


def family_names(family: str) -> list[str]:
    """Names of a family's networks.

    Args:
        family: as in `list_families()`. Its class may give full names, `names`; else backbones complete them.
    """
    own: tuple[str, ...] | None = getattr(FAMILIES.load(family), "names", None)
    return [f"{family}_{backbone}" for backbone in BACKBONES] if own is None else list(own)


def split_name(name: str) -> tuple[str, str]:
    """The family and the backbone of a model's name; of a family with names of its own, the family and the name.

    Args:
        name: `<family>_<backbone>`, or one of a family's own names.

    Raises:
        ValueError: if no family has or starts the name.
    """
    for family in list_families():
        if getattr(FAMILIES.load(family), "names", None) is None:
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
    return FAMILIES.options(split_name(name)[0])


def build_model(
    name: str,
    *,
    num_classes: int | None,
    normalisation: Normalisation | Mapping[str, Any] | None = None,
    source: str | None = None,
    align_corners: bool | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: `<family>_<backbone>`, for example `pspnet_resnet18`; see `list_models()`. Or a network of another
            library: `smp:Unet:resnet18`, `torchvision:deeplabv3_resnet50`, `hf:nvidia/mit-b0`,
            `python:my_package.my_module:make_model`; see `models/external/`.
        num_classes: C; None only for what another library publishes.
        normalisation: `{mean: …, std: …, bgr: …}` instead of the network's own.
        source: whose form and normalisation a network of ours takes, for weights from there: `openmmlab`, `skd`,
            `cirkd`, `torchvision`, `espnet`.
        align_corners: whether logits, and maps in the decoder of a network of ours, are resized with aligned corners;
            left out, as its source does, else not.
        **options: of the family: `aux`, `pretrained`, `output_stride`, `width`, `depth`, `head_width`, `dropout`;
                or of the library.

    Returns:
        A network that takes RGB images in 0…1, (N,3,H,W), and gives logits (N,C,H,W). It says where its taps are
        (`taps`) and which module is its classifier (`classifier_path`).

    Raises:
        ValueError: on an unknown name or option, or a backbone that does not fit the family.

    >>> network = build_model("pspnet_resnet18", num_classes=19)
    >>> round(sum(p.numel() for p in network.parameters()) / 1e6, 2)
    12.62
    """
    with tensors_only():
        built: Any = _build(name, num_classes, source, options)
    if normalisation is not None:
        normalise_with(built, normalisation)
    if align_corners is not None:
        _align(built, align_corners)
        built.spec = {**built.spec, "align_corners": align_corners}
    network: nn.Module = built
    return network


def _build(name: str, num_classes: int | None, source: str | None, options: dict[str, Any]) -> Any:
    if is_external(name):
        if source not in (None, "segdistill", name.partition(":")[0]):
            raise ValueError(f"{name}: a source is where weights of our own families are from; leave source out")
        return build_external(name, num_classes, options)
    if num_classes is None:
        raise ValueError(f"{name}: say how many classes it has")
    network = _build_own(name, num_classes, options)
    if source is not None:
        _take_form(network, source)
    return network


def _take_form(network: Segmenter, source: str) -> None:
    form = form_of(source, network.num_classes)
    form.adapt(network)
    network.spec = {**network.spec, "source": source}
    _align(network, form.align_corners)
    if form.normalisation is not None:
        normalise_with(network, form.normalisation)


def _align(network: Any, aligned: bool) -> None:
    """Say whether a network resizes with aligned corners, and whether the decoder of one of ours does."""
    network.align_corners = aligned
    decoder = getattr(network, "decoder", None)
    if decoder is not None and hasattr(decoder, "align_corners"):
        decoder.align_corners = aligned


def _build_own(name: str, num_classes: int, options: dict[str, Any]) -> Segmenter:
    family, backbone = split_name(name)
    checked = {"num_classes": num_classes, **FAMILIES.resolve(family, options)}
    family_class: Any = FAMILIES.load(family)
    network: Segmenter = family_class(backbone, **checked)
    # The architecture alone: what made it, without where its first weights came from.
    network.spec = {"name": name, **checked, **({"pretrained": False} if "pretrained" in checked else {})}
    return network
