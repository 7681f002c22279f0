"""The checkpoint, from which a run goes on as if it had never stopped: tensors and plain values; nothing unpickles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segdistill.engine.run_folder import CHECKPOINT, write_atomically


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
