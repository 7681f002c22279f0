"""JML: the overlap of soft segmentations, the Jaccard index itself as a loss (Wang et al., NeurIPS 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill._processes import sum_over_processes
from segdistill.functional import check_labels, check_maps, full_precision, labelled, resize_labels
from segdistill.methods._base import Method
from segdistill.taps import Taps


@full_precision
def soft_jaccard(
    student: Tensor, target: Tensor, *, valid: Tensor | None = None, present: Tensor | None = None
) -> Tensor:
    """Jaccard distance of two soft segmentations, over the whole batch, mean over the classes that are present.

    Of a class with probabilities x and y over the N·H·W pixels it is 1 − (‖x‖₁+‖y‖₁−‖x−y‖₁)/(‖x‖₁+‖y‖₁+‖x−y‖₁): 0
    where both agree, and with hard labels the soft Jaccard loss. No class present: 0, with a graph.

    Args:
        student: probabilities (N,C,H,W), not logits.
        target: hard labels (N,h,w), integers, brought to H×W by the nearest neighbour, where those outside 0…C−1 are
            ignored; or soft ones, probabilities (N,C,H,W). Detached here.
        valid: (N,H,W) bool, the pixels that count (default: all).
        present: (C,) bool, the classes that count (default: those that a valid pixel has as its label, or soft ones
            that are the most probable of a valid pixel).

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        Wang et al., Jaccard Metric Losses: Optimizing the Jaccard Index with Soft Labels, the first of the two losses.

    >>> student = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).view(1, 2, 1, 2)
    >>> soft_jaccard(student, torch.tensor([[[0, 0]]])).item()  # class 1 is absent
    0.25
    """
    parts = overlaps(student, target, valid=valid)
    return mean_distance(parts, parts[2] > 0 if present is None else present)


def overlaps(student: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """What the distance is made of, summed over a batch: ‖x−y‖₁, ‖x‖₁+‖y‖₁, and each class's pixels in the target.

    Args:
        student: probabilities (N,C,H,W).
        target: as for `soft_jaccard`.
        valid: likewise.

    Returns:
        (3,C), the first two rows with the student's graph.

    Raises:
        ValueError: if the shapes do not fit.
    """
    shape = student.shape
    if valid is not None and valid.shape != (shape[0], *shape[2:]):
        raise ValueError(f"valid: expected {(shape[0], *shape[2:])}, got {tuple(valid.shape)}")
    if target.dim() != 4:
        check_labels(student, target)
        labels = resize_labels(target, (shape[2], shape[3]))
        known = labelled(labels, shape[1])
        target = members = _one_hot(labels.where(known, 0), student)
        valid = known if valid is None else known & valid
    else:
        check_maps(student, target)
        target = target.detach()
        members = _one_hot(target.argmax(1), student)
    if valid is not None:
        student, target, members = (torch.where(valid[:, None], x, 0) for x in (student, target, members))
    sums = ((student - target).abs(), student + target, members)
    return torch.stack([x.sum((0, 2, 3)) for x in sums])


def mean_distance(parts: Tensor, present: Tensor) -> Tensor:
    """The Jaccard distance from the sums of `overlaps`, mean over classes.

    Args:
        parts: (3,C).
        present: (C,) bool, the classes that count.

    Raises:
        ValueError: if `present` has another shape.
    """
    difference, total, _ = parts
    if present.shape != total.shape:
        raise ValueError(f"present: expected {tuple(total.shape)}, got {tuple(present.shape)}")
    # Differs from the authors' code, which adds a small constant above and below the fraction's line: a class without
    # any probability is left out here.

    # This is 1 − (total − difference)/(total + difference), without a difference of nearly equal numbers.
    distance = 2 * difference / torch.where(total > 0, total + difference, 1)
    return torch.where(present, distance, 0).sum() / present.sum().clamp(min=1)


def _one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """Class numbers (N,H,W) as probabilities (N,C,H,W) of 0 and 1."""
    numbers = torch.arange(like.shape[1], device=classes.device)[:, None, None]
    return (classes[:, None] == numbers).to(like.dtype)


class JaccardMetric(Method):
    """Jaccard distance between the class probabilities of student and teacher, over the whole batch.

    It is a mean over the classes that are there: those that a compared pixel has as its label, or as the most probable
    one in the teacher's eyes. Several processes compare the batch of all of them; with `train.accumulate` it is a
    micro-batch, which counts as much as it has labels if pixels without a label are left out.

    Args:
        weight: of the term; 0.75 in the paper, beside 0.25 on the cross-entropy (`supervised.ce`), which is 1 as a
            default.
        temperature: τ, divides both logits; 1 in the authors' code.
        labelled_only: whether pixels without a label are left out, as in the authors' code. Images without labels
            then teach nothing; with `false` all pixels are compared.
    """

    def __init__(self, *, weight: float = 0.75, temperature: float = 1.0, labelled_only: bool = True):
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.labelled_only = labelled_only

    def student_taps(self) -> set[str]:
        """`logits`, unless the weight is 0."""
        return {"logits"} if self.weight else set()

    def labelled_terms(self) -> set[str]:
        """The term, if pixels without a label are left out."""
        return {"logits"} if self.labelled_only else set()

    @full_precision
    def distance(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """The unweighted term.

        Args:
            student: logits (N,C,H,W).
            teacher: logits (N,C,H,W).
            target: (N,h,w) labels.
        """
        check_maps(student, teacher)
        labels = resize_labels(target, (student.shape[2], student.shape[3]))
        known = labelled(labels, student.shape[1])
        own, other = (F.softmax(x / self.temperature, dim=1) for x in (student, teacher.detach()))
        parts = overlaps(own, other, valid=known if self.labelled_only else None)
        # Differs from the authors' code, which counts every class of soft labels by default: of one that is nowhere the
        # teacher gives tiny numbers alone, whose overlap says nothing.
        named = torch.where(known[:, None], _one_hot(labels, own), 0).sum((0, 2, 3))
        parts = sum_over_processes(torch.cat([parts, named[None]]))
        return mean_distance(parts[:3], parts[2] + parts[3] > 0)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `logits`."""
        if not self.weight:
            return {}
        return {"logits": self.weight * self.distance(student["logits"], teacher["logits"], target)}
