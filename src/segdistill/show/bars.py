"""How far lengthy work is: a bar on a terminal, plain lines elsewhere; and who is told what of a command."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from segdistill._printing import ProgressLines, animated, visible

NARROW = 60
"""Columns below which a bar has no room beside its numbers."""

STANDARD_OUTPUT = Path("-")
"""As a file's name: what would be in the file goes to standard output, and nothing else does."""


@dataclass(frozen=True)
class Manner:
    """How a command speaks.

    Args:
        quiet: whether it says nothing but its result and errors.
        json: whether standard output gets the result as JSON, and nothing else.
        stdout: standard output as it was.
    """

    quiet: bool = False
    json: bool = False
    stdout: TextIO | None = None


_MANNER: ContextVar[Manner | None] = ContextVar("manner", default=None)


def manner() -> Manner:
    """How the command that runs now speaks."""
    return _MANNER.get() or Manner()


class _Silence(io.TextIOBase):
    """Takes texts and shows them to nobody."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def speaking(arguments: Sequence[str]) -> Iterator[None]:
    """Speak as a command's arguments ask for while it runs.

    Args:
        arguments: of the command line: `--quiet` silences standard error; `--json -` sends there what would be
            printed besides the result.
    """
    words = list(arguments)
    json = "--json=-" in words or ("--json", "-") in pairwise(words)
    token = _MANNER.set(Manner("--quiet" in words, json, sys.stdout))
    try:
        with ExitStack() as stack:
            if "--quiet" in words:
                stack.enter_context(redirect_stderr(_Silence()))
            if json:
                stack.enter_context(redirect_stdout(sys.stderr))
            yield
    finally:
        _MANNER.reset(token)


def print_json(text: str) -> None:
    """Print a result to standard output, wherever other prints go; under torchrun, the first process does.

    Args:
        text: the JSON.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    stream = manner().stdout or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # whoever reads it has seen enough; nor may Python say so when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress(
    what: str,
    stream: TextIO | None = None,
    *,
    bytes: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int, int | None], None]]:
    """A function that is told (done, in all): a bar with rate and time left on a terminal; elsewhere lines.

    A terminal or a pipe that is closed meanwhile ends nothing.

    Args:
        what: is counted, for instance images; of bytes, what they are of.
        stream: where to; standard error as a default.
        bytes: whether bytes are counted.
        clock: tells the seconds.
    """
    stream = stream or sys.stderr
    if not animated(stream):
        yield ProgressLines(what, stream, bytes=bytes, clock=clock)
        return
    console = Console(file=stream)
    # What is printed into a file is none of the terminal's business; what goes to the same terminal goes above the bar.
    bar = Progress(
        *_columns(what, bytes, console.width < NARROW),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    task = bar.add_task(visible(what), total=None)
    with suppress(OSError):
        bar.start()
    try:
        yield lambda done, total: bar.update(task, completed=done, total=total)
    finally:
        with suppress(OSError):
            bar.stop()


def _columns(what: str, bytes: bool, narrow: bool) -> list[ProgressColumn]:
    name = Column(no_wrap=True, overflow="ellipsis", max_width=14 if narrow else None)
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False, table_column=name)]
    if not narrow:
        columns.append(BarColumn(bar_width=20))
    columns += [DownloadColumn(), TransferSpeedColumn()] if bytes else [MofNCompleteColumn(), _Rate()]
    return [*columns, TimeRemainingColumn(compact=narrow)]


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s", style="progress.data.speed")
