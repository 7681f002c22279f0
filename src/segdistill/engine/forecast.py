"""What a run would be: a few of its steps, with nothing written."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill.data.subsets import Subset
from segdistill.engine.config import Config, load_config
from segdistill.engine.epochs import in_steps
from segdistill.engine.evaluate import evaluate
from segdistill.engine.gradients import term_gradients
from segdistill.engine.loop import default_folder, forward, train
from segdistill.engine.modes import evaluating
from segdistill.engine.record import Recorder
from segdistill.engine.runtime import peak_memory, runtime
from segdistill.engine.teacher_cache import plan_cache
from segdistill.engine.teacher_views import AVERAGED, Ensemble
from segdistill.engine.training import Training
from segdistill.taps import Tapped


class Enough(Exception):  # noqa: N818 -- it is no error
    """The rehearsal has seen what it wanted."""


class Rehearsal(Training):
    """A run that leaves nothing behind; only a cache that the run itself would fill, and only if it is told to."""

    fills = False

    def save(self) -> None:
        """Write nothing: the run was asked to stop."""
        raise KeyboardInterrupt

    def weigh_classes(self) -> None:
        """Count nothing, which may take long: all classes weigh alike."""
        if self.config.supervised.class_weights == "balanced":
            weights = self.distiller.supervised.class_weights
            assert weights is not None
            weights.fill_(1)

    def fill_cache(self) -> None:
        """Fill nothing, and the teacher runs; or fill what the run would, so that steps are timed as they will be."""
        if self.fills:
            super().fill_cache()

    def batch(self) -> tuple[Tensor, Tensor]:
        """One more micro-batch, on the run's device."""
        if self._batches is not None:
            self._batches.close()
        self.done = min(self.done, self.cfg.steps - 1)
        images, target = next(self.batches())
        return images.to(self.run.device, memory_format=self.layout), target.to(self.run.device)

    def disk(self) -> int:
        """Bytes of the run folder at its fullest, with checkpoint, the next one and the student, and of a new cache."""
        states = [part.state_dict() for part in self.parts.values() if part is not None]
        cache = plan_cache(self).bytes if self.cached else 0
        return 2 * sum(map(_bytes, states)) + _bytes(self.deliverable.state_dict()) + cache


MOST = 12
"""Steps after which a time counts as settled in any case."""

ALIKE = 1.25
"""Two steps whose times are within this factor of the fastest one's have settled."""


def settled(times: Sequence[float]) -> bool:
    """Whether the last two of some times are about as short as any before: what a first step costs more is over.

    Args:
        times: of one step after the other.

    >>> settled([9.0, 1.0]), settled([9.0, 1.0, 1.1]), settled([9.0, 1.0, 2.0, 1.0])
    (False, True, False)
    """
    return len(times) > 2 and max(times[-2:]) <= ALIKE * min(times)


