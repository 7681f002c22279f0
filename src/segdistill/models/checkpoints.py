"""Trained networks from elsewhere: their tensors under our names, with the images normalised as they were there."""

from pathlib import Path
from typing import Any

from torch import nn

from segdistill.models import build_model
from segdistill.models._weights import load_named, read_tensors


def load_weights(
    name: str, path: str | Path, *, num_classes: int, source: str | None = None, **options: Any
) -> nn.Module:
    """Build a network and load a file's tensors into it."""
    network = build_model(name, num_classes=num_classes, **options)
    load_named(network, read_tensors(Path(path).expanduser()), str(path), spare=("aux.",))
    return network
