"""Metrics by name: the folder is the registry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segdistill._registry import Registry

if TYPE_CHECKING:
    from segdistill.metrics._base import Metric

METRICS: "Registry[Metric]" = Registry("segdistill.metrics", "segdistill.metrics._base:Metric", "metric")

ALL = "all"
"""Stands for all metrics where their names are given."""


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


def choose_metrics(names: Sequence[str], *, teacher: bool = True) -> list[str]:
    """The metrics that are meant, in the order of `list_metrics()`.

    Args:
        names: of metrics; `all` for all of them, but for those that need a teacher where there is none.
        teacher: whether there is one.

    Raises:
        ValueError: if a metric is unknown, or is named, needs a teacher, and there is none.
    """
    for name in set(names) - {ALL}:
        METRICS.check(name)
    chosen = [name for name in list_metrics() if name in names or ALL in names]
    needing = [] if teacher else need_teacher(chosen)
    named = [name for name in needing if name in names]
    if named:
        raise ValueError(f"{named[0]} compares a student with its teacher, and there is none")
    return [name for name in chosen if name not in needing]


def need_teacher(names: Sequence[str]) -> list[str]:
    """Those metrics that compare a student with its teacher.

    Args:
        names: of metrics.
    """
    return [name for name in names if metric_class(name).needs_teacher]


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
