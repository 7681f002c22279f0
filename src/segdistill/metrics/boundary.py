"""Boundary IoU (Cheng et al., CVPR 2021): the IoU of bands along contours, which large insides do not hide."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from segdistill.functional import IGNORE, labelled
from segdistill.metrics._bands import near_another
from segdistill.metrics._base import Headline, Metric, mean
from segdistill.metrics._confusion import class_iou, known

SHARE = 0.02
"""Of the image's diagonal: the width of a band, as in the paper."""


class BoundaryIoU(Metric):
    """Boundary IoU by class: of the pixels of a class that lie near its contour, in the truth and in the prediction.

    |(G_d ∩ G) ∩ (P_d ∩ P)| / |(G_d ∩ G) ∪ (P_d ∩ P)|, where G and P are a class's pixels in the truth and in the
    prediction, G_d and P_d those within d pixels of their contours, and d is 2 % of the image's diagonal, rounded, and
    at least 1. As in the authors' code, distances are those of d erosions by a 3×3 square, and the image's border is a
    contour. Pixels are summed over the split before the ratio is taken, as for the mean IoU. A class without such
    pixels on either side has no boundary IoU and leaves the mean.

    Ignored pixels are left out of both maps, and a contour runs where they begin, as at any other label. The
    prediction is taken as ignored there, too, so that one that is right on all labelled pixels has 1.

    Source:
        Cheng, Girshick, Dollár, Berg, Kirillov, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation.
    """

    headlines: ClassVar[Mapping[str, Headline]] = {"miou": Headline("boundary IoU %")}

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.sums["counts"] = torch.zeros(3, len(classes), dtype=torch.long)

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says."""
        classes = len(self.classes)
        valid = labelled(target, classes)
        truth, found = (ids.where(valid, IGNORE) for ids in (target, prediction))
        width = band_width((target.shape[-2], target.shape[-1]))
        inside, outside = (near_another(ids, width, edge=True) & valid for ids in (truth, found))
        right = truth[inside & outside & (truth == found)]
        kinds = (right, truth[inside], found[outside])
        self.sums["counts"] += torch.stack([torch.bincount(kind, minlength=classes) for kind in kinds]).cpu()

    def compute(self) -> dict[str, Any]:
        """`miou`, `iou` by class (None of an absent one), and `share`, the bands' width in image diagonals."""
        iou = known(class_iou(self.sums["counts"]))
        return {"miou": mean(iou), "iou": dict(zip(self.classes, iou, strict=True)), "share": SHARE}


def band_width(size: tuple[int, int]) -> int:
    """Pixels of the band of an image of (H,W).

    >>> band_width((1024, 2048)), band_width((1, 1))
    (46, 1)
    """
    return max(1, round(SHARE * math.hypot(*size)))
