"""What each process of a comparison does: train and evaluate a run, evaluate a teacher, time a step."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from segdistill.comparison.result import counts_path, evaluation_path
from segdistill.engine.build import build_split
from segdistill.engine.config import Config
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.forecast import time_steps
from segdistill.engine.lock import locked
from segdistill.engine.loop import distill
from segdistill.engine.run_folder import STUDENT, SUMMARY, read_json, write_atomically, write_json
from segdistill.engine.runtime import runtime
from segdistill.engine.teacher import Mapped, build_teacher
from segdistill.engine.teacher_views import title
from segdistill.models.stats import model_stats

MEASURED_STEPS = 6
"""How many steps are timed at least."""

PATIENCE = 60.0
"""Seconds to wait for a process that still holds a run's folder."""


def train_and_evaluate(config: Config, folder: Path, split: str | None) -> float | None:
    """Train one run, or go on with it, and evaluate its best student.

    Args:
        config: of the run.
        folder: of the run.
        split: on which it is evaluated; None: it is trained only.

    Returns:
        Mean IoU on the split, or on val.
    """
    if (folder / SUMMARY).is_file() and (folder / STUDENT).is_file():
        miou: float | None = read_json(folder / SUMMARY, ("miou",))["miou"]
    else:
        with locked(folder, patience=PATIENCE):  # one of a grid that was just killed saves its checkpoint
            pass
        miou = distill(config, out=folder, resume="auto")["miou"]
    if split is None:
        return miou
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    code = config.student.is_code or None  # the configuration itself named the function
    result = evaluate_run(folder, split=split, device=config.train.device, per_image=True, allow_code=code)
    counts = {"counts": torch.tensor(result.pop("per_image"))}
    write_atomically(counts_path(folder, split), lambda path: path.write_bytes(save(counts)))
    write_json(evaluation_path(folder, split), result)
    miou = result["miou"]
    return miou


def evaluate_teacher(config: Config, split: str) -> dict[str, Any]:
    """Evaluate a run's teacher on the run's data.

    Args:
        config: of a run.
        split: on which it is evaluated.

    Returns:
        `network`, `params`, `flops`, `flops_size`, `miou`, `macc`, `pixel_accuracy`, `iou`; the last four are empty for
        a teacher that does not know all classes.
    """
    data = config.data
    dataset = build_split(data, split)
    teacher = build_teacher(config, dataset.classes)
    assert teacher is not None
    seen = Mapped(teacher)
    facts = {"network": title(teacher), **model_stats(seen)}
    if teacher.class_map is not None and not teacher.class_map.complete:  # there is no fair figure over all classes
        return {**facts, "miou": None, "macc": None, "pixel_accuracy": None, "iou": {}}
    with runtime(config.train.device, threads=config.train.threads) as run:
        result = evaluate(
            seen,
            dataset,
            protocol=config.eval.build(),
            size=data.resize,
            batch_size=data.eval_batch_size,
            workers=data.workers,
            run=run,
        )
    return {**facts, **{key: result[key] for key in ("miou", "macc", "pixel_accuracy", "iou")}}


def measure(config: Config, folder: Path, seconds: float) -> float:
    """Seconds per step of a run; with `teacher.cache`, which is filled first, of cached steps, as the run has them.

    Args:
        config: of the run.
        folder: of the run.
        seconds: how long at least it is timed.
    """
    return time_steps(config, folder, steps=MEASURED_STEPS, seconds=seconds)
