"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segdistill import completion

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, name from `list configs`, or a run folder.",
        show_default=False,
        autocompletion=completion.config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Changes to the configuration.", autocompletion=completion.overrides
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the result as JSON; -: to standard output, alone.", show_default=False),
]
Out = Annotated[Path | None, typer.Option(help="Run folder.", show_default=False)]
Resume = Annotated[
    Literal["yes", "auto"] | None,
    typer.Option(
        "--resume",
        metavar="[auto]",
        show_default=False,
        help="Go on with the run in the folder; auto starts one if there is none, without a word.",
    ),
]
Override = Annotated[
    bool, typer.Option("--override", help="With --resume: take lr, clip, precision, … as they are given now.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Train a few steps, write nothing, say what it would take.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
