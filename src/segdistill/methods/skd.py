"""SKD: structured knowledge distillation (Liu et al., CVPR 2019): single pixels, pairs of them, whole maps."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segdistill.functional import check_maps, exact, full_precision, inverse_lengths, unit_vectors
from segdistill.methods._base import Exhibit, Method
from segdistill.methods._critic import CRITIC_NOTE, Critic, critic_optimizer, critic_scores, critic_terms, holistic_loss
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps

T = TypeVar("T")

BLOCK = 1024
"""Nodes that are normalised at a time."""

CANCELS = 1e-3
"""What share of its terms a distance must keep for float32 to be enough; it is then good to 1e-4."""


def moments(student: Tensor, teacher: Tensor, *, precise: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SᵀS (N,A,A), SᵀT (N,A,B), ‖TᵀT‖² and ‖SSᵀ−TTᵀ‖² of the unit vectors S and T of all nodes, float64.

    Args:
        student: nodes (N,A,n).
        teacher: nodes (N,B,n).
        precise: compute the products in float64, not only their sums.
    """
    half = teacher.shape[1] // 2
    totals: list[Tensor] = []
    for nodes, guides in zip(torch.split(student, BLOCK, 2), torch.split(teacher, BLOCK, 2), strict=True):
        s, t = (unit_vectors(exact(x) if precise else x) for x in (nodes, guides))
        # TᵀT is symmetric, and the largest: its lower left quarter is left out
        products = (s @ s.mT, s @ t.mT, t[:, :half] @ t.mT, t[:, half:] @ t[:, half:].mT)
        totals = (
            [exact(x) for x in products]
            if not totals
            else [a.add_(exact(x)) for a, x in zip(totals, products, strict=True)]
        )
    own, cross, upper, lower = totals
    other = upper.square().sum() + upper[:, :, half:].square().sum() + lower.square().sum()
    return own, cross, other, own.square().sum() - 2 * cross.square().sum() + other


class GramDistance(torch.autograd.Function):
    """‖SSᵀ−TTᵀ‖² = ‖SᵀS‖² − 2‖SᵀT‖² + ‖TᵀT‖² (Frobenius), S and T the nodes' unit vectors; sum over images.

    The n×n Gram matrices are never formed: time is linear in the nodes n, memory does not depend on them. For nearly
    equal sides 1e-10 of the three terms is left, more than float32 resolves: they are then computed in float64.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """(N,A,n) and (N,B,n) → 0-dim float64."""
        own, cross, other, distance = moments(student, teacher, precise=False)
        precise = bool(distance < CANCELS * other)
        if precise:
            own, cross, _, distance = moments(student, teacher, precise=True)
        else:
            own, cross = own.to(student), cross.to(student)
        ctx.save_for_backward(student, teacher, own, cross)
        return distance.clamp_min(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """4·(SSᵀ−TTᵀ)S, through the normalisation of S."""
        student, teacher, own, cross = ctx.saved_tensors
        result = torch.empty_like(student)
        gradient = gradient.to(own)
        parts = (torch.split(tensor, BLOCK, 2) for tensor in (student, teacher, result))
        for nodes, guides, part in zip(*parts, strict=True):
            nodes, guides = nodes.to(own), guides.to(own)
            scale = inverse_lengths(nodes.square().sum(1, keepdim=True))
            s = nodes * scale
            slope = own @ s - cross @ unit_vectors(guides)
            part.copy_((slope - s * (s * slope).sum(1, keepdim=True)) * scale * (4 * gradient))
        return result, None


@full_precision
def pairwise_similarity(
    student: Tensor,
    teacher: Tensor,
    *,
    pool: int | tuple[int, int] | None = 2,
    pool_type: Literal["max", "avg"] = "max",
) -> Tensor:
    """Squared difference of the cosine similarities between all pairs of nodes, eq. 3; mean over N·n² pairs.

    A node is a window of the map, n of them in each image. Where n is large, the n×n matrices are not formed.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), detached here; B may differ from A.
        pool: size and stride of the windows in pixels, those at the border may be smaller; 1 or None: every pixel is a
            node.
        pool_type: what a window gives, "max" (the released code) or "avg" (the paper).

    Raises:
        ValueError: if N or H×W differ, or on a window of no pixels or an unknown type.

    Source:
        Liu et al., Structured Knowledge Distillation for Semantic Segmentation, eq. 2-3. The authors' released code
        does not differentiate through the vectors' lengths.

    >>> student, teacher = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    >>> pairwise_similarity(student, teacher, pool=None).item()  # 1 for two of the four pairs
    0.5
    """
    check_maps(student, teacher, channels=False)
    nodes, guides = (pooled(x, pool, pool_type).flatten(2) for x in (student, teacher.detach()))
    (images, a, n), b = nodes.shape, guides.shape[1]
    if n * (a + b) > a * a + a * b + b * b:
        total: Tensor = GramDistance.apply(nodes, guides)
        return (total / (images * n * n)).to(student)
    s, t = unit_vectors(exact(nodes)), unit_vectors(exact(guides))
    return (s.mT @ s - t.mT @ t).square().mean().to(student)


def pooled(x: Tensor, pool: int | tuple[int, int] | None, pool_type: Literal["max", "avg"]) -> Tensor:
    """Reduce each window of a map (N,A,H,W) to one node.

    Args:
        x: the map.
        pool: size and stride of the windows in pixels.
        pool_type: "max" or "avg".
    """
    h, w = (pool, pool) if isinstance(pool, int) else pool or (1, 1)
    if min(h, w) < 1:
        raise ValueError(f"pool: expected pixels of at least 1, got {pool}; None leaves every pixel a node")
    if pool_type not in ("max", "avg"):
        raise ValueError(f"pool_type: expected 'max' or 'avg', got {pool_type!r}")
    if h == w == 1:
        return x
    window = (min(h, x.shape[2]), min(w, x.shape[3]))
    return (F.max_pool2d if pool_type == "max" else F.avg_pool2d)(x, window, window, ceil_mode=True)


class Preset(NamedTuple):
    """What the paper and the authors' released code set differently."""

    pixel_weight: float
    pair_weight: float
    holistic_weight: float
    pool: int | float | tuple[int, int]
    pool_type: Literal["max", "avg"]
    critic_input: Literal["probabilities", "logits"]
    critic_image: bool
    critic_optimizer: Literal["adam", "sgd"]


