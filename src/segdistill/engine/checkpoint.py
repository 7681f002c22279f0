"""The run folder: what is written, when, and how it is read back. Everything is tensors and JSON; nothing unpickles."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from segdistill._version import __version__
from segdistill.models import build_model

CARD_KEY = "segdistill"
STUDENT, CHECKPOINT, CONFIG, SUMMARY, METRICS, ENVIRONMENT = (
    "student.safetensors",
    "checkpoint.pt",
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "env.json",
)


def write_atomically(path: Path, write: Any) -> None:
    """Write a file under another name first, so that a killed process leaves the old one whole.

    Args:
        path: of the file.
        write: called with the temporary path.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object; delete it, or run what wrote it again")
    return value


def stored_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as `read_json`; empty if there is no file.

    Args:
        path: of the file.
    """
    return read_json(path) if path.is_file() else {}


def save_checkpoint(folder: Path, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt`: everything that a run needs to go on as if it had never stopped.

    Args:
        folder: of the run.
        parts: name → anything with a `state_dict`, or None.
        facts: plain numbers and texts.
    """
    state = {name: part.state_dict() for name, part in parts.items() if part is not None}
    write_atomically(folder / CHECKPOINT, lambda p: torch.save({**state, "facts": dict(facts)}, p))


def load_checkpoint(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Read `checkpoint.pt` back into its parts.

    Args:
        folder: of the run.
        parts: as for `save_checkpoint`.

    Returns:
        The facts.

    Raises:
        ValueError: if there is no checkpoint, or it was written by another configuration.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"nothing to resume in {folder}: it has no {CHECKPOINT}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    for name, part in parts.items():
        if (part is None) != (name not in state):
            raise ValueError(f"{path} {'has' if part is None else 'lacks'} {name}; resume with the same configuration")
        if part is not None:
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(f"{path}: {name} does not fit: {str(error).splitlines()[0]}") from error
    return dict(state["facts"])


def save_student(path: str | Path, network: nn.Module, card: Mapping[str, Any]) -> None:
    """Write the student alone, without its auxiliary head, with a card that says what it is.

    Args:
        path: ends in `.safetensors`.
        network: the bare network.
        card: anything that JSON holds; see `make_card`.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items() if not k.startswith("aux.")}
    metadata = {CARD_KEY: json.dumps(card, ensure_ascii=False)}
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
        "format": 1,
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
        path: a run folder or a `.safetensors` file.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path).expanduser()
    file = path / STUDENT if path.is_dir() else path
    if not file.is_file():
        hint = "the run has not been validated yet" if path.is_dir() else "give a run folder or a .safetensors file"
        raise ValueError(f"no student at {file}; {hint}")
    return file


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a student's file.

    Args:
        path: a run folder or a `.safetensors` file.

    Raises:
        ValueError: if it is not a student's file.
    """
    file = student_path(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        card = json.loads(metadata[CARD_KEY])
    except KeyError:
        raise ValueError(f"{file} has no segdistill card; load it with weights: and the network's name") from None
    except Exception as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from None
    assert isinstance(card, dict)
    return card


def load_student(path: str | Path, network: nn.Module | None = None, *, allow_code: bool | None = None) -> nn.Module:
    """Load a trained student, ready to use: RGB images in 0…1 (N,3,H,W) → logits (N,C,H,W).

    Args:
        path: a run folder or a `student.safetensors`; it needs nothing else.
        network: where the architecture is the user's own, an instance of it.
        allow_code: whether a function that the file names, `python:MODULE:FUNCTION`, may be called to make the network
            (default: what the environment variable SEGDISTILL_ALLOW_CODE says, else not).

    Returns:
        The network in eval mode, with the file's card as its attribute `card`.

    Raises:
        ValueError: if the file is missing, is not a student, or does not fit.
    """
    card = read_card(path)
    if network is None:
        if card["network"] is None:
            raise ValueError(f"{path} was trained from a network of your own; pass it: load_student(path, network)")
        options = dict(card["network"])
        name = str(options.pop("name"))
        if allow_code is None:
            allow_code = os.environ.get("SEGDISTILL_ALLOW_CODE", "0") not in ("", "0")
        if name.startswith("python:") and not allow_code:
            raise ValueError(
                f"{path} names {name}, which would run code; if you trust it, pass allow_code=True, set "
                "SEGDISTILL_ALLOW_CODE=1, or pass the network"
            )
        network = build_model(name, **options)
    load_tensors(network, student_path(path))
    network.card = card  # type: ignore[assignment]
    return network.eval()


def load_tensors(network: nn.Module, file: Path) -> None:
    """Load a student's tensors into a network; only an auxiliary head may be missing.

    Args:
        network: the bare network.
        file: a `.safetensors` file.

    Raises:
        ValueError: with the first name that does not fit.
    """
    from segdistill.models import read_tensors

    load_strictly(network, read_tensors(file), str(file))


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors by name; all must be there, fit and be used, but for an auxiliary head.

    Args:
        network: the bare network.
        tensors: name → tensor.
        source: of the tensors, for the message.

    Raises:
        ValueError: with the first name that does not fit.
    """
    own = {k: v for k, v in network.state_dict().items() if not k.startswith("aux.")}
    given = {k: v for k, v in tensors.items() if not k.startswith("aux.")}
    missing, surplus = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or surplus:
        parts = [f"lacks {len(missing)} tensors, {missing[0]} first"] if missing else []
        parts += [f"has {len(surplus)} that the network has not, {surplus[0]} first"] if surplus else []
        raise ValueError(f"{source} {' and '.join(parts)}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{source}: {name} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)}")
    network.load_state_dict(given, strict=False)
