"""CIRKD: cross-image relational knowledge distillation (Yang et al., CVPR 2022)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segdistill._draws import uniform_of_images
from segdistill._processes import gather_over_processes, share_of
from segdistill.functional import (
    check_labels,
    check_maps,
    empty,
    full_precision,
    kl_terms_and_slope,
    labelled,
    resize_labels,
    unit_vectors,
)
from segdistill.methods._base import Method
from segdistill.methods._queues import ClassQueues, sort_groups
from segdistill.methods.kd import pixel_kl
from segdistill.taps import Taps

PIXELS_PER_REGION = 16
"""Pixels that enter the memory for each class of each image."""


@full_precision
def cross_image_similarity(student: Tensor, teacher: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Kullback-Leibler divergence of each pixel's similarities to all pixels of each image, mean over pixels (eq. 5-6).

    Features are L2-normalised over channels. For each ordered pair of images (i = j included) a row of the H·W×H·W
    cosine similarities, divided by τ, becomes a distribution by a softmax; KL(teacher‖student), mean over rows and the
    N² pairs, no τ². No H·W×H·W matrix is kept.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), detached here; its channel count may differ, only similarities are compared.
        temperature: τ; 0.1 in the paper.

    Raises:
        ValueError: if N or H×W differ.

    Source:
        Yang et al., Cross-Image Relational Knowledge Distillation for Semantic Segmentation, sec. 3.2.

    >>> student, teacher = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 2, 1, 2)
    >>> round(cross_image_similarity(student, teacher, temperature=1.0).item(), 4)
    0.1201
    """
    return _similarity_to(student, teacher, lambda images: images, temperature)


