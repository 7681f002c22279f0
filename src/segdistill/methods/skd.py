"""SKD: structured knowledge distillation (Liu et al., CVPR 2019 and TPAMI 2020): pixels, pairs of pixels, whole maps."""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.methods._critic import Critic, critic_optimizer, critic_terms, holistic_loss
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps

SHORTEST = 1e-8
"""A vector of less than this length has no direction: its similarity to all others is 0, without a gradient."""

BLOCK = 1024
"""Nodes that are in float64 at a time."""


def unit_vectors(x: Tensor) -> Tensor:
    """Bring the vectors along dimension 1 to length 1; those without a direction become 0, without a gradient.

    Args:
        x: (N,A,...).

    >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return x / lengths(x)


def lengths(x: Tensor) -> Tensor:
    """Lengths of the vectors along dimension 1, which is kept; infinite where they are too short for a direction."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length.where(length > SHORTEST, torch.inf)


class GramDistance(torch.autograd.Function):
    """‖SSᵀ−TTᵀ‖² = ‖SᵀS‖² − 2‖SᵀT‖² + ‖TᵀT‖² (Frobenius), S and T the nodes' unit vectors; sum over images.

    The n×n Gram matrices are never formed: time is linear in the nodes n, memory does not depend on them. What is left
    of the three terms for nearly equal sides is 1e-10 of each, so they are summed in float64.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """(N,A,n) and (N,B,n) → 0-dim float64."""
        (n, a, _), b = student.shape, teacher.shape[1]
        own, cross, other = (student.new_zeros(n, p, q, dtype=torch.float64) for p, q in ((a, a), (a, b), (b, b)))
        for nodes, guides in zip(student.split(BLOCK, 2), teacher.split(BLOCK, 2), strict=True):
            s, t = unit_vectors(nodes.double()), unit_vectors(guides.double())
            own += s @ s.mT
            cross += s @ t.mT
            other += t @ t.mT
        ctx.save_for_backward(student, teacher, own, cross)
        distance = own.square().sum() - 2 * cross.square().sum() + other.square().sum()
        return distance.clamp_min(0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """4·(SSᵀ−TTᵀ)S, through the normalisation of S."""
        student, teacher, own, cross = ctx.saved_tensors
        result = torch.empty_like(student)
        blocks = (tensor.split(BLOCK, 2) for tensor in (student, teacher, result))
        for nodes, guides, out in zip(*blocks, strict=True):
            nodes = nodes.double()
            length = lengths(nodes)
            s, t = nodes / length, unit_vectors(guides.double())
            slope = own @ s - cross @ t
            out.copy_((slope - s * (s * slope).sum(1, keepdim=True)) / length * (4 * gradient))
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
        total: Tensor = GramDistance.apply(nodes, guides)  # type: ignore[no-untyped-call]
        return (total / (images * n * n)).to(student.dtype)
    s, t = unit_vectors(nodes.double()), unit_vectors(guides.double())
    return (s.mT @ s - t.mT @ t).square().mean().to(student.dtype)


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
        given = Preset(  # type: ignore[arg-type]
            pixel_weight, pair_weight, holistic_weight, pool, pool_type, critic_input, critic_image, critic_optimizer
        )
        self.settings = Preset(*(b if a is None else a for a, b in zip(given, PRESETS[preset], strict=True)))
        if isinstance(self.settings.pool, float) and not 0 < self.settings.pool < 1:
            raise ValueError(f"pool: expected pixels (an int) or a fraction below 1, got {self.settings.pool}")
        self.temperature = temperature
        self.critic_lr = critic_lr
        self.penalty_weight = penalty_weight
        self.critic_channels = (0, 0)

    def student_taps(self) -> set[str]:
        """`logits` for pixels and the critic, `features` for pairs, `image` for a critic that sees it."""
        settings = self.settings
        taps = {"logits"} if settings.pixel_weight or settings.holistic_weight else set()
        taps |= {"features"} if settings.pair_weight else set()
        return taps | ({"image"} if settings.holistic_weight and settings.critic_image else set())

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Remember how many classes and image channels a critic sees."""
        if self.settings.holistic_weight:
            image_channels = student["image"].shape[1] if self.settings.critic_image else 0
            self.critic_channels = (student["logits"].shape[1], image_channels)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `pixel` and `pair`."""
        terms = {}
        if self.settings.pixel_weight:
            loss = pixel_kl(student["logits"], teacher["logits"], temperature=self.temperature)
            terms["pixel"] = self.settings.pixel_weight * loss
        if self.settings.pair_weight:
            pool = self.settings.pool
            if isinstance(pool, float):
                height, width = student["features"].shape[2:]
                pool = (max(1, int(height * pool)), max(1, int(width * pool)))
            loss = pairwise_similarity(
                student["features"], teacher["features"], pool=pool, pool_type=self.settings.pool_type
            )
            terms["pair"] = self.settings.pair_weight * loss
        return terms

    def make_critic(self) -> nn.Module | None:
        """The critic of the holistic term."""
        return Critic(*self.critic_channels, sees=self.settings.critic_input) if self.settings.holistic_weight else None

    def make_critic_optimizer(self, critic: nn.Module) -> torch.optim.Optimizer:
        """SGD or Adam."""
        return critic_optimizer(critic, self.settings.critic_optimizer, lr=self.critic_lr)

    def adversarial_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The term `holistic`: a high score is a low loss."""
        assert isinstance(critic, Critic)
        return {"holistic": self.settings.holistic_weight * holistic_loss(critic, student["logits"], student["image"])}

    def critic_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The terms `wasserstein` and `penalty`."""
        assert isinstance(critic, Critic)
        logits = student["logits"], teacher["logits"]
        return critic_terms(critic, *logits, student["image"], weight=self.penalty_weight)
