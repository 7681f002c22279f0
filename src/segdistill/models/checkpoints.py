"""Trained networks from elsewhere: their tensors under our names, with the images normalised as they were there.

The names are in `weights/renames.py`, the details in which networks differ in `forms.py`.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from segdistill._options import closest
from segdistill.models import build_model, model_options, split_name
from segdistill.models.external import is_external
from segdistill.models.forms import SOURCES, form_of
from segdistill.models.weights.files import load_named, read_source
from segdistill.models.weights.renames import RENAMES, SIGNS, renamed
from segdistill.models.weights.state_dicts import Tensors, fitting, unwrapped


def find_source(names: Mapping[str, Any]) -> str:
    """The source that a state dict's names belong to; `segdistill` if none is known.

    Args:
        names: of the tensors.
    """
    if any(name.startswith(("backbone.body.", "network.")) for name in names):
        return "segdistill"
    return next((s for s, sign in SIGNS.items() if any(re.match(sign, name) for name in names)), "segdistill")


def convert(tensors: Mapping[str, Tensor], source: str, family: str) -> Tensors:
    """A source's tensors under our names and in our order.

    Args:
        tensors: name → tensor.
        source: one of `SOURCES`.
        family: of our network.

    Raises:
        ValueError: if the source is unknown, or has no such family.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}{closest(source, SOURCES)}")
    if source == "segdistill":
        return dict(tensors)
    if family not in RENAMES[source]:
        there = ", ".join(RENAMES[source])
        raise ValueError(
            f"source {source} is known for {there}, not {family}; for a network of its own use its library"
        )
    return _REORDER.get((source, family), dict)(renamed(tensors, RENAMES[source][family]))


def _skd(tensors: Tensors) -> Tensors:
    """Of InPlaceABN a weight's size counts, plus ε; pooled maps come first; the auxiliary convolution has a bias."""
    for name in [name for name in tensors if name.endswith(".running_var")]:
        weight = name.replace(".running_var", ".weight")
        tensors[weight] = tensors[weight].abs() + 1e-5
    tensors = _rotated("decoder.fuse.0.weight", "decoder.fuse.0.weight", 4)(tensors)
    bias = tensors.pop("aux.0.0.bias", None)
    if bias is not None:
        tensors["aux.0.1.running_mean"] = tensors["aux.0.1.running_mean"] - bias
    return tensors


def _rotated(name: str, like: str, parts: int) -> Callable[[Tensors], Tensors]:
    """A function that puts a weight's first input channels last: `parts` times as many as another has outputs."""

    def rotate(tensors: Tensors) -> Tensors:
        if name in tensors:
            first = parts * tensors[like].shape[0]
            weight = tensors[name]
            tensors[name] = torch.cat([weight[:, first:], weight[:, :first]], dim=1)
        return tensors

    return rotate


_ASPP_FUSE = "decoder.aspp.fuse.0.weight"
_REORDER: dict[tuple[str, str], Callable[[Tensors], Tensors]] = {
    ("skd", "pspnet"): _skd,
    # OpenMMLab's global branch comes first, ours last.
    ("openmmlab", "deeplabv3"): _rotated(_ASPP_FUSE, _ASPP_FUSE, 1),
    ("openmmlab", "deeplabv3plus"): _rotated(_ASPP_FUSE, _ASPP_FUSE, 1),
}


def _external(tensors: Tensors, name: str, wanted: Collection[str]) -> Tensors:
    """Tensors of another library's network as our wrapper names them, be they saved by the library or by us."""

    def ours(key: str) -> str:
        if name.startswith("torchvision:") and key.startswith("aux_classifier."):
            return key.replace("aux_classifier.", "aux.", 1)
        return f"network.{key}"

    readings = unwrapped(tensors)
    return fitting([*readings, *({ours(key): value for key, value in those.items()} for those in readings)], wanted)