def cold_and_steady(times: Sequence[float]) -> tuple[float, float]:
    """What the first steps cost more than later ones, all together, and what a later one costs.

    The first one never counts as a later one if there are others: kernels are chosen and built, and memory is reserved
    in it. From the second on, the first one that is about as fast as the median of the last half is a later one.

    Args:
        times: of one step after the other.

    >>> cold_and_steady([9.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    (11.0, 1.0)
    >>> cold_and_steady([3.0])
    (0.0, 3.0)
    """
    steady = statistics.median(times[len(times) // 2 :])
    warm = next(i for i in range(min(1, len(times) - 1), len(times)) if times[i] <= ALIKE * steady)
    steady = statistics.median(times[warm:])
    return max(0.0, math.fsum(times[:warm]) - warm * steady), steady


class Notes(Recorder):
    """Keeps the numbers of the first steps, and ends the run once these take equally long.

    Args:
        steps: how many at least; one if it is 1.
        seconds: how long at least.
        last: the step after which it ends in any case.
    """

    def __init__(self, steps: int, seconds: float, last: int):
        super().__init__(None, last, 0)
        self.fewest, self.most = min(steps, last), min(max(steps, MOST if steps > 1 else 1), last)
        self.seconds, self.until = seconds, math.inf
        self.rates: list[float] = []
        """Of each step, in images per second."""

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep one step's rate."""
        super().step(step, numbers)
        if not self.rates:  # not before: filling a cache takes time of its own
            self.until = time.monotonic() + self.seconds
        self.rates.append(numbers["images_per_s"])
        enough = step >= self.most or (step >= self.fewest and settled([1 / rate for rate in self.rates]))
        if step == self.steps or (enough and time.monotonic() >= self.until):
            raise Enough


def forecast(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    steps: int = 5,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Train a few steps as a configuration says, write nothing, and say what the whole run would take.

    Args:
        config: as for `distill`.
        overrides: `key.sub=value`.
        student: as for `distill`.
        teacher: likewise.
        steps: how many at least. It goes on until two steps in a row take equally long, up to 12.
        seconds: how long at least.

    Returns:
        `seconds_per_step` and `seconds_per_image` (of validation), both once they have settled; `cold_seconds`, what
        the first step and the first validation cost more; `seconds` of the whole run, all of that together; `steps`,
        `validations`, `peak_memory` and `disk` in bytes, `device`, `precision`; `taps`: a
        mapping with `tap`, `student`, `student_shape`, `teacher`, `teacher_shape` each; `terms`: a mapping of name →
        `value` and `share`, of the loss after these steps, and `gradient` and `gradient_share`, of its norm in the
        student's parameters, each term by itself. Shares are of the sum of absolute values.

    Raises:
        ValueError: as for `distill`.
    """
    config = load_config(config, overrides)
    with runtime(config.train.device, config.train.precision, config.train.threads) as run:
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        training = Rehearsal(_quiet(config), run, default_folder(config, student), student=student, teacher=teacher)
        try:
            cold, step_time = _step_time(training, steps, seconds)
            peak = peak_memory(run.device)
            images, target = training.batch()
            terms = _terms(training, images, target)
            cold_image, image_time = _image_time(training)
            return {
                "seconds_per_step": step_time,
                "seconds_per_image": image_time,
                **_whole(
                    in_steps(config),
                    step_time,
                    image_time * len(training.val_set),
                    cold + cold_image,
                ),
                "peak_memory": peak,
                "disk": training.disk(),
                "device": str(run.device),
                "precision": run.precision,
                "taps": _taps(training, images[:1]),
                "terms": terms,
            }
        finally:
            training.close()


def time_steps(config: Config, folder: Path, *, steps: int, seconds: float) -> float:
    """Seconds per step of a run, from a few of its steps; with `teacher.cache` they are cached as in the run.

    Args:
        config: of the run.
        folder: of the run; nothing is written there.
        steps: how many at least; the first one warms up and is not timed.
        seconds: how long at least.

    Raises:
        ValueError: as for `distill`.
    """
    with runtime(config.train.device, config.train.precision, config.train.threads) as run:
        training = Rehearsal(_quiet(config), run, folder)
        training.fills = True
        try:
            return _step_time(training, steps, seconds)[1]
        finally:
            training.close()


def _quiet(config: Config) -> Config:
    """The same run, of which each step is recorded and nothing else is done."""
    quiet = {"log_every": 1, "eval_every": 0, "save_every": 0, "gradient_samples": 0, "tensorboard": False}
    return config.model_copy(update={"train": config.train.model_copy(update=quiet)})


def _step_time(training: Rehearsal, steps: int, seconds: float) -> tuple[float, float]:
    """Train at least so many steps, and so long; returns what the first ones cost more, and the time of one."""
    config = training.config
    training.recorder = notes = Notes(steps, seconds, training.cfg.steps)
    with suppress(Enough):
        train(training)
    return cold_and_steady([config.data.batch_size / rate for rate in notes.rates])


def _whole(config: Config, step_time: float, validation: float, cold: float) -> dict[str, Any]:
    train = config.train
    validations = 1 + (math.ceil(train.steps / train.eval_every) if train.eval_every else 1)
    seconds = cold + train.steps * step_time + validations * validation
    return {"steps": train.steps, "validations": validations, "cold_seconds": cold, "seconds": seconds}


def _terms(training: Training, images: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    """Each term of one batch, and its gradient in the student's parameters."""
    training.distiller.train()
    with torch.compiler.set_stance("force_eager"):  # a compiled graph serves one term
        terms, _, _ = forward(training, images, target, training.done / training.cfg.steps)
    norms = {name: norm for name, (norm, _) in term_gradients(terms, training.trained).items()}
    values = {name: float(term.detach()) for name, term in terms.items()}
    whole = math.fsum(map(abs, values.values())) or 1.0
    length = math.fsum(norms.values()) or 1.0
    return {
        name: {
            "value": value,
            "share": abs(value) / whole,
            "gradient": norms[name],
            "gradient_share": norms[name] / length,
        }
        for name, value in values.items()
    }


def _taps(training: Training, images: Tensor) -> list[dict[str, Any]]:
    """What the method compares: path and shape on both sides."""
    names = sorted(training.method.student_taps() | training.method.teacher_taps())
    sides: dict[str, tuple[Tapped | None, set[str]]] = {
        "student": (training.distiller.student, training.method.student_taps()),
        "teacher": (training.teacher, training.method.teacher_taps()),
    }
    rows: list[dict[str, Any]] = [{"tap": name} for name in names]
    for side, (tapped, wanted) in sides.items():
        shown = {}
        if tapped is not None and wanted:
            with torch.no_grad(), evaluating(tapped), training.run.autocast():
                shown = tapped(images, wanted)
        for row in rows:
            tap = shown.get(row["tap"]) if row["tap"] in wanted else None
            row[side] = None if tapped is None or tap is None else _path(tapped, row["tap"])
            row[f"{side}_shape"] = None if tap is None else list(tap.shape[1:] if tap.dim() == 4 else tap.shape)
    return rows


def _path(tapped: Tapped, name: str) -> str:
    given = {
        "weight": f"{tapped.classifier}.weight",
        "image": "(input)",
        "undropped": "(before the dropout of features)",
    }
    path = tapped.paths.get(name) or given.get(name, "(output)")
    return f"{path}, mean of {tapped.looks}" if name in AVERAGED and isinstance(tapped, Ensemble) else path


def _image_time(training: Training) -> tuple[float, float]:
    """Seconds that the first validation costs more, and that an image takes in validation, from a few images."""
    data = training.config.data
    how: dict[str, Any] = {"size": data.resize, "batch_size": data.eval_batch_size, "run": training.run}
    how["protocol"] = training.config.eval.build()
    # The same batches each time: kernels are chosen for a shape, and another batch would start anew.
    few = Subset(training.val_set, range(min(max(4, data.eval_batch_size), len(training.val_set))))
    times: list[float] = []
    while len(times) < 2 or (len(times) < MOST // 2 and not settled(times)):
        began = time.monotonic()
        evaluate(training.deliverable, few, **how)
        times.append(time.monotonic() - began)
        if len(times) == 2 and times[1] * ALIKE >= times[0]:
            break
    cold, steady = cold_and_steady(times)
    return cold, steady / max(1, len(few))


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes, inner))
