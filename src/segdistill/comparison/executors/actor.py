"""What a Ray cluster runs on its machines."""

import os
import pickle
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from segdistill.comparison.executors.process import TaskProcess
from segdistill.comparison.executors.task import Outcome, Task

SEEN = 10.0
"""Seconds to wait for a file of another machine to be seen here."""


class Worker:
    """An actor: carries out one task in a process of its own, so that it can be told to stop meanwhile.

    Args:
        folder: from which relative paths are.
    """

    def __init__(self, folder: str):
        with suppress(OSError):
            os.chdir(folder)
        self.process: TaskProcess | None = None

    def carry_out(self, work: bytes, log: Path | None, token: Path | None, *, hide_gpus: bool) -> Outcome | str:
        """Carry out a task.

        Args:
            work: its function and arguments.
            log: file for what it prints.
            token: a file that has to be seen from here.
            hide_gpus: whether it holds no GPU, and therefore must not see one.

        Returns:
            How it ended; a text if none can be carried out here.
        """
        until = time.monotonic() + SEEN  # a shared folder may take a moment
        while token is not None and not token.is_file():
            if time.monotonic() > until:
                return (
                    f"the machine {socket.gethostname()} of the Ray cluster does not see {token.parent}; name a folder "
                    "that all machines share at one path, or a URL such as s3://…, with --out"
                )
            time.sleep(0.1)
        self.process = TaskProcess(Task(call, (work,), log), "" if hide_gpus else None)
        return self.process.outcome()

    def stop(self) -> None:
        """Ask the task to stop; a run saves its checkpoint first."""
        if self.process is not None:
            self.process.stop()


def call(work: bytes) -> Any:
    """Call what was packed.

    Args:
        work: a function and its arguments, from this very program.
    """
    function, arguments = pickle.loads(work)
    return function(*arguments)
