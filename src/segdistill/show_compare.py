"""The runs of a comparison while they are trained: a table on a terminal that is drawn anew every second."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from segdistill._printing import animated, visible
from segdistill.show import percent
from segdistill.show_progress import NARROW

if TYPE_CHECKING:
    from segdistill.comparison.watch import RunState, Watch

BESIDES = 9
"""Lines of a terminal that the table leaves to its head, its sum and what is said above it."""

ORDER = ("running", "failed", "waiting", "done")
"""Which runs are shown first where there is no room for all."""


class RunsTable:
    """A table of runs, as a terminal draws it: how far they are is asked each time."""

    def __init__(self) -> None:
        self.watch: Watch | None = None

    def __call__(self, watch: "Watch") -> None:
        """Show other runs from now on.

        Args:
            watch: of these runs.
        """
        self.watch = watch

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Draw what there is to be seen now."""
        if self.watch is None:
            return
        states, left = self.watch.states(), self.watch.left()
        room = max(1, options.size.height - BESIDES)
        chosen = sorted(range(len(states)), key=lambda at: (ORDER.index(states[at].state), at))[:room]
        yield Group(_table([states[at] for at in sorted(chosen)], options.max_width), _sum(states, left))


def _table(states: "list[RunState]", width: int) -> Table:
    heads = ("state", "mIoU %", "left")[: 2 if width < NARROW else 3]
    rows = [
        (
            f"{run.step}/{run.steps}" if run.state == "running" else run.state,
            "" if run.miou is None else percent(run.miou),
            _time(run.left),
        )
        for run in states
    ]
    columns = [(head, *(row[at] for row in rows)) for at, head in enumerate(heads)]
    besides = sum(max(map(len, column)) + 2 for column in columns)  # names give way, not numbers
    table = Table(box=SIMPLE_HEAD)
    table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=max(6, width - besides - 4 - len(heads)))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for run, row in zip(states, rows, strict=True):
        texts = [Text(text) for text in row[: len(heads)]]
        table.add_row(Text(visible(run.name)), *texts, style="red" if run.state == "failed" else None)
    return table


def _sum(states: "list[RunState]", left: float | None) -> Text:
    count = Counter(state.state for state in states)
    told = ", ".join(f"{count[state]} {state}" for state in ("done", "running", "waiting", "failed") if count[state])
    return Text(f"{told}; about {_time(left)} left" if left is not None else told)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


@contextmanager
def live(stream: TextIO | None = None) -> "Iterator[Callable[[Watch], None] | None]":
    """A function that is told of the runs that are to be shown; None where there is no terminal to draw on.

    Args:
        stream: where to; standard error as a default.
    """
    stream = stream or sys.stderr
    if not animated(stream):
        yield None
        return
    table = RunsTable()
    drawn = Live(
        table,
        console=Console(file=stream),
        refresh_per_second=1,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        vertical_overflow="crop",
    )
    with suppress(OSError):
        drawn.start()
    try:
        yield table
    finally:
        with suppress(OSError):
            drawn.stop()
