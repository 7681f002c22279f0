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
    help="Get data sets, and look at them.",
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
        Path | None, typer.Option(help="PNG of samples with their masks over them.", show_default=False)
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Keep what was found image by image, so that only changes are read.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read (default: one a core).", min=0, show_default=False)
    ] = None,
) -> None:
    """Look at every image and mask of a configuration's data: counts, copies, all problems."""
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
    root: Annotated[Path, typer.Option(help="Folder that everything goes into.", show_default=False)],
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Address of a folder to fetch the archives from instead (default: $SEGDISTILL_MIRROR).",
            show_default=False,
        ),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep what was downloaded after it is unpacked.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds without a byte after which a download is tried again.", min=1)
    ] = 30,
) -> None:
    """Download a standard data set, or what of it is missing, unpack and verify it; explain what needs a login."""
    folder = show_data.prepare(terminal.say, name, root, mirror=mirror, keep_archives=keep_archives, timeout=timeout)
    if manner().quiet:  # else the line that names the folder is the last
        show.plain(terminal.console)(str(folder))


@app.command("pack", epilog="Example: `segdistill data pack cityscapes.yaml --out ~/packs/cityscapes`")
def data_pack(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    out: Annotated[
        Path, typer.Option(help="Folder of the pack; what is there of these data is kept.", show_default=False)
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="train, val or test; repeatable (default: the first two).")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare a pack with its checksums; write nothing.")] = False,
) -> None:
    """Decode a data set once and for all, so that training reads crops instead of decoding whole images."""
    if show_data.pack(
        terminal.console, terminal.say, config, overrides or [], out, split or ["train", "val"], verify=verify
    ):
        sys.exit(2)
