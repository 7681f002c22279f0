"""Parameters and floating-point operations of the catalogue's networks, beside what the papers say."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from segdistill.measure.published import PUBLISHED, Published
from segdistill.models import build_model, list_models
from segdistill.models.stats import model_stats


class NetworkSize(NamedTuple):
    """How large a network is."""

    name: str
    options: dict[str, Any]
    classes: int
    params: int
    """With the auxiliary head, where `options` has one."""
    flops: int
    """Of one forward pass at 512×1024 without it; a multiply-add counts as two."""
    published: Published | None


def published_sizes() -> Iterator[NetworkSize]:
    """The networks of the papers' tables, in the form and with the classes that their figures are for."""
    for paper in PUBLISHED:
        yield _size(paper.name, paper.options, paper.classes, paper)


def listed_sizes() -> Iterator[NetworkSize]:
    """All networks of `list_models()` with default options and 19 classes."""
    for name in list_models():
        yield _size(name, {}, 19, None)


def _size(name: str, options: dict[str, Any], classes: int, paper: Published | None) -> NetworkSize:
    with torch.device("meta"):
        network = build_model(name, num_classes=classes, **options)
    params = sum(p.numel() for p in network.parameters())
    return NetworkSize(name, options, classes, params, model_stats(network)["flops"], paper)
