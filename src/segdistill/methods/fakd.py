"""FAKD: distillation of infinitely many augmented features, in closed form (Yuan et al., 2022; equations put right).

The student's features are drawn ŝ ~ N(s, λΣ_y) around what they are, Σ_y the running covariance of the pixel's class; a
bound of the expected loss needs no draw. `docs/derivations/fakd.md` derives what is computed here, step by step.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.functional import IGNORE, check_labels, check_maps, full_precision, kl_terms, labelled, resize_labels
from segdistill.methods._base import Exhibit, Method
from segdistill.methods._covariance import ClassCovariance, class_blocks
from segdistill.taps import UNDROPPED, Taps


@full_precision
def logit_variance(
    labels: Tensor, *, weight: Tensor, covariance: Tensor, scale: float = 1.0, ignore_index: int = IGNORE
) -> Tensor:
    """Variance that the augmented features give to each logit, v_i^c = λ·w_cᵀ Σ_{y_i} w_c; 0 at ignored pixels.

    Args:
        labels: (N,H,W) integers at the logits' resolution.
        weight: W (C,A) of the final classifier; the gradient flows to it.
        covariance: Σ (C,A) diagonal or (C,A,A); detached here.
        scale: λ.
        ignore_index: label of pixels without a class; labels outside 0…C−1 count likewise.

    Returns:
        (N,C,H,W).

    Raises:
        ValueError: if weight and covariance do not fit, or labels are not integers (N,H,W).

    >>> weight, covariance = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    >>> logit_variance(torch.tensor([[[0, 1, 255]]]), weight=weight, covariance=covariance)[0, :, 0]
    tensor([[1.0000, 0.5000, 0.0000],
            [5.0000, 0.5000, 0.0000]])
    """
    check_labels(labels, labels)
    covariance = _with_none(weight, covariance)
    diagonal = covariance.dim() == 2
    table = weight.square() @ covariance.t() if diagonal else (weight @ covariance * weight).sum(2).t()  # (C,C+1)
    index = _class_index(labels, len(weight), ignore_index).flatten(1)
    variance = (table * scale).expand(len(index), -1, -1).gather(2, index[:, None].expand(-1, len(weight), -1))
    return variance.view(len(index), -1, *labels.shape[1:])


@full_precision
def augmented_channel_kl(student: Tensor, teacher: Tensor, variance: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Channel-wise divergence of infinitely many augmented features, an upper bound of its mean (eq. 4-7, corrected).

    τ²/C Σ_c Σ_i p^T_{i,c} [ −z_i^c/τ + v_i^c/(2τ²) + log Σ_k exp(z_k^c/τ + v_k^c/(2τ²)) ], less the teacher's entropy;
    mean over N. That is KL(p^T ‖ softmax(z/τ + v/(2τ²))) + Σ_i p^T_i v_i/τ²: two terms that are never negative, so
    that nothing cancels, and v = 0 leaves `channel_kl` exactly.

    Args:
        student: logits z (N,C,H,W).
        teacher: logits (N,C,H,W), detached here.
        variance: v (N,C,H,W), λ included, as of `logit_variance`; the gradient flows through it.
        temperature: τ.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Yuan et al., FAKD: Feature Augmented Knowledge Distillation for Semantic Segmentation, eq. 4-7.

    >>> student, teacher = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    >>> round(augmented_channel_kl(student, teacher, torch.full((1, 1, 1, 2), 0.5)).item(), 4)
    0.6201
    """
    # Differs from the paper: its sign makes student = −teacher the minimum, it leaves τ² out, and it takes Σ over
    # channels where the softmax is over positions. docs/derivations/fakd.md has the steps.
    check_maps(student, teacher)
    check_maps(student, variance)
    variance = variance.flatten(2)
    augmented = torch.add(student.flatten(2), variance, alpha=0.5 / temperature) / temperature
    log_teacher = F.log_softmax(teacher.detach().flatten(2) / temperature, dim=2)
    divergence = kl_terms(log_teacher, F.log_softmax(augmented, dim=2)).sum(2) * temperature**2
    mean_variance: Tensor = torch.linalg.vecdot(log_teacher.exp(), variance)
    return (divergence + mean_variance).mean()


