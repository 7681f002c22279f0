"""What a run says about itself: `metrics.jsonl`, the terminal, TensorBoard."""

import json
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segdistill.engine.run_folder import METRICS


class Recorder:
    """Writes a run's numbers as they come: one JSON object a line, and a progress bar or plain lines.

    Args:
        folder: of the run; None for the processes that stay silent.
        steps: of the whole run.
        start: the step from which a resumed run goes on; later lines of the interrupted one are dropped.
        tensorboard: whether to write event files beside.
        stream: where plain lines go, if standard error is not a terminal.
    """

    def __init__(
        self, folder: Path | None, steps: int, start: int, *, tensorboard: bool = False, stream: TextIO | None = None
    ):
        self.steps, self.start, self.last, self.began = steps, start, start, time.monotonic()
        self.file, self.events = None, None
        self.bar: Progress | None = None
        self.stream = stream or sys.stderr
        if folder is None:
            return
        path = folder / METRICS
        kept = [record for record in read_records(path) if record["step"] <= start] if start else []
        path.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self.file = path.open("a")
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError("train.tensorboard needs tensorboard; pip install 'segdistill[track]'") from None
            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        if self.stream.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"), console=Console(file=self.stream))
            self.task = self.bar.add_task("", total=steps, completed=start)
            self.bar.start()

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
        left = (time.monotonic() - self.began) / max(step - self.start, 1) * (self.steps - step)
        head = f"loss {numbers['loss']:.4f}  {numbers['images_per_s']:.1f} img/s  {numbers['memory_mb']:.0f} MB"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=head)
        else:
            print(
                f"step {step}/{self.steps}  {head}  left {timedelta(seconds=round(left))}", file=self.stream, flush=True
            )

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
        line = f"step {step}: val mIoU {100 * result['miou']:.2f}{' (best so far)' if best else ''}"
        if self.bar is not None:
            self.bar.console.print(line)
        else:
            print(line, file=self.stream, flush=True)

    def _write(self, step: int, numbers: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"step": step, **numbers}) + "\n")
            self.file.flush()
        if self.events is not None:
            for key, value in numbers.items():
                if isinstance(value, float | int):
                    self.events.add_scalar(key, value, step)

    def close(self) -> None:
        """Finish the files and the progress bar."""
        if self.bar is not None:
            self.bar.stop()
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; one that is damaged, or half-written by a run that was killed, is left out.

    Args:
        path: of the file; there is none before the first record.
    """
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