def _seen_options(
    tensors: Tensors, family: str, source: str, options: Mapping[str, Any], known: set[str]
) -> dict[str, Any]:
    """Options of a family that the shapes tell, where they are not given."""
    places = {"fuse_kernel": (_ASPP_FUSE, -1)}
    if options.get("width") in (None, 1):  # otherwise they are multiplied
        places |= {"head_width": ("classifier.weight", 1), "aux_width": ("aux.2.weight", 1)}
    found: dict[str, Any] = {
        option: tensors[name].shape[place] for option, (name, place) in places.items() if name in tensors
    }
    if source == "openmmlab" and family == "deeplabv3plus":
        found["output_stride"] = 8
    return {key: value for key, value in found.items() if key in known and options.get(key) is None}


def _card_facts(path: str | Path) -> dict[str, Any] | None:
    """How the network of a student that we wrote sees images and resizes; None for any other file."""
    if not str(path).endswith(".safetensors"):
        return None
    with safe_open(Path(path).expanduser(), "pt") as opened:
        card = (opened.metadata() or {}).get("segdistill")
    if card is None:
        return None
    spec = json.loads(card).get("network") or {}
    return {key: spec[key] for key in ("source", "normalisation", "align_corners") if key in spec}


def _count_classes(tensors: Tensors, family: str) -> int | None:
    name, place = {"espnet": ("classifier.weight", 1), "espnet_c": ("encoder.classifier.conv.weight", 0)}.get(
        family, ("classifier.weight", 0)
    )
    return tensors[name].shape[place] if name in tensors else None


def load_weights(
    name: str,
    path: str | Path,
    *,
    num_classes: int | None = None,
    source: str | None = None,
    weights_key: str | None = None,
    say: Callable[[str], Any] = print,
    **options: Any,
) -> nn.Module:
    """Build a network and load a file's tensors into it, whoever wrote it.

    What the shapes tell (classes, the head's width) need not be said. Only an auxiliary head may be missing or of
    another shape; it is loaded where it fits.

    Args:
        name: of the network, as for `build_model`.
        path: of the file, tensors only, or `pip:DISTRIBUTION`.
        num_classes: C; told by the file if left out.
        source: one of `SOURCES`; told by the names of the tensors if left out, with a printed line.
        weights_key: under which key of the file they are, `ema` for the running average; a printed line says which were
            taken where the file holds both.
        say: prints a line.
        **options: of the network.

    Raises:
        ValueError: if the file is no such file, or a tensor is missing, left over or of another shape.
    """
    tensors = read_source(str(path), weights_key, say)
    facts = _card_facts(path)
    found = None
    if is_external(name):
        if num_classes is None:
            raise ValueError(f"{name} with weights: say how many classes it has, as num_classes or classes")
    else:
        family = split_name(name)[0]
        tensors = unwrapped(tensors)[-1]
        found = source or ("segdistill" if facts is not None else find_source(tensors))
        tensors = convert(tensors, found, family)
        num_classes = _agreed(num_classes, _count_classes(tensors, family), path, family)
        options |= _seen_options(tensors, family, found, options, set(model_options(name).model_fields))
    if found not in (None, "segdistill"):
        options["source"] = found
        if source is None:
            say(f"{path}: taken as {form_of(found, num_classes).what}; source: segdistill says otherwise")
    told = {key: value for key, value in options.items() if value is not None}
    if told.get("pretrained"):  # the file has all tensors: a first start would be fetched only to be overwritten
        told["pretrained"] = False
    network = build_model(name, num_classes=num_classes, **{**(facts or {}), **told})
    if is_external(name):
        tensors = _external(tensors, name, network.state_dict())
    load_named(network, tensors, str(path), spare=("aux.",))
    return network


def _agreed(given: int | None, seen: int | None, path: str | Path, family: str) -> int:
    """How many classes a network has, by what was given and what its file shows."""
    if given is None and seen is None:
        raise ValueError(f"{path}: no classifier of a {family} in there; say num_classes, or give its source")
    if given is not None and seen is not None and seen != given:
        raise ValueError(f"{path} has {seen} classes, not {given}; leave num_classes out, or give class_map")
    count = seen if given is None else given
    assert count is not None
    return count
