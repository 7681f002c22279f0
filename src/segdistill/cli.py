"""The command line: parse, call, print."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import typer

from segdistill import completion, show, show_data
from segdistill._printing import one_line, tolerate_any_encoding
from segdistill.engine.faults import known_fault
from segdistill.show_compare import live
from segdistill.show_progress import STANDARD_OUTPUT, manner, print_json, speaking

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(
    help="Get data sets, and look at them.",
    no_args_is_help=True,
    epilog="Examples: `segdistill data prepare voc2012 --root ~/data`, then "
    "`segdistill data check configs/camvid/student_cpu.yaml --json check.json --sheet check.png`",
)
app.add_typer(data_app, name="data")
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

console = show.PlainConsole(quiet=os.environ.get("RANK", "0") != "0")
"""Where results go."""

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


def _version(wanted: bool) -> None:
    if wanted:
        from segdistill._version import __version__

        print(f"segdistill {__version__}")
        raise typer.Exit


@app.callback()
def segdistill(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the result and errors alone; it may stand anywhere.")
    ] = False,
) -> None:
    """Knowledge distillation for semantic segmentation."""


def main() -> None:
    """Entry point: a mistake is one line and exit code 2, Ctrl-C 130; `--debug` anywhere gives the traceback."""
    tolerate_any_encoding()
    completion.mend_words()
    completion.mend_scripts()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        with speaking(arguments):
            status = app(_arguments(arguments), prog_name="segdistill", standalone_mode=False)
        if status == INTERRUPTED:  # the parser turns Ctrl-C into this, without a word
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        line = known_fault(error)
        if debug or (line is None and isinstance(error, RuntimeError)):
            raise
        fail(line or str(error))
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(0)  # the help is on the screen
        if debug or not hasattr(error, "format_message"):
            raise
        fail(error.format_message())  # a mistake in the arguments


def _arguments(given: list[str]) -> list[str]:
    """The arguments as the parser wants them: it knows no option whose value may be left out."""
    bare = {at for at, (word, after) in enumerate(pairwise([*given, ""])) if word == "--resume" and after != "auto"}
    words = ["--resume=yes" if at in bare else word for at, word in enumerate(given)]
    front = [word for word in words if word == "--quiet"]
    return [*front[:1], *(word for word in words if word not in ("--debug", "--quiet"))]


def _say(line: str) -> None:
    """Print a line on what happens: with the results, unless these are for a script."""
    if manner().quiet:
        return
    show.plain(console)(line)


def _apart(watch: object) -> bool:
    """Whether processes of a comparison print into their logs: a table is drawn, or a script reads what is printed."""
    return watch is not None or manner().quiet or manner().json


def fail(message: str, status: int = 2) -> None:
    """Say what is wrong in one line, and exit."""
    with suppress(OSError):  # the terminal may be gone
        world = int(os.environ.get("WORLD_SIZE", "1"))  # each process of torchrun has its say
        who = f", process {os.environ.get('RANK', '0')} of {world}" if world > 1 else ""
        print(f"segdistill{who}: {one_line(message)}", file=sys.stderr, flush=True)
    sys.exit(status)


def _deliver(result: Mapping[str, Any], path: Path | None, show_it: Callable[..., None]) -> None:
    """Write a result before it is printed, and print it even if it cannot be written: neither costs the other."""
    from segdistill.engine.run_folder import as_json, write_json

    if path == STANDARD_OUTPUT:
        print_json(as_json(result))
        return
    try:
        if path is not None:
            write_json(path, result)
    finally:
        show_it(console, result)
    if path is not None:
        _say(f"written to {path}")


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

        _deliver(forecast(loaded), json, show.forecast)
        return
    if resume and out is None and config.is_dir():
        out = config
    how: bool | Literal["auto"] = "auto" if resume == "auto" else resume is not None
    from segdistill.engine.loop import distill

    _deliver(distill(loaded, out=out, resume=how, override=override), json, show.summary)


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
        Path | None, typer.Option(metavar="RUN", help="The student trained alone, for the gap.", show_default=False)
    ] = None,
    images: Annotated[int, typer.Option(help="Images of train and of val that are looked at, each.", min=1)] = 16,
    json: Json = None,
) -> None:
    """Say from a few images whether distillation is worth it here, and what would help most."""
    from segdistill.engine.config import load_config

    loaded = load_config(config, overrides or [])
    from segdistill.advice.facts import look

    _deliver(look(loaded, baseline=baseline, images=images, progress=show.progress), json, show.advice)


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
            metavar="FOLDER", help="Of the runs, or a URL as s3://…; finished ones in it are kept.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at a time (default: 1; on Ray as many as there is room for).", min=1),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or the machines of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of the Ray cluster: HOST:PORT, ray://HOST:PORT, or local (default: as Ray decides).",
            show_default=False,
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help="That a run takes on Ray, and its threads (default: 1).", min=1)
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(help="That a run takes on Ray; 0.5 shares one (default: 1 if there are any).", min=0),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Do one run, by its number in --list, or teacher; no table.", show_default=False
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the runs with their numbers, one a line.")] = False,
    json: Json = None,
) -> None:
    """Train methods × students × data sets × seeds under one schedule: one table, with intervals and costs."""
    from segdistill.comparison.plan import load_plan

    plan = load_plan(config, overrides or [], out)
    if list_:
        show.runs(console, [run.folder.name for run in plan.runs])
        return
    if only is not None:
        from segdistill.comparison.grid import run_only

        elsewhere = {"jobs": jobs, "address": address, "cpus": cpus, "gpus": gpus, "json": json}
        foreign = [f"--{name}" for name, value in elsewhere.items() if value is not None]
        if foreign or executor != "local":
            spare = ", ".join(foreign or ["--executor"])
            raise ValueError(f"--only does one run on this machine, and makes no table; leave out {spare}")
        run_only(plan, only, say=_say)
        return
    from segdistill.comparison.executors.choice import choose_executor
    from segdistill.comparison.grid import compare

    resources: dict[str, Any] = {"jobs": jobs, "address": address, "cpus": cpus, "gpus": gpus}
    with live() as watch:
        resources["silent"] = _apart(watch)
        chosen = choose_executor(executor, plan, **resources, say=_say)
        result = compare(plan, executor=chosen, say=_say, watch=watch)
    _deliver(result, json, show.comparison)
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
        Path | None, typer.Option(help="Folder of the runs; finished ones in it are kept.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the image that is timed (default: the data's).", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of the CPU while timing (default: torch's).", min=1, show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Passes that are timed.", min=1)] = 30,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None, typer.Option(help="Write the picture in this format as well.")
    ] = None,
    device: Annotated[str, typer.Option(help="On which is timed: cpu, cuda, …")] = "cpu",
    json: Json = None,
) -> None:
    """Train a student at several widths, alone and distilled, and draw mIoU against latency, size and FLOPs."""
    from segdistill.comparison.widths import load_curve

    plan = load_curve(config, overrides or [], out)
    from segdistill.comparison.executors.choice import choose_executor
    from segdistill.report.efficiency import draw_curve

    how: dict[str, Any] = {"size": size, "threads": threads, "repeats": repeats, "figures": figures, "device": device}
    with live() as watch:
        executor = choose_executor("local", plan, jobs=jobs, silent=_apart(watch), say=_say)
        result = draw_curve(plan, executor=executor, say=_say, watch=watch, progress=show.progress, **how)
    _deliver(result, json, show.curve)
    _say(f"written to {plan.out / 'curve.png'}")
    if result["errors"]:
        raise ValueError(f"{len(result['errors'])} runs failed; the same command tries them again")


@app.command("eval", epilog="Example: `segdistill eval runs/student --split test --metric all --json test.json`")
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder, student.safetensors, or a YAML file that names weights."),
    ],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration whose data is used (default: the run's own).", show_default=False)
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, val or test.", autocompletion=completion.words("train", "val", "test"))
    ] = "val",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="mmseg, cirkd, skd, ade_kit or cityscapes; eval.window=… changes it (default: the run's own).",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the figures as JSON (default: beside the model if the data are its run's; of a YAML file: "
            "runs/); -: to standard output, alone.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A further metric, as in `list metrics`, or all; repeatable.", show_default=False),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="For agreement: the teacher (default: the configuration's).", show_default=False
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a trained student, or a network with weights as it is: mIoU, per-class IoU, accuracies, and more."""
    from segdistill.engine.config import is_config
    from segdistill.engine.evaluate import evaluate_run, what_is_foreign
    from segdistill.engine.run_folder import make_folder

    overrides = [*([f"eval.protocol={protocol}"] if protocol else []), *(overrides or [])]
    how: dict[str, Any] = {"config": config, "overrides": overrides, "split": split, "device": device}
    how |= {"metrics": metric or [], "teacher": teacher}
    with show.progress(f"images of {split}") as told:
        result = evaluate_run(model, **how, progress=told)
    folder = model if model.is_dir() else model.parent
    path = json or folder / f"eval_{split}.json"
    if json is None and is_config(model):
        path = Path("runs") / f"{model.stem}_eval_{split}.json"
        make_folder(path.parent)
    elif json is None and (foreign := what_is_foreign(model, config=config, overrides=overrides)):
        _deliver(result, None, show.evaluation)
        _say(f"not written: {foreign} not the run's own, whose figures stay; --json FILE keeps them")
        return
    _deliver(result, path, show.evaluation)


