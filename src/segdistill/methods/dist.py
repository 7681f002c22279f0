"""DIST: how classes rank in each pixel, and pixels in each class (Huang et al., NeurIPS 2022)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill._processes import mean_over_processes
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.taps import Taps

FLAT = 1e-6
"""Numbers that differ from their mean by less than this share of their length are a constant: they rank nothing."""


@full_precision
def inter_class_relation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Distance 1 − ρ of each pixel's class probabilities, ρ their Pearson correlation over classes, mean over pixels.

    Where one side is constant, 1 − 0 without a gradient; where both are, they agree: 0. Times τ².

    Args:
        student: logits (N,C,H,W).
        teacher: logits (N,C,H,W), detached here.
        temperature: τ, divides both logits.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher, the inter-class loss.

    >>> import torch
    >>> student = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    >>> round(inter_class_relation(student, student.flip(1)).item(), 4)
    1.8671
    """
    return _distance(student, teacher, temperature, lambda x: x.mean(1, keepdim=True))


@full_precision
def intra_class_relation(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Distance 1 − ρ of each class's probabilities, ρ their Pearson correlation over the batch's pixels, mean over C.

    Where one side is constant, 1 − 0 without a gradient; where both are, they agree: 0. Times τ².

    Args:
        student: logits (N,C,H,W).
        teacher: logits (N,C,H,W), detached here.
        temperature: τ, divides both logits.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher, the intra-class loss, over all N·H·W pixels as in
        the authors' segmentation code.

    >>> import torch
    >>> student, teacher = torch.tensor([0.0, 1.0, 2.0, 0.0]).view(1, 2, 1, 2), torch.eye(2).view(1, 2, 1, 2)
    >>> round(intra_class_relation(student, teacher).item(), 4)
    2.0
    """
    return _distance(student, teacher, temperature, _over_pixels)


def _over_pixels(x: Tensor) -> Tensor:
    """(N,C,H,W) → (1,C,1,1)."""
    return x.mean((0, 2, 3), keepdim=True)


Mean = Callable[[Tensor], Tensor]
"""A mean over some dimensions, of which one place is left."""


def _distance(student: Tensor, teacher: Tensor, temperature: float, mean: Mean) -> Tensor:
    """1 − Pearson's correlation of class probabilities over some dimensions, mean over the others, times τ²."""
    check_maps(student, teacher)
    own, other = (F.softmax(x / temperature, dim=1) for x in (student, teacher.detach()))
    (u, u_flat), (v, v_flat) = (_standardised(x, mean) for x in (own, other))
    # With mean squares of 1, half the square of a difference is 1 − u·v, but cancels nothing where both nearly agree.
    distance = (mean((u - v).square()) + (u_flat ^ v_flat)) / 2
    return distance.mean() * temperature**2


def _standardised(x: Tensor, mean: Mean) -> tuple[Tensor, Tensor]:
    """A map less its mean and with a mean square of 1, or 0 where it is flat; and where that is."""
    centred = x - mean(x)
    squares = mean(centred.square())
    flat = squares <= FLAT**2 * mean(x.square())
    return centred * torch.where(flat, torch.inf, squares).rsqrt(), flat


class StrongerTeacher(Method):
    """Pearson correlation of class probabilities: over the classes of each pixel, and over the pixels of each class.

    The second is over the pixels of the batch of all processes, where each GPU of the authors' code takes those of its
    own images; with `train.accumulate` it is a micro-batch.

    Args:
        inter_weight: β, of the term `inter`, over the classes of each pixel; 1 in the authors' segmentation code.
        intra_weight: γ, of the term `intra`, over the pixels of each class; 1 in the authors' segmentation code.
        temperature: τ, divides both logits; the authors' segmentation code has none, which is 1.
    """

    def __init__(self, *, inter_weight: float = 1.0, intra_weight: float = 1.0, temperature: float = 1.0):
        super().__init__()
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight
        self.temperature = temperature

    def student_taps(self) -> set[str]:
        """`logits`, unless both weights are 0."""
        return {"logits"} if self.inter_weight or self.intra_weight else set()

    @full_precision
    def intra(self, student: Tensor, teacher: Tensor) -> Tensor:
        """`intra_class_relation` in the batch of all processes.

        Args:
            student: logits (N,C,H,W).
            teacher: logits (N,C,H,W).
        """
        return _distance(student, teacher, self.temperature, lambda x: mean_over_processes(_over_pixels(x)))

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `inter` and `intra`."""
        # Differs from the authors' code, which compares both sides' auxiliary heads, too, with weight 0.4.
        terms = {}
        if self.inter_weight:
            loss = inter_class_relation(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["inter"] = self.inter_weight * loss
        if self.intra_weight:
            loss = self.intra(student["logits"], teacher["logits"])
            terms["intra"] = self.intra_weight * loss
        return terms
