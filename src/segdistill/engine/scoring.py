"""The further metrics of an evaluation: built, shown each batch, brought together over processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill.engine.config import Config
from segdistill.engine.modes import evaluating
from segdistill.engine.protocol import Protocol, infer_ids
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import load_student, read_card
from segdistill.engine.teacher import Mapped, build_teacher, check_order
from segdistill.metrics import build_metric
from segdistill.metrics._catalogue import choose_metrics, need_teacher


class Scoring:
    """Metrics that are gathered beside the confusion matrix; with none of them, nothing is done.

    Args:
        names: of the metrics.
        classes: names of the data set's.
        protocol: under which networks look at images.
        teacher: gives logits of these classes; None where no metric needs it.

    Raises:
        ValueError: if a metric is unknown, or needs a teacher and there is none.
    """

    def __init__(self, names: Sequence[str], classes: Sequence[str], protocol: Protocol, teacher: nn.Module | None):
        self.metrics = {name: build_metric(name, classes) for name in dict.fromkeys(names)}
        self.classes = list(classes)
        self.protocol = protocol
        needing = [name for name, metric in self.metrics.items() if metric.needs_teacher]
        if needing and teacher is None:
            raise ValueError(f"{needing[0]} compares a student with its teacher; give one as teacher")
        self.teacher = teacher if needing else None

    @contextmanager
    def on(self, run: Runtime) -> Iterator[None]:
        """Bring the teacher to the run's device and into eval mode.

        Args:
            run: of the evaluation.
        """
        if self.teacher is None:
            yield
            return
        with evaluating(self.teacher.to(run.device)):
            yield

    def watch(self, target: Tensor) -> Callable[[int, Tensor], None] | None:
        """What looks at the logits of a batch, band by band, as `infer_ids` wants it; None if no metric reads them.

        Args:
            target: (N,H,W) labels of the batch.
        """
        readers = [metric for metric in self.metrics.values() if metric.reads == "logits"]

        def look(top: int, band: Tensor) -> None:
            if self.protocol.gives_probabilities:
                band = band.clamp_min(torch.finfo(band.dtype).tiny).log()
            for metric in readers:
                metric.update(band, target[:, top : top + band.shape[-2]])

        return look if readers else None

    def update(self, prediction: Tensor, target: Tensor, images: Tensor) -> None:
        """Show a batch to the metrics that read classes.

        Args:
            prediction: class ids (N,H,W).
            target: (N,H,W) labels.
            images: (N,3,H,W) of the batch, for the teacher.

        Raises:
            ValueError: if the teacher's number of classes is not the data set's.
        """
        check = partial(check_count, classes=self.classes, whose="the teacher")
        teacher = None if self.teacher is None else infer_ids(self.teacher, images, self.protocol, check=check)
        for metric in self.metrics.values():
            if metric.reads == "ids":
                metric.update(prediction, target, teacher=teacher if metric.needs_teacher else None)

    def compute(self, run: Runtime) -> dict[str, Any]:
        """What each metric found, over all processes.

        Args:
            run: of the evaluation.
        """
        if run.world > 1:
            for metric in self.metrics.values():
                metric.share(lambda x: run.sum(x.to(run.device)).cpu(), run.rank, run.world)
        return {name: metric.compute() for name, metric in self.metrics.items()}


def check_count(count: int, classes: Sequence[str], whose: str) -> None:
    """Refuse a network whose number of classes is not the data set's.

    Args:
        count: of the network's classes.
        classes: names of the data set's.
        whose: what the network is, for the message.

    Raises:
        ValueError: if the numbers differ.
    """
    if count != len(classes):
        raise ValueError(f"{whose} has {count} classes, the data set {len(classes)} ({', '.join(classes)})")


def check_metrics(
    names: Sequence[str], config: Config, teacher: str | Path | Config | None, classes: Sequence[str]
) -> tuple[list[str], nn.Module | None]:
    """The metrics that are meant, and the teacher that they need.

    Args:
        names: of metrics; `all` for all of them, but for those that need a teacher where there is none.
        config: of the model that is evaluated, which may name its teacher.
        teacher: run folder or file of another one, or a configuration that names it.
        classes: names of the data set's.

    Raises:
        ValueError: if a metric is unknown, or there is no teacher for one that needs it, or it has another number of
            classes or another order of them.
    """
    chosen = choose_metrics(names)
    needing = need_teacher(chosen)
    if not needing:
        return chosen, None
    if isinstance(teacher, Config):
        config = teacher
    elif teacher is not None:
        own = read_card(teacher)["classes"]
        check_count(len(own), classes, f"the teacher {teacher}")
        check_order(own, classes, str(teacher))
        return chosen, load_student(teacher)
    if config.distils and config.teacher is not None:
        tapped = build_teacher(config, classes)
        assert tapped is not None
        if tapped.class_map is None or tapped.class_map.complete:
            return chosen, Mapped(tapped)
        lack = "the teacher does not know all classes of the data"
    else:
        lack = "the run has no teacher"
    if set(needing) & set(names):
        raise ValueError(f"{needing[0]} compares a student with its teacher, but {lack}; --teacher RUN names one")
    return [name for name in chosen if name not in needing], None
