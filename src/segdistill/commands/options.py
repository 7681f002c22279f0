"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segdistill import completion

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, name from `list configs`, or run folder.",
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
    typer.Option(
        metavar="FILE", help="Write the result as JSON; -: only the JSON, to standard output.", show_default=False
    ),
]
Out = Annotated[Path | None, typer.Option(help="Run folder.", show_default=False)]
Resume = Annotated[
    Literal["yes", "auto"] | None,
    typer.Option(
        "--resume",
        metavar="[auto]",
        show_default=False,
        help="Resume the run in the folder; auto: start it if there is none.",
    ),
]
Override = Annotated[
    bool, typer.Option("--override", help="With --resume: use the new values of lr, clip, precision, …")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Train a few steps, write nothing, and estimate time, memory and disk.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
