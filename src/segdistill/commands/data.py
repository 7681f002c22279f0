"""`segdistill data check`, `prepare`, `pack`: data sets."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from segdistill import completion, show
from segdistill.commands import terminal
from segdistill.commands.options import ConfigPath, Json, Overrides
from segdistill.show import data as show_data
from segdistill.show.bars import manner

app = typer.Typer(
    help="Download, check and pack data sets.",
    no_args_is_help=True,
    epilog="Examples: `segdistill data prepare voc2012 --root ~/data`, then "
    "`segdistill data check configs/camvid/student_cpu.yaml --json check.json --sheet check.png`",
)


@app.command("check", epilog="Example: `segdistill data check camvid/student_cpu --sheet check.png`")
def data_check(
    config: ConfigPath,
    overrides: Overrides = None,
    json: Json = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of samples with their masks to this file.", show_default=False)
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            help="Store the results per image in this file, so that a repeated check reads only changed images.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of processes that read (default: one per core).", min=0, show_default=False),
    ] = None,
) -> None:
    """Check every image and mask of a configuration's data: print counts, duplicates and all problems."""
    if show_data.check(
        terminal.console, config, overrides or [], workers=workers, json=json, sheet=sheet, records=records
    ):
        sys.exit(2)


@app.command("prepare", epilog="Example: `segdistill data prepare voc2012 --root ~/data`")
def data_prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="ade20k, camvid, cityscapes, coco_stuff, pascal_context, sbd or voc2012.",
            show_default=False,
            autocompletion=completion.sources,
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder for the data set.", show_default=False)],
    mirror: Annotated[
        str | None,
        typer.Option(
            help="URL of a folder to download the archives from instead (default: $SEGDISTILL_MIRROR).",
            show_default=False,
        ),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the archives after they are unpacked.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds without data after which a download is tried again.", min=1)
    ] = 30,
) -> None:
    """Download, unpack and verify a standard data set, or its missing parts; explain what needs a login."""
    folder = show_data.prepare(terminal.say, name, root, mirror=mirror, keep_archives=keep_archives, timeout=timeout)
    if manner().quiet:  # else the line that names the folder is the last
        show.plain(terminal.console)(str(folder))


@app.command("pack", epilog="Example: `segdistill data pack cityscapes.yaml --out ~/packs/cityscapes`")
def data_pack(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the pack; finished parts in it are kept.", show_default=False)],
    split: Annotated[
        list[str] | None, typer.Option(help="train, val or test; repeatable (default: the first two).")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare a pack with its checksums.")] = False,
) -> None:
    """Decode a data set once, so that training reads crops and does not decode whole images."""
    if show_data.pack(
        terminal.console, terminal.say, config, overrides or [], out, split or ["train", "val"], verify=verify
    ):
        sys.exit(2)
