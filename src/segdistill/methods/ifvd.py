"""IFVD: intra-class feature variation distillation (Wang et al., ECCV 2020)."""

import torch
from torch import Tensor

from segdistill.functional import IGNORE, check_labels, check_maps, class_sums, empty, full_precision, resize_labels
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
    valid = (labels != ignore_index) & (labels >= 0) & (labels < num_classes)
    if not valid.any():
        return empty(student)
    valid = valid.flatten(1)
    here = torch.where(valid, labels.flatten(1), 0)
    variations = []
    for features in (student, teacher.detach()):
        prototypes, _ = class_sums(features, labels, num_classes=num_classes, ignore_index=ignore_index)
        prototypes = prototypes / _length(prototypes, 2)[..., None]
        # All classes' products first, one of them per pixel then: C numbers per pixel instead of a prototype's A.
        product = (prototypes @ features.flatten(2)).gather(1, here[:, None])[:, 0]
        variations.append(product / torch.where(valid, _length(features.flatten(2), 1), torch.inf))
    return (variations[0] - variations[1]).square().mean()


def _length(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean length; infinite below 1e-8, so that a cosine is 0 there and has no gradient instead of a huge one."""
    length = torch.linalg.vector_norm(vectors, dim=dim)
    return torch.where(length > 1e-8, length, torch.inf)


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
