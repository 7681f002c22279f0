"""KD: pixel-wise distillation of class probabilities (Hinton et al. 2015; per pixel in SKD, CVPR 2019, eq. 1)."""

from torch import Tensor

from segdistill.functional import check_maps, empty, full_precision, softmax_kl
from segdistill.methods._base import Method
from segdistill.taps import Taps


@full_precision
def pixel_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of each pixel's class probabilities, KL(teacher‖student)·τ², mean over pixels.

    Args:
        student: logits (N,C,H,W).
        teacher: logits (N,C,H,W), detached here.
        temperature: τ, divides both logits.
        valid: (N,H,W) bool, the pixels that count (default: all, as in the papers). None valid: 0, with a graph.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Liu et al., Structured Knowledge Distillation for Semantic Segmentation, eq. 1 (there with τ = 1). The authors'
        released code sums over the N images instead, and adds the teacher's entropy, which has no gradient.

    >>> import torch
    >>> student, teacher = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    >>> round(pixel_kl(student, teacher).item(), 4)
    0.1201
    """
    check_maps(student, teacher)
    divergence = softmax_kl(student, teacher.detach(), 1, temperature=temperature) * temperature**2
    if valid is None:
        return divergence.mean()
    if valid.shape != divergence.shape:
        raise ValueError(f"valid: expected {tuple(divergence.shape)}, got {tuple(valid.shape)}")
    if not valid.any():
        return empty(student)
    return divergence[valid].mean()


class PixelKD(Method):
    """Pixel-wise KL divergence between the class probabilities of student and teacher.

    Args:
        weight: of the term; 10 in SKD (its λ1).
        temperature: τ; 1 in SKD.
    """

    def __init__(self, *, weight: float = 10.0, temperature: float = 1.0):
        super().__init__()
        self.weight = weight
        self.temperature = temperature

    def student_taps(self) -> set[str]:
        """`logits`, unless the weight is 0."""
        return {"logits"} if self.weight else set()

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `logits`."""
        if not self.weight:
            return {}
        return {
            "logits": self.weight * pixel_kl(student["logits"], teacher["logits"], temperature=self.temperature),
        }
