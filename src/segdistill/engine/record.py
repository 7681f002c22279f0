"""What a run says about itself: `metrics.jsonl`, the terminal, TensorBoard."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segdistill._printing import SELDOM, ProgressLines, animated, visible
from segdistill._types import Told
from segdistill.engine.run_folder import METRICS, explaining, write_text

FIRST = 10.0
"""Seconds after which a run says for the first time how fast it is; then it is never silent for more than a minute."""

LONG = 3600.0
"""Seconds from which a run on a CPU says how it would be shorter."""


class Recorder:
    """Writes a run's numbers as they come: one JSON object a line, and a progress bar or plain lines.

    Args:
        folder: of the run; None for the processes that stay silent.
        steps: of the whole run.
        start: the step from which a resumed run goes on; later lines of the interrupted one are dropped.
        tensorboard: whether to write event files beside.
        stream: where plain lines go, if standard error is not a terminal.
        advice: what would make the run shorter, said once if more than an hour is left.
        clock: tells the seconds.
    """

    def __init__(
        self,
        folder: Path | None,
        steps: int,
        start: int,
        *,
        tensorboard: bool = False,
        stream: TextIO | None = None,
        advice: str = "",
        clock: Callable[[], float] = time.monotonic,
    ):
        self.steps, self.start, self.last, self.advice, self.clock = steps, start, start, advice, clock
        self.begin()
        self.file, self.events = None, None
        self.bar: Progress | None = None
        self.stream = stream or sys.stderr
        if folder is None:
            return
        self.path = path = folder / METRICS
        kept = [record for record in read_records(path) if record["step"] <= start] if start else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = path.open("a", encoding="utf-8")
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("train.tensorboard needs tensorboard; pip install 'segdistill[track]'") from None
            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        if animated(self.stream):
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"), console=Console(file=self.stream))
            self.task = self.bar.add_task("", total=steps, completed=start)
            self.bar.start()

    def begin(self) -> None:
        """Note that the first step begins now: what goes before says nothing of the time that is left."""
        self.began = self.told = self.clock()
        self.silence = FIRST

    def alive(self, step: int) -> None:
        """Be told of each step, also where nothing is recorded: the bar moves, and lines are never far apart.

        Args:
            step: how many steps are done.
        """
        if self.file is None:
            return
        now = self.clock()
        left = self._left(step, now)
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(self.task, completed=step)
        elif now - self.told >= self.silence:
            pace = (now - self.began) / (step - self.start)
            self.say(f"step {step}/{self.steps}  {pace:.3g} s a step  left {timedelta(seconds=round(left))}")
        if self.advice and now - self.began >= FIRST:
            if left >= LONG:
                self.say(f"note: {timedelta(seconds=round(left))} to go. {self.advice}")
            self.advice = ""

    def _left(self, step: int, now: float) -> float:
        return (now - self.began) / max(step - self.start, 1) * (self.steps - step)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record one step's numbers.

        Args:
            step: how many steps are done.
            numbers: loss terms and costs.
        """
        self._write(step, numbers)
        self.last = step
        if self.file is None:
            return
        left = self._left(step, self.clock())
        head = f"loss {numbers['loss']:.4f}  {numbers['images_per_s']:.1f} img/s  {numbers['memory_mb']:.0f} MiB"
        if self.bar is not None:
            with suppress(OSError):  # the terminal may be gone
                self.bar.update(self.task, completed=step, description=head)
        else:
            self.say(f"step {step}/{self.steps}  {head}  left {timedelta(seconds=round(left))}")

    def validation(self, step: int, result: Mapping[str, Any], best: bool) -> None:
        """Record a validation.

        Args:
            step: how many steps are done.
            result: what `evaluate` returned.
            best: whether it is the best so far.
        """
        numbers = {f"val_{key}": result[key] for key in ("miou", "macc", "pixel_accuracy")}
        self._write(step, {**numbers, "val_iou": result["iou"]})
        if self.file is None or result["miou"] is None:
            return
        self.say(f"step {step}: val mIoU {100 * result['miou']:.2f}{' (best so far)' if best else ''}")

    def say(self, line: str) -> None:
        """Print a line, if this process prints and there is a terminal still.

        Args:
            line: as it is.
        """
        if self.file is None:
            return
        self.told, self.silence = self.clock(), SELDOM
        with suppress(OSError):  # a terminal that was closed, or a log on a full disk, ends no run
            if self.bar is not None:
                self.bar.console.print(visible(line), markup=False)
            else:
                print(visible(line), file=self.stream, flush=True)

    @contextmanager
    def stage(self, what: str) -> Iterator[Told]:
        """Show how far something lengthy besides the steps is: a second bar, or plain lines.

        Args:
            what: is counted.

        Yields:
            A function that is told (done, in all).
        """
        if self.bar is None:
            lines = ProgressLines(what, self.stream)
            yield lines if self.file is not None else lambda done, total: None
            return
        bar, task = self.bar, self.bar.add_task(visible(what), total=None)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            bar.remove_task(task)

    def sync(self) -> None:
        """Have the lines so far on the disk, as a checkpoint that follows them needs."""
        if self.file is not None:
            with explaining(self.path):
                os.fsync(self.file.fileno())

    def _write(self, step: int, numbers: Mapping[str, Any]) -> None:
        if self.file is not None:
            with explaining(self.path):
                self.file.write(json.dumps({"step": step, **numbers}) + "\n")
                self.file.flush()
        if self.events is not None:
            for key, value in numbers.items():
                if isinstance(value, float | int):
                    self.events.add_scalar(key, value, step)

    def close(self) -> None:
        """Finish the files and the progress bar."""
        with suppress(OSError):
            if self.bar is not None:
                self.bar.stop()
        with suppress(OSError):  # what a full disk did not take is tried once more, and was reported
            if self.file is not None:
                self.file.close()
        with suppress(OSError):
            if self.events is not None:
                self.events.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that is damaged, or half-written by a run that was killed, is left out.

    Args:
        path: of the file; there is none before the first record.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
