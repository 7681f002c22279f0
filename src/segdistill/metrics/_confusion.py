"""Segmentation metrics from one confusion matrix over a whole data set."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from segdistill.functional import IGNORE
from segdistill.metrics._base import mean

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassConfusionMatrix


def confusion_matrix(num_classes: int) -> "MulticlassConfusionMatrix":
    """A counter of pixels, (C,C) with the truth along rows; ignored pixels are left out.

    Args:
        num_classes: C.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix  # takes seconds to import

    return MulticlassConfusionMatrix(num_classes=num_classes, ignore_index=IGNORE, validate_args=False)


def image_counts(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels of one image by class, (3,C) int64: right ones, those of the truth, those predicted.

    `class_iou` of the counts summed over any set of images is the IoU over these images.

    Args:
        prediction: (H,W) class ids.
        target: (H,W) labels, 255 = ignored.
        num_classes: C.

    >>> image_counts(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2).tolist()
    [[1, 0], [2, 0], [1, 1]]
    """
    labelled = target != IGNORE
    prediction, target = prediction[labelled], target[labelled]
    kinds = (target[prediction == target], target, prediction)
    return torch.stack([torch.bincount(kind, minlength=num_classes) for kind in kinds])


def class_iou(counts: Tensor) -> Tensor:
    """IoU by class, (…,C) float64 on the CPU: right / (truth + predicted − right); NaN for a class without pixels.

    Args:
        counts: (…,3,C) pixels by class: right ones, those of the truth, those predicted.

    >>> class_iou(torch.tensor([[3, 4, 0], [4, 4, 0], [3, 5, 0]])).tolist()
    [0.75, 0.8, nan]
    """
    right, truth, predicted = counts.cpu().double().unbind(-2)
    return right / (truth + predicted - right)


def scores(confusion: Tensor, classes: Sequence[str], absent: Literal["skip", "zero"] = "skip") -> dict[str, Any]:
    """Mean IoU, mean accuracy, pixel accuracy and per-class figures, each in 0…1.

    A class that is neither in the truth nor in the prediction has no IoU: it is None. Benchmarks differ in what it
    does to the mean. cityscapesScripts and mmsegmentation leave it out (`skip`); the kit of ADE20K, SKD's and CIRKD's
    code divide by the number of all classes, so that it counts as 0 (`zero`). A class that is predicted but not in the
    truth has an IoU of 0 everywhere. A class without pixels in the truth has no accuracy and leaves that mean.

    Args:
        confusion: (C,C) counts, truth along rows.
        classes: C names.
        absent: what classes without an IoU are in the mean IoU.

    Returns:
        `miou`, `macc`, `pixel_accuracy` (None where nothing could be counted), `iou` and `accuracy` by class.

    Raises:
        ValueError: if the sizes do not agree, or `absent` is something else.

    >>> scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["road", "sky", "car"])["iou"]
    {'road': 0.75, 'sky': 0.8, 'car': None}
    >>> round(scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["road", "sky", "car"], "zero")["miou"], 4)
    0.5167
    """
    if absent not in ("skip", "zero"):
        raise ValueError(f"absent: expected skip or zero, got {absent!r}")
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion: expected {len(classes)}×{len(classes)}, got {tuple(confusion.shape)}")
    counts = confusion.cpu().double()
    hit, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    iou = known(class_iou(torch.stack([hit, truth, predicted])))
    accuracy = known(hit / truth)
    return {
        "miou": mean(iou if absent == "skip" else [ratio or 0.0 for ratio in iou]),
        "macc": mean(accuracy),
        "pixel_accuracy": known(hit.sum()[None] / counts.sum())[0],
        "iou": dict(zip(classes, iou, strict=True)),
        "accuracy": dict(zip(classes, accuracy, strict=True)),
    }


def known(ratios: Tensor) -> list[float | None]:
    """Give ratios as numbers, None where nothing was counted.

    Args:
        ratios: (C,), NaN where nothing was counted.
    """
    return [None if math.isnan(ratio) else ratio for ratio in ratios.tolist()]
