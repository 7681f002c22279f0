"""What commands with many runs print: a table that is drawn anew while they are trained, and their result."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from segdistill._printing import animated, visible
from segdistill.show import percent
from segdistill.show.bars import NARROW

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


def runs(console: Console, names: Sequence[str]) -> None:
    """Runs with their numbers, one a line.

    Args:
        console: the terminal.
        names: of the runs.
    """
    for number, name in enumerate(names, 1):
        console.print(f"{number} {name}", highlight=False, soft_wrap=True)


def comparison(console: Console, result: Mapping[str, Any]) -> None:
    """Print what `compare` returned."""
    from segdistill.comparison.labels import PLACES
    from segdistill.comparison.notes import notes
    from segdistill.comparison.table import COSTS, TESTS, TEXTS, against_cells, cells, further_cells

    def draw(title: str, header: list[str], rows: list[list[str]], wanted: Callable[[str], bool]) -> None:
        table = Table(title=title, box=SIMPLE_HEAD)
        columns = [at for at, name in enumerate(header) if name in (*PLACES.values(), "method") or wanted(name)]
        for at in columns:
            table.add_column(header[at], justify="left" if header[at] in TEXTS else "right", overflow="fold")
        for row in rows:
            table.add_row(*(row[at] for at in columns))
        console.print(table)

    told, against = cells(result), against_cells(result)
    draw("comparison", *told, lambda name: name not in (*COSTS, *TESTS))
    draw(f"how sure the differences from {result['baseline']} are", *told, lambda name: name in (*TESTS, "verdict"))
    if against is not None:
        draw(f"against {result['against']}", *against, lambda name: name not in TESTS)
        draw(
            f"how sure the differences from {result['against']} are", *against, lambda name: name in (*TESTS, "verdict")
        )
    for metric in dict.fromkeys(line["metric"] for line in result.get("metrics") or ()):
        further = further_cells(result, metric)
        if further is not None:
            draw(f"further metrics: {metric}", *further, lambda _: True)
    draw("what it cost", *told, lambda name: name in COSTS)
    for note in notes(result):
        console.print(note, style="red" if note.startswith("failed") else None, highlight=False)


def curve(console: Console, result: Mapping[str, Any]) -> None:
    """Print the points of a curve, the teacher last."""
    names = (f"{result['split']} mIoU %", "ms", "ms p95", "MB", "params M", "GFLOPs")
    heads = [Column(name, justify="right", no_wrap=True) for name in ("width", *names)]
    table = Table(Column("method", overflow="fold"), *heads, title=f"{result['network']} by width", box=SIMPLE_HEAD)
    teacher = [{**result["teacher"], "method": "teacher", "width": None}] if result["teacher"] else []
    for point in [*result["points"], *teacher]:
        spread = point.get("miou_deviation")
        score = percent(point["miou"]) + (f" ± {percent(spread)}" if spread is not None else "")
        costs = (("ms", 1, 2), ("ms_p95", 1, 2), ("bytes", 1e6, 2), ("params", 1e6, 3), ("flops", 1e9, 2))
        cells = (f"{point[key] / unit:.{digits}f}" for key, unit, digits in costs)
        table.add_row(point["method"], "–" if point["width"] is None else f"{point['width']:g}", score, *cells)
    console.print(table)
    size, facts = "×".join(map(str, result["size"])), result["environment"]
    place = ", ".join(facts["gpus"]) if result["device"].startswith("cuda") else facts["cpu"]
    console.print(
        f"one image of {size}, float32, eager, {result['repeats']} passes on {place}, {result['threads']} threads; "
        "MB of weights; a multiply-add is two FLOPs; mIoU: mean ± standard deviation over seeds",
        highlight=False,
    )
    for error in result["errors"]:
        console.print(f"failed: {error}", style="red", highlight=False)


def demo(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the demo's table."""
    network = Column("network", overflow="fold")
    table = Table("run", network, "params M", "GFLOPs*", "ms/image", "val mIoU %", title="demo")
    for row in rows:
        table.add_row(
            row["run"],
            row["network"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['ms']:.1f}",
            row["miou"],
        )
    console.print(table)
    console.print("mean ± standard deviation over seeds; ms at 64×64 on the CPU; *one pass at 512×1024")