@full_precision
def augmented_pixel_kl(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    covariance: Tensor,
    scale: float = 1.0,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Pixel-wise divergence of infinitely many augmented features, an upper bound of its mean (eq. 4-7, corrected).

    1/M Σ_i Σ_c p_i^c [ −z_i^c + log Σ_k exp(z_i^k + λ/2 (w_k−w_c)ᵀ Σ_{y_i} (w_k−w_c)) ], less the teacher's entropy;
    mean over N. That is KL(p ‖ s) + Σ_c p^c log(1 + Σ_k s^k (exp(λ/2 …) − 1)) with s the student's softmax: two terms
    that are never negative, and λ = 0 leaves `pixel_kl` exactly. Exponents λ/2 … above 80 (float32; 638 in float64)
    count as that.

    Args:
        student: logits z (N,C,H,W).
        teacher: logits (N,C,H,W), detached here.
        labels: (N,h,w) integers, brought to H×W by the nearest neighbour.
        weight: W (C,A) of the final classifier; the gradient flows to it.
        covariance: Σ (C,A) diagonal or (C,A,A); detached here.
        scale: λ.
        ignore_index: label of pixels without a class, which are not augmented; so are labels outside 0…C−1.

    Raises:
        ValueError: if shapes differ, or weight and covariance do not fit the logits.

    Source:
        Yuan et al., FAKD: Feature Augmented Knowledge Distillation for Semantic Segmentation, eq. 4-7.

    >>> student = torch.zeros(1, 2, 1, 1)
    >>> weight, covariance = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5], [0.5]])
    >>> label = torch.zeros(1, 1, 1, dtype=torch.long)
    >>> round(augmented_pixel_kl(student, student, label, weight=weight, covariance=covariance).item(), 4)
    0.6201
    """
    # Differs from the paper: the sign, as above.
    check_maps(student, teacher)
    check_labels(student, labels)
    classes = student.shape[1]
    if len(weight) != classes:
        raise ValueError(f"weight: expected ({classes},A) for {classes} logits, got {tuple(weight.shape)}")
    weight = weight.to(student.dtype)
    log_student = F.log_softmax(student, dim=1)
    log_teacher = F.log_softmax(teacher.detach(), dim=1)
    plain = kl_terms(log_teacher, log_student).sum(1)

    index = _class_index(resize_labels(labels, (student.shape[2], student.shape[3])), classes, ignore_index).flatten()
    present = torch.bincount(index, minlength=classes + 1) > 0
    growth = _growth(weight, scale * _with_none(weight, covariance)[present])
    pixels, taken, owners = class_blocks((present.cumsum(0) - 1)[index], len(growth))
    probability, knowledge = (F.embedding(pixels, _pixels(x)).exp_() for x in (log_student, log_teacher))
    excess: Tensor = torch.linalg.vecdot(knowledge, (probability @ growth.index_select(0, owners)).log1p()) * taken
    return plain.mean() + excess.sum() / plain.numel()


def _growth(weight: Tensor, covariance: Tensor) -> Tensor:
    """exp(½ (w_k−w_c)ᵀ Σ_y (w_k−w_c)) − 1 for all classes k and c and Y covariances, (Y,C,C)."""
    # W stands on both sides of Σ, symmetrically: its gradient is twice that through one side, which costs half.
    left, right = weight.detach(), 2 * weight - weight.detach()
    products = (left * covariance[:, None] if covariance.dim() == 2 else left @ covariance) @ (right.t() / 2)
    diagonal = products.diagonal(dim1=1, dim2=2)
    exponent = diagonal[:, :, None] - (products + products.mT) + diagonal[:, None]
    # Differs from the paper: what would overflow is held at e^80 (float32).
    return exponent.clamp(max=0.9 * math.log(torch.finfo(exponent.dtype).max)).expm1()


def _pixels(maps: Tensor) -> Tensor:
    """(N,C,H,W) → (N·H·W,C)."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def _class_index(labels: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Labels as int64 in 0…C, where C stands for all that belong to no class."""
    return labels.long().where(labelled(labels, classes, ignore_index), classes)


def _with_none(weight: Tensor, covariance: Tensor) -> Tensor:
    """The covariances without their graph, followed by that of no class, 0: such pixels are not augmented."""
    if weight.dim() != 2 or tuple(covariance.shape) not in {tuple(weight.shape), (*weight.shape, weight.shape[1])}:
        got = f"{tuple(weight.shape)} and {tuple(covariance.shape)}"
        raise ValueError(f"weight and covariance: expected (C,A) and (C,A) or (C,A,A), got {got}")
    return torch.cat([covariance.detach(), torch.zeros_like(covariance[:1])]).to(weight)


