"""BPKD: classes of each pixel along borders, positions of each class inside of them (Liu et al., WACV 2024)."""

import torch.nn.functional as F
from torch import Tensor

from segdistill._processes import share_of
from segdistill.functional import IGNORE, labelled, resize_labels
from segdistill.methods._base import Method
from segdistill.methods.cwd import channel_kl
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps


def label_border(labels: Tensor, *, num_classes: int, kernel_size: int = 3, ignore_index: int = IGNORE) -> Tensor:
    """Which pixels have another class within a square around them: the labels' dilation without their erosion.

    Ignored pixels are on no border, and make none.

    Args:
        labels: (N,H,W) integers.
        num_classes: C.
        kernel_size: side of the square in pixels, odd; 3 marks the two pixels that touch where classes meet.
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    Returns:
        (N,H,W) bool.

    Raises:
        ValueError: if the side is not odd, or 1.

    Source:
        Liu et al., BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation, the edge mask.

    >>> import torch
    >>> label_border(torch.tensor([[[0, 0, 1, 1, 255, 2]]]), num_classes=3)
    tensor([[[False,  True,  True, False, False, False]]])
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number of 3 or more, got {kernel_size}")
    known = labelled(labels, num_classes, ignore_index)
    # A square with two classes in it is in the dilation of each and in the erosion of neither: the largest and the
    # smallest number in it tell, and no map per class is needed.
    numbers = labels.float()
    highest, lowest = (
        F.max_pool2d(x, kernel_size, stride=1, padding=kernel_size // 2)
        for x in (numbers.where(known, -1), -numbers.where(known, num_classes))
    )
    return known & (highest != -lowest)


class BoundaryPrivileged(Method):
    """Pixel-wise KL divergence along the labels' borders, and channel-wise KL divergence on all that lies between.

    Pixels without a label belong to what lies between, so that images without labels are compared as in `cwd`. In a
    batch without borders the term `edge` is 0. The means are over the batch of all processes; with `train.accumulate`,
    over a micro-batch, whose `edge` counts as much as it has labels.

    Args:
        edge_weight: of the term `edge`, a mean over the border's pixels; 50 as in reimplementations of the paper,
            whose authors have released no training code. They take the mean class by class.
        body_weight: of the term `body`, a mean over images and classes; 20 as in reimplementations of the paper.
        temperature: τ, divides both logits, and its square multiplies both terms; 1 as in reimplementations of the
            paper.
        kernel_size: side of the square that makes a pixel part of the border if it holds two classes, in pixels of the
            logits' map, odd. 3 is ours.
    """

    def __init__(
        self,
        *,
        edge_weight: float = 50.0,
        body_weight: float = 20.0,
        temperature: float = 1.0,
        kernel_size: int = 3,
    ):
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"method bpkd, kernel_size: expected an odd number of 3 or more, got {kernel_size}")
        self.edge_weight = edge_weight
        self.body_weight = body_weight
        self.temperature = temperature
        self.kernel_size = kernel_size

    def student_taps(self) -> set[str]:
        """`logits`, unless both weights are 0."""
        return {"logits"} if self.edge_weight or self.body_weight else set()

    def labelled_terms(self) -> set[str]:
        """`edge`, since labels have borders."""
        return {"edge"}

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `edge` and `body`."""
        if not self.student_taps():
            return {}
        own, other = student["logits"], teacher["logits"]
        # Differs from the paper: as its reimplementations have it, a border of the image's resolution is pooled, class
        # by class, to shares of the map's pixels, and the logits are multiplied by them. Here a pixel of the map lies
        # on a border or not, for all classes alike, and counts in one term alone; the logits stay as they are, since 0
        # is no neutral one.
        labels = resize_labels(target, (own.shape[2], own.shape[3]))
        border = label_border(labels, num_classes=own.shape[1], kernel_size=self.kernel_size)
        terms = {}
        if self.edge_weight:
            loss = pixel_kl(own, other, temperature=self.temperature, valid=border)
            terms["edge"] = self.edge_weight * share_of(border.sum()) * loss
        if self.body_weight:
            loss = channel_kl(own, other, temperature=self.temperature, valid=~border)
            images = (~border).flatten(1).any(1).sum()
            terms["body"] = self.body_weight * share_of(images) * loss
        return terms
