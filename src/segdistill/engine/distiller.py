"""The one module that is trained: a student, a method, and the student's own loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segdistill.engine.teacher import observe
from segdistill.methods import Method
from segdistill.supervised import cross_entropy
from segdistill.taps import ClassMap, Tapped, Taps, match_maps


class Distiller(nn.Module):
    """Student and method in one module: what the optimiser trains, and what is wrapped for several processes.

    The teacher is not part of it: its taps are an input, so that it is never trained, saved or wrapped.

    Args:
        student: the tapped student.
        method: what is transferred, and how.
        aux_weight: of the auxiliary head's cross-entropy, where the student has one; 0.4 in the papers.
    """

    def __init__(self, student: Tapped, method: Method, *, aux_weight: float = 0.4):
        super().__init__()
        self.student = student
        self.method = method
        self.aux_weight = aux_weight
        self.class_map: ClassMap | None = None

    def adapt(self, teacher: Tapped | None, images: Tensor) -> None:
        """Let the method make its layers, from the shapes of one dry run; nothing else changes.

        Args:
            teacher: the tapped teacher, or None where the method reads nothing from it.
            images: (N,3,H,W), any.
        """
        with torch.no_grad(), evaluating(self.student):
            student = self.student(images, self.method.student_taps())
        teacher_taps = observe(teacher, images, self.method.teacher_taps())
        if teacher is not None and teacher.class_map is not None and not teacher.class_map.complete:
            self.class_map = teacher.class_map
            student = self.class_map.select(student)
        self.method.adapt(*match_maps(student, teacher_taps))
        self.method.to(images.device)

    def forward(
        self,
        images: Tensor,
        target: Tensor,
        teacher: Taps,
        progress: float = 0.0,
        critic: nn.Module | None = None,
        labelled: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Taps, Taps]:
        """Images → taps → named, weighted terms; the networks in the surrounding precision, the losses in float32.

        Args:
            images: (N,3,H,W) in 0…1.
            target: (N,H,W) int64 labels, 255 = ignored.
            teacher: the teacher's taps of the same images.
            progress: share of the training that is done.
            critic: of an adversarial method, frozen.
            labelled: where these images are a part of the step's batch, the mean number of labelled pixels over all
                parts, as for `cross_entropy`.

        Returns:
            The terms, whose sum is the loss, and the taps of student and teacher that the terms were computed from.
        """
        with_aux = self.training and self.aux_weight > 0 and "aux" in self.student.paths
        names = self.method.student_taps() | ({"aux"} if with_aux else set())
        taps = self.student(images, names)
        with torch.autocast(images.device.type, enabled=False):
            terms = {"ce": cross_entropy(taps["output"], target, labelled)}
            if with_aux:
                terms["aux"] = self.aux_weight * cross_entropy(taps.pop("aux"), target, labelled)
            if self.class_map is not None:  # only the classes that the teacher knows are compared
                taps, target = self.class_map.select(taps), self.class_map.relabel(target)
            student, teacher = match_maps(taps, teacher)
            terms |= self.method(student, teacher, target, progress)
            if critic is not None:
                terms |= self.method.adversarial_loss(critic, student, teacher)
        return terms, student, teacher


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """No gradients for a module's parameters for a while; gradients still flow through it to its input."""
    parameters = [p for p in (module.parameters() if module is not None else ()) if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
