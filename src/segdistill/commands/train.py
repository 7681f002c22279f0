"""`segdistill train`, `distill`, `advise`: a run, and whether it is worth it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segdistill import show
from segdistill.commands import terminal
from segdistill.commands.options import ConfigPath, DryRun, Json, Out, Override, Overrides, Resume

app = typer.Typer()


def _train(
    config: Path,
    overrides: list[str],
    out: Path | None,
    resume: Literal["yes", "auto"] | None,
    override: bool,
    dry_run: bool,
    json: Path | None,
    *,
    alone: bool,
) -> None:
    from segdistill.engine.config import load_config

    loaded = load_config(config, [*overrides, "method=none"] if alone else overrides)
    if not alone and not loaded.distils and loaded.teacher is None:
        raise ValueError(
            "nothing to distil: set method=NAME and teacher.checkpoint=RUN (`segdistill train` trains a student alone)"
        )
    if dry_run:
        from segdistill.engine.forecast import forecast

        terminal.deliver(forecast(loaded), json, show.forecast)
        return
    if resume and out is None and config.is_dir():
        out = config
    how: bool | Literal["auto"] = "auto" if resume == "auto" else resume is not None
    from segdistill.engine.loop import distill

    terminal.deliver(distill(loaded, out=out, resume=how, override=override), json, show.summary)


@app.command(epilog="Example: `segdistill train camvid/teacher_cpu train.steps=2000 --out runs/teacher`")
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    override: Override = False,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Train a network alone: a teacher, or the baseline of a student."""
    _train(config, overrides or [], out, resume, override, dry_run, json, alone=True)


@app.command(epilog="Example: `segdistill distill camvid/student_cpu method=cwd teacher.checkpoint=runs/teacher`")
def distill(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    override: Override = False,
    dry_run: DryRun = False,
    json: Json = None,
) -> None:
    """Train a student from a teacher."""
    _train(config, overrides or [], out, resume, override, dry_run, json, alone=False)


@app.command(epilog="Example: `segdistill advise camvid/student_cpu method=kd teacher.checkpoint=runs/teacher`")
def advise(
    config: ConfigPath,
    overrides: Overrides = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run of the student trained without a teacher, for the gap.", show_default=False
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Number of images to use of train, and of val.", min=1)] = 16,
    json: Json = None,
) -> None:
    """Estimate from a few images whether distillation is worth it here, and what would help most."""
    from segdistill.engine.config import load_config

    loaded = load_config(config, overrides or [])
    from segdistill.advice.facts import look

    terminal.deliver(look(loaded, baseline=baseline, images=images, progress=show.progress), json, show.advice)
