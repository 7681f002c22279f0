"""Fine-grained mean IoU (Wang et al., NeurIPS 2023): image by image, and of the worst tenth of the images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from segdistill.functional import IGNORE, labelled
from segdistill.metrics._base import Headline, Metric, mean
from segdistill.metrics._confusion import class_iou, image_counts

WORST = 0.1


class ImageIoU(Metric):
    """Means of IoU_{i,c}, the IoU of class c in image i alone, over the classes that are in the truth of the image.

    mIoU^I is the mean over images of each image's mean over its classes; mIoU^C the mean over classes of each class's
    mean over the images that have it. mIoU^{I,10} and mIoU^{C,10} take the worst tenth of the images only, at least
    one: of all, by their mean IoU, and of each class, by its IoU. A tenth is rounded down, as in the authors' code. A
    class that is predicted in an image but is not in its truth costs the classes whose pixels it takes; it has no IoU
    of its own there. An image without labelled pixels counts nowhere.

    Source:
        Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation: Optimization and Evaluation of
        Fine-grained Intersection over Union.
    """

    # Differs from the authors' code: of two classes, it scores the second one alone; here, any number is the same.

    headlines: ClassVar[Mapping[str, Headline]] = {
        "miou_i": Headline("mIoU by image %"),
        "miou_i10": Headline("mIoU of the worst tenth of images %"),
        "miou_c": Headline("mIoU by class and image %"),
        "miou_c10": Headline("mIoU by class, worst tenths of images %"),
    }

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.rows = torch.empty(0, len(classes), dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says."""
        assert self.rows is not None
        classes = len(self.classes)
        target = target.where(labelled(target, classes), IGNORE)
        counts = torch.stack([image_counts(*pair, classes) for pair in zip(prediction, target, strict=True)]).cpu()
        iou = class_iou(counts).where(counts[:, 1] > 0, torch.nan)
        self.rows = torch.cat([self.rows, iou])

    def compute(self) -> dict[str, Any]:
        """`miou_i`, `miou_i10`, `miou_c`, `miou_c10`, `images`, and `deciles`: of the images' mean IoU."""
        assert self.rows is not None
        images = self.rows[~self.rows.isnan().all(1)].nanmean(1)
        by_class = [column[~column.isnan()] for column in self.rows.unbind(1)]
        steps = torch.linspace(0, 1, 11, dtype=torch.float64)
        return {
            "miou_i": _worst(images, 1.0),
            "miou_i10": _worst(images, WORST),
            "miou_c": mean([_worst(values, 1.0) for values in by_class]),
            "miou_c10": mean([_worst(values, WORST) for values in by_class]),
            "images": len(images),
            "deciles": images.quantile(steps).tolist() if len(images) else [],
        }


def _worst(values: Tensor, share: float) -> float | None:
    """The mean of the lowest of some values, at least one; None of none."""
    count = max(1, int(share * len(values)))
    return float(values.sort().values[:count].mean()) if len(values) else None
