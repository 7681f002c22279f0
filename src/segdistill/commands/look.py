"""`segdistill report`, `list`, `layers`, `benchmark`, `textures`, `doctor`, `demo`: what there is to see."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from segdistill import completion, show
from segdistill.commands import terminal
from segdistill.commands.options import Device, Json
from segdistill.show import compare as show_compare
from segdistill.show import costs as show_costs
from segdistill.show import lists as show_lists
from segdistill.show.bars import STANDARD_OUTPUT

app = typer.Typer()


@app.command(
    epilog="Example: `segdistill report runs/camvid_lite0_cwd --baseline runs/camvid_lite0_none --out runs/report`"
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Run to compare students with (default: those of RUN without a teacher).")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Run of the teacher (default: the one in the configurations).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report (default: RUN/report).")] = None,
    images: Annotated[
        int,
        typer.Option(help="Number of images with the largest gain, and with the largest loss; 0: none.", min=0, max=40),
    ] = 4,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None, typer.Option(help="Write the figures as files as well, for a paper.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a report on runs as one web page: tables, curves, classes, confusions, pictures."""
    from segdistill.report import write_report

    how: dict[str, Any] = {"baseline": baseline, "teacher": teacher, "out": out, "images": images, "figures": figures}
    page = write_report(runs, **how, device=device, say=terminal.say, progress=show.progress)
    show.plain(terminal.console)(f"written to {page}")


@app.command("list", epilog="Example: `segdistill list methods`")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="methods, models, data, metrics, configs or config; the first three if left out.",
            autocompletion=completion.words("methods", "models", "data", "metrics", "configs", "config"),
        ),
    ] = "all",
    key: Annotated[
        str | None, typer.Argument(help="With config: a section or a key, as train or train.lr.", show_default=False)
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="With models: parameters and operations, beside the papers' figures.")
    ] = False,
) -> None:
    """List methods with their options, networks, data sets, metrics, configurations, and configuration keys."""
    if key is not None and what != "config":
        raise ValueError(f"list {what} {key}: only config has keys; `segdistill list config {key}`")
    if what == "config":
        show_lists.config_reference(terminal.console, key)
    else:
        show_lists.catalogue(terminal.console, what, stats=stats)


@app.command(epilog="Example: `segdistill layers pspnet_resnet18 --depth 2`")
def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a network, or a run folder.")],
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of the image.")] = (512, 1024),
    depth: Annotated[int, typer.Option(help="Levels of nesting to show.")] = 2,
) -> None:
    """Print a network's submodules with their output shapes, and where its taps are."""
    show_lists.layers(terminal.console, model, size, depth)


@app.command(epilog="Example: `segdistill benchmark pspnet_resnet18 --teacher pspnet_resnet101 --method sstkd`")
def benchmark(
    student: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a network, or a run.")] = "pspnet_resnet18",
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The teacher: name of a network, or a run.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Also measure what this method adds (default teacher: pspnet_resnet101).",
            show_default=False,
            autocompletion=completion.methods,
        ),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the image (default: 512 1024; with --formats those of the data)."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of timed passes; 0: only count.")] = 10,
    threads: Annotated[
        int | None, typer.Option(help="Number of CPU threads (default: torch's).", show_default=False)
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure compiled networks too.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Measure ONNX Runtime too.")] = False,
    device: Device = "auto",
    json: Json = None,
    formats: Annotated[
        bool,
        typer.Option("--formats", help="Compare trained runs in PyTorch and all ONNX files beside them, on the CPU."),
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --formats: the run of the baseline.", show_default=False)
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="With --formats: further ONNX files of the student.", show_default=False)
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="With --formats: number of validation images to score (default: all).", min=0)
    ] = None,
) -> None:
    """Measure parameters, FLOPs, peak memory and latency of a student and its teacher, and what a method adds.

    With --formats: size, mIoU, agreement, latency and memory of each file that could be deployed.
    """
    if formats:
        from segdistill.measure.deployed import BENCHMARK, benchmark_formats

        if method is not None or compiled or onnx or device not in ("auto", "cpu"):
            raise ValueError("--formats is of files on the CPU: leave out --method, --compile, --onnx and --device")
        given: dict[str, Any] = {"baseline": baseline, "teacher": teacher, "files": file or [], "images": images}
        given |= {"size": size, "threads": threads, "repeats": max(1, repeats)}
        result = benchmark_formats(student, **given, say=terminal.say, progress=show.progress)
        path = json or (Path(student) / BENCHMARK if Path(student).is_dir() else None)
        terminal.deliver(result, path, show_costs.formats)
        if path is not None and path != STANDARD_OUTPUT and any(row["miou"] is not None for row in result["rows"]):
            from segdistill.report.figures import Album
            from segdistill.report.formats import draw_formats

            draw_formats(Album(path.parent, "png"), result, path.stem)
            terminal.say(f"written to {path.with_suffix('.png')}")
        return
    if baseline is not None or file or images is not None:
        raise ValueError("--baseline, --file and --images are of --formats")
    from segdistill.measure.benchmark import benchmark_models

    teacher = teacher or ("pspnet_resnet101" if method else None)
    how: dict[str, Any] = {"sizes": [size or (512, 1024)], "repeats": repeats, "threads": threads, "device": device}
    with show.progress("passes") as told:
        result = benchmark_models(student, teacher, method=method, compiled=compiled, onnx=onnx, **how, progress=told)
    terminal.deliver(result, json, show_costs.benchmark)


@app.command(epilog="Example: `segdistill textures street.jpg --model runs/sstkd --teacher runs/teacher`")
def textures(
    image: Annotated[Path, typer.Argument(help="Image file.", show_default=False)],
    model: Annotated[
        Path, typer.Option(metavar="RUN", help="Run folder, student.safetensors or .onnx file.", show_default=False)
    ],
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The student's teacher.", show_default=False)
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The same student without SSTKD.", show_default=False)
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width to resize the image to.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("textures"),
) -> None:
    """Draw what SSTKD transfers for one image: low-level features, contourlet subbands, regions, counts."""
    from segdistill.report.texture_pictures import draw_textures
    from segdistill.report.textures import read_textures

    seen = read_textures(image, model, teacher=teacher, baseline=baseline, size=size)
    terminal.console.print(f"{' '.join(file.name for file in draw_textures(seen, out))} → {out}", soft_wrap=True)


@app.command(epilog="Example: `segdistill doctor`")
def doctor(json: Json = None) -> None:
    """Print versions, devices and threads, and what is missing."""
    terminal.deliver(show.findings(), json, show.doctor)


@app.command(epilog="Example: `segdistill demo --out runs/demo`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished runs in it are kept.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Number of runs per student.", min=1)] = 2,
) -> None:
    """Train teacher, baseline and two students on built-in data; write a report (some minutes on two cores)."""
    from segdistill.demo import demo_report, run_demo

    with show_compare.live() as watch:
        rows = run_demo(out, seeds, say=terminal.say, silent=terminal.apart(watch), watch=watch)
    show_compare.demo(terminal.console, rows)
    demo_report(out, say=terminal.say, progress=show.progress)
