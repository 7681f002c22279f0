"""DIST: how classes rank in each pixel, and pixels in each class (Huang et al., NeurIPS 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
    check_maps(student, teacher)
    return _distance(student, teacher, temperature, (1,))


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
    check_maps(student, teacher)
    return _distance(student, teacher, temperature, (0, 2, 3))


def _distance(student: Tensor, teacher: Tensor, temperature: float, dims: tuple[int, ...]) -> Tensor:
    """1 − Pearson's correlation of class probabilities over some dimensions, mean over the others, times τ²."""
    own, other = (F.softmax(x / temperature, dim=1) for x in (student, teacher.detach()))
    (u, u_flat), (v, v_flat) = (_standardised(x, dims) for x in (own, other))
    # With lengths of 1, half the square of a difference is 1 − u·v, but cancels nothing where both nearly agree.
    distance = ((u - v).square().sum(dims) + (u_flat ^ v_flat)) / 2
    return distance.mean() * temperature**2


def _standardised(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A map without its mean and of length 1 along some dimensions, or 0 where it is flat; and where that is."""
    centred = x - x.mean(dims, keepdim=True)
    squares = centred.square().sum(dims, keepdim=True)
    flat = squares <= FLAT**2 * x.square().sum(dims, keepdim=True)
    return centred * torch.where(flat, torch.inf, squares).rsqrt(), flat.squeeze(dims)


class StrongerTeacher(Method):
    """Pearson correlation of class probabilities: over the classes of each pixel, and over the pixels of each class.

    The second is over a batch's pixels. Each of several processes takes those of its own images, as the authors' code
    does, and with `train.accumulate` it is a micro-batch.

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

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `inter` and `intra`."""
        # Differs from the authors' code, which compares both sides' auxiliary heads, too, with weight 0.4.
        terms = {}
        if self.inter_weight:
            loss = inter_class_relation(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["inter"] = self.inter_weight * loss
        if self.intra_weight:
            loss = intra_class_relation(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["intra"] = self.intra_weight * loss
        return terms
