"""`segdistill compare` and `curve`: many runs, one table or picture."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from segdistill import completion, show
from segdistill.commands import terminal
from segdistill.commands.options import ConfigPath, Json
from segdistill.show import compare as show_compare

app = typer.Typer()


@app.command(epilog="Example: `segdistill compare camvid/compare_cpu methods=[none,cwd] seeds=3 --out runs/table`")
def compare(
    config: ConfigPath,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="methods=[none,cwd] seeds=3 students=[…] data=[…] seconds=600, and changes to the configuration.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the runs, or a URL such as s3://…; finished runs in it are kept.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Number of runs at a time (default: 1; on Ray as many as fit).", min=1),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Where runs are done: on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of the Ray cluster: HOST:PORT, ray://HOST:PORT, or local (default: Ray decides).",
            show_default=False,
        ),
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs and threads of each run on Ray (default: 1).", min=1)] = None,
    gpus: Annotated[
        float | None,
        typer.Option(help="GPUs of each run on Ray; 0.5: two runs share one (default: 1 if there are any).", min=0),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Do only run number N of --list, or train the teacher (N = teacher); no table.",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the runs with their numbers, one per line.")] = False,
    json: Json = None,
) -> None:
    """Train methods × students × data sets × seeds under one schedule; write a table with intervals and costs."""
    from segdistill.comparison.plan import load_plan

    plan = load_plan(config, overrides or [], out)
    if list_:
        show_compare.runs(terminal.console, [run.folder.name for run in plan.runs])
        return
    if only is not None:
        from segdistill.comparison.grid import run_only

        elsewhere = {"jobs": jobs, "address": address, "cpus": cpus, "gpus": gpus, "json": json}
        foreign = [f"--{name}" for name, value in elsewhere.items() if value is not None]
        if foreign or executor != "local":
            spare = ", ".join(foreign or ["--executor"])
            raise ValueError(f"--only does one run on this machine, and makes no table; leave out {spare}")
        run_only(plan, only, say=terminal.say)
        return
    from segdistill.comparison.executors.choice import choose_executor
    from segdistill.comparison.grid import compare

    resources: dict[str, Any] = {"jobs": jobs, "address": address, "cpus": cpus, "gpus": gpus}
    with show_compare.live() as watch:
        resources["silent"] = terminal.apart(watch)
        chosen = choose_executor(executor, plan, **resources, say=terminal.say)
        result = compare(plan, executor=chosen, say=terminal.say, watch=watch)
    terminal.deliver(result, json, show_compare.comparison)
    failed = sum(run["status"] == "failed" for run in result["runs"])
    if failed:
        raise ValueError(f"{failed} of {len(result['runs'])} runs failed; the same command tries them again")


@app.command(epilog="Example: `segdistill curve my.yaml methods=[none,cwd] widths=[0.5,1] --out runs/curve`")
def curve(
    config: ConfigPath,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="widths=[0.25,0.5,0.75,1] methods=[none,cwd] seeds=3, and changes to the configuration.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; finished runs in it are kept.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of runs at a time.", min=1)] = 1,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the image for timing (default: that of the data).", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads for timing (default: torch's).", min=1, show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of timed passes.", min=1)] = 30,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None, typer.Option(help="Write the picture in this format as well.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device for timing: cpu, cuda, …")] = "cpu",
    json: Json = None,
) -> None:
    """Train a student at several widths, alone and distilled, and draw mIoU against latency, size and FLOPs."""
    from segdistill.comparison.widths import load_curve

    plan = load_curve(config, overrides or [], out)
    from segdistill.comparison.executors.choice import choose_executor
    from segdistill.report.efficiency import draw_curve

    how: dict[str, Any] = {"size": size, "threads": threads, "repeats": repeats, "figures": figures, "device": device}
    with show_compare.live() as watch:
        executor = choose_executor("local", plan, jobs=jobs, silent=terminal.apart(watch), say=terminal.say)
        result = draw_curve(plan, executor=executor, say=terminal.say, watch=watch, progress=show.progress, **how)
    terminal.deliver(result, json, show_compare.curve)
    terminal.say(f"written to {plan.out / 'curve.png'}")
    if result["errors"]:
        raise ValueError(f"{len(result['errors'])} runs failed; the same command tries them again")
