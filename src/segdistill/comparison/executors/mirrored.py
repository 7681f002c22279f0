"""Tasks whose folder is at a URL: each works in a copy on its machine, which is sent as its checkpoints come."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from segdistill.comparison.executors.task import Executor, Outcome, Task
from segdistill.comparison.mirror import LOG, UNSHARED, Mirror
from segdistill.engine.lock import locked
from segdistill.engine.run_folder import CHECKPOINT, METRICS

PATIENCE = 60.0
"""Seconds to wait for a process that still holds a run's folder."""

LOOK = 1.0
"""Seconds after which it is looked for a new checkpoint."""

SEND_LOG = 15
"""Looks after which log and record are sent without one."""


class Mirrored:
    """Another executor's tasks, with the folder of the comparison at a URL.

    Args:
        executor: that carries them out.
        url: of the comparison's folder.
        folder: of its copy, on every machine.
        needed: folders inside that every run reads: those of the teachers.
    """

    def __init__(self, executor: Executor, url: str, folder: Path, needed: Sequence[Path] = ()):
        self.executor, self.mirror = executor, Mirror(url, folder)
        self.needed = [path.name for path in needed]

    @property
    def jobs(self) -> int:
        """As many as the executor has."""
        return self.executor.jobs

    @property
    def threads(self) -> int | None:
        """As the executor says."""
        return self.executor.threads

    @property
    def prints(self) -> bool:
        """As the executor says."""
        return self.executor.prints

    def __enter__(self) -> "Mirrored":
        if self.mirror.url.partition("://")[0] in UNSHARED:
            raise ValueError(f"{self.mirror.url}: each process has a memory of its own; name a place that all see")
        self.mirror.reach()
        with locked(self.mirror.folder):
            self.mirror.download(but={CHECKPOINT})
        return self

    def __exit__(self, *_: object) -> None:
        self.mirror.upload()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Carry out tasks.

        Args:
            tasks: what to do.

        Yields:
            The task's position, and its outcome; what the task wrote is in the copy here.
        """
        for position, outcome in self.executor.run([self._with_copy(task) for task in tasks]):
            folder = tasks[position].folder
            if folder is not None:
                self.mirror.download(folder.name, but={CHECKPOINT})
            if outcome.error:  # the copy is nobody's business
                outcome = replace(outcome, error=outcome.error.replace(str(self.mirror.folder), self.mirror.url))
            yield position, outcome

    def _with_copy(self, task: Task) -> Task:
        name = None if task.folder is None else task.folder.name
        mirror = Mirror(self.mirror.url, self.mirror.folder)
        arguments = (mirror, name, self.needed, task.function, task.arguments)
        return replace(task, function=work_in_copy, arguments=arguments, folder=None)


def work_in_copy(
    mirror: Mirror, name: str | None, needed: Sequence[str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Call a function with the copy of a run's folder at hand, and send what it writes there.

    Args:
        mirror: of the comparison's folder.
        name: of the run's folder; None: nothing is written.
        needed: names of folders that are read.
        function: what to do.
        arguments: of the function.
    """
    for other in needed:
        if other != name:
            with locked(mirror.folder / other, patience=PATIENCE):
                mirror.download(other, but={CHECKPOINT})
    if name is None:
        return function(*arguments)
    with locked(mirror.folder / name, patience=PATIENCE):
        mirror.download(name)
    log = mirror.folder / name / LOG
    if log.is_file() and not log.stat().st_size:  # it began on another machine
        print(mirror.download_log(name), end="", flush=True)
    done = Event()
    sender = Thread(target=_send, args=(mirror, name, done), daemon=True)
    sender.start()
    try:
        return function(*arguments)
    finally:
        done.set()
        sender.join()
        mirror.upload(name)


def _send(mirror: Mirror, name: str, done: Event) -> None:
    """Send each checkpoint with all that it stands on, and the log now and then."""
    checkpoint = mirror.folder / name / CHECKPOINT
    sent, looks = _age(checkpoint), 0
    while not done.wait(LOOK):
        looks += 1
        try:
            if _age(checkpoint) != sent:
                sent = _age(checkpoint)
                mirror.upload(name)
            elif looks % SEND_LOG == 0:
                mirror.upload(name, only=(LOG, METRICS))
        except ValueError as error:  # it is tried again, at the end at the latest
            print(f"{error}; it is tried again", file=sys.stderr, flush=True)
            sent = None


def _age(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None
