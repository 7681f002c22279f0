"""What the commands on data sets print."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segdistill import show


@contextmanager
def bytes_progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A function that is told (bytes done, in all or None): a bar with rate and time left; elsewhere a line a tenth.

    Args:
        what: is fetched or unpacked.
    """
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenth = 0

    def line(done: int, total: int | None) -> None:
        nonlocal tenth
        if total and done * 10 // total > tenth:
            tenth = done * 10 // total
            print(f"{what}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", file=sys.stderr, flush=True)

    yield line


def prepare(
    console: Console, name: str, root: Path, *, mirror: str | None, keep_archives: bool, timeout: float
) -> None:
    """Print what happens while a data set is fetched."""
    from segdistill.data.prepare import prepare_dataset

    prepare_dataset(
        name,
        root,
        mirror=mirror,
        keep_archives=keep_archives,
        timeout=timeout,
        say=show.plain(console),
        bar=bytes_progress,
    )


def check(console: Console, config: Path, overrides: Sequence[str]) -> bool:
    """Print what `check_dataset` finds in each split; returns whether there are problems."""
    from segdistill.engine.config import load_config

    data = load_config(config, overrides).data
    from segdistill.data.check import check_data

    bad = False
    for split in ("train", "val", "test"):
        try:
            with show.progress(f"items of {split}") as told:
                report = check_data(data.name, split, progress=told, **data.options)
        except ValueError as error:
            console.print(f"{split}: {error}", style="yellow" if split == "test" else "red")
            bad |= split != "test"
            continue
        console.print(split, style="bold")
        for line in report.lines():
            console.print(line)
        bad |= bool(report.problems)
    return bad
