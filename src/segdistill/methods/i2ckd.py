"""I2CKD: distillation of class prototypes, near their own and far from the other classes' (Karine et al., 2024)."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill._draws import uniform
from segdistill._processes import sum_over_processes
from segdistill.adapters import projection
from segdistill.functional import IGNORE, class_sums, full_precision
from segdistill.methods._base import Method
from segdistill.methods.cwd import channel_kl
from segdistill.taps import Taps

EPSILON = 1e-12
"""Added under the root of a distance, whose derivative at 0 would not exist otherwise."""


@full_precision
def class_prototypes(
    features: Tensor, labels: Tensor, *, num_classes: int, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """Mean of the features over each class's pixels in the whole batch, P_c.

    Args:
        features: (N,A,H,W).
        labels: (N,h,w) integers, brought to H×W by the nearest neighbour.
        num_classes: C.
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    Returns:
        Prototypes (C,A) with the features' graph, 0 for absent classes, and which classes are present, (C,) bool.

    Raises:
        ValueError: if the labels do not fit.

    >>> features = torch.tensor([[[[1.0, 3.0, 5.0]]]])
    >>> class_prototypes(features, torch.tensor([[[0, 0, 255]]]), num_classes=2)
    (tensor([[2.],
            [0.]]), tensor([ True, False]))
    """
    sums, counts = class_sums(features, labels, num_classes=num_classes, ignore_index=ignore_index)
    return _means(sums.sum(0), counts.sum(0))


def _means(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(C,A) / (C,), 0 for absent classes, and which classes are present."""
    return sums / counts.clamp(min=1)[:, None], counts > 0


@full_precision
def prototype_triplet(
    student: Tensor,
    teacher: Tensor,
    present: Tensor,
    *,
    margin: float = 1.0,
    anchor: Literal["student", "teacher"] = "student",
    negatives: Literal["all", "hardest", "random"] = "all",
) -> Tensor:
    """Triplet loss between prototypes: max(0, ‖P^S_i − P^T_i‖ − ‖P^S_i − P^T_j‖ + m), mean over present i and j ≠ i.

    Fewer than two classes present: 0, with a graph.

    Args:
        student: P^S (C,A).
        teacher: P^T (C,A), detached here.
        present: (C,) bool, the classes that count.
        margin: m; the paper does not give it, ours is 1.
        anchor: whose prototype is compared with two of the other side's: `student` as written above, or `teacher`,
            ‖P^T_i − P^S_i‖ − ‖P^T_i − P^S_j‖. The paper leaves it open; the default is ours.
        negatives: `all` j, the `hardest` (nearest), or one at `random` for each i. Open in the paper; ours is all.

    Raises:
        ValueError: if the shapes differ, or on an unknown choice.

    Source:
        Karine et al., I2CKD: Intra- and Inter-Class Knowledge Distillation for Semantic Segmentation.

    >>> student, teacher = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.5]])
    >>> round(prototype_triplet(student, teacher, torch.tensor([True, True])).item(), 4)
    0.5
    """
    if anchor not in ("student", "teacher"):
        raise ValueError(f"anchor: expected 'student' or 'teacher', got {anchor!r}")
    if negatives not in ("all", "hardest", "random"):
        raise ValueError(f"negatives: expected 'all', 'hardest' or 'random', got {negatives!r}")
    distances, others = _distances(student, teacher.detach(), present)
    if anchor == "teacher":
        distances = distances.t()
    hinge = F.relu(distances.diagonal()[:, None] - distances + margin)
    if negatives != "all":
        rank = -distances.detach()
        if negatives == "random":
            rank = uniform(*distances.shape, device=distances.device)
        chosen = rank.masked_fill(~others, -torch.inf).argmax(1, keepdim=True)
        hinge, others = hinge.gather(1, chosen), others.gather(1, chosen)
    return (hinge * others).sum() / others.sum().clamp(min=1)


