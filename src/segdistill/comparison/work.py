"""What each process of a comparison does: train and evaluate a run, evaluate a teacher, time a step."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from segdistill.comparison.further import pick_figures
from segdistill.comparison.result import counts_path, evaluation_path
from segdistill.engine.build import build_split
from segdistill.engine.config import Config
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.forecast import time_steps
from segdistill.engine.lock import locked
from segdistill.engine.loop import distill
from segdistill.engine.run_folder import STUDENT, SUMMARY, read_json, stored_json, write_atomically, write_json
from segdistill.engine.runtime import runtime
from segdistill.engine.settings import settings_digest
from segdistill.engine.teacher import Mapped, build_teacher
from segdistill.engine.teacher_views import Ensemble, title
from segdistill.models.stats import model_stats

MEASURED_STEPS = 6
"""How many steps are timed at least."""

PATIENCE = 60.0
"""Seconds to wait for a process that still holds a run's folder."""


def train_and_evaluate(
    config: Config, folder: Path, split: str | None, metrics: Sequence[str] = (), guide: Config | None = None
) -> float | None:
    """Train one run, or go on with it, and evaluate its best student.

    Args:
        config: of the run.
        folder: of the run.
        split: on which it is evaluated; None: it is trained only.
        metrics: by which it is evaluated beside the mean IoU.
        guide: the configuration whose teacher a metric compares it with.

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
    how: dict[str, Any] = {"metrics": metrics, "teacher": guide, "per_image": True, "allow_code": code}
    result = evaluate_run(folder, split=split, device=config.train.device, **how)
    before: dict[str, Any] = {}
    with suppress(ValueError):  # it is damaged, and written anew
        before = stored_json(evaluation_path(folder, split))
    result |= _with_known(before, result, guide)
    counts = {"counts": torch.tensor(result.pop("per_image"))}
    write_atomically(counts_path(folder, split), lambda path: path.write_bytes(save(counts)))
    write_json(evaluation_path(folder, split), result)
    miou = result["miou"]
    return miou


def _with_known(before: Mapping[str, Any], result: Mapping[str, Any], guide: Config | None) -> dict[str, Any]:
    """What metrics found, with what others found before of the very same predictions, and which teacher was theirs."""
    same = before.get("confusion") == result["confusion"]
    metrics = {**((before.get("metrics") or {}) if same else {}), **result.get("metrics", {})}
    teacher = before.get("teacher") if guide is None else settings_digest(guide, "teacher.")
    return {**({"metrics": metrics} if metrics else {}), **({"teacher": teacher} if teacher else {})}


def evaluate_teacher(config: Config, split: str, metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a run's teacher on the run's data.

    Args:
        config: of a run.
        split: on which it is evaluated.
        metrics: by which it is evaluated beside the mean IoU.

    Returns:
        `network`, `looks` (how many networks or views are averaged), `params`, `flops`, `flops_size`, `miou`, `macc`,
        `pixel_accuracy`, `iou`, `metrics`; the last five are empty for a teacher that does not know all classes.
    """
    data = config.data
    dataset = build_split(data, split)
    teacher = build_teacher(config, dataset.classes)
    assert teacher is not None
    seen = Mapped(teacher)
    looks = teacher.looks if isinstance(teacher, Ensemble) else 1
    facts = {"network": title(teacher), "looks": looks, **model_stats(seen)}
    if teacher.class_map is not None and not teacher.class_map.complete:  # there is no fair figure over all classes
        unknown = dict.fromkeys(("miou", "macc", "pixel_accuracy"))
        return {**facts, **unknown, "iou": {}, "metrics": pick_figures({}, metrics)}
    with runtime(config.train.device, threads=config.train.threads) as run:
        result = evaluate(
            seen,
            dataset,
            protocol=config.eval.build(),
            size=data.resize,
            batch_size=data.eval_batch_size,
            workers=data.workers,
            run=run,
            metrics=metrics,
        )
    scores = {key: result[key] for key in ("miou", "macc", "pixel_accuracy", "iou")}
    return {**facts, **scores, "metrics": pick_figures(result.get("metrics", {}), metrics)}


def measure(config: Config, folder: Path, seconds: float) -> float:
    """Seconds per step of a run; with `teacher.cache`, which is filled first, of cached steps, as the run has them.

    Args:
        config: of the run.
        folder: of the run.
        seconds: how long at least it is timed.
    """
    return time_steps(config, folder, steps=MEASURED_STEPS, seconds=seconds)
