"""The contract of a distillation method, and the composition of several."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from segdistill.taps import Taps


class Part(NamedTuple):
    """A part of a method whose cost is told apart from that of the others."""

    title: str
    only: Mapping[str, Any]
    """Options under which the method computes nothing but this part."""
    layers: str | None = None
    """Attribute of the method that holds the part's own layers."""


class Exhibit(NamedTuple):
    """What a method shows of trained networks on a batch of images, for a figure of the report."""

    title: str
    note: str
    """How the figure is to be read, in a sentence."""
    values: Mapping[str, Tensor]
    """By what they are of: a number for each image (N,), or a map (N,h,w)."""
    common: tuple[str, ...] = ()
    """Maps that share one scale of colours; every other one has its own."""


class Method(nn.Module):
    """One way of carrying knowledge from a teacher to a student.

    A method is one file in this folder: its pure loss function(s), and one subclass of this class; a config names it by
    the file's name. Its options are the keyword arguments of `__init__`, with annotations and defaults. The config
    check, `segdistill list methods` and the contract tests read them from there.

    A method names the taps that it reads (`student_taps`, `teacher_taps`), makes its layers once (`adapt`), and turns
    the taps of each batch into weighted loss terms (`forward`). It never sees the networks themselves. All tensors that
    it gets are in float32 at least. The student's optimiser trains the method's layers; checkpoints hold them and the
    method's buffers, `student.safetensors` does not.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    """Taps of both sides that the method reads in its standard form; `student_taps` and `teacher_taps` refine it."""

    figures: ClassVar[Mapping[str, str]] = {}
    """What `analysis` gives: figure → its title in a report."""

    parts: ClassVar[tuple[Part, ...]] = ()
    """Parts whose costs `segdistill benchmark` counts one by one; none: the method is counted as a whole."""

    def formulas(self, student: Taps, teacher: Taps) -> dict[str, float]:
        """Say by a formula what some parts cost, as torch's counter of operations overlooks or misjudges them.

        `segdistill benchmark` adds these rows to those that it counted.

        Args:
            student: taps of one image.
            teacher: likewise.

        Returns:
            Title of a part → its floating-point operations for one image.
        """
        return {}

    def student_taps(self) -> set[str]:
        """Names of the student's taps that this instance reads; a term of weight 0 reads nothing."""
        return set(self.reads)

    def teacher_taps(self) -> set[str]:
        """Names of the teacher's taps that this instance reads; if empty, the teacher does not run at all."""
        return self.student_taps()

    def labelled_terms(self) -> set[str]:
        """Names of the terms that are means over labelled pixels, or over their classes, and 0 where there are none.

        Where `train.accumulate` splits a batch, the engine lets such a term of a micro-batch count as much as that has
        labels. Else each micro-batch without labels would make the mean over all of them smaller.
        """
        return set()

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Make the layers and buffers whose sizes depend on the networks. Called once, before training.

        Args:
            student: taps of one dry run, for their shapes only.
            teacher: likewise.
        """

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Compute the loss terms of one batch, each already multiplied by its weight.

        The engine adds them to the student's cross-entropy, and records each under its name.

        Args:
            student: its taps, with their graph. Of maps of one name the smaller was resized, so that both sides have
                one H×W; the numbers of channels may differ.
            teacher: its taps, detached.
            target: (N,h,w) int64 labels at the images' resolution, 255 = ignored.
            progress: share of the training that is done, in [0,1).
        """
        raise NotImplementedError

    def analysis(self, student: Taps, teacher: Taps, target: Tensor) -> dict[str, float]:
        """Named figures of one batch that show what the method does; they are recorded, and change nothing.

        Called without a graph, on the steps that are recorded only, by each process on its own part of the batch. It
        must draw no random numbers and write into no buffer. A figure that is not finite is left out of the record.

        Args:
            student: its taps, detached, as `forward` got them.
            teacher: its taps.
            target: (N,h,w) labels.
        """
        return {}

    def exhibits(
        self, student: Taps, others: Mapping[str, Taps], target: Tensor, critic: nn.Module | None = None
    ) -> list[Exhibit]:
        """Show what the method does to trained networks: the pictures of its paper, for the report.

        Called without a graph and in eval mode, on a few images of the validation split, after a run has ended.

        Args:
            student: taps of the student that was trained with the method; `student_taps` and `teacher_taps` of it.
            others: the same taps of other networks by their names: `teacher`, the baseline, students of other methods.
                Their maps were matched with the student's as in training. A tap that a network lacks is not there.
            target: (N,h,w) labels.
            critic: the method's critic as training left it, if it has one.
        """
        return []

    def make_critic(self) -> nn.Module | None:
        """A network that is trained against the student, or None. Called once, after `adapt`."""
        return None

    def make_critic_optimizer(self, critic: nn.Module) -> torch.optim.Optimizer:
        """The critic's own optimiser; its learning rate is decayed with the student's schedule.

        Args:
            critic: what `make_critic` returned.
        """
        raise NotImplementedError

    def adversarial_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """Weighted, named terms that the critic gives to the student (the critic is frozen meanwhile).

        Args:
            critic: what `make_critic` returned.
            student: its taps, with their graph.
            teacher: its taps, detached.
        """
        return {}

    def critic_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """Named terms that the critic minimises in its own step.

        Args:
            critic: what `make_critic` returned.
            student: its taps, detached.
            teacher: its taps, detached.
        """
        return {}


