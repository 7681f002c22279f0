"""Trimap curves: accuracy and mean IoU near the truth's boundaries, as the band around them widens."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from segdistill.functional import IGNORE, labelled
from segdistill.metrics._bands import near_another
from segdistill.metrics._base import Headline, Metric, mean, ratio
from segdistill.metrics._confusion import class_iou, image_counts, known

WIDTHS = (1, 2, 4, 8, 16, 32)
"""Pixels on each side of a boundary."""


class Trimap(Metric):
    """Mean IoU and pixel accuracy within bands around the truth's boundaries, of 1, 2, 4, … 32 pixels on each side.

    A pixel is in the band of width w if a pixel of another label lies within w pixels of it (in both axes), where 255
    is a label, too: annotators put it along objects. The image's border is no boundary. Ignored pixels are in no band.
    Counts are summed over the split, then the ratios are taken; a class without pixels in a band leaves its mean IoU.

    Source:
        Kohli, Ladický, Torr, Robust higher order potentials for enforcing label consistency, IJCV 2009 (the share of
        wrong pixels); Chen et al., DeepLab, 2016, Figure 10 (mean IoU).
    """

    headlines: ClassVar[Mapping[str, Headline]] = {"miou_4": Headline("mIoU within 4 px of a boundary %")}

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.sums["counts"] = torch.zeros(len(WIDTHS), 3, len(classes), dtype=torch.long)

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says."""
        classes = len(self.classes)
        truth = target.where(labelled(target, classes), IGNORE)
        bands = (near_another(truth, width, edge=False) for width in WIDTHS)
        counts = [image_counts(prediction, truth.where(band, IGNORE), classes) for band in bands]
        self.sums["counts"] += torch.stack(counts).cpu()

    def compute(self) -> dict[str, Any]:
        """`widths` in pixels, and of each `miou`, `accuracy` and `pixels`; `miou_4` is that of width 4."""
        counts = self.sums["counts"]
        miou = [mean(known(class_iou(one))) for one in counts]
        right, pixels = counts.sum(2)[:, 0].tolist(), counts.sum(2)[:, 1].tolist()
        return {
            "miou_4": miou[WIDTHS.index(4)],
            "widths": list(WIDTHS),
            "miou": miou,
            "accuracy": [ratio(*pair) for pair in zip(right, pixels, strict=True)],
            "pixels": pixels,
        }