@app.command(epilog="Example: `segdistill predict runs/student street.jpg more_images/ --out predictions`")
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, student.safetensors or .onnx file.")],
    images: Annotated[list[Path], typer.Argument(help="Images, videos, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("predictions"),
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of what the network sees (default: as in its training).", show_default=False
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="mmseg, cirkd, … (default: as in its validation).", show_default=False),
    ] = None,
    window: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of windows to see images through, however large (default: as in its validation).",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        Literal["pictures", "cityscapes"],
        typer.Option(help="cityscapes: label ids under the names that its server wants, in OUT/label_ids."),
    ] = "pictures",
    frames: Annotated[
        bool, typer.Option("--frames", help="Of videos, write the frames as PNG files instead of videos.")
    ] = False,
    image_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Values that are black and white (default: as in training).", show_default=False),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Largest image (default: 179 million pixels).", min=1, show_default=False)
    ] = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Segment images and videos: class numbers, colours, and colours over the image; or a benchmark's files."""
    from segdistill.deploy.outputs import KINDS
    from segdistill.deploy.predict import card_protocol, iterate_predictions
    from segdistill.engine.runtime import runtime

    with runtime(device) as run, show.progress("images") as progress:
        how: dict[str, Any] = {"image_range": image_range, "max_pixels": max_pixels, "size": size, "format": format}
        how |= {"protocol": card_protocol(model, protocol, window), "frames": frames}
        predictions = iterate_predictions(model, images, out, run=run, progress=progress, **how)
        start = perf_counter()
        count = sum(1 for _ in predictions)
        rate = count / max(perf_counter() - start, 1e-9)
    result = {"images": count, "folders": [f"{out}/{kind}" for kind in KINDS[format]], "images_per_second": rate}
    _deliver(result, json, show.predictions)


