"""IoU and recall by the size of objects: small, medium and large ones."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.functional import IGNORE, labelled
from segdistill.metrics._base import Headline, Metric, mean, ratio
from segdistill.metrics._components import components

SIZES = ("small", "medium", "large")
EDGES = (0.001, 0.01)
"""Shares of the image's pixels below which an object is small, and medium."""


class SizeIoU(Metric):
    """Recall and IoU of each class's small, medium and large objects.

    An object is a connected component of a class in the truth (pixels that touch at a side or a corner). It is small
    below 0.1 % of the image's pixels, medium below 1 %, else large. The recall of a size is the share of its objects'
    pixels that are right. Its IoU is right / (truth + false): a false pixel, one that is labelled but of another class,
    counts where the component of the prediction that it is in belongs by its own size. Over all sizes, right, true and
    false pixels add up to those of the class's IoU. Counts are summed over the split, then the ratios are taken; the
    means are over the classes that have objects of the size.

    Ignored pixels are left out of both maps before objects are told apart.
    """

    headlines: ClassVar[Mapping[str, Headline]] = {
        f"miou_{size}": Headline(f"mIoU of {size} objects %") for size in SIZES
    }

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.sums["counts"] = torch.zeros(4, len(SIZES), len(classes), dtype=torch.long)
        """Right pixels, true ones, false ones, objects; by size and class."""

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says."""
        for found, truth in zip(prediction.cpu(), target.cpu(), strict=True):
            valid = labelled(truth, len(self.classes))
            self._take(*(ids.long().where(valid, IGNORE).numpy() for ids in (found, truth)))

    def _take(self, found: NDArray[np.int64], truth: NDArray[np.int64]) -> None:
        classes = len(self.classes)
        pieces, areas = components(truth)
        own, other = _size_of(areas, truth.size)[pieces], _sizes(found)
        valid = truth != IGNORE
        right = valid & (found == truth)
        first = np.zeros(truth.size, dtype=bool)
        first[np.unique(pieces, return_index=True)[1]] = True
        first = first.reshape(truth.shape) & valid
        kinds = ((own, truth, right), (own, truth, valid), (other, found, valid & ~right), (own, truth, first))
        for row, (size, label, mask) in zip(self.sums["counts"], kinds, strict=True):
            count = np.bincount(size[mask] * classes + label[mask], minlength=len(SIZES) * classes)
            row += torch.from_numpy(count).view(len(SIZES), classes)

    def compute(self) -> dict[str, Any]:
        """`miou_<size>` and `recall_<size>`, means over classes; `classes`: `iou`, `recall` and `objects` by size."""
        right, truth, false, objects = self.sums["counts"].tolist()
        found: dict[str, Any] = {"edges": list(EDGES), "sizes": list(SIZES)}
        by_class: dict[str, dict[str, list[Any]]] = {}
        for number, name in enumerate(self.classes):
            whole = [truth[size][number] for size in range(len(SIZES))]
            unions = [n + false[size][number] if n else 0 for size, n in enumerate(whole)]
            hits = [right[size][number] for size in range(len(SIZES))]
            by_class[name] = {
                "iou": [ratio(*pair) for pair in zip(hits, unions, strict=True)],
                "recall": [ratio(*pair) for pair in zip(hits, whole, strict=True)],
                "objects": [objects[size][number] for size in range(len(SIZES))],
            }
        for size, name in enumerate(SIZES):
            found[f"miou_{name}"] = mean([entry["iou"][size] for entry in by_class.values()])
            found[f"recall_{name}"] = mean([entry["recall"][size] for entry in by_class.values()])
            found[f"objects_{name}"] = sum(objects[size])
        return {**found, "classes": by_class}


def _sizes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The size of each pixel's component."""
    pieces, areas = components(labels)
    return _size_of(areas, labels.size)[pieces]


def _size_of(areas: NDArray[np.int64], pixels: int) -> NDArray[np.int64]:
    return np.searchsorted([edge * pixels for edge in EDGES], areas, side="right")
