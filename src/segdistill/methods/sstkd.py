"""SSTKD: structural and statistical texture knowledge of the first layers (Ji et al., CVPR 2022)."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.adapters import projection
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Exhibit, Method, Part
from segdistill.methods._critic import CRITIC_NOTE, Critic, critic_optimizer, critic_scores, critic_terms, holistic_loss
from segdistill.methods._level_graph import (
    WIDTH,
    LevelGraph,
    constant,
    own_counts,
    shared_counts,
)
from segdistill.methods._stages import UnitChannels, both_stages
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps
from segdistill.texture import (
    Kernel,
    contourlet_energy,
    contourlet_operations,
    crop_regions,
    mean_similarity,
    sample_regions,
)

Knowledge = Literal["cumulative", "counts", "levels", "sorted"]
"""What the statistical term compares of two regions."""


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
    knowledge: Knowledge = "cumulative",
    kernel: Kernel = "triangle",
    graph: nn.Module | None = None,
) -> Tensor:
    """Distance of two regions' distributions of similarities, Σ_n (K^S_n − K^T_n)², mean over the regions.

    A position's similarity is the cosine of its feature with the region's mean feature. The teacher's region sets N
    levels, and two more lie at the least and the largest similarity of both sides. The similarities of both are counted
    on them; where the teacher's counts have peaks, both sides' counts are cut. K_n is the share at level n or below.
    Neither where a feature lies in its region counts, nor how long all features are.

    Args:
        student: features (R,A,P).
        teacher: features (R,B,P), detached here; A, unless a weight maps A to B.
        weight: (B,A) of a linear layer on the student's side; B·A per region is all that it costs, not per position.
        num_levels: N; STLNet's graph has 8.
        heuristic: whether frequent similarities get more levels.
        clip: θ of the counts' denoising; None = none.
        knowledge: K, "cumulative"; or "counts", level by level; "levels", the mean squared difference of levels and
            counts, each side on its own levels, as the paper's text reads; "sorted", that of the sorted similarities,
            without levels.
        kernel: of the counting, as of `segdistill.texture.encode`.
        graph: a `LevelGraph`, whose layers this loss does not train. The loss is then the mean squared difference of
            what it makes of each side's counts and memberships, given the levels and the mean feature of the teacher.

    Raises:
        ValueError: if the shapes do not fit, on another knowledge, or on one that a graph does not take.

    Source:
        Ji et al.: the denoised texture intensity equalisation module (DTIEM).

    >>> x = torch.randn(3, 8, 16)
    >>> statistical_texture(2 * x, x.flip(2), num_levels=4).item() < 1e-10  # angles have no scale, counts no order
    True
    """
    channels = student.shape[1] if weight is None else weight.shape[0]
    if student.dim() != 3 or (student.shape[0], channels, student.shape[2]) != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} need one shape (R,A,P), "
            "or a weight (B,A) from the student's to the teacher's channels"
        )
    check_knowledge(knowledge, graph is not None)
    teacher = teacher.detach()
    own, other = mean_similarity(student, weight), mean_similarity(teacher)
    if knowledge == "sorted":
        return F.mse_loss(own.sort(1).values, other.sort(1).values)
    how: dict[str, Any] = {"num_levels": num_levels, "heuristic": heuristic, "clip": clip, "kernel": kernel}
    if knowledge == "levels":
        own, other = (torch.stack(own_counts(x, **how), dim=1) for x in (own, other))
        return F.mse_loss(own, other)
    shared = shared_counts(own, other, **how)
    if graph is not None:
        # Differs from the paper: the teacher's mean feature serves both sides. With each side's own, nearly all of the
        # gradient asks for equal means, and next to nothing for texture.
        reason, mean = constant(graph), teacher.mean(2)
        sides = zip(shared.counts, shared.encodings, strict=True)
        own, other = (reason(mean, shared.levels, counts, encoding) for counts, encoding in sides)
        return F.mse_loss(own, other)
    difference = shared.counts[0] - shared.counts[1]
    if knowledge == "cumulative":
        # Differs from the paper: shares up to each level, not of each. Where two histograms do not overlap, their
        # level-by-level difference does not say which way to go.
        difference = difference.cumsum(1)
    return difference.square().sum(1).mean()


def check_knowledge(knowledge: str, graph: bool) -> None:
    """Raise on a knowledge that is unknown, or that a graph does not take.

    Args:
        knowledge: what is compared.
        graph: whether a graph reasons over the levels.

    Raises:
        ValueError: then.
    """
    if knowledge not in get_args(Knowledge):
        raise ValueError(f"knowledge: expected one of {', '.join(get_args(Knowledge))}, got {knowledge!r}")
    if graph and knowledge != "cumulative":
        raise ValueError(
            f"knowledge={knowledge!r} and a graph: a graph's output is compared instead of any knowledge; leave out one"
        )


ALONE: dict[str, Any] = {"response_weight": 0.0, "holistic_weight": 0.0}
"""Options that leave nothing but texture."""


TEXTURE_NOTE = (
    "Means over channels of a network's first two stages, as in SSTKD's Figures 3 and 4: what of edges and textures "
    "the student has, beside its teacher and students without the texture terms. Each map has its own colours."
)
"""How maps of low-level features are to be read."""


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
        knowledge: what is compared of two regions: the share of the similarities up to each of the teacher's levels
            ("cumulative"); the share of each level ("counts"); levels and counts, each side on its own levels, as the
            paper's text reads ("levels"); or the sorted similarities, without levels ("sorted").
        kernel: how a similarity is counted: at the two levels beside it, more at the nearer one ("triangle"), or as in
            STLNet's released code, which jumps as it passes a level ("released").
        graph: what reasons over the levels, in the place of `knowledge`: nothing ("none"); layers shared by both sides
            that stay as they are drawn ("frozen"); or layers trained on the teacher alone, by restoring its features
            from its knowledge ("trained": adds the term `reconstruction`, which the student has no part in).
        regions: how many are sampled from each image; 64 in the paper.
        region_size: positions along each side of a region.
        num_levels: N, of the quantisation; by default 32, with a graph 8 as in STLNet.
        clip: θ of the denoising; ours is 0.5.
        critic_optimizer: "adam" (betas 0 and 0.9) or "sgd" (momentum 0.9, weight decay 5e-4).
        critic_lr: its learning rate at the start.
        penalty_weight: of the gradient penalty in the critic's loss.
    """

    reads = ("low1", "low2", "logits", "image")
    parts = (
        Part("CDM: contourlet, as it runs", {**ALONE, "statistical_weight": 0.0}),
        Part("DTIEM: similarities, counts", {**ALONE, "structural_weight": 0.0}, "reason"),
    )

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
        knowledge: Knowledge = "cumulative",
        kernel: Kernel = "triangle",
        graph: Literal["none", "frozen", "trained"] = "none",
        regions: int = 64,
        region_size: int = 16,
        num_levels: int | None = None,
        clip: float = 0.5,
        critic_optimizer: Literal["adam", "sgd"] = "adam",
        critic_lr: float = 4e-4,
        penalty_weight: float = 10.0,
    ):
        super().__init__()
        check_knowledge(knowledge, graph != "none")
        self.structural_weight = structural_weight
        self.statistical_weight = statistical_weight
        self.response_weight = response_weight
        self.holistic_weight = holistic_weight
        self.levels = levels
        self.sampler = sampler
        self.options: dict[str, Any] = {
            "num_levels": (32 if graph == "none" else 8) if num_levels is None else num_levels,
            "heuristic": heuristic,
            "clip": clip if denoise else None,
            "kernel": kernel,
        }
        self.knowledge: Knowledge = knowledge
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

    def formulas(self, student: Taps, teacher: Taps) -> dict[str, float]:
        """The contourlet's filter taps, without the zeros of its banded matrices, and the regions' crops."""
        found: dict[str, float] = {}
        if self.structural_weight:
            height, width = teacher["low2"].shape[2:]
            taps = contourlet_operations(height, width, self.levels)
            found["CDM: contourlet, filter taps alone"] = 2 * self.project.weight.shape[0] * taps
        if self.statistical_weight and self.sampler:
            channels = sum(taps[name].shape[1] for taps in (student, teacher) for name in ("low1", "low2"))
            # four cells are blended for each position
            found["DTIEM: crops of the regions"] = 2 * 4 * channels * self.regions * self.region_size**2
        return found

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
        how = {**self.options, "knowledge": self.knowledge, "graph": self.reason}
        loss = statistical_texture(own, other, weight=weight, **how)
        terms = {"statistical": self.statistical_weight * loss}
        if self.reason is not None and self.restore is not None:
            alone = mean_similarity(other)
            shared = shared_counts(alone, alone, **self.options)
            knowledge = self.reason(other.mean(2), shared.levels, shared.counts[1], shared.encodings[1])
            terms["reconstruction"] = F.mse_loss(self.restore(knowledge), other)
        return terms

    def exhibits(
        self, student: Taps, others: Mapping[str, Taps], target: Tensor, critic: nn.Module | None = None
    ) -> list[Exhibit]:
        """Mean of the low-level features over channels, as in the paper's Figures 3 and 4; the critic's scores."""
        shown = []
        for name in sorted({"low1", "low2"} & student.keys()):
            seen = {**others, "student": student}
            maps = {other: taps[name].mean(1) for other, taps in seen.items() if name in taps}
            shown.append(Exhibit(f"Low-level features: {name}", TEXTURE_NOTE, maps))
        if isinstance(critic, Critic):
            logits = {name: taps["logits"] for name, taps in others.items() if "logits" in taps}
            scores = critic_scores(critic, student["logits"], logits, student["image"])
            shown.append(Exhibit("The critic's scores", CRITIC_NOTE, scores))
        return shown

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
