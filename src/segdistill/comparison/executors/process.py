"""A task in a process of its own, so that peak memory is a run's own and nothing that a run does ends the others."""

import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

from segdistill._printing import one_line, tolerate_any_encoding
from segdistill.comparison.executors.task import Outcome, Task
from segdistill.engine.faults import known_fault
from segdistill.engine.run_folder import explaining, make_folder


class TaskProcess:
    """A task that runs from now on.

    The process is forked from a server that has loaded torch and nothing else, which makes it cheap.

    Args:
        task: what to do.
        gpu: what it sees as `CUDA_VISIBLE_DEVICES`; None: what this process sees.
    """

    def __init__(self, task: Task, gpu: str | None = None):
        context: Any = get_context("forkserver" if sys.platform != "win32" else "spawn")
        if sys.platform != "win32":
            context.set_forkserver_preload(["segdistill.engine.loop"])
        here, there = context.Pipe(duplex=False)
        self.connection: Connection = here
        """Ready to be waited for when the outcome is there."""
        self.process = context.Process(target=_child, args=(there, task, gpu))
        self.process.start()
        there.close()

    def outcome(self) -> Outcome:
        """Wait for the end of the process, and say how it was."""
        try:
            outcome = self.connection.recv()
            assert isinstance(outcome, Outcome)
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            line = f"the process ended with exit code {code}; was it out of memory?"
            outcome = Outcome(error=line, killed=code is not None and code < 0)
        self.connection.close()
        self.process.join()
        return outcome

    def stop(self) -> None:
        """Ask the task to stop; a run saves its checkpoint first."""
        self.process.terminate()

    def join(self) -> None:
        """Wait for the end of the process."""
        self.process.join()


def terminate_as_interrupt() -> dict[int, Any]:
    """Let what asks this process to stop end it as Ctrl-C does, so that tasks are asked, too.

    Returns:
        The old handlers by signal, for `restore`.
    """
    from segdistill.engine.runtime import stop_signals

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        return {number: signal.signal(number, interrupt) for number in stop_signals()}
    except ValueError:  # not in the main thread
        return {}


def restore(handlers: dict[int, Any]) -> None:
    """Put handlers of signals back.

    Args:
        handlers: as `terminate_as_interrupt` returned them.
    """
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end_with_parent() -> None:
    """Stop as if asked to when the process that wants the outcome is gone, however it went."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _child(connection: Connection, task: Task, gpu: str | None) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    tolerate_any_encoding()
    try:
        if task.log is not None:
            _print_into(task.log)
        outcome = Outcome(task.function(*task.arguments))
    except ValueError as error:
        outcome = Outcome(error=one_line(str(error)))
    except (Exception, KeyboardInterrupt) as error:
        line = known_fault(error)
        if line is None and not isinstance(error, KeyboardInterrupt):
            with suppress(OSError):  # the log may be on a full disk
                traceback.print_exc()
        outcome = Outcome(error=line or one_line(f"{type(error).__name__}: {error}"))
    with suppress(OSError):  # nobody may be there any more
        connection.send(outcome)
    connection.close()


def _print_into(log: Path) -> None:
    """Let whatever this process prints go to a file."""
    make_folder(log.parent)
    with explaining(log), log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
