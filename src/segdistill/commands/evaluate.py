"""`segdistill eval`: what a trained network reaches."""

from pathlib import Path
from typing import Annotated, Any

import typer

from segdistill import completion, show
from segdistill.commands import terminal
from segdistill.commands.options import Device, Overrides

app = typer.Typer()


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
        str, typer.Option(help="Split: train, val or test.", autocompletion=completion.words("train", "val", "test"))
    ] = "val",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="mmseg, cirkd, skd, ade_kit or cityscapes; eval.KEY=VALUE changes one key (default: the run's own).",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result as JSON (default: beside the model if the data are its run's; for a YAML file in "
            "runs/); -: only the JSON, to standard output.",
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
            metavar="RUN",
            help="For the metric agreement: the teacher (default: the configuration's).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a trained student, or a network with published weights: mIoU, IoU by class, accuracies, and more."""
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
        terminal.deliver(result, None, show.evaluation)
        terminal.say(f"not written: {foreign} not the run's own, whose figures stay; --json FILE keeps them")
        return
    terminal.deliver(result, path, show.evaluation)
