"""Work in processes of their own, so that peak memory is a run's own and nothing that a run does ends the others."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from segdistill._printing import one_line, tolerate_any_encoding
from segdistill.engine.faults import known_fault
from segdistill.engine.run_folder import explaining, make_folder
from segdistill.engine.runtime import stop_signals


@dataclass(frozen=True)
class Task:
    """One call in a process of its own.

    Args:
        function: at the top level of a module; what it returns is sent back.
        arguments: of the call.
        log: file for what the process prints; None: it prints where this one does.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Args:
        value: what the function returned.
        error: one line, if it did not return.
    """

    value: Any = None
    error: str | None = None


def run_tasks(tasks: Sequence[Task], jobs: int = 1) -> Iterator[tuple[int, Outcome]]:
    """Run tasks, some at a time, and give their outcomes as they come.

    The processes are forked from a server that has loaded torch and nothing else, which makes them cheap; several GPUs
    are dealt out in turn. When the caller stops, they are asked to stop as well, which saves a run's checkpoint.

    Args:
        tasks: what to do.
        jobs: how many at a time.

    Yields:
        The task's position, and its outcome.

    Raises:
        ValueError: if `jobs` is not positive.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    context: Any = get_context("forkserver" if sys.platform != "win32" else "spawn")
    if sys.platform != "win32":
        context.set_forkserver_preload(["segdistill.engine.loop"])
    waiting = list(range(len(tasks)))
    slots = list(range(jobs))
    running: dict[Connection, tuple[int, int, BaseProcess]] = {}
    before = _terminate_as_interrupt()
    try:
        while waiting or running:
            while waiting and slots:
                position, slot = waiting.pop(0), slots.pop(0)
                here, there = context.Pipe(duplex=False)
                gpu = _gpu(slot) if jobs > 1 else None
                process = context.Process(target=_child, args=(there, tasks[position], gpu))
                process.start()
                there.close()
                running[here] = (position, slot, process)
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                position, slot, process = running.pop(connection)
                outcome = _receive(connection, process)
                slots.append(slot)
                yield position, outcome
    finally:
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate_as_interrupt() -> dict[int, Any]:
    """Let what asks this process to stop end it as Ctrl-C does, so that the others are asked; returns old handlers."""

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        return {number: signal.signal(number, interrupt) for number in stop_signals()}
    except ValueError:  # not in the main thread
        return {}


def _receive(connection: Connection, process: BaseProcess) -> Outcome:
    try:
        outcome = connection.recv()
        assert isinstance(outcome, Outcome)
    except EOFError:
        process.join()
        outcome = Outcome(error=f"the process ended with exit code {process.exitcode}; was it out of memory?")
    connection.close()
    process.join()
    return outcome


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


def _gpu(slot: int) -> str | None:
    """The GPU of a slot, where there are several to deal out."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    return gpus[slot % len(gpus)] if len(gpus) > 1 else None
