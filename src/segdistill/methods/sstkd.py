"""SSTKD: structural and statistical texture knowledge of the first layers (Ji et al., CVPR 2022)."""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.adapters import projection
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.methods._critic import Critic, critic_optimizer, critic_terms, holistic_loss
from segdistill.methods._level_graph import WIDTH, LevelGraph, constant, texture_knowledge
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps, resize
from segdistill.texture import contourlet_energy, crop_regions, sample_regions


@full_precision
def structural_texture(student: Tensor, teacher: Tensor, *, levels: tuple[int, ...] = (4, 3)) -> Tensor:
    """Squared difference of the contourlet coefficients, mean over each subband, then over the subbands.

    The transform is linear: it is that of the difference, computed once. The low-pass does not count, so that what is
    compared are edges and stripes by scale and direction.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,A,H,W), detached here.
        levels: directional levels of each scale, the finest first; 16 and 8 directions in the paper.

    Raises:
        ValueError: if the shapes differ, or on levels that `contourlet` does not know.

    Source:
        Ji et al., Structural and Statistical Texture Knowledge Distillation for Semantic Segmentation: the contourlet
        decomposition module (CDM).

    >>> structural_texture(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)).item() < 1e-12  # no texture in a constant
    True
    """
    check_maps(student, teacher)
    return contourlet_energy(student - teacher.detach(), levels)


@full_precision
def statistical_texture(
    student: Tensor,
    teacher: Tensor,
    *,
    weight: Tensor | None = None,
    num_levels: int = 32,
    heuristic: bool = True,
    clip: float | None = 0.5,
    graph: nn.Module | None = None,
) -> Tensor:
    """Mean squared difference of the statistical knowledge of the same regions.

    Args:
        student: features (R,A,P).
        teacher: features (R,B,P), detached here; A, unless a weight maps A to B.
        weight: (B,A) of a linear layer on the student's side; B·A per region is all that it costs, not per position.
        num_levels: N.
        heuristic: whether frequent similarities get more levels.
        clip: θ of the counts' denoising; None = none.
        graph: a `LevelGraph`, whose layers this loss does not train; None: levels and counts are compared as they are.

    Raises:
        ValueError: if the shapes do not fit.

    Source:
        Ji et al.: the denoised texture intensity equalisation module (DTIEM).

    >>> x = torch.randn(3, 8, 16)
    >>> statistical_texture(2 * x, x, num_levels=4).item() < 1e-10  # angles have no scale
    True
    """
    channels = student.shape[1] if weight is None else weight.shape[0]
    if student.dim() != 3 or (student.shape[0], channels, student.shape[2]) != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} need one shape (R,A,P), "
            "or a weight (B,A) from the student's to the teacher's channels"
        )
    options: dict[str, Any] = {"num_levels": num_levels, "heuristic": heuristic, "clip": clip}
    reason = None if graph is None else constant(graph)
    own = texture_knowledge(student, weight=weight, graph=reason, **options)
    other = texture_knowledge(teacher.detach(), graph=reason, **options)
    return F.mse_loss(own, other)


