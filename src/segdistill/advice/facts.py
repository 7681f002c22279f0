"""Whether distillation is worth it here: what a few images say about a teacher, a student and their data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill._printing import untold
from segdistill._types import Stages, Told
from segdistill.advice.rules import Fact, advise
from segdistill.data import SegmentationDataset
from segdistill.data.sampler import eval_loader
from segdistill.data.subsets import Subset
from segdistill.engine.config import Config, load_config
from segdistill.engine.evaluate import evaluate
from segdistill.engine.forecast import Rehearsal
from segdistill.engine.loop import default_folder
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.runtime import Runtime, runtime
from segdistill.engine.student import load_student
from segdistill.engine.teacher import check_order, observe
from segdistill.functional import IGNORE
from segdistill.metrics import confusion_matrix, scores
from segdistill.taps import GIVEN, UNDROPPED, Tapped, resize_logits

SURE = 0.99
"""Probability of its best class from which a teacher counts as sure of a pixel."""

NO_FEATURES = {"aux", "logits", UNDROPPED, *GIVEN}
"""Taps that are no feature maps which a student could be taught."""


def look(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Sequence[str] = (),
    *,
    baseline: str | Path | None = None,
    images: int = 16,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Look at a few images of a run that is planned, and say what is known about its chances.

    Nothing is trained or written. The figures are of a sample of images, so that they are rough.

    Args:
        config: as for `distill`.
        overrides: `key.sub=value`.
        baseline: a run of the student trained alone, for the gap to the teacher; a student that starts from a
            checkpoint is held against the teacher itself.
        images: how many of the training images that have labels, and of the validation images, are looked at.
        student: as for `distill`.
        teacher: likewise.
        progress: called with what is looked at; a context that gives a function of (images done, in all).

    Returns:
        `facts`: name → number, truth value, text, or None where it is not known. Shares, mIoU and errors are in 0…1.
        `advice`: what the rules say to them, as `advise` returns it.

    Raises:
        ValueError: as for `distill`; or if the methods need no teacher, so that there is nothing to ask.
    """
    config, stage = load_config(config, overrides), progress or untold
    if not config.distils:
        raise ValueError("method none learns from no teacher; name a method, for example method=kd")
    with runtime(config.train.device, config.train.precision, config.train.threads) as run:
        training = Rehearsal(config, run, default_folder(config, student), student=student, teacher=teacher)
        if training.teacher is None:
            raise ValueError("there is no teacher to look at; set teacher.checkpoint=RUN")
        train_set = training.train_set
        labelled = range(len(train_set)) if training.labelled is None else training.labelled
        shown = _spread(Subset(train_set, labelled), images)
        held_out = _spread(training.val_set, images)
        with stage("images of train") as told:
            taught = _of_teacher(training, shown, told)
        facts: dict[str, Fact] = {
            **_of_data(training, len(labelled)),
            **_of_networks(training),
            **{f"{name}_train": value for name, value in taught.items()},
        }
        with stage("images of val") as told:
            seen = _of_teacher(training, held_out, told)
        facts |= {
            "teacher_sure": facts.pop("teacher_sure_train"),
            "teacher_entropy": facts.pop("teacher_entropy_train"),
        }
        facts |= {"teacher_miou": seen["teacher_miou"], "teacher_error": seen["teacher_error"]}
        facts["teacher_drop"] = _difference(facts["teacher_miou_train"], facts["teacher_miou"])
        with stage("images of val, by the baseline") as told:
            facts["baseline_miou"] = _baseline(training, baseline, held_out, told)
        if facts["classes_taught"] == 1:  # else the two figures are of different classes
            facts["gap"] = _difference(facts["teacher_miou"], facts["baseline_miou"])
        else:
            facts["gap"] = None
        facts["looked_at"] = len(shown) + len(held_out)
        return {"facts": facts, "advice": advise(facts)}


