"""Evaluation on whole images, and prediction into files."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segdistill.data import SegmentationDataset
from segdistill.data.sampler import eval_loader
from segdistill.engine.build import build_split
from segdistill.engine.checkpoint import CONFIG, load_student, read_card, student_path
from segdistill.engine.config import load_config
from segdistill.engine.distiller import evaluating
from segdistill.engine.runtime import Runtime, runtime
from segdistill.metrics import confusion_matrix, image_counts, scores
from segdistill.taps import as_logits, resize

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def evaluate(
    model: nn.Module | str | Path,
    dataset: SegmentationDataset,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    workers: int = 0,
    run: Runtime | None = None,
    per_image: bool = False,
) -> dict[str, Any]:
    """Mean IoU, mean accuracy, pixel accuracy and per-class figures, from one confusion matrix over whole images.

    Args:
        model: a network that takes RGB images in 0…1 and gives logits (or whatever `as_logits` understands), or the
            path of a run or a student's file.
        dataset: what to evaluate on.
        size: (H,W) to which images and masks are resized first (default: as they are).
        batch_size: images at a time; more than 1 needs images of one size.
        workers: processes that load images.
        run: device, precision and processes (default: the model's device, float32, one process).
        per_image: whether to count each image by itself as well.

    Returns:
        `miou`, `macc`, `pixel_accuracy`, `iou` and `accuracy` by class (None for absent classes), `images`,
        `confusion` (C×C pixel counts, truth along rows); if asked for, `per_image`, what `image_counts` gives for each
        image, (images,3,C).

    Raises:
        ValueError: if the model's number of classes is not the data set's.
    """
    network = model if isinstance(model, nn.Module) else load_student(model)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    run = run or Runtime(device)
    network.to(run.device)
    counts = confusion_matrix(len(dataset.classes)).to(run.device)
    by_image = torch.zeros(len(dataset) if per_image else 0, 3, len(dataset.classes), dtype=torch.long)
    seen = 0
    batches = eval_loader(dataset, workers=workers, size=size, batch_size=batch_size, rank=run.rank, world=run.world)
    with evaluating(network), torch.no_grad():
        for images, target in batches:
            images, target = images.to(run.device, non_blocking=True), target.to(run.device, non_blocking=True)
            with run.autocast():
                logits = as_logits(network(images))
            if logits.shape[1] != len(dataset.classes):
                raise ValueError(
                    f"the model has {logits.shape[1]} classes, the data set {len(dataset.classes)} "
                    f"({', '.join(dataset.classes)})"
                )
            prediction = resize(logits.float(), (target.shape[-2], target.shape[-1])).argmax(1)
            counts.update(prediction, target)
            if per_image:
                each = zip(prediction, target, strict=True)
                found = [image_counts(ids, truth, len(dataset.classes)) for ids, truth in each]
                by_image[run.rank + seen * run.world :: run.world][: len(images)] = torch.stack(found).cpu()
            seen += len(images)
    confusion = run.sum(counts.confmat)
    return {
        **scores(confusion, dataset.classes),
        "images": int(run.sum(torch.tensor(seen, device=run.device))),
        "confusion": confusion.cpu().tolist(),
        **({"per_image": run.sum(by_image.to(run.device)).tolist()} if per_image else {}),
    }


def evaluate_run(
    model: str | Path,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    split: str = "val",
    device: str = "auto",
    per_image: bool = False,
    allow_code: bool | None = None,
) -> dict[str, Any]:
    """Evaluate a trained student in float32 on the data that its run names.

    Args:
        model: run folder or `student.safetensors`.
        config: a configuration whose data is used instead of the run's own.
        overrides: `key.sub=value`, changes to that configuration.
        split: `train`, `val` or `test`.
        device: as for `runtime`.
        per_image: as for `evaluate`.
        allow_code: as for `load_student`.

    Returns:
        What `evaluate` returns, besides `split` and `model`.

    Raises:
        ValueError: if there is no configuration, or the data or the model are not there.
    """
    folder = student_path(model).parent
    if config is None and not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}; say what to evaluate on with --config")
    data = load_config(config if config is not None else folder, overrides).data
    dataset = build_split(data, split)
    with runtime(device) as run:
        result = evaluate(
            load_student(model, allow_code=allow_code),
            dataset,
            size=data.resize,
            batch_size=data.eval_batch_size,
            workers=data.workers,
            run=run,
            per_image=per_image,
        )
    return {"model": str(model), "split": split, **result}


def model_stats(network: nn.Module, size: tuple[int, int] = (512, 1024)) -> dict[str, Any]:
    """Parameters and floating-point operations of one forward pass in eval mode, without an auxiliary head.

    A multiply-add counts as two operations. Nothing is computed: shapes alone are followed.

    Args:
        network: images (N,3,H,W) → logits.
        size: (H,W) of the image.

    Returns:
        `params`, `flops`, `flops_size`.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    params = sum(p.numel() for name, p in shadow.named_parameters() if not name.startswith("aux."))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, 3, *size, device="meta"))
    return {"params": params, "flops": counter.get_total_flops(), "flops_size": list(size)}


