"""IFVD: intra-class feature variation distillation (Wang et al., ECCV 2020)."""

import torch
from torch import Tensor

from segdistill.channels import corrected, squared_lengths
from segdistill.functional import (
    IGNORE,
    check_labels,
    check_maps,
    class_sums,
    empty,
    exact,
    full_precision,
    inverse_lengths,
    labelled,
    resize_labels,
)
from segdistill.methods._base import Method
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps


@full_precision
def intra_class_variation(
    student: Tensor, teacher: Tensor, labels: Tensor, *, num_classes: int, ignore_index: int = IGNORE
) -> Tensor:
    """Mean squared difference of the maps cos(f_i, prototype of pixel i's class), eq. 2-4.

    A prototype is the mean feature of a class's pixels in one image; it is not detached. Ignored pixels differ by 0
    but stay in the denominator, as in the authors' released code.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), detached here; its channel count may differ, only similarities are compared.
        labels: (N,h,w) integers, brought to H×W by the nearest neighbour.
        num_classes: C.
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    Raises:
        ValueError: if N or H×W differ, or the labels are not (N,h,w) integers.

    Source:
        Wang et al., Intra-class Feature Variation Distillation for Semantic Segmentation, and its released code.

    >>> labels = torch.zeros(1, 1, 2, dtype=torch.long)
    >>> student, teacher = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    >>> round(intra_class_variation(student, teacher, labels, num_classes=1).item(), 4)  # (cos 45° - cos 0°)²
    0.0858
    """
    check_maps(student, teacher, channels=False)
    check_labels(student, labels)
    labels = resize_labels(labels, (student.shape[2], student.shape[3]))
    valid = labelled(labels, num_classes, ignore_index)
    if not valid.any():
        return empty(student)
    own, other = cosines(student, teacher.detach(), labels.where(valid, -1), num_classes)
    return torch.where(valid.flatten(1).to(own.device), own - other, 0).square().mean().to(student)


def cosines(student: Tensor, teacher: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Cosine of each pixel's features and its class's prototype on both sides, (N,H·W) float64.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), without a graph.
        labels: (N,H,W) int64; what is said of those outside 0…C−1 means nothing.
        num_classes: C.
    """
    sums = [class_sums(x, labels, num_classes=num_classes)[0] for x in (student, teacher)]
    here = labels.flatten(1).clamp(min=0)

    def at_pixels(of_classes: Tensor) -> Tensor:
        return of_classes.gather(1, here.to(of_classes.device))

    def product(prototypes: Tensor, features: Tensor) -> Tensor:
        # All classes' products first, one of them per pixel then: C numbers per pixel instead of a prototype's A.
        return exact((prototypes @ features.flatten(2)).gather(1, here[:, None])[:, 0])

    own, other, apart, moved = product(sums[0], student), product(sums[1], teacher), None, None
    if student.shape == teacher.shape:
        with torch.no_grad():
            apart = student - teacher
            moved, _ = class_sums(apart, labels, num_classes=num_classes)
    pixels = squared_lengths(student.flatten(2), teacher.flatten(2))
    centres = squared_lengths(sums[0].mT, sums[1].mT, None if moved is None else moved.mT)
    if apart is not None and moved is not None:
        with torch.no_grad():  # s·p − t·q = (s−t)·p + t·(p−q) for a pixel's features s, t and prototypes p, q
            gap = product(sums[0], apart) + product(moved, teacher)
        own = corrected(own, other, gap, pixels.near & at_pixels(centres.near))
    scales = [
        inverse_lengths(pixel) * at_pixels(inverse_lengths(centre))
        for pixel, centre in ((pixels.own, centres.own), (pixels.other, centres.other))
    ]
    return own * scales[0], other * scales[1]


class IntraClassVariation(Method):
    """How far pixels of one class lie from their class's centre, beside pixel-wise KL divergence on logits.

    Args:
        weight: of the term `variation`, on features; 50 in the paper, 200 in the authors' released code.
        pixel_weight: of the term `pixel`, on logits; 10 in the paper. It is divided by the number of classes, as in
            the authors' code: with 19 classes a weight of 10 here is one of 10/19 on the mean over pixels.
    """

    def __init__(self, *, weight: float = 50.0, pixel_weight: float = 10.0):
        super().__init__()
        self.weight = weight
        self.pixel_weight = pixel_weight
        self.num_classes = 0

    def student_taps(self) -> set[str]:
        """`features` and `logits`, each unless its weight is 0."""
        return {name for name, weight in (("features", self.weight), ("logits", self.pixel_weight)) if weight}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The number of classes."""
        self.num_classes = student["logits"].shape[1]

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `pixel` and `variation`."""
        terms = {}
        if self.pixel_weight:
            pixel = pixel_kl(student["logits"], teacher["logits"])
            terms["pixel"] = self.pixel_weight / self.num_classes * pixel
        if self.weight:
            variation = intra_class_variation(
                student["features"], teacher["features"], target, num_classes=self.num_classes
            )
            terms["variation"] = self.weight * variation
        return terms
