"""The one module that is trained: a student, a method, and the student's own loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segdistill.engine.modes import evaluating
from segdistill.engine.teacher import observe
from segdistill.methods import Method
from segdistill.supervised import Supervised
from segdistill.taps import ClassMap, Tapped, Taps, match_maps


class Distiller(nn.Module):
    """Student and method in one module, which turns a batch into loss terms.

    The optimiser trains the parameters of this module, and several processes share it. The teacher is no part of it:
    the caller passes the teacher's taps in, so that nothing can train, save or wrap the teacher by accident.

    Args:
        student: the network that is trained, with its taps (`Tapped`).
        method: what is transferred, and how.
        aux_weight: weight of the same loss of the student's auxiliary head, if it has one; 0.4 in the papers.
        supervised: the loss of the labels; the cross-entropy as a default.
    """

    def __init__(
        self, student: Tapped, method: Method, *, aux_weight: float = 0.4, supervised: Supervised | None = None
    ):
        super().__init__()
        self.student = student
        self.method = method
        self.supervised = Supervised() if supervised is None else supervised
        self.aux_weight = aux_weight if self.supervised.ce or self.supervised.jaccard else 0.0
        self.class_map: ClassMap | None = None

    def adapt(self, teacher: Tapped | None, images: Tensor, *, classes: int | None = None, batch: int = 0) -> None:
        """Let the method make the layers that fit these two networks. Call it once, before training.

        Both networks run once on `images`, for the shapes of their taps; their weights and statistics stay as they are.

        Args:
            teacher: the tapped teacher, or None where the method reads nothing from it.
            images: (N,3,H,W), any.
            classes: of the data; checked against the networks' logits.
            batch: images that are trained on at a time, of one process; checked for the student's batch norms.

        Raises:
            ValueError: if a network has other classes than the data, a batch of one is too small for the student, or
                neither labels nor the method teach its classes.
        """
        if not (self.supervised.ce or self.supervised.jaccard or self.method.student_taps() & {"logits", "output"}):
            raise ValueError(
                "supervised.ce and supervised.jaccard are 0, and the method reads no logits of the student, whose "
                "classes would be learned from nothing; give one of the two a weight, or add a method such as kd"
            )
        with torch.no_grad(), evaluating(self.student), pooled_norms(self.student) as pooled:
            student = self.student(images, self.method.student_taps())
        if batch == 1 and pooled:
            raise ValueError(_one_image(type(self.student.network).__name__, pooled[0].removeprefix("network.")))
        teacher_taps = observe(teacher, images, self.method.teacher_taps())
        if classes is not None:
            check_channels("student", self.student, student, classes)
            if teacher is not None:
                known = classes if teacher.class_map is None else len(teacher.class_map.known)
                check_channels("teacher", teacher, teacher_taps, known)
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
        """Run the student on a batch and compute all loss terms.

        They are `ce`, `jaccard` and `aux`, those of them that have a weight, and `<method>_<term>` for each method.
        The student runs in the surrounding precision (autocast), the losses in float32 at least.

        Args:
            images: (N,3,H,W) in 0…1.
            target: (N,H,W) int64 labels, 255 = ignored.
            teacher: the teacher's taps of the same images, detached.
            progress: share of the training that is done.
            critic: of an adversarial method, frozen.
            labelled: where these images are a part of the step's batch, the mean mass of labels over all parts, as for
                `segdistill.supervised.cross_entropy`.

        Returns:
            The weighted terms, whose sum is the loss; then the student's and the teacher's taps that they were
            computed from.
        """
        with_aux = self.training and self.aux_weight > 0 and "aux" in self.student.paths
        names = self.method.student_taps() | ({"aux"} if with_aux else set())
        try:
            taps = self.student(images, names)
        except ValueError as error:
            if BATCH_NORM not in str(error):
                raise
            raise ValueError(_one_image(type(self.student.network).__name__)) from error
        with torch.autocast(images.device.type, enabled=False):
            aligned = self.student.align_corners
            terms = self.supervised(taps["output"], target, labelled, align_corners=aligned)
            if with_aux:
                if taps["aux"].shape[1] != taps["output"].shape[1]:
                    raise ValueError(
                        f"the student's auxiliary head (tap aux) has {taps['aux'].shape[1]} classes, its output "
                        f"{taps['output'].shape[1]}; give it as many, or set train.aux_weight=0"
                    )
                own = self.supervised(taps.pop("aux"), target, labelled, align_corners=aligned)
                terms["aux"] = self.aux_weight * torch.stack(list(own.values())).sum()
            labels = target
            if self.class_map is not None:  # only the classes that the teacher knows are compared
                taps, target = self.class_map.select(taps), self.class_map.relabel(target)
            student, teacher = match_maps(taps, teacher)
            terms |= self._shared(self.method(student, teacher, target, progress), labels, labelled)
            if critic is not None:
                terms |= self.method.adversarial_loss(critic, student, teacher)
        return terms, student, teacher

    def _shared(self, terms: dict[str, Tensor], target: Tensor, labelled: Tensor | None) -> dict[str, Tensor]:
        """The method's terms; those of labelled pixels alone count as much as the micro-batch has labels."""
        of_labels = self.method.labelled_terms() & terms.keys() if labelled is not None else set()
        share = self.supervised.share(target, labelled) if of_labels else 1.0
        return {name: term * share if name in of_labels else term for name, term in terms.items()}


BATCH_NORM = "more than 1 value per channel"
"""In torch's message on a batch norm that has a single value per channel to normalise by."""


def _one_image(network: str, path: str = "") -> str:
    where = f", {path}," if path else ""
    return (
        f"{network} has a batch norm{where} behind a pooling to 1×1, which cannot train on one image at a time; raise "
        "data.batch_size, to 2 at least per process and micro-batch (train.accumulate)"
    )


def check_channels(whose: str, network: Tapped, taps: Taps, classes: int) -> None:
    """Refuse logits of another number of classes than those that they are compared with.

    Args:
        whose: `student` or `teacher`, for the message.
        network: tapped.
        taps: of a dry run.
        classes: how many there have to be.

    Raises:
        ValueError: if `output` or `logits` is there and has another number of channels.
    """
    for name in ("output", "logits"):
        if name in taps and taps[name].shape[1] != classes:
            spec = getattr(network.network, "spec", None) or {}
            called = spec.get("name") or type(network.network).__name__
            path = network.paths.get(name)
            tap = f" at its tap {name}, {path}" if path is not None else ""
            raise ValueError(
                f"{whose}: {called} gives {taps[name].shape[1]} classes{tap}, the data {classes}; "
                + ("tap the layer of its classes" if tap else "let it give a channel of logits for each class")
                + (", or set teacher.class_map" if whose == "teacher" and not tap else "")
            )


@contextmanager
def pooled_norms(module: nn.Module) -> Iterator[list[str]]:
    """Gathers the paths of the batch norms that see a single value per channel of each image.

    Only of those that a network's `train()` puts into training mode; afterwards, the module is in eval mode.

    Args:
        module: whatever runs meanwhile, in eval mode.
    """
    found: list[str] = []

    def look(path: str, x: Tensor) -> None:
        if x.shape[2:].numel() == 1:
            found.append(path)

    module.train()  # a network may keep some in eval mode
    norms = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    module.eval()
    handles = [m.register_forward_pre_hook(lambda _, args, path=n: look(path, args[0])) for n, m in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


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