def either(given: T | None, preset: T) -> T:
    """An option that is given, or else the preset's."""
    return preset if given is None else given


PRESETS = {
    "paper": Preset(10.0, 10.0, 0.1, 2, "avg", "probabilities", True, "adam"),
    # The released pixel weight is 10, of a sum over the 8 images of its batch: 80 of the mean.
    "released": Preset(80.0, 0.5, 0.1, 0.5, "max", "logits", False, "sgd"),
}


class StructuredKD(Method):
    """Pixel-wise, pair-wise and holistic distillation; every option that is None comes from the preset.

    Args:
        preset: "paper": λ1 = 10 for pixels and pairs, λ2 = 0.1, nodes of 2×2 pixels averaged, a critic that sees class
            probabilities and the image. "released": weights 80 (10 there, on a loss that is summed over the 8 images
            of the batch), 0.5 and 0.1, nodes of half the map, max-pooled, a critic that sees logits alone through a
            BatchNorm, trained by SGD. The released code also scales the critic's own loss by 0.1, which is not done
            here.
        pixel_weight: of the KL divergence of each pixel's class probabilities; 0 = off.
        pair_weight: of the squared difference of the similarities between nodes; 0 = off.
        holistic_weight: of the critic's score, λ2; 0 = off, and no critic is made.
        temperature: τ of the pixel term; 1 in the paper.
        pool: a node's window: pixels (an int, or height and width; 1 = every pixel), or a fraction of the map (a float
            below 1).
        pool_type: "avg" or "max".
        critic_input: what the critic sees of the logits, their softmax ("probabilities") or raw and through a
            BatchNorm ("logits").
        critic_image: whether the critic sees the image, too.
        critic_optimizer: "sgd" (momentum 0.9, weight decay 5e-4: released), or "adam" (betas 0 and 0.9, those of
            WGAN-GP: our choice where the paper says nothing).
        critic_lr: its learning rate at the start; 4e-4 in the released code.
        penalty_weight: of the gradient penalty in the critic's loss; 10 in the paper.
    """

    def __init__(
        self,
        *,
        preset: Literal["paper", "released"] = "paper",
        pixel_weight: float | None = None,
        pair_weight: float | None = None,
        holistic_weight: float | None = None,
        temperature: float = 1.0,
        pool: int | float | tuple[int, int] | None = None,
        pool_type: Literal["max", "avg"] | None = None,
        critic_input: Literal["probabilities", "logits"] | None = None,
        critic_image: bool | None = None,
        critic_optimizer: Literal["adam", "sgd"] | None = None,
        critic_lr: float = 4e-4,
        penalty_weight: float = 10.0,
    ):
        super().__init__()
        base = PRESETS[preset]
        self.pixel_weight = either(pixel_weight, base.pixel_weight)
        self.pair_weight = either(pair_weight, base.pair_weight)
        self.holistic_weight = either(holistic_weight, base.holistic_weight)
        self.pool = either(pool, base.pool)
        self.pool_type = either(pool_type, base.pool_type)
        self.critic_input = either(critic_input, base.critic_input)
        self.critic_image = either(critic_image, base.critic_image)
        self.critic_optimizer = either(critic_optimizer, base.critic_optimizer)
        if isinstance(self.pool, float) and not 0 < self.pool < 1:
            raise ValueError(f"pool: expected pixels (an int) or a fraction below 1, got {self.pool}")
        self.temperature = temperature
        self.critic_lr = critic_lr
        self.penalty_weight = penalty_weight
        self.critic_channels = (0, 0)

    def student_taps(self) -> set[str]:
        """`logits` for pixels and the critic, `features` for pairs, `image` for a critic that sees it."""
        wanted = {
            "logits": self.pixel_weight or self.holistic_weight,
            "features": self.pair_weight,
            "image": self.holistic_weight and self.critic_image,
        }
        return {name for name, weight in wanted.items() if weight}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Remember how many classes and image channels a critic sees."""
        if self.holistic_weight:
            image_channels = student["image"].shape[1] if self.critic_image else 0
            self.critic_channels = (student["logits"].shape[1], image_channels)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `pixel` and `pair`."""
        terms = {}
        if self.pixel_weight:
            loss = pixel_kl(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["pixel"] = self.pixel_weight * loss
        if self.pair_weight:
            own, other = student["features"], teacher["features"]
            loss = pairwise_similarity(own, other, pool=self.window(own), pool_type=self.pool_type)
            terms["pair"] = self.pair_weight * loss
        return terms

    def window(self, features: Tensor) -> int | tuple[int, int]:
        """A node's window on this map (N,A,H,W), in pixels."""
        if not isinstance(self.pool, float):
            return self.pool
        height, width = features.shape[2:]
        return max(1, int(height * self.pool)), max(1, int(width * self.pool))

    def exhibits(
        self, student: Taps, others: Mapping[str, Taps], target: Tensor, critic: nn.Module | None = None
    ) -> list[Exhibit]:
        """The critic's scores of the networks' maps, as in the paper's Figure 3."""
        if not isinstance(critic, Critic):
            return []
        logits = {name: taps["logits"] for name, taps in others.items() if "logits" in taps}
        scores = critic_scores(critic, student["logits"], logits, student.get("image"))
        return [Exhibit("The critic's scores", CRITIC_NOTE, scores)]

    def make_critic(self) -> nn.Module | None:
        """The critic of the holistic term."""
        return Critic(*self.critic_channels, sees=self.critic_input) if self.holistic_weight else None

    def make_critic_optimizer(self, critic: nn.Module) -> torch.optim.Optimizer:
        """SGD or Adam."""
        return critic_optimizer(critic, self.critic_optimizer, lr=self.critic_lr)

    def adversarial_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The term `holistic`: a high score is a low loss."""
        assert isinstance(critic, Critic)
        return {"holistic": self.holistic_weight * holistic_loss(critic, student["logits"], student.get("image"))}

    def critic_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The terms `wasserstein` and `penalty`."""
        assert isinstance(critic, Critic)
        logits = student["logits"], teacher["logits"]
        return critic_terms(critic, *logits, student.get("image"), weight=self.penalty_weight)
