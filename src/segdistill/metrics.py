"""Segmentation metrics from one confusion matrix over a whole data set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segdistill.functional import IGNORE

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

    The IoU of a class over any set of images is right / (truth + predicted - right) of the summed counts.

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


def scores(confusion: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Mean IoU, mean accuracy, pixel accuracy and per-class figures, each in 0…1.

    A class that is neither in the truth nor in the prediction has no IoU: it is None and leaves the mean, as in the
    benchmarks' own scripts. A class without pixels in the truth has no accuracy likewise.

    Args:
        confusion: (C,C) counts, truth along rows.
        classes: C names.

    Returns:
        `miou`, `macc`, `pixel_accuracy` (None where nothing could be counted), `iou` and `accuracy` by class.

    Raises:
        ValueError: if the sizes do not agree.

    >>> scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ["road", "sky", "car"])["iou"]
    {'road': 0.75, 'sky': 0.8, 'car': None}
    """
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion: expected {len(classes)}×{len(classes)}, got {tuple(confusion.shape)}")
    counts = confusion.cpu().double()
    hit, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    iou = _ratios(hit, truth + predicted - hit)
    accuracy = _ratios(hit, truth)
    return {
        "miou": _mean(iou),
        "macc": _mean(accuracy),
        "pixel_accuracy": _ratios(hit.sum()[None], counts.sum()[None])[0],
        "iou": dict(zip(classes, iou, strict=True)),
        "accuracy": dict(zip(classes, accuracy, strict=True)),
    }


def _ratios(over: Tensor, under: Tensor) -> list[float | None]:
    return [o / u if u else None for o, u in zip(over.tolist(), under.tolist(), strict=True)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if known else None
