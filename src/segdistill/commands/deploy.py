"""`segdistill predict`, `serve`, `export`, `card`, `push`: what becomes of a trained student."""

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import typer

from segdistill import show
from segdistill.commands import terminal
from segdistill.commands.options import Device, Json

app = typer.Typer()


@app.command(epilog="Example: `segdistill predict runs/student street.jpg more_images/ --out predictions`")
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, student.safetensors or .onnx file.")],
    images: Annotated[list[Path], typer.Argument(help="Images, videos, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("predictions"),
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width to resize images to for the network (default: as in its training).",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="mmseg, cirkd, … (default: as in its validation).", show_default=False),
    ] = None,
    window: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of sliding windows, for images of any size (default: as in its validation).",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        Literal["pictures", "cityscapes"],
        typer.Option(help="cityscapes: write label ids for the Cityscapes server into OUT/label_ids."),
    ] = "pictures",
    frames: Annotated[
        bool, typer.Option("--frames", help="Write the frames of videos as PNG files, not as videos.")
    ] = False,
    image_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Pixel values of black and white (default: as in training).", show_default=False),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Largest image in pixels (default: 179 million).", min=1, show_default=False)
    ] = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Segment images and videos: write class numbers, colours, and colours over the image; or files for a benchmark."""
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
    terminal.deliver(result, json, show.predictions)


@app.command(epilog="Example: `segdistill serve runs/student --baseline runs/none --teacher runs/teacher`")
def serve(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Run folder, student.safetensors or .onnx file.")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The same student without distillation.", show_default=False)
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The student's teacher.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free port.", min=0, max=65535)] = 8000,
    max_megabytes: Annotated[int, typer.Option(help="Largest upload in MiB.", min=1)] = 32,
    max_pixels: Annotated[int, typer.Option(help="Largest image in pixels.", min=1)] = 40_000_000,
    queue: Annotated[int, typer.Option(help="Number of requests that may wait.", min=0)] = 16,
    device: Device = "auto",
) -> None:
    """Start a web server: a page with the predictions of student, baseline and teacher, and a JSON interface."""
    from segdistill.deploy.serve.server import serve as serve_models

    limits = {"max_bytes": max_megabytes * 2**20, "max_pixels": max_pixels, "waiting": queue}
    say = show.plain(terminal.console)
    serve_models(student, baseline=baseline, teacher=teacher, host=host, port=port, **limits, device=device, say=say)


@app.command(epilog="Example: `segdistill export runs/student --out student.onnx`")
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or student.safetensors.")],
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, .xml or .pte.", show_default=False)],
    format: Annotated[Literal["onnx", "openvino", "executorch"], typer.Option(help="Format of the file.")] = "onnx",
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
    max_drop: Annotated[float, typer.Option(help="Points of mIoU that int8 and fp16 may lose at most.")] = 0.5,
    images: Annotated[int, typer.Option(help="Number of validation images for the check of the file.", min=1)] = 32,
    config: Annotated[
        Path | None, typer.Option(help="Configuration whose data is used (default: the run's own).", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which the exporter is stopped.", min=1)] = 600,
    json: Json = None,
) -> None:
    """Export a student to a file for ONNX Runtime, OpenVINO or ExecuTorch, and check that both agree."""
    from segdistill.deploy.export import export_student

    if size is not None and dynamic:
        raise ValueError("--size and --dynamic: a file is for one size or for any; give one of them")
    form: dict[str, Any] = {"size": size, "dynamic": dynamic, "output": output, "input": input}
    numbers: dict[str, Any] = {"int8": int8, "calibrate": calibrate, "fp16": fp16, "max_drop": max_drop}
    checks: dict[str, Any] = {"tolerance": tolerance, "images": images, "config": config, "timeout": timeout}
    how: dict[str, Any] = {**form, **numbers, **checks, "say": terminal.say, "progress": show.progress}
    metadata = export_student(model, out, format=format, **how)
    terminal.deliver(metadata, json, lambda console, metadata: show.exported(console, metadata, out))


@app.command(epilog="Example: `segdistill card runs/student --license cc-by-4.0`")
def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    license: Annotated[
        str | None, typer.Option(help="Licence, as the hub names it, such as apache-2.0.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file (default: RUN/README.md).", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing README.md.")] = False,
) -> None:
    """Write a student's model card for Hugging Face's hub."""
    from segdistill.deploy.model_card import README, write_model_card

    path = run / README if out is None else out
    if path.exists() and not force:
        raise ValueError(f"{path} is there already, perhaps with changes of yours; --force replaces it")
    terminal.console.print(f"written to {write_model_card(run, license=license, out=out)}", soft_wrap=True)
    if license is None:
        terminal.console.print("it names no licence; --license NAME does")


@app.command(epilog="Example: `segdistill push runs/student me/street-student --private --dry-run`")
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME on the hub.", show_default=False)],
    files: Annotated[
        list[str] | None, typer.Option(help="Further files of the folder, by name or pattern.", show_default=False)
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Licence for the model card, if the folder has no README.md.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch (default: main).", show_default=False)] = None,
    token: Annotated[
        str | None, typer.Option(help="Token with write access (default: $HF_TOKEN).", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be uploaded, and upload nothing.")
    ] = False,
) -> None:
    """Upload a student, its model card and its ONNX files to Hugging Face's hub (HF_ENDPOINT: another hub)."""
    from segdistill.deploy.push import push as upload

    how: dict[str, Any] = {"license": license, "private": private, "revision": revision, "token": token}
    address = upload(run, repo, files=files or [], dry_run=dry_run, say=terminal.say, **how)
    if address is not None:
        terminal.console.print(address, soft_wrap=True, highlight=False)
