"""Evaluation on whole images."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from segdistill._types import Size, Told
from segdistill.data import SegmentationDataset
from segdistill.data.check import quick_check
from segdistill.data.sampler import eval_loader
from segdistill.data.subsets import keep_labelled
from segdistill.engine.build import build_split
from segdistill.engine.config import Config, is_config, load_config
from segdistill.engine.modes import evaluating
from segdistill.engine.protocol import PLAIN, Protocol, infer_ids
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.runtime import Runtime, runtime
from segdistill.engine.scoring import Scoring, check_count, check_metrics
from segdistill.engine.student import load_student, read_card, student_path
from segdistill.engine.teacher import build_trained, check_order, tell_range
from segdistill.metrics import confusion_matrix, image_counts, scores


def evaluate(
    model: nn.Module | str | Path,
    dataset: SegmentationDataset,
    *,
    protocol: Protocol = PLAIN,
    size: Size | None = None,
    batch_size: int = 1,
    workers: int = 0,
    run: Runtime | None = None,
    per_image: bool = False,
    metrics: Sequence[str] = (),
    teacher: nn.Module | None = None,
    progress: Told | None = None,
) -> dict[str, Any]:
    """Mean IoU, mean accuracy, pixel accuracy and per-class figures, from one confusion matrix over whole images.

    Args:
        model: a network that takes RGB images in 0…1 and gives logits (or whatever `as_logits` understands), or the
            path of a run or a student's file.
        dataset: what to evaluate on.
        protocol: how the network looks at an image, and which classes the mean IoU is over.
        size: (H,W) to which images and masks are resized first, as a property of the data (default: as they are). The
            protocol comes after it, and resizes images only.
        batch_size: images at a time; more than 1 needs images of one size.
        workers: processes that load images.
        run: device, precision and processes (default: the model's device, float32, one process).
        per_image: whether to count each image by itself as well.
        metrics: names of further metrics, as in `segdistill list metrics`.
        teacher: a network that gives logits of the same classes, for a metric that compares the model with it.
        progress: called with (images done, images in all) after each batch.

    Returns:
        `miou`, `macc`, `pixel_accuracy`, `iou` and `accuracy` by class (None for absent classes), `images`,
        `confusion` (C×C pixel counts, truth along rows); if asked for, `per_image`, what `image_counts` gives for each
        image, (images,3,C), and `metrics`, what each one's `compute` gives; `size` and `protocol`, as they were.

    Raises:
        ValueError: if the number of classes of the model, or of the teacher that a metric needs, is not the data set's;
            or if a metric is unknown or needs a teacher.
    """
    scoring = Scoring(metrics, dataset.classes, protocol, teacher)
    network = model if isinstance(model, nn.Module) else load_student(model)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    run = run or Runtime(device)
    network.to(run.device)
    counts = confusion_matrix(len(dataset.classes)).to(run.device)
    by_image = torch.zeros(len(dataset) if per_image else 0, 3, len(dataset.classes), dtype=torch.long)
    seen = 0
    check = partial(check_count, classes=dataset.classes, whose="the model")
    batches = eval_loader(dataset, workers=workers, size=size, batch_size=batch_size, rank=run.rank, world=run.world)

    with evaluating(network), scoring.on(run), torch.no_grad():
        for images, target in batches:
            images, target = images.to(run.device, non_blocking=True), target.to(run.device, non_blocking=True)
            with run.autocast():
                prediction = infer_ids(network, images, protocol, check=check, watch=scoring.watch(target))
                scoring.update(prediction, target, images)
            counts.update(prediction, target)
            if per_image:
                each = zip(prediction, target, strict=True)
                found = [image_counts(ids, truth, len(dataset.classes)) for ids, truth in each]
                by_image[run.rank + seen * run.world :: run.world][: len(images)] = torch.stack(found).cpu()
            seen += len(images)
            if progress is not None:
                progress(min(seen * run.world, len(dataset)), len(dataset))
    confusion = run.sum(counts.confmat)
    return {
        **scores(confusion, dataset.classes, protocol.absent),
        "images": int(run.sum(torch.tensor(seen, device=run.device))),
        "confusion": confusion.cpu().tolist(),
        "size": None if size is None else list(size),
        "protocol": protocol.as_dict(),
        **({"per_image": run.sum(by_image.to(run.device)).tolist()} if per_image else {}),
        **({"metrics": scoring.compute(run)} if metrics else {}),
    }


def evaluate_run(
    model: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    split: str = "val",
    device: str = "auto",
    per_image: bool = False,
    metrics: Sequence[str] = (),
    teacher: str | Path | Config | None = None,
    allow_code: bool | None = None,
    progress: Told | None = None,
) -> dict[str, Any]:
    """Evaluate a trained student in float32 on the data that its run names, or a network with weights as it is.

    The protocol is that of the section `eval:` of the configuration whose data are used. Training images that have no
    mask (`data.labelled`) are left out. What is conspicuous about the data, such as another number of images than the
    published one, is printed.

    Args:
        model: run folder or `student.safetensors`; or a configuration, a YAML file, whose student (else teacher) has
            `weights` or a `checkpoint`.
        config: a configuration whose data is used instead of the run's own.
        overrides: `key.sub=value`, changes to that configuration; to the first where `model` is one, too.
        split: `train`, `val` or `test`.
        device: as for `runtime`.
        per_image: as for `evaluate`.
        metrics: likewise; `all` stands for all of them, but for those that need a teacher where there is none.
        teacher: run folder or file of the teacher that the model is compared with, or a configuration that names it
            (default: the model's own configuration).
        allow_code: as for `load_student`.
        progress: as for `evaluate`.

    Returns:
        What `evaluate` returns, besides `split` and `model`.

    Raises:
        ValueError: if there is no configuration, the data or the model are not there, or the split has no labels; if a
            metric is unknown, or there is no teacher for one that needs it; if the model or that teacher has another
            number of classes than the data, or another order of them.
    """
    if is_config(model):
        own = named = load_config(model, overrides)
        seen = named if config is None else load_config(config)
        data = seen.data
        dataset = keep_labelled(build_split(data, split))
        trained = build_trained(named, dataset.classes)
        network: nn.Module = trained
        label = f"{trained.role} of {model}"
    else:
        card = read_card(model)
        folder = student_path(model).parent
        if config is None and not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} has no {CONFIG}; say what to evaluate on with --config")
        seen = load_config(config if config is not None else folder, overrides)
        own = load_config(folder) if (folder / CONFIG).is_file() else seen
        data = seen.data
        dataset = keep_labelled(build_split(data, split))
        check_order(card["classes"], dataset.classes, str(model))
        tell_range(card, dataset, str(model))
        network = load_student(model, allow_code=allow_code)
        label = str(model)
    metrics, guide = check_metrics(metrics, own, teacher, dataset.classes)
    for line in quick_check(dataset):
        print(f"data, {split}: {line}", file=sys.stderr, flush=True)
    with runtime(device) as run:
        result = evaluate(
            network,
            dataset,
            protocol=seen.eval.build(),
            size=data.resize,
            batch_size=data.eval_batch_size,
            workers=data.workers,
            run=run,
            per_image=per_image,
            metrics=metrics,
            teacher=guide,
            progress=progress,
        )
    return {"model": label, "split": split, **result, "protocol": seen.eval.describe()}


def what_is_foreign(
    model: str | Path, *, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> Literal["these data are", "this protocol is"] | None:
    """What `evaluate_run` does otherwise than the run's validation did; None where the figures are the run's own.

    Args:
        model: run folder or `student.safetensors`; a file that lies in no run's folder has no data of its own.
        config: as for `evaluate_run`.
        overrides: likewise.
    """
    folder = student_path(model).parent
    if not (folder / CONFIG).is_file():
        return None
    own, seen = (load_config(source, changes) for source, changes in ((folder, ()), (config or folder, overrides)))
    a, b = own.data, seen.data
    if (a.name, a.size, a.options, a.only) != (b.name, b.size, b.options, b.only):
        return "these data are"
    return None if own.eval.build() == seen.eval.build() else "this protocol is"
