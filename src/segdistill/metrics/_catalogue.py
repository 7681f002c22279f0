"""Metrics by name: the folder is the registry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segdistill._registry import Registry

if TYPE_CHECKING:
    from segdistill.metrics._base import Metric

METRICS: "Registry[Metric]" = Registry("segdistill.metrics", "segdistill.metrics._base:Metric", "metric")


def list_metrics() -> list[str]:
    """Names of all metrics: the files of this folder that do not start with an underscore."""
    return METRICS.names()


def metric_class(name: str) -> "type[Metric]":
    """The class of a metric.

    Args:
        name: as in `list_metrics()`.

    Raises:
        ValueError: if there is no such metric.
    """
    return METRICS.load(name)


def build_metric(name: str, classes: Sequence[str]) -> "Metric":
    """A metric that has seen nothing yet.

    Args:
        name: as in `list_metrics()`.
        classes: names of the data set's.

    Raises:
        ValueError: if there is no such metric.

    >>> import torch
    >>> metric = build_metric("boundary", ["road", "sky"])
    >>> metric.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 0, 0]]]))
    >>> metric.compute()["iou"]
    {'road': 0.6666666666666666, 'sky': 0.0}
    """
    return metric_class(name)(classes)