def _similarity_to(student: Tensor, teacher: Tensor, all_of: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
    """`cross_image_similarity` of these images to all that they are among."""
    check_maps(student, teacher, channels=False)
    n = len(student)
    student, teacher = _unit_rows(student), _unit_rows(teacher.detach())
    keys = [all_of(rows.view(n, -1, rows.shape[1])) for rows in (student, teacher)]
    return relation_kl(student, keys[0], teacher, keys[1], temperature=temperature)


@full_precision
def relation_kl(
    student: Tensor, student_keys: Tensor, teacher: Tensor, teacher_keys: Tensor, *, temperature: float
) -> Tensor:
    """Kullback-Leibler divergence of softmax(row · keys / τ), KL(teacher‖student), mean over rows and groups of keys.

    Args:
        student: rows (R,A).
        student_keys: (G,K,A), what the rows are compared with: G groups, each with its own softmax over K.
        teacher: rows (R,B), detached here.
        teacher_keys: (G,K,B), detached here.
        temperature: τ.

    Raises:
        ValueError: if R, G or K differ.

    >>> student, teacher, keys = torch.eye(2)[:1], torch.ones(1, 2), torch.eye(2)[None]
    >>> round(relation_kl(student, keys, teacher, keys, temperature=1.0).item(), 4)
    0.1201
    """
    if len(student) != len(teacher) or student_keys.shape[:2] != teacher_keys.shape[:2]:
        shapes = [tuple(x.shape) for x in (student, student_keys, teacher, teacher_keys)]
        raise ValueError(f"rows and keys of student and teacher need equal counts, got {shapes}")
    if not len(student) or not student_keys.shape[0] * student_keys.shape[1]:
        return empty(student)
    total: Tensor = _RelationKL.apply(student, student_keys, teacher.detach(), teacher_keys.detach(), temperature)
    return total / (len(student) * len(student_keys))


class _RelationKL(torch.autograd.Function):
    """The sum of `relation_kl`, a few rows at a time; the gradient is computed right there, so nothing is kept of them.

    Recomputing in the backward pass would cost every product of student and teacher a second time.
    """

    ENTRIES = 2**21  # similarities at a time

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, student_keys: Tensor, teacher: Tensor, teacher_keys: Tensor, temperature: float
    ) -> Tensor:
        groups = student_keys.shape[:2]
        keys, keys_t = student_keys.flatten(0, 1), teacher_keys.flatten(0, 1)
        total = student.new_zeros(())
        grad_rows = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        grad_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        step = max(1, _RelationKL.ENTRIES // len(keys))
        for start in range(0, len(student), step):
            rows, rows_t = (x[start : start + step] / temperature for x in (student, teacher))
            log_t = F.log_softmax((rows_t @ keys_t.mT).view(-1, *groups), dim=2)
            log_s = F.log_softmax((rows @ keys.mT).view(-1, *groups), dim=2)
            terms, slope = kl_terms_and_slope(log_t, log_s)
            total += terms.sum()
            slope = slope.flatten(1)  # of the divergence by the similarities over τ
            if grad_rows is not None:
                torch.mm(slope, keys, out=grad_rows[start : start + step]).div_(temperature)
            if grad_keys is not None:
                grad_keys.addmm_(slope.mT, rows)
        ctx.save_for_backward(grad_rows, None if grad_keys is None else grad_keys.view_as(student_keys))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, keys = (None if saved is None else gradient * saved for saved in ctx.saved_tensors)
        return rows, keys, None, None, None


def _unit_rows(features: Tensor) -> Tensor:
    """A map (N,A,H,W) as one vector of length one per pixel, (N·H·W,A); 0 for pixels without a direction."""
    return unit_vectors(features.permute(0, 2, 3, 1).flatten(0, 2))


class CrossImageRelations(Method):
    """Similarities of pixels across the images of a batch, and to a memory of the teacher's pixels and regions.

    The memory holds, for each class, L2-normalised vectors of the teacher: each step adds, for each image and class in
    it, up to 16 random pixels and the mean of all (the region), before the memory is used. The student is compared
    with it through a projector (1×1 convolution, batch norm, ReLU, 1×1 convolution) to the teacher's channels. The
    batch is that of all processes, where the authors' memory terms are means over each GPU's own pixels; with
    `train.accumulate`, images are paired, and means are taken, within each micro-batch; its memory terms, which are
    means over labelled pixels, count as much as it has labels. What is drawn for the memory and from it is the same for
    any number of processes, and differs between micro-batches.

    Args:
        pixel_weight: of the term `pixel`, the KL divergence on logits; 1 in the paper.
        mini_batch_weight: of the term `mini_batch`; 1 in the paper.
        memory_pixel_weight: of the term `memory_pixel`; 0.1 in the paper (0.01 for Pascal VOC). 0: no such memory.
        memory_region_weight: of the term `memory_region`; 0.1 in the paper (0.01 for Pascal VOC). 0: no such memory.
        temperature: τ of all similarities; 0.1 in the paper.
        pixel_memory: pixels kept of each class; 20 000 in the paper. See `ClassQueues` for the bytes.
        region_memory: regions kept of each class; 2 000 in the paper.
        pixel_contrast: pixels drawn in each step, over all classes; 4096 in the paper.
        region_contrast: regions drawn in each step, over all classes; 1024 in the paper.
    """

    def __init__(
        self,
        *,
        pixel_weight: float = 1.0,
        mini_batch_weight: float = 1.0,
        memory_pixel_weight: float = 0.1,
        memory_region_weight: float = 0.1,
        temperature: float = 0.1,
        pixel_memory: int = 20_000,
        region_memory: int = 2_000,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
    ):
        super().__init__()
        self.pixel_weight = pixel_weight
        self.mini_batch_weight = mini_batch_weight
        self.memory_weights = {"pixel": memory_pixel_weight, "region": memory_region_weight}
        self.temperature = temperature
        self.memory_sizes = {"pixel": pixel_memory, "region": region_memory}
        self.contrast = {"pixel": pixel_contrast, "region": region_contrast}
        self.num_classes = 0
        self.queues = nn.ModuleDict()
        self.projector: nn.Module | None = None

    def student_taps(self) -> set[str]:
        """`logits` and `features`, each unless all its weights are 0."""
        features = self.mini_batch_weight or any(self.memory_weights.values())
        return {name for name, weight in (("logits", self.pixel_weight), ("features", features)) if weight}

    def labelled_terms(self) -> set[str]:
        """Those of the memory, with which labelled pixels are compared."""
        return {"memory_pixel", "memory_region"}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The projector and the memory, unless their weights are 0."""
        self.num_classes = student["logits"].shape[1]
        kinds = [kind for kind, weight in self.memory_weights.items() if weight]
        if not kinds:
            return
        channels, projected = student["features"].shape[1], teacher["features"].shape[1]
        for kind in kinds:
            self.queues[kind] = ClassQueues(self.num_classes, self.memory_sizes[kind], projected)
        self.projector = nn.Sequential(
            nn.Conv2d(channels, projected, 1, bias=False),
            nn.BatchNorm2d(projected),
            nn.ReLU(),
            nn.Conv2d(projected, projected, 1, bias=False),
        )

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The terms `pixel`, `mini_batch`, `memory_pixel` and `memory_region`."""
        terms = {}
        if self.pixel_weight:
            terms["pixel"] = self.pixel_weight * pixel_kl(student["logits"], teacher["logits"])
        if self.mini_batch_weight:
            features = student["features"], teacher["features"]
            loss = _similarity_to(*features, gather_over_processes, self.temperature)
            terms["mini_batch"] = self.mini_batch_weight * loss
        if self.projector is not None:
            projected = self.projector(student["features"])
            terms |= self._memory_terms(projected, teacher["features"].detach(), target)
        return terms

    def _memory_terms(self, student: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Similarities of the labelled pixels to what is drawn from the memory, which the batch has entered before."""
        check_labels(student, labels)
        labels = resize_labels(labels, (student.shape[2], student.shape[3]))
        valid = labelled(labels, self.num_classes).flatten()
        rows, rows_t = _unit_rows(student), _unit_rows(teacher)
        if self.training:
            self._remember(rows_t, labels, valid)
        rows, rows_t = rows[valid], rows_t[valid]
        share = share_of(valid.sum())
        terms = {}
        for kind, queues in self._queues():
            keys = queues.sample(self.contrast[kind] // self.num_classes + 1).to(rows_t.dtype)[None]
            loss = relation_kl(rows, keys, rows_t, keys, temperature=self.temperature)
            terms[f"memory_{kind}"] = self.memory_weights[kind] * share * loss
        return terms

    def _remember(self, rows: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Put regions and random pixels of each image and class into the memory.

        Args:
            rows: the teacher's unit vectors (N·H·W,A).
            labels: (N,H,W) int64.
            valid: (N·H·W,) bool, the pixels that belong to a class.
        """
        pixels, classes = valid.nonzero()[:, 0], labels.flatten()
        groups = pixels // labels[0].numel() * self.num_classes + classes[pixels]  # an image's pixels of one class
        chance = uniform_of_images(len(labels), labels[0].numel(), device=labels.device).flatten()[pixels]
        order, counts = sort_groups(groups, len(labels) * self.num_classes, chance)
        pixels, first = pixels[order], counts.cumsum(0) - counts
        for kind, queues in self._queues():
            if kind == "region":
                present = counts.nonzero()[:, 0]
                sums = F.embedding_bag(pixels, rows, first, mode="sum")[present]
                queues.push(unit_vectors(sums), present % self.num_classes)
            else:
                # Differs from the authors' code, which draws an index among the pixels of the class and then reads
                # the image's pixel of that index, whatever its class: these are pixels of the class, as in the paper.
                rank = torch.arange(len(pixels), device=pixels.device) - first.repeat_interleave(counts)
                drawn = pixels[rank < PIXELS_PER_REGION]
                queues.push(rows[drawn], classes[drawn])

    def _queues(self) -> Iterator[tuple[str, ClassQueues]]:
        for kind, queues in self.queues.items():
            assert isinstance(queues, ClassQueues)
            yield kind, queues
