"""What the commands on data sets print."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from segdistill import show
from segdistill._printing import number_of
from segdistill.show.bars import STANDARD_OUTPUT, print_json


def prepare(
    say: Callable[[str], None], name: str, root: Path, *, mirror: str | None, keep_archives: bool, timeout: float
) -> Path:
    """Say what happens while a data set is fetched; the folder that it is in."""
    from segdistill.data.prepare import prepare_dataset

    return prepare_dataset(
        name,
        root,
        mirror=mirror,
        keep_archives=keep_archives,
        timeout=timeout,
        say=say,
        bar=partial(show.progress, bytes=True),
    )


def check(
    console: Console,
    config: Path,
    overrides: Sequence[str],
    *,
    workers: int | None,
    json: Path | None,
    sheet: Path | None,
    records: Path | None,
) -> bool:
    """Print what `check_splits` finds, and write it; returns whether there are problems."""
    from segdistill.engine.config import load_config

    data = load_config(config, overrides).data
    from segdistill.data.check import check_splits
    from segdistill.engine.run_folder import as_json, explaining, write_atomically, write_json

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with explaining(records or Path()):
        found = check_splits(
            data.name,
            data.options,
            packed=data.packed,
            groups=data.groups,
            only=data.only,
            unmasked=data.labelled is not None,
            workers=cores if workers is None else workers,
            records=records,
            progress=lambda split: show.progress(f"items of {split}"),
        )
    # What is wanted in files is there before anything is printed: a terminal that is gone costs nothing.
    written = []
    if json is not None:
        splits = {s: {"missing": r} if isinstance(r, str) else r.figures() for s, r in found.items()}
        result = {"data": data.name, "options": data.options, "packed": data.packed, "splits": splits}
        if json == STANDARD_OUTPUT:  # what is printed besides goes to standard error
            print_json(as_json(result))
        else:
            write_json(json, result)
            written.append(f"written to {json}")
    picture = None if sheet is None else _sheet(data, found)
    if sheet is not None and picture is not None:
        write_atomically(sheet, lambda path: picture.save(path, format="PNG"))
    if sheet is not None:
        written.append(f"drawn in {sheet}" if picture else f"{sheet}: not drawn, as no image can be read")
    bad = False
    needed = {"train", "val", *(data.only or {})}  # a test split that patterns are given for has to be there, too
    if data.packed is not None:
        console.print(f"images of the pack {data.packed}", markup=False)
    for split, report in found.items():
        if isinstance(report, str):
            bad |= split in needed
            alike = [other for other in found if found[other] == report]
            if split == alike[0]:  # what all splits lack is said once
                console.print(f"{', '.join(alike)}: {report}", style="red" if needed & set(alike) else "yellow")
            continue
        console.print(split, style="bold")
        for line in report.lines():
            console.print(line)
        bad |= bool(report.problems)
    for line in written:
        show.plain(console)(line)
    return bad


def _sheet(data: Any, found: Mapping[str, Any], count: int = 6) -> Any:
    """A picture of samples of each split that could be read; None if none could."""
    from segdistill.data.check import open_split
    from segdistill.data.sheet import choose_samples, draw_sheet

    samples = {}
    for split, report in found.items():
        if isinstance(report, str):
            continue
        dataset, _ = open_split(data.name, split, data.options, data.packed, data.only)
        readable = report.readable
        chosen = choose_samples(report.seen[readable], count)
        if chosen:
            samples[split] = dataset, [int(readable[index]) for index in chosen]
    return draw_sheet(samples) if samples else None


def pack(
    console: Console,
    say: Callable[[str], None],
    config: Path,
    overrides: Sequence[str],
    out: Path,
    splits: Sequence[str],
    *,
    verify: bool,
) -> bool:
    """Pack a configuration's data, or compare a pack with its checksums; returns whether there are problems."""
    from segdistill.engine.config import load_config

    data = load_config(config, overrides).data
    from segdistill.data.packed import check_origin, damaged_shards, read_pack
    from segdistill.engine.pack import pack_data

    if not verify:
        with show.progress("images") as told:
            pack_data(data, out, splits, say=say, progress=told)
        return False
    tell = show.plain(console)
    pack = read_pack(out)
    check_origin(pack, out, data.name, data.options)
    problems = damaged_shards(out)
    for line in problems:
        tell(f"problem: {line}")
    counts = ", ".join(f"{number_of(found['images'], 'image')} of {split}" for split, found in pack["splits"].items())
    state = number_of(len(problems), "problem") if problems else "as it was packed"
    tell(f"{out}: {counts or 'no split is complete'}; {state}")
    return bool(problems)