def find_images(paths: Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """Image files, each with the relative path that its results are named by.

    Args:
        paths: files, or folders that are searched through.

    Raises:
        ValueError: if a path is missing, is no image, or a folder has none.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
            if not inside:
                raise ValueError(f"no images ({' '.join(IMAGES)}) in {path}")
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise ValueError(f"no image or folder at {path}")
    taken: dict[Path, Path] = {}
    for file, name in found:
        stem = name.with_suffix("")
        if stem in taken:
            raise ValueError(f"{taken[stem]} and {file} would both be written to {stem}.png; predict them one by one")
        taken[stem] = file
    return found


def read_image(path: Path) -> Tensor:
    """An image file as RGB in 0…1, (3,H,W).

    Args:
        path: any format that Pillow reads; its orientation tag is honoured.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def predict(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    run: Runtime | None = None,
    palette: list[tuple[int, int, int]] | None = None,
    alpha: float = 0.5,
) -> Iterator[tuple[Path, Tensor]]:
    """Segment image files into `ids/` (class numbers), `colour/` and `blend/` (over the image) PNGs.

    Args:
        model: a network with a `card`, or the path of a run or a student's file.
        images: files or folders.
        out: folder of the results; made if it is missing.
        run: device and precision (default: the model's device, float32).
        palette: a colour per class (default: the card's).
        alpha: share of the colour in the blend.

    Yields:
        Each image's path and its class numbers (H,W) uint8, once its files are written.
    """
    if isinstance(model, nn.Module):
        network, card = model, getattr(model, "card", {})
    else:
        network, card = load_student(model), read_card(model)
    colours = np.array(palette or card.get("palette") or [], dtype=np.uint8).reshape(-1, 3)
    if not len(colours):
        raise ValueError("predict needs a palette: this model has no card that gives one")
    files = find_images(images)
    run = run or Runtime(next((p.device for p in network.parameters()), torch.device("cpu")))
    network.to(run.device)
    with evaluating(network), torch.no_grad():
        for path, name in files:
            image = read_image(path)
            with run.autocast():
                logits = as_logits(network(image[None].to(run.device)))
            ids = resize(logits.float(), (image.shape[1], image.shape[2])).argmax(1)[0].to("cpu", torch.uint8)
            colour = colours[ids.numpy()]
            picture = (image.permute(1, 2, 0).numpy() * 255).round()
            blend = ((1 - alpha) * picture + alpha * colour).round().astype(np.uint8)
            for kind, pixels in (("ids", ids.numpy()), ("colour", colour), ("blend", blend)):
                target = (Path(out) / kind / name).with_suffix(".png")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target)
            yield path, ids