def _distances(student: Tensor, teacher: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """‖P^S_i − P^T_j‖ (C,C), and which of these pairs are of two different classes that are present."""
    if student.dim() != 2 or student.shape != teacher.shape or present.shape != student.shape[:1]:
        raise ValueError(
            f"expected prototypes (C,A) of one shape and present (C,), got student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}, present {tuple(present.shape)}; project the student's to the teacher's A"
        )
    # A product of matrices would be faster, and wrong for prototypes that are close to one another.
    distances = torch.cdist(student, teacher, compute_mode="donot_use_mm_for_euclid_dist")
    others = present[:, None] & present & ~torch.eye(len(present), dtype=torch.bool, device=present.device)
    return (distances.square() + EPSILON).sqrt(), others


class PrototypeDistances(NamedTuple):
    """Distances between the prototypes of student and teacher, NaN where a class is absent or alone."""

    within: Tensor
    """‖P^S_c − P^T_c‖, (C,)."""
    between: Tensor
    """Mean over the other present classes j of ‖P^S_c − P^T_j‖, (C,)."""


@torch.no_grad()
@full_precision
def prototype_distances(student: Tensor, teacher: Tensor, present: Tensor) -> PrototypeDistances:
    """How far each class's student prototype is from its own and from the other classes' teacher prototypes (Figure 1).

    Args:
        student: P^S (C,A).
        teacher: P^T (C,A).
        present: (C,) bool, the classes that count.

    Raises:
        ValueError: if the shapes differ.

    >>> student, teacher = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[0.0], [3.0], [9.0]])
    >>> prototype_distances(student, teacher, torch.tensor([True, True, False]))
    PrototypeDistances(within=tensor([1.0000e-06, 2.0000e+00,        nan]), between=tensor([3., 1., nan]))
    """
    distances, others = _distances(student, teacher, present)
    within = distances.diagonal().masked_fill(~present, torch.nan)
    return PrototypeDistances(within, (distances * others).sum(1) / others.sum(1))


class I2CKD(Method):
    """Triplet loss between class prototypes of the batch, and channel-wise KL divergence between score maps.

    Prototypes are those of the batch of all processes; with `train.accumulate`, of each micro-batch, which counts as
    much as it has labels. The student's go through a linear map without bias to the teacher's channels, where these
    differ: the same as a 1×1 convolution on the map, at C×A cost.

    Args:
        prototype_weight: β, of the triplet term; the paper does not give it, ours is 1.
        score_weight: α, of the term on logits; the paper does not give it, ours is 3, as in CWD.
        score_temperature: τ of the term on logits, for which ours is CWD's loss; the paper does not give it, ours is 2.
        margin: m of the triplets; the paper does not give it. Ours is 1, or 0.2 for normalised prototypes.
        normalize: bring all prototypes to length 1 first; the paper leaves it open, ours is off.
        anchor: `student` or `teacher`, as in `prototype_triplet`; the paper leaves it open, ours is student.
        negatives: `all`, `hardest` or `random`, as in `prototype_triplet`; the paper leaves it open, ours is all.
    """

    figures: ClassVar[Mapping[str, str]] = {
        "within": "distance to the own class",
        "between": "distance to other classes",
    }

    def __init__(
        self,
        *,
        prototype_weight: float = 1.0,
        score_weight: float = 3.0,
        score_temperature: float = 2.0,
        margin: float | None = None,
        normalize: bool = False,
        anchor: Literal["student", "teacher"] = "student",
        negatives: Literal["all", "hardest", "random"] = "all",
    ):
        super().__init__()
        self.prototype_weight = prototype_weight
        self.score_weight = score_weight
        self.score_temperature = score_temperature
        self.margin = margin if margin is not None else 0.2 if normalize else 1.0
        self.normalize = normalize
        self.anchor = anchor
        self.negatives = negatives
        self.projection: nn.Module = nn.Identity()

    def student_taps(self) -> set[str]:
        """`features` and `logits`, each unless its weight is 0."""
        weights = (("features", self.prototype_weight), ("logits", self.score_weight))
        return {name for name, weight in weights if weight}

    def labelled_terms(self) -> set[str]:
        """`prototypes`, which are those of labelled pixels."""
        return {"prototypes"}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The number of classes, and a linear map from the student's to the teacher's channels where they differ."""
        self.num_classes = student["logits"].shape[1]
        if self.prototype_weight and student["features"].shape[1] != teacher["features"].shape[1]:
            self.projection = projection(student["features"].shape[1], teacher["features"].shape[1])

    def prototypes(self, student: Taps, teacher: Taps, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes of both sides in the teacher's channels, (C,A) each, and which classes are present, (C,) bool.

        Args:
            student: its taps.
            teacher: its taps.
            target: (N,h,w) labels.
        """
        own, present = self._of_all_processes(student["features"], target)
        known, _ = self._of_all_processes(teacher["features"], target)
        own = self.projection(own[:, :, None, None]).flatten(1)  # a prototype is a map of one pixel
        return (F.normalize(own), F.normalize(known), present) if self.normalize else (own, known, present)

    @full_precision
    def _of_all_processes(self, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`class_prototypes` of the batch of all processes."""
        sums, counts = class_sums(features, target, num_classes=self.num_classes)
        return _means(sum_over_processes(sums.sum(0)), sum_over_processes(counts.sum(0)))

    def analysis(self, student: Taps, teacher: Taps, target: Tensor) -> dict[str, float]:
        """`within` and `between`: mean distance of student prototypes to their own and to other classes' (Figure 1)."""
        if not self.prototype_weight:
            return {}
        distances = prototype_distances(*self.prototypes(student, teacher, target))
        return {"within": float(distances.within.nanmean()), "between": float(distances.between.nanmean())}

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `prototypes` and `logits`."""
        terms = {}
        if self.prototype_weight:
            loss = prototype_triplet(
                *self.prototypes(student, teacher, target),
                margin=self.margin,
                anchor=self.anchor,
                negatives=self.negatives,
            )
            terms["prototypes"] = self.prototype_weight * loss
        if self.score_weight:
            loss = channel_kl(student["logits"], teacher["logits"], temperature=self.score_temperature)
            terms["logits"] = self.score_weight * loss
        return terms
