"""CWD: channel-wise distillation of where each channel looks (Shu et al., ICCV 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.adapters import projection
from segdistill.functional import check_maps, full_precision, kl_terms, softmax_kl
from segdistill.methods._base import Method
from segdistill.taps import Taps


@full_precision
def channel_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of each channel's distribution over positions, KL(teacher‖student)·τ².

    A channel becomes a distribution by a softmax over its H·W positions; summed over positions, mean over N and C.

    Args:
        student: map (N,C,H,W), logits or features.
        teacher: map (N,C,H,W), detached here.
        temperature: τ; both maps are divided by it before the softmax.
        valid: (N,H,W) bool, the positions that count (default: all, as in the paper); the softmax is over them, and an
            image without any is left out. None valid: 0, with a graph.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, eq. 3-4.

    >>> import torch
    >>> student, teacher = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    >>> round(channel_kl(student, teacher).item(), 4)
    0.1201
    """
    check_maps(student, teacher)
    own, other = (x.flatten(2) for x in (student, teacher.detach()))
    if valid is None:
        return softmax_kl(own, other, 2, temperature=temperature).mean() * temperature**2
    if valid.shape != (student.shape[0], *student.shape[2:]):
        raise ValueError(f"valid: expected {(student.shape[0], *student.shape[2:])}, got {tuple(valid.shape)}")
    inside = valid.flatten(1)[:, None]
    lowest = torch.finfo(own.dtype).min
    own, other = (F.log_softmax((x / temperature).where(inside, lowest), 2).where(inside, 0) for x in (own, other))
    images = inside.any(2).sum().clamp(min=1) * student.shape[1]
    return kl_terms(other, own).sum() / images * temperature**2


class ChannelWise(Method):
    """Channel-wise KL divergence on logits, on features, or both.

    Args:
        weight: of the term on logits; 3 in the paper.
        temperature: τ on logits; 4 in the paper.
        features_weight: of the term on features (50 in the paper, which uses logits or features, not both); 0 = off.
        features_temperature: τ on features; 4 in the paper.
    """

    def __init__(
        self,
        *,
        weight: float = 3.0,
        temperature: float = 4.0,
        features_weight: float = 0.0,
        features_temperature: float = 4.0,
    ):
        super().__init__()
        if not features_weight and features_temperature != 4.0:
            raise ValueError(
                "method cwd, features_temperature: of the term on features, which is off; set features_weight (50 in "
                "the paper), or leave it out"
            )
        self.weight = weight
        self.temperature = temperature
        self.features_weight = features_weight
        self.features_temperature = features_temperature
        self.adapter: nn.Module = nn.Identity()

    def student_taps(self) -> set[str]:
        """`logits` and `features`, each unless its weight is 0."""
        return {name for name, weight in (("logits", self.weight), ("features", self.features_weight)) if weight}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """A 1×1 convolution from the student's to the teacher's channels, where they differ."""
        if self.features_weight and student["features"].shape[1] != teacher["features"].shape[1]:
            self.adapter = projection(student["features"].shape[1], teacher["features"].shape[1])

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `logits` and `features`."""
        terms = {}
        if self.weight:
            loss = channel_kl(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["logits"] = self.weight * loss
        if self.features_weight:
            features = self.adapter(student["features"])
            loss = channel_kl(features, teacher["features"], temperature=self.features_temperature)
            terms["features"] = self.features_weight * loss
        return terms
