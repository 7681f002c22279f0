"""What an exported file says about itself: how to feed it, how to read its outputs, how far it was checked."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segdistill._version import __version__
from segdistill.deploy.graph import INPUT, OPSET, Interface
from segdistill.engine.student import CARD_KEY
from segdistill.functional import IGNORE

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

SCHEMA = 1
"""Version of what the metadata means; docs/deploy.md describes it."""


def make_metadata(
    network: "nn.Module", card: Mapping[str, Any], interface: Interface, *, digest: str, **facts: Any
) -> dict[str, Any]:
    """The metadata of a file, schema 1.

    Args:
        network: the student.
        card: its card.
        interface: of the file.
        digest: SHA-256 of the student's file.
        **facts: `precision`, `verification`, and whatever else there is to say.
    """
    known = {
        "ids": {"dtype": "uint8", "layout": "NHW", "size": "of the image"},
        "logits": {"dtype": "float32", "layout": "NCHW", "size": "as the network gives them"},
    }
    model = dict(card.get("network") or {}).get("name") or type(network).__name__
    size = card.get("size")
    return {
        "schema": SCHEMA,
        "classes": list(card["classes"]),
        "palette": [list(colour) for colour in card.get("palette") or []],
        "ignore_index": IGNORE,
        "input": {
            "name": INPUT,
            "dtype": "uint8" if interface.input == "uint8" else "float32",
            "layout": "NCHW",
            "range": [0, 255] if interface.input == "uint8" else [0, 1],
            "colour": "RGB",
            "size": None if interface.dynamic else list(interface.size),
        },
        "outputs": {name: known[name] for name in interface.outputs},
        "dynamic": interface.dynamic,
        "multiple": int(getattr(network, "multiple", 1)),
        "align_corners": bool(getattr(network, "align_corners", False)),
        "normalisation": card.get("normalisation"),
        "image_range": card.get("image_range"),
        "eval_size": None if size is None else list(size),
        "protocol": card.get("protocol"),
        "opset": OPSET,
        "source": {"model": model, "sha256": digest, "segdistill": __version__},
        **facts,
    }


def properties(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The metadata as the texts that a file holds: the whole under `segdistill`, and what other tools look for.

    Args:
        metadata: what `make_metadata` returned.
    """
    classes, source = metadata["classes"], metadata["source"]
    return {
        CARD_KEY: json.dumps(metadata, ensure_ascii=False),
        "names": str(dict(enumerate(classes))),  # as Ultralytics writes them, which other tools read
        "description": f"semantic segmentation, {source['model']}, {len(classes)} classes, {metadata['precision']}",
    }


def write_metadata(model: "ModelProto", metadata: Mapping[str, Any]) -> None:
    """Put the metadata into an ONNX graph.

    Args:
        model: is changed.
        metadata: what `make_metadata` returned.
    """
    del model.metadata_props[:]
    for key, value in properties(metadata).items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "segdistill", __version__
    model.doc_string = ""
