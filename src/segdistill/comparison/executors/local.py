"""Tasks on this machine, some at a time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from segdistill.comparison.executors.process import TaskProcess, restore, terminate_as_interrupt
from segdistill.comparison.executors.task import Outcome, Task


class Local:
    """Tasks on this machine.

    Several GPUs are dealt out in turn; on a CPU, tasks at a time share its cores instead of getting into each other's
    way.

    Args:
        jobs: how many at a time.
        silent: whether none of them prints where this process does; what a run prints goes to its log.

    Raises:
        ValueError: if `jobs` is not positive.
    """

    def __init__(self, jobs: int = 1, *, silent: bool = False):
        if jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {jobs}")
        self.jobs, self.silent = jobs, silent

    @property
    def threads(self) -> int | None:
        """A share of the cores."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return None if self.jobs == 1 else max(1, cores // self.jobs)

    @property
    def prints(self) -> bool:
        """One task at a time prints into the terminal, unless it is to be silent."""
        return self.jobs == 1 and not self.silent

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Carry out tasks.

        Args:
            tasks: what to do.

        Yields:
            The task's position, and its outcome.
        """
        waiting = list(range(len(tasks)))
        slots = list(range(self.jobs))
        running: dict[Connection, tuple[int, int, TaskProcess]] = {}
        before = terminate_as_interrupt()
        try:
            while waiting or running:
                while waiting and slots:
                    position, slot = waiting.pop(0), slots.pop(0)
                    task = tasks[position]
                    if self.silent and task.log is None:  # it says nothing that the runs do not say as well
                        task = replace(task, log=Path(os.devnull))
                    process = TaskProcess(task, _gpu(slot) if self.jobs > 1 else None)
                    running[process.connection] = (position, slot, process)
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    position, slot, process = running.pop(connection)
                    outcome = process.outcome()
                    slots.append(slot)
                    yield position, outcome
        finally:
            for _, _, process in running.values():
                process.stop()
            for _, _, process in running.values():
                process.join()
            restore(before)


def _gpu(slot: int) -> str | None:
    """The GPU of a slot, where there are several to deal out."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    return gpus[slot % len(gpus)] if len(gpus) > 1 else None