@app.command(epilog="Example: `segdistill serve runs/student --baseline runs/none --teacher runs/teacher`")
def serve(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Run folder, student.safetensors or .onnx file.")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The same student without distillation.", show_default=False)
    ] = None,
    teacher: Annotated[Path | None, typer.Option(metavar="RUN", help="Its teacher.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 8000,
    max_megabytes: Annotated[int, typer.Option(help="Largest upload.", min=1)] = 32,
    max_pixels: Annotated[int, typer.Option(help="Largest image.", min=1)] = 40_000_000,
    queue: Annotated[int, typer.Option(help="Requests that may wait.", min=0)] = 16,
    device: Device = "auto",
) -> None:
    """Serve a page that shows what student, baseline and teacher see in an image, and a JSON interface."""
    from segdistill.deploy.serve.server import serve as serve_models

    limits = {"max_bytes": max_megabytes * 2**20, "max_pixels": max_pixels, "waiting": queue}
    say = show.plain(console)
    serve_models(student, baseline=baseline, teacher=teacher, host=host, port=port, **limits, device=device, say=say)


@app.command(epilog="Example: `segdistill export runs/student --out student.onnx`")
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or student.safetensors.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, .xml or .pte.", show_default=False)],
    format: Annotated[Literal["onnx", "openvino", "executorch"], typer.Option(help="What runs it.")] = "onnx",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the images (default: as in its evaluation).", show_default=False),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Images of any size, batches of any number.")] = False,
    output: Annotated[Literal["ids", "logits", "both"], typer.Option(help="What the file gives.")] = "both",
    input: Annotated[Literal["float", "uint8"], typer.Option(help="RGB in 0…1, or in 0…255.")] = "float",
    int8: Annotated[bool, typer.Option("--int8", help="Compute in 8 bits, but for layers that lose too much.")] = False,
    calibrate: Annotated[int, typer.Option(metavar="N", help="Training images for int8's ranges.", min=1)] = 64,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in half precision, for GPUs.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of a logit, relative to the largest one (default: 1e-4; fp16 0.02; int8 any).",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Points of mIoU that int8 and fp16 may lose.")] = 0.5,
    images: Annotated[int, typer.Option(help="Validation images that the file is checked on.", min=1)] = 32,
    config: Annotated[
        Path | None, typer.Option(help="Configuration whose data is used (default: the run's own).", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the exporter gets.", min=1)] = 600,
    json: Json = None,
) -> None:
    """Write a student as a file for ONNX Runtime, OpenVINO or ExecuTorch, checked against it before it is there."""
    from segdistill.deploy.export import export_student

    if size is not None and dynamic:
        raise ValueError("--size and --dynamic: a file is for one size or for any; give one of them")
    form: dict[str, Any] = {"size": size, "dynamic": dynamic, "output": output, "input": input}
    numbers: dict[str, Any] = {"int8": int8, "calibrate": calibrate, "fp16": fp16, "max_drop": max_drop}
    checks: dict[str, Any] = {"tolerance": tolerance, "images": images, "config": config, "timeout": timeout}
    how: dict[str, Any] = {**form, **numbers, **checks, "say": _say, "progress": show.progress}
    metadata = export_student(model, out, format=format, **how)
    _deliver(metadata, json, lambda console, metadata: show.exported(console, metadata, out))


@app.command(epilog="Example: `segdistill card runs/student --license cc-by-4.0`")
def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    license: Annotated[
        str | None, typer.Option(help="As the hub names it, such as apache-2.0.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file (default: RUN/README.md).", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a README.md that is there.")] = False,
) -> None:
    """Write a student's model card, in the format of Hugging Face's hub: what it is, reaches, needs."""
    from segdistill.deploy.model_card import README, write_model_card

    path = run / README if out is None else out
    if path.exists() and not force:
        raise ValueError(f"{path} is there already, perhaps with changes of yours; --force replaces it")
    console.print(f"written to {write_model_card(run, license=license, out=out)}", soft_wrap=True)
    if license is None:
        console.print("it names no licence; --license NAME does")


@app.command(epilog="Example: `segdistill push runs/student me/street-student --private --dry-run`")
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME on the hub.", show_default=False)],
    files: Annotated[
        list[str] | None, typer.Option(help="Further files of the folder, by name or pattern.", show_default=False)
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Of the card, if the folder has no README.md.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch (default: main).", show_default=False)] = None,
    token: Annotated[
        str | None, typer.Option(help="With the right to write (default: HF_TOKEN's).", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")] = False,
) -> None:
    """Put a student, its model card and its ONNX files on Hugging Face's hub (HF_ENDPOINT: another one)."""
    from segdistill.deploy.push import push as upload

    how: dict[str, Any] = {"license": license, "private": private, "revision": revision, "token": token}
    address = upload(run, repo, files=files or [], dry_run=dry_run, say=_say, **how)
    if address is not None:
        console.print(address, soft_wrap=True, highlight=False)


@app.command(
    epilog="Example: `segdistill report runs/camvid_lite0_cwd --baseline runs/camvid_lite0_none --out runs/report`"
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    baseline: Annotated[
        Path | None, typer.Option(help="What students are compared with (default: runs without a teacher among RUN).")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Its run (default: the one in the configurations).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report (default: RUN/report).")] = None,
    images: Annotated[
        int, typer.Option(help="How many of the images that gained most, and lost most; 0: none.", min=0, max=40)
    ] = 4,
    figures: Annotated[
        Literal["png", "pdf", "svg"] | None, typer.Option(help="Write the figures as files as well, for a paper.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write one page on runs: tables, curves, classes, confusions, pictures; if wanted, the figures as files."""
    from segdistill.report import write_report

    how: dict[str, Any] = {"baseline": baseline, "teacher": teacher, "out": out, "images": images, "figures": figures}
    page = write_report(runs, **how, device=device, say=_say, progress=show.progress)
    show.plain(console)(f"written to {page}")


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
        bool, typer.Option("--stats", help="With models: parameters and operations, beside the papers'.")
    ] = False,
) -> None:
    """List methods with their options, networks, data sets, metrics, configurations, and what these may say."""
    if key is not None and what != "config":
        raise ValueError(f"list {what} {key}: only config has keys; `segdistill list config {key}`")
    if what == "config":
        show.config_reference(console, key)
    else:
        show.catalogue(console, what, stats=stats)


@app.command(epilog="Example: `segdistill layers pspnet_resnet18 --depth 2`")
def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a network, or a run folder.")],
    size: Annotated[tuple[int, int], typer.Option(help="Height and width of the image.")] = (512, 1024),
    depth: Annotated[int, typer.Option(help="Levels of nesting to show.")] = 2,
) -> None:
    """Print a network's submodules with their output shapes, and where its taps are."""
    show.layers(console, model, size, depth)


@data_app.command("check", epilog="Example: `segdistill data check camvid/student_cpu --sheet check.png`")
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
    if show_data.check(console, config, overrides or [], workers=workers, json=json, sheet=sheet, records=records):
        sys.exit(2)


@data_app.command("prepare", epilog="Example: `segdistill data prepare voc2012 --root ~/data`")
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
    folder = show_data.prepare(_say, name, root, mirror=mirror, keep_archives=keep_archives, timeout=timeout)
    if manner().quiet:  # else the line that names the folder is the last
        show.plain(console)(str(folder))


@data_app.command("pack", epilog="Example: `segdistill data pack cityscapes.yaml --out ~/packs/cityscapes`")
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
    if show_data.pack(console, _say, config, overrides or [], out, split or ["train", "val"], verify=verify):
        sys.exit(2)


@app.command(epilog="Example: `segdistill benchmark pspnet_resnet18 --teacher pspnet_resnet101 --method sstkd`")
def benchmark(
    student: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a network, or a run.")] = "pspnet_resnet18",
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Likewise.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Also count what this method adds (teacher: pspnet_resnet101).",
            show_default=False,
            autocompletion=completion.methods,
        ),
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the image (default: 512 1024; with --formats the data's)."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Passes that are timed; 0: only count.")] = 10,
    threads: Annotated[int | None, typer.Option(help="Of the CPU (default: torch's).", show_default=False)] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Measure compiled networks too.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Measure ONNX Runtime too.")] = False,
    device: Device = "auto",
    json: Json = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="Of trained runs: PyTorch and every ONNX file beside them, on the CPU.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --formats: the student alone.", show_default=False)
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="With --formats: further ONNX files of the student.", show_default=False)
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="With --formats: how many of val are scored (default: all).", min=0)
    ] = None,
) -> None:
    """Parameters, FLOPs, peak memory and latency of a student and its teacher, and what a method adds in training.

    With --formats: size, mIoU, agreement, latency and memory of each file that could be deployed.
    """
    if formats:
        from segdistill.measure.deployed import BENCHMARK, benchmark_formats

        if method is not None or compiled or onnx or device not in ("auto", "cpu"):
            raise ValueError("--formats is of files on the CPU: leave out --method, --compile, --onnx and --device")
        given: dict[str, Any] = {"baseline": baseline, "teacher": teacher, "files": file or [], "images": images}
        given |= {"size": size, "threads": threads, "repeats": max(1, repeats)}
        result = benchmark_formats(student, **given, say=_say, progress=show.progress)
        path = json or (Path(student) / BENCHMARK if Path(student).is_dir() else None)
        _deliver(result, path, show.formats)
        if path is not None and path != STANDARD_OUTPUT and any(row["miou"] is not None for row in result["rows"]):
            from segdistill.report.figures import Album
            from segdistill.report.formats import draw_formats

            draw_formats(Album(path.parent, "png"), result, path.stem)
            _say(f"written to {path.with_suffix('.png')}")
        return
    if baseline is not None or file or images is not None:
        raise ValueError("--baseline, --file and --images are of --formats")
    from segdistill.measure.benchmark import benchmark_models

    teacher = teacher or ("pspnet_resnet101" if method else None)
    how: dict[str, Any] = {"sizes": [size or (512, 1024)], "repeats": repeats, "threads": threads, "device": device}
    with show.progress("passes") as told:
        result = benchmark_models(student, teacher, method=method, compiled=compiled, onnx=onnx, **how, progress=told)
    _deliver(result, json, show.benchmark)


@app.command(epilog="Example: `segdistill textures street.jpg --model runs/sstkd --teacher runs/teacher`")
def textures(
    image: Annotated[Path, typer.Argument(help="Image file.", show_default=False)],
    model: Annotated[
        Path, typer.Option(metavar="RUN", help="Run folder, student.safetensors or .onnx file.", show_default=False)
    ],
    teacher: Annotated[Path | None, typer.Option(metavar="RUN", help="Its teacher.", show_default=False)] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The same student without SSTKD.", show_default=False)
    ] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Height and width to resize the image to.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("textures"),
) -> None:
    """Draw what SSTKD transfers, of one image: low-level features, contourlet subbands, regions, counts."""
    from segdistill.report.texture_pictures import draw_textures
    from segdistill.report.textures import read_textures

    seen = read_textures(image, model, teacher=teacher, baseline=baseline, size=size)
    console.print(f"{' '.join(file.name for file in draw_textures(seen, out))} → {out}", soft_wrap=True)


@app.command(epilog="Example: `segdistill doctor`")
def doctor(json: Json = None) -> None:
    """Print versions, devices and threads, and what is missing."""
    _deliver(show.findings(), json, show.doctor)


@app.command(epilog="Example: `segdistill demo --out runs/demo`")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones in it are kept.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Runs per student.", min=1)] = 2,
) -> None:
    """Teacher, baseline, two distilled students on built-in data; a table and a report (six minutes on two cores)."""
    from segdistill.demo import demo_report, run_demo

    with live() as watch:
        rows = run_demo(out, seeds, say=_say, silent=_apart(watch), watch=watch)
    show.demo(console, rows)
    demo_report(out, say=_say, progress=show.progress)


if __name__ == "__main__":
    main()