def _spread(dataset: SegmentationDataset, count: int) -> Subset:
    """Some items, evenly spaced."""
    count = min(count, len(dataset))
    return Subset(dataset, [index * len(dataset) // count for index in range(count)])


def _difference(one: Fact, other: Fact) -> float | None:
    known = isinstance(one, float) and isinstance(other, float)
    return float(one) - float(other) if known else None  # type: ignore[arg-type]


def _of_data(training: Rehearsal, labelled: int) -> dict[str, Fact]:
    data, steps = training.config.data, training.cfg.steps
    images = len(training.train_set)
    share = labelled / images
    return {
        "images": images,
        "labelled": labelled,
        "labelled_share": share,
        "labelled_per_batch": data.labelled_per_batch or 0,
        "labels_in_a_batch": float(data.labelled_per_batch or share * data.batch_size),
        "unlabelled": 0 if training.unlabelled is None else len(training.unlabelled),
        "batch_size": data.batch_size,
        "steps": steps,
        "epochs": steps * data.batch_size / images,
    }


def _of_networks(training: Rehearsal) -> dict[str, Fact]:
    teacher, section = training.teacher, training.config.student
    assert teacher is not None
    shared = set(training.distiller.student.paths) & set(teacher.paths) - NO_FEATURES
    taught = training.method.teacher_taps() - NO_FEATURES
    whole, known = len(training.train_set.classes), teacher.class_map
    return {
        "student_params": sum(p.numel() for p in training.network.parameters()),
        "teacher_params": sum(p.numel() for p in teacher.network.parameters()),
        "student_pretrained": _is_pretrained(section),
        "shared_taps": ", ".join(sorted(shared)) or "none",
        "taught_taps": len(taught),
        "untaught_taps": len(shared - taught),
        "classes_taught": 1.0 if known is None else len(known.known) / whole,
    }


def _is_pretrained(section: NetworkConfig) -> bool | None:
    """Whether a student starts from trained weights; None of code of the user's own, which may load some."""
    if section.is_code or (section.name is None and section.checkpoint is None):
        return None
    return bool(section.checkpoint or section.weights or section.options.get("pretrained"))


@torch.no_grad()
def _of_teacher(training: Rehearsal, dataset: Subset, told: Told) -> dict[str, Fact]:
    """How good and how sure the teacher is on some images."""
    teacher, run, data = training.teacher, training.run, training.config.data
    assert teacher is not None
    classes = len(training.train_set.classes)
    confusion = confusion_matrix(classes)
    sure = entropy = pixels = 0.0
    for number, (images, target) in enumerate(eval_loader(dataset, size=data.resize), 1):
        logits = _logits(teacher, images.to(run.device, memory_format=training.layout), run, target.shape[-2:])
        log = logits.log_softmax(1)
        entropy += float(-(log.exp() * log.clamp_min(-100)).sum(1).sum()) / math.log(max(2, logits.shape[1]))
        sure += int((log.amax(1) >= math.log(SURE)).sum())
        pixels += log.shape[0] * log.shape[-2] * log.shape[-1]
        labels = target if teacher.class_map is None else teacher.class_map.relabel(target)
        ids = logits.argmax(1).cpu()
        if teacher.class_map is not None:
            ids = torch.tensor(teacher.class_map.known)[ids]
            target = torch.where(labels == IGNORE, labels, target)
        confusion.update(ids, target)
        told(number, len(dataset))
    counts = confusion.compute().long()
    found = scores(counts, training.train_set.classes)
    right = found["pixel_accuracy"]
    return {
        "teacher_miou": found["miou"],
        "teacher_error": None if right is None else 1 - right,
        "teacher_entropy": entropy / pixels,
        "teacher_sure": sure / pixels,
    }


def _logits(teacher: Tapped, images: Tensor, run: Runtime, size: torch.Size) -> Tensor:
    with run.autocast():
        taps = observe(teacher, images, {"logits"})
    return resize_logits(taps["logits"].float(), (size[0], size[1]), teacher.align_corners)


def _baseline(training: Rehearsal, baseline: str | Path | None, dataset: Subset, told: Told) -> float | None:
    """The mIoU of the student alone on some images, seen whole as by the teacher; None where there is none yet."""
    if baseline is not None:
        network = load_student(baseline)
        check_order(network.card["classes"], dataset.classes, str(baseline))  # type: ignore[arg-type,index]
    elif training.config.student.checkpoint is not None:
        network = training.network
    else:
        return None
    # Not under the run's protocol: its windows, views and `absent` would be held against a teacher without them.
    found = evaluate(network, dataset, size=training.config.data.resize, run=training.run, progress=told)
    return None if found["miou"] is None else float(found["miou"])
