"""The deliverable: the student alone in one file, with a card that says what it is."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from segdistill._version import __version__
from segdistill.engine.checkpoint import DIGEST, tensor_digest
from segdistill.engine.onnx_network import OnnxNetwork, is_onnx, onnx_card
from segdistill.engine.run_folder import STUDENT, write_atomically
from segdistill.models import build_model
from segdistill.models.weights.files import load_named, read_tensors
from segdistill.runtime import Predictor

CARD_KEY = "segdistill"
FORMAT = 2
"""Of the card. In format 1 `width` was the channels of the head, which are `head_width` since."""


def save_student(path: str | Path, network: nn.Module, card: Mapping[str, Any]) -> None:
    """Write the student alone, without its auxiliary head, with a card that says what it is.

    Args:
        path: ends in `.safetensors`.
        network: the bare network.
        card: anything that JSON holds; see `make_card`.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.startswith("aux.")}
    text = json.dumps(card, ensure_ascii=False)
    metadata = {CARD_KEY: text, DIGEST: tensor_digest({"card": text, "tensors": tensors})}
    write_atomically(Path(path), lambda p: p.write_bytes(serialise(tensors, metadata)))


def make_card(
    network: nn.Module, classes: list[str], palette: list[tuple[int, int, int]], **facts: Any
) -> dict[str, Any]:
    """What a student's file says about itself: enough to build the network, feed it and read its output.

    Args:
        network: the bare network; one that `build_model` made can be built again from the card.
        classes: names in the order of the channels.
        palette: a colour per class.
        **facts: further entries.
    """
    spec = getattr(network, "spec", None)
    return {
        "format": FORMAT,
        "segdistill": __version__,
        "network": None if spec is None else {k: False if k == "aux" else v for k, v in spec.items()},
        "input": "RGB, 0…1, (N,3,H,W); the network normalises by itself",
        "normalisation": {"mean": list(getattr(network, "mean", [])), "std": list(getattr(network, "std", []))},
        "taps": {k: v for k, v in getattr(network, "taps", {}).items() if k != "aux"},
        "classifier": getattr(network, "classifier_path", None),
        "classes": list(classes),
        "palette": [list(colour) for colour in palette],
        **facts,
    }


def student_path(path: str | Path) -> Path:
    """The student's file of a run folder, or the file itself.

    Args:
        path: a run folder, or a `.safetensors` or `.onnx` file.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path).expanduser()
    file = path / STUDENT if path.is_dir() else path
    if not file.is_file():
        hint = (
            "the run has not been validated yet"
            if path.is_dir()
            else "give a run folder, or a .safetensors or .onnx file"
        )
        raise ValueError(f"no student at {file}; {hint}")
    return file


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a student's file.

    Args:
        path: a run folder, or a `.safetensors` or `.onnx` file.

    Raises:
        ValueError: if it is not a student's file.
    """
    file = student_path(path)
    if is_onnx(file):
        return onnx_card(Predictor(file))
    metadata = _metadata(file)
    if CARD_KEY not in metadata:
        raise ValueError(f"{file} has no segdistill card; load it with weights: and the network's name")
    try:
        card = json.loads(metadata[CARD_KEY])
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise ValueError(f"{file} is damaged: its card is no JSON object; put a copy back, or train again")
    return card


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except Exception as error:
        if file.suffix != ".safetensors":
            raise ValueError(
                f"{file} is no run or student's file (.safetensors); give a network's name:, and weights: {file}"
            ) from None
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None


def read_student(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a student's file, if they are those that were saved.

    Args:
        path: a run folder or a `.safetensors` file.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    file = student_path(path)
    tensors, metadata = read_tensors(file), _metadata(file)
    found = tensor_digest({"card": metadata.get(CARD_KEY), "tensors": tensors})
    if metadata.get(DIGEST, found) != found:  # a file of an older version has none
        raise ValueError(f"{file} is damaged: its digest is not that of what it holds; put a copy back, or train again")
    return tensors


def _current(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card's arguments of `build_model`, under the names that they have today."""
    options = dict(card["network"])
    if card.get("format", 1) < 2 and "width" in options and ":" not in str(options["name"]):  # else another's option
        options["head_width"] = options.pop("width")
    return options


def load_student(path: str | Path, network: nn.Module | None = None, *, allow_code: bool | None = None) -> nn.Module:
    """Load a trained student, ready to use: RGB images in 0…1 (N,3,H,W) → logits (N,C,H,W).

    Args:
        path: a run folder or a `student.safetensors`; it needs nothing else. Or a `.onnx` file that `segdistill export`
            wrote: it runs on the CPU, and has neither weights nor taps.
        network: where the architecture is the user's own, an instance of it.
        allow_code: whether a function that the file names, `python:MODULE:FUNCTION`, may be called to make the network
            (default: what the environment variable SEGDISTILL_ALLOW_CODE says, else not).

    Returns:
        The network in eval mode, with the file's card as its attribute `card`.

    Raises:
        ValueError: if the file is missing, is not a student, or does not fit.
    """
    if is_onnx(path):
        return OnnxNetwork(student_path(path)).eval()
    card = read_card(path)
    if network is None:
        if card["network"] is None:
            raise ValueError(f"{path} was trained from a network of your own; pass it: load_student(path, network)")
        options = _current(card)
        name = str(options.pop("name"))
        if allow_code is None:
            allow_code = os.environ.get("SEGDISTILL_ALLOW_CODE", "0") not in ("", "0")
        if name.startswith("python:") and not allow_code:
            raise ValueError(
                f"{path} names {name}, which would run code; if you trust it, pass allow_code=True, set "
                "SEGDISTILL_ALLOW_CODE=1, or pass the network"
            )
        network = build_model(name, **options)
    load_named(network, read_student(path), str(student_path(path)), spare=("aux.",))
    network.card = card  # type: ignore[assignment]
    return network.eval()