class Composite(Method):
    """Several methods at once: their terms side by side, each named `<method>_<term>`.

    Args:
        methods: name → method. Even a single method is run through this class, so that terms are named in one place.
    """

    def __init__(self, methods: Mapping[str, Method]):
        super().__init__()
        self.methods = nn.ModuleDict(methods)

    def each(self) -> Iterable[tuple[str, Any]]:
        return self.methods.items()

    def student_taps(self) -> set[str]:
        """All taps that one of the methods reads."""
        return set().union(*(method.student_taps() for _, method in self.each()))

    def teacher_taps(self) -> set[str]:
        """All taps that one of the methods reads."""
        return set().union(*(method.teacher_taps() for _, method in self.each()))

    def labelled_terms(self) -> set[str]:
        """All such terms of all methods, each named `<method>_<term>`."""
        return {f"{name}_{term}" for name, method in self.each() for term in method.labelled_terms()}

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """Adapt each method."""
        for _, method in self.each():
            method.adapt(student, teacher)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """All terms of all methods."""
        return {
            f"{name}_{term}": value
            for name, method in self.each()
            for term, value in method(student, teacher, target, progress).items()
        }

    def analysis(self, student: Taps, teacher: Taps, target: Tensor) -> dict[str, float]:
        """All figures of all methods, each named `<method>_<figure>`."""
        return {
            f"{name}_{figure}": value
            for name, method in self.each()
            for figure, value in method.analysis(student, teacher, target).items()
        }

    def exhibits(
        self, student: Taps, others: Mapping[str, Taps], target: Tensor, critic: nn.Module | None = None
    ) -> list[Exhibit]:
        """All that one of the methods shows, with its own critic."""
        critics: Mapping[str, nn.Module] = dict(critic.items()) if isinstance(critic, nn.ModuleDict) else {}
        shown = (method.exhibits(student, others, target, critics.get(name)) for name, method in self.each())
        return [exhibit for each in shown for exhibit in each]

    def make_critic(self) -> nn.Module | None:
        """The critics of the adversarial methods by name, or None if there is none."""
        critics = {name: method.make_critic() for name, method in self.each()}
        critics = {name: critic for name, critic in critics.items() if critic is not None}
        return nn.ModuleDict(critics) if critics else None

    def make_critic_optimizer(self, critic: nn.Module) -> torch.optim.Optimizer:
        """One optimiser over all critics, each with its own method's settings.

        Raises:
            ValueError: if two methods ask for optimisers of different types.
        """
        assert isinstance(critic, nn.ModuleDict)
        optimizers = [self.methods[name].make_critic_optimizer(c) for name, c in critic.items()]  # type: ignore[operator]
        first = optimizers[0]
        for other in optimizers[1:]:
            if type(other) is not type(first):
                raise ValueError(
                    f"critics of {' and '.join(critic)} want {type(first).__name__} and {type(other).__name__}; "
                    "give them the same critic_optimizer"
                )
            for group in other.param_groups:
                first.add_param_group(group)
        return first  # type: ignore[no-any-return]

    def adversarial_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """All critics' terms for the student."""
        return self._critic_terms("adversarial_loss", critic, student, teacher)

    def critic_loss(self, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        """All critics' own terms."""
        return self._critic_terms("critic_loss", critic, student, teacher)

    def _critic_terms(self, kind: str, critic: nn.Module, student: Taps, teacher: Taps) -> dict[str, Tensor]:
        assert isinstance(critic, nn.ModuleDict)
        return {
            f"{name}_{term}": value
            for name, one in critic.items()
            for term, value in getattr(self.methods[name], kind)(one, student, teacher).items()
        }
