"""The files of a run's folder: their names, JSON, and writing that leaves no half a file behind."""

import json
import os
from pathlib import Path
from typing import Any

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

    If writing fails, as on a full disk, nothing is left of it.

    Args:
        path: of the file.
        write: called with the temporary path.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
