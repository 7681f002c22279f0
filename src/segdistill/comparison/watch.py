"""How far the runs of a comparison are, by what they write into their folders, wherever they are carried out."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from segdistill.comparison.cell import Cell
from segdistill.comparison.executors.task import Outcome
from segdistill.comparison.result import evaluation_path
from segdistill.engine.run_folder import METRICS, SUMMARY, stored_json

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class RunState:
    """How far one run is.

    Args:
        name: of its folder.
        state: what happens to it.
        step: steps that are done.
        steps: of the whole run.
        miou: of a run that is done on the comparison's split; of another the best so far on val; None before the first.
        left: seconds until its last step, as far as that can be told.
    """

    name: str
    state: State
    step: int
    steps: int
    miou: float | None = None
    left: float | None = None


class Watch:
    """How far runs are. It may be asked at any time, by any thread.

    Of a run on a machine whose files are not seen here, nothing is known until it has ended.

    Args:
        runs: that are to be carried out, and those that are there already.
        split: on which they are evaluated; None: they are trained only.
        clock: tells the seconds.
    """

    def __init__(self, runs: Sequence[Cell], split: str | None, clock: Callable[[], float] = time.monotonic):
        self.clock, self.began, self._lock = clock, clock(), Lock()
        self._runs = {run.folder: _Run(run, split) for run in runs}

    def ended(self, run: Cell, outcome: Outcome) -> None:
        """Be told how a run ended.

        Args:
            run: which.
            outcome: of a run that was there before, empty.
        """
        with self._lock:
            self._runs[run.folder].end(outcome)

    def states(self) -> list[RunState]:
        """How far each run is, in their order."""
        with self._lock:
            return [run.state(self.clock()) for run in self._runs.values()]

    def left(self) -> float | None:
        """Seconds until all are done, if their steps go on as fast as those since the beginning; None before any."""
        now = self.clock()
        with self._lock:
            runs = [run for run in self._runs.values() if not run.was_there]
            states = [run.state(now) for run in runs]
            done = sum(max(0, s.step - run.start) for s, run in zip(states, runs, strict=True))
        missing = sum(s.steps - s.step for s in states if s.state in ("waiting", "running"))
        return None if not done else (now - self.began) / done * missing


class _Run:
    """One run of a watch."""

    def __init__(self, run: Cell, split: str | None):
        self.name, self.steps = run.folder.name, run.config.train.steps
        self.metrics, self.split, self.folder = run.folder / METRICS, split, run.folder
        self.before = _stamp(self.metrics)
        """What the file of its record was like before; another one says that the run is at it."""
        self.seen: tuple[int, int] | None = self.before
        self.place = self.step = self.start = 0
        self.first: tuple[float, int] | None = None
        """When it was first seen to have done a step, and which one."""
        self.best: float | None = None
        self.ending: State | None = None
        self.was_there = False

    def end(self, outcome: Outcome) -> None:
        self.was_there = outcome == Outcome()
        self.ending = "failed" if outcome.error else "done"
        if outcome.error:
            return
        self.step, self.best = self.steps, outcome.value
        with suppress(OSError, ValueError):
            if self.was_there:
                path = self.folder / SUMMARY if self.split is None else evaluation_path(self.folder, self.split)
                self.best = stored_json(path).get("miou")

    def state(self, now: float) -> RunState:
        if self.ending is not None:
            return RunState(self.name, self.ending, self.step, self.steps, self.best)
        with suppress(OSError, ValueError):
            self._read(now)
        if self.seen == self.before:
            return RunState(self.name, "waiting", 0, self.steps)
        left = None
        if self.first is not None and self.step > self.first[1]:
            left = (now - self.first[0]) / (self.step - self.first[1]) * (self.steps - self.step)
        return RunState(self.name, "running", self.step, self.steps, self.best, left)

    def _read(self, now: float) -> None:
        """Take in what was added to the record."""
        stamp = _stamp(self.metrics)
        if stamp == self.seen or stamp is None:
            return
        if self.seen == self.before or (self.seen is not None and stamp[1] < self.seen[1]):
            self.place, self.best, self.first = 0, None, None  # it begins, and may have been cut to its checkpoint
        fresh = self.seen == self.before
        self.seen = stamp
        with self.metrics.open("rb") as file:
            file.seek(self.place)
            whole = file.read().rpartition(b"\n")[0]
        self.place += len(whole) + bool(whole)
        for line in whole.splitlines():
            with suppress(ValueError):
                self._take(json.loads(line))
        if fresh:
            self.start = self.step
        if self.first is None and self.step:
            self.first = now, self.step

    def _take(self, record: Any) -> None:
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            return
        self.step = record["step"]
        miou = record.get("val_miou")
        if isinstance(miou, float):
            self.best = miou if self.best is None else max(self.best, miou)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
