"""How a run begins in its folder: afresh, where it stopped, or not at all since it is finished."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segdistill.data.dataset import hash_names
from segdistill.engine.checkpoint import load_checkpoint
from segdistill.engine.clock import Clock
from segdistill.engine.config import Config, dump_config, load_config
from segdistill.engine.optim import optimizer_options, set_kernels, set_options
from segdistill.engine.record import Recorder
from segdistill.engine.run_folder import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    STUDENT,
    SUMMARY,
    read_json,
    stored_json,
    write_json,
    write_text,
)
from segdistill.engine.runtime import environment
from segdistill.engine.settings import check_same
from segdistill.engine.student import read_student
from segdistill.engine.teacher import teacher_digest
from segdistill.engine.train_config import TrainConfig

if TYPE_CHECKING:
    from segdistill.engine.training import Training

Changes = dict[str, list[Any]]
"""Name of a setting → [what it was, what it is from now on]."""

SUMMARY_KEYS = ("miou", "macc", "pixel_accuracy", "iou", "steps", "best_step", "seconds", "student", "method")
"""What a summary that is whole says at least."""

SHORTER = (
    "Sooner done on a CPU: a smaller network (names that end in _half or _quarter, segdistill list models), a smaller "
    "data.crop or data.batch_size, fewer train.steps; train.threads=1 where other work keeps the cores busy"
)
"""Said of a run that takes hours."""


def open_run(training: "Training", resume: bool | Literal["auto"], *, override: bool = False) -> dict[str, Any] | None:
    """Start a run's folder, or go on in it.

    Args:
        training: just built; it is put where the run stands.
        resume: whether to go on with what the folder holds.
        override: whether settings of the optimisation may differ from those of the folder.

    Returns:
        The summary of a run that is finished; None where there is something to do.

    Raises:
        ValueError: if the folder already holds a run and `resume` is False, or another or a damaged one and it is not.
    """
    folder, run = training.folder, training.run
    changed: Changes = {}
    summary = None
    # The main process looks, for all of them: a moment later it writes.
    begun, student = (run.any(run.main and (folder / name).exists()) for name in (CHECKPOINT, STUDENT))
    if begun or student:
        if not resume:
            raise ValueError(f"{folder} already holds a run; --resume goes on with it, --out DIR starts another")
        changed = check_same(_started_with(folder), training.config, folder, override=override)
        _check_images(training)
        if begun:
            _load(training, changed)
        if training.done == training.cfg.steps or not begun:
            summary = _read_summary(folder)
    run.barrier()
    if run.main and summary is None:
        _write_settings(training, changed, afresh=not begun)
    recorded = folder if run.main and summary is None else None
    training.recorder = Recorder(
        recorded,
        training.cfg.steps,
        training.done,
        tensorboard=training.cfg.tensorboard,
        advice=SHORTER if training.run.device.type == "cpu" else "",
    )
    if training.cfg.shard != "none" and run.world == 1:
        training.recorder.say(f"train.shard={training.cfg.shard} has no effect in a single process")
    own, given = TrainConfig.model_fields["aux_weight"].default, training.cfg.aux_weight
    if given not in (0, own) and "aux" not in training.distiller.student.paths:
        training.recorder.say(f"train.aux_weight={given:g} has no effect: the student has no auxiliary head (tap aux)")
    if training.cfg.warmup > training.cfg.steps:
        told = f"train.warmup={training.cfg.warmup} is more than the {training.cfg.steps} steps of the run"
        training.recorder.say(f"{told}, in which the learning rate never reaches train.lr")
    if resume is True and not begun:
        training.recorder.say(f"{folder} holds no checkpoint yet: the run starts from the beginning")
    return summary


def _started_with(folder: Path) -> Config:
    try:
        return load_config(folder / CONFIG)
    except ValueError as error:
        hint = "put a copy back, or name another folder with --out"
        raise ValueError(f"{folder} does not say what it was started with: {error}; {hint}") from None


def _check_images(training: "Training") -> None:
    """Refuse to go on with other images: the settings may be the same where a folder or a list is not."""
    known = stored_json(training.folder / ENVIRONMENT).get("images") or {}  # an older run has not said it
    for what, digest in _image_digests(training).items():
        if known.get(what, digest) != digest:
            raise ValueError(
                f"{training.folder} was started with other {what} than there are now; put them back, or start another "
                "run with --out DIR"
            )


def _image_digests(training: "Training") -> dict[str, str]:
    """Which images a run learns from, as digests of their names."""
    names = training.train_set.names
    kinds = {"training images": names}
    if training.labelled is not None:
        kinds["images with labels"] = [names[index] for index in training.labelled]
    if training.unlabelled is not None:
        kinds["images without labels (data.unlabelled)"] = training.unlabelled.names
    return {kind: hash_names(own).hexdigest() for kind, own in kinds.items()}


def _write_settings(training: "Training", changed: Changes, *, afresh: bool) -> None:
    """Say what the run is computed with, where that is new."""
    folder = training.folder
    if afresh:
        for file in (folder / SUMMARY, *folder.glob("eval_*")):  # of a run that was here before: its figures, not ours
            file.unlink(missing_ok=True)
        facts = {"teacher": teacher_digest(training.config), "images": _image_digests(training)}
        write_json(folder / ENVIRONMENT, environment() | facts)
    elif changed:  # the account first: changed settings without one would be taken for those of the start
        account = stored_json(folder / ENVIRONMENT)
        account["overrides"] = [*account.get("overrides", []), {"step": training.done, **changed}]
        write_json(folder / ENVIRONMENT, account)
    if afresh or changed:
        write_text(folder / CONFIG, dump_config(training.config))


def _load(training: "Training", changed: Mapping[str, list[Any]]) -> None:
    """Go back to the checkpoint, under the present settings of the optimisation where they were changed."""
    options = optimizer_options(training.optimizer)
    optional = ("scaler",) if "train.precision" in changed else ()
    path = training.folder / CHECKPOINT
    facts = load_checkpoint(training.folder, training.parts, optional)
    try:
        training.done, training.clock = int(facts["step"]), Clock(float(facts["seconds"]))
        training.best, training.best_step = float(facts["best"]), int(facts["best_step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} lacks what it should say of the run: step, seconds, best, best_step") from error
    set_kernels(training.optimizer, options)
    if changed:
        set_options(training.optimizer, options)
    if training.best_step:
        try:
            read_student(training.folder)
        except ValueError as error:
            raise ValueError(
                f"{error}; it was the best so far, of step {training.best_step}: put a copy back, or delete {path} to "
                "train from the start"
            ) from None


def _read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None where there is none, or one that has to be made again."""
    with suppress(ValueError, OSError):
        return read_json(folder / SUMMARY, SUMMARY_KEYS)
    return None
