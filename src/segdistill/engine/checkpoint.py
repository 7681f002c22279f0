"""The checkpoint, from which a run goes on as if it had never stopped: tensors and plain values; nothing unpickles."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdistill._printing import first_line
from segdistill.engine.run_folder import CHECKPOINT, write_atomically

FACTS, DIGEST = "facts", "sha256"
"""Entries of the file beside its parts."""


def tensor_digest(tree: Any) -> str:
    """SHA-256 of tensors and plain values: of what they hold, however a file lays it out.

    Args:
        tree: mappings, lists, tensors and plain values.
    """
    sha = hashlib.sha256()
    for path, leaf in _leaves(tree):
        if isinstance(leaf, Tensor):
            sha.update(f"{path}={leaf.dtype}{tuple(leaf.shape)}:".encode())
            sha.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(f"{path}={leaf!r};".encode())
    return sha.hexdigest()


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=lambda k: (str(k), type(k).__name__)):
            yield from _leaves(tree[key], f"{path}/{key!r}")
    elif isinstance(tree, list | tuple):
        yield path, type(tree).__name__
        for index, item in enumerate(tree):
            yield from _leaves(item, f"{path}/{index}")
    else:
        yield path, tree


def states(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The states of parts of a run.

    Args:
        parts: name → anything with a `state_dict`, or None.
    """
    return {name: part.state_dict() for name, part in parts.items() if part is not None}


def not_finite_tensors(parts: Mapping[str, Any]) -> list[str]:
    """Names of tensors in parts of a run, weights, statistics and the optimiser's, that hold NaN or infinity.

    Args:
        parts: as for `states`.
    """
    leaves = ((path, leaf) for path, leaf in _leaves(states(parts)) if isinstance(leaf, Tensor))
    found = {path: leaf for path, leaf in leaves if leaf.is_floating_point() and leaf.numel()}
    ends = {path: torch.stack(leaf.detach().aminmax()) for path, leaf in found.items()}  # in one pass; NaN goes through
    return [path[1:].replace("'", "") for path, pair in ends.items() if not bool(pair.isfinite().all())]


def save_checkpoint(folder: Path, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt`: everything that a run needs to go on as if it had never stopped.

    Args:
        folder: of the run.
        parts: name → anything with a `state_dict`, or None.
        facts: plain numbers and texts.

    Raises:
        ValueError: if it cannot be written; the old one is whole then.
    """
    content = {**states(parts), FACTS: dict(facts)}
    content[DIGEST] = tensor_digest(content)

    def write(path: Path) -> None:
        with path.open("wb") as file:  # an open file, since torch forgets what the system said about one of its own
            torch.save(content, file)

    write_atomically(folder / CHECKPOINT, write)


def load_checkpoint(folder: Path, parts: Mapping[str, Any], optional: Collection[str] = ()) -> dict[str, Any]:
    """Read `checkpoint.pt` back into its parts.

    Args:
        folder: of the run.
        parts: as for `save_checkpoint`.
        optional: names of parts that the file may have or lack, whichever it is.

    Returns:
        The facts.

    Raises:
        ValueError: if there is no checkpoint, it is damaged, or it was written by another configuration.
    """
    path = folder / CHECKPOINT
    state = read_checkpoint(path)
    for name, part in parts.items():
        if (part is None) != (name not in state):
            if name in optional:
                continue
            raise ValueError(f"{path} {'has' if part is None else 'lacks'} {name}; resume with the same configuration")
        if part is not None:
            try:
                part.load_state_dict(state[name])
            except Exception as error:  # each kind of part has errors of its own
                raise ValueError(f"{path}: {name} does not fit: {first_line(error)}") from error
    return dict(state[FACTS])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the states of a checkpoint's parts by their names, and its facts.

    Args:
        path: of the file.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"nothing to resume in {path.parent}: it has no {CHECKPOINT}")
    what_to_do = "put a copy back, or delete it to train from the start"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own line advises to unpickle, which nobody should
        raise ValueError(f"{path} cannot be read: it is damaged, or no checkpoint of a run; {what_to_do}") from error
    if not isinstance(state, dict) or not isinstance(state.get(FACTS), dict) or DIGEST not in state:
        raise ValueError(f"{path} is no checkpoint of a run: expected its parts, facts and digest; {what_to_do}")
    if state.pop(DIGEST) != tensor_digest(state):
        raise ValueError(f"{path} is damaged: its digest is not that of what it holds; {what_to_do}")
    return state