class FAKD(Method):
    """Feature-augmented distillation of logits: CWD or pixel-wise KD, averaged over infinitely many augmented features.

    The augmentation strength grows with the training, λ(t) = λ0·(1 − cos πt)/2. The student's final 1×1 classifier must
    be known: its weights are the tap `weight`, what enters it is the tap `features`.

    The covariance takes in the batch of all processes before it is used; with `train.accumulate`, the first micro-batch
    of a step does not see the features of the later ones yet.

    Args:
        weight: of the term; 5 in the paper for Cityscapes and VOC, 10 for ADE20K and Pascal Context.
        base: `cwd` averages the channel-wise divergence, `kd` the pixel-wise one.
        temperature: τ; 1 in the paper.
        strength: λ0, the augmentation at the end of the training; ours is 1. The paper leaves λ's course open; the half
            cosine is ours.
        full: keep whole covariance matrices, A times the memory of their diagonals (the paper's choice).
        dropout_noise: take the covariance of the features with the noise of the dropout in front of the classifier. Off
            (ours): of the features before it, where the network has one; with probability p the noise would add p/(1−p)
            of the features' mean square to each variance.
    """

    def __init__(
        self,
        *,
        weight: float = 5.0,
        base: Literal["cwd", "kd"] = "cwd",
        temperature: float = 1.0,
        strength: float = 1.0,
        full: bool = False,
        dropout_noise: bool = False,
    ):
        super().__init__()
        if base not in ("cwd", "kd"):
            raise ValueError(f"base: expected 'cwd' or 'kd', got {base!r}")
        self.weight = weight
        self.base = base
        self.temperature = temperature
        self.strength = strength
        self.full = full
        self.dropout_noise = dropout_noise

    def student_taps(self) -> set[str]:
        """`logits`, `features`, `weight`, and `undropped` without dropout noise; none where the weight is 0."""
        if not self.weight:
            return set()
        return {"logits", "features", "weight"} | (set() if self.dropout_noise else {UNDROPPED})

    def teacher_taps(self) -> set[str]:
        """`logits`, unless the weight is 0."""
        return {"logits"} if self.weight else set()

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The running covariance, in the sizes of the student's classifier.

        Raises:
            ValueError: if the classifier is unknown, or `features` is not what enters it.
        """
        if not self.weight:
            return
        if "weight" not in student:
            raise ValueError("fakd: the student's final 1×1 classifier is unknown; name its path with `classifier`")
        classes, channels = student["weight"].shape
        if student["features"].shape[1] != channels or student["logits"].shape[1] != classes:
            raise ValueError(
                f"fakd: the classifier maps {channels} channels to {classes} classes, but features have "
                f"{student['features'].shape[1]} and logits {student['logits'].shape[1]}; tap what enters and leaves it"
            )
        self.statistics = ClassCovariance(classes, channels, self.full)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `logits`; takes the batch into the covariance first, in training only."""
        if not self.weight:
            return {}
        if self.training:
            # A network without a dropout in front of its classifier has no such tap: its features have no noise.
            features = student["features"] if self.dropout_noise else student.get(UNDROPPED, student["features"])
            self.statistics.update(features, target)
        tau, logits, weight = self.temperature, student["logits"], student["weight"]
        scale = self.strength * (1 - math.cos(math.pi * progress)) / 2
        covariance = self.statistics.covariance
        if self.base == "cwd":
            labels = resize_labels(target, (logits.shape[2], logits.shape[3]))
            variance = logit_variance(labels, weight=weight, covariance=covariance, scale=scale)
            loss = augmented_channel_kl(logits, teacher["logits"], variance, temperature=tau)
        else:  # a temperature divides the logits, hence the weights that they come from
            loss = tau**2 * augmented_pixel_kl(
                logits / tau, teacher["logits"] / tau, target, weight=weight / tau, covariance=covariance, scale=scale
            )
        return {"logits": self.weight * loss}

    def exhibits(
        self, student: Taps, others: Mapping[str, Taps], target: Tensor, critic: nn.Module | None = None
    ) -> list[Exhibit]:
        """Logits of one class without and with the covariance, as in the paper's Figure 3."""
        if not self.weight:
            return []
        logits = student["logits"]
        labels = resize_labels(target, (logits.shape[2], logits.shape[3]))
        covariance = self.statistics.covariance
        variance = logit_variance(labels, weight=student["weight"], covariance=covariance, scale=self.strength)
        added = variance / (2 * self.temperature)
        present = F.one_hot(labels.where(labelled(labels, logits.shape[1]), 0), logits.shape[1]).sum((1, 2)) > 0
        chosen = added.var((2, 3)).where(present, -1).argmax(1)

        def pick(maps: Tensor) -> Tensor:
            return maps[torch.arange(len(maps), device=maps.device), chosen]

        maps = {name: pick(taps["logits"]) for name, taps in others.items() if name == "teacher"}
        shown = {"without the covariance": pick(logits), "with the covariance": pick(logits + added)}
        maps |= {**shown, "what it adds": pick(added)}
        return [Exhibit("Activations with and without the covariance", AUGMENTED_NOTE, maps, tuple(shown))]


AUGMENTED_NOTE = (
    "As in FAKD's Figure 3: the logits of the class that the augmentation changes most in the image, without and with "
    "what the covariance of the features adds to them at the end of training, λv/(2τ), beside the teacher's."
)
"""How maps of logits are to be read."""


__all__ = ["FAKD", "ClassCovariance", "augmented_channel_kl", "augmented_pixel_kl", "logit_variance"]