class UnitChannels(nn.Module):
    """Scales each channel to a mean square of 1, by its mean over all batches so far; nothing is trained.

    A channel of less than 1 % of the average amplitude is not blown up further than to that share.

    Args:
        channels: A.
    """

    energy: Tensor
    batches: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("energy", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N,A,H,W) → the same shape, detached."""
        if self.training:
            energy = x.square().mean((0, 2, 3)).to(self.energy.dtype)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(energy)
                energy /= dist.get_world_size()
            self.batches += 1
            self.energy += (energy - self.energy) / self.batches
        energy = self.energy + 1e-4 * self.energy.mean()
        return x / energy.sqrt().clamp_min(torch.finfo(energy.dtype).tiny)[:, None, None]


class SSTKD(Method):
    """Texture of the first two stages by structure and by statistics, with the response and a critic.

    Stage one and stage two (`low1`, `low2`) are brought to the second's size and concatenated. The teacher's are scaled
    channel by channel to a mean square of 1; the student's go through one trained linear layer to as many channels.

    Args:
        structural_weight: of the difference of contourlet coefficients (CDM); 0.9 in the paper; 0 = off.
        statistical_weight: of the difference of quantised and counted similarities (DTIEM); 1.15 in the paper; 0 = off.
        response_weight: of the KL divergence of each pixel's class probabilities; 5 in the paper; 0 = off.
        holistic_weight: of the critic's score; 0.01 in the paper; 0 = off, and no critic is made.
        levels: directional levels of each scale of the contourlet, the finest first; (4, 3) in the paper.
        sampler: whether statistics are those of sampled regions, or else of the whole map.
        heuristic: whether frequent similarities get more levels, or else all equally many.
        denoise: whether the counts' peaks are cut off.
        graph: what reasons over the levels: layers shared by both sides that stay as they are drawn ("frozen"); no
            layers, levels and counts are compared ("none": a small term, counts being of the order of 1/N); or layers
            trained on the teacher alone, by restoring its features from its knowledge ("trained": adds the term
            `reconstruction`, which the student has no part in).
        regions: how many are sampled from each image; 64 in the paper.
        region_size: positions along each side of a region.
        num_levels: N, of the quantisation; ours is 32.
        clip: θ of the denoising; ours is 0.5.
        critic_optimizer: "adam" (betas 0 and 0.9) or "sgd" (momentum 0.9, weight decay 5e-4).
        critic_lr: its learning rate at the start.
        penalty_weight: of the gradient penalty in the critic's loss.
    """

    reads = ("low1", "low2", "logits", "image")

    def __init__(
        self,
        *,
        structural_weight: float = 0.9,
        statistical_weight: float = 1.15,
        response_weight: float = 5.0,
        holistic_weight: float = 0.01,
        levels: tuple[int, ...] = (4, 3),
        sampler: bool = True,
        heuristic: bool = True,
        denoise: bool = True,
        graph: Literal["frozen", "none", "trained"] = "frozen",
        regions: int = 64,
        region_size: int = 16,
        num_levels: int = 32,
        clip: float = 0.5,
        critic_optimizer: Literal["adam", "sgd"] = "adam",
        critic_lr: float = 4e-4,
        penalty_weight: float = 10.0,
    ):
        super().__init__()
        self.structural_weight = structural_weight
        self.statistical_weight = statistical_weight
        self.response_weight = response_weight
        self.holistic_weight = holistic_weight
        self.levels = levels
        self.sampler = sampler
        self.options: dict[str, Any] = {
            "num_levels": num_levels,
            "heuristic": heuristic,
            "clip": clip if denoise else None,
        }
        self.graph = graph
        self.regions = regions
        self.region_size = region_size
        self.critic_optimizer = critic_optimizer
        self.critic_lr = critic_lr
        self.penalty_weight = penalty_weight
        self.critic_channels = (0, 0)
        self.project: nn.Conv2d
        self.scale: UnitChannels
        self.reason: LevelGraph | None = None
        self.restore: nn.Module | None = None

    def student_taps(self) -> set[str]:
        """`low1` and `low2` for texture, `logits` for response and critic, `image` for the critic."""
        wanted = {
            "low1": self.structural_weight or self.statistical_weight,
            "low2": self.structural_weight or self.statistical_weight,
            "logits": self.response_weight or self.holistic_weight,
            "image": self.holistic_weight,
        }
        return {name for name, weight in wanted.items() if weight}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The student's projection, the teacher's scale, the graph's layers."""
        if self.holistic_weight:
            self.critic_channels = (student["logits"].shape[1], student["image"].shape[1])
        if not (self.structural_weight or self.statistical_weight):
            return
        own, other = (taps["low1"].shape[1] + taps["low2"].shape[1] for taps in (student, teacher))
        self.project, self.scale = projection(own, other), UnitChannels(other)
        if self.statistical_weight and self.graph != "none":
            self.reason = LevelGraph(other, self.options["num_levels"], trained=self.graph == "trained")
        if self.statistical_weight and self.graph == "trained":
            self.restore = nn.Conv1d(WIDTH, other, 1)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `response`, `structural` and `statistical`; `reconstruction` where the graph is trained."""
        terms = {}
        if self.response_weight:
            terms["response"] = self.response_weight * pixel_kl(student["logits"], teacher["logits"])
        if not (self.structural_weight or self.statistical_weight):
            return terms
        # Differs from the paper: were a layer on the teacher's side trained by these losses too, both sides would do
        # best to give nothing at all.
        own, other = both_stages(student), self.scale(both_stages(teacher))
        if self.structural_weight:
            loss = structural_texture(self.project(own), other, levels=self.levels)
            terms["structural"] = self.structural_weight * loss
        if self.statistical_weight:
            terms |= self.statistical_terms(own, other)
        return terms

    def statistical_terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The term `statistical`; `reconstruction` where the graph is trained.

        Args:
            student: both stages (N,A,H,W), not projected yet: that can wait until there is less to project.
            teacher: both stages (N,B,H,W), scaled.
        """
        if self.sampler:
            boxes = sample_regions(teacher.mean(1), self.regions)
            student, teacher = (crop_regions(x, boxes, self.region_size) for x in (student, teacher))
        own, other = student.flatten(2), teacher.flatten(2)
        weight = self.project.weight.flatten(1)
        loss = statistical_texture(own, other, weight=weight, graph=self.reason, **self.options)
        terms = {"statistical": self.statistical_weight * loss}
        if self.restore is not None:
            knowledge = texture_knowledge(other, graph=self.reason, **self.options)
            terms["reconstruction"] = F.mse_loss(self.restore(knowledge), other)
        return terms

    def make_critic(self) -> nn.Module | None:
        """The critic of the holistic term."""
        return Critic(*self.critic_channels) if self.holistic_weight else None

    def make_critic_optimizer(self, critic: nn.Module) -> torch.optim.Optimizer:
        """Adam or SGD."""
        return critic_optimizer(critic, self.critic_optimizer, lr=self.critic_lr)

    def adversarial_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The term `holistic`: a high score is a low loss."""
        assert isinstance(critic, Critic)
        return {"holistic": self.holistic_weight * holistic_loss(critic, student["logits"], student["image"])}

    def critic_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """The terms `wasserstein` and `penalty`."""
        assert isinstance(critic, Critic)
        logits = student["logits"], teacher["logits"]
        return critic_terms(critic, *logits, student["image"], weight=self.penalty_weight)


def both_stages(taps: Taps) -> Tensor:
    """`low1`, resized to the map of `low2`, and `low2`, concatenated: (N,A1+A2,H,W)."""
    low2 = taps["low2"]
    return torch.cat([resize(taps["low1"], (low2.shape[2], low2.shape[3])), low2], dim=1)
