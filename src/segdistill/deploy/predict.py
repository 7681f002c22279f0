"""Prediction: image files in, files of class numbers and colours out."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segdistill.data.files import IMAGE_SUFFIXES, files_below, read_image
from segdistill.data.transforms import EvalTransform
from segdistill.engine.distiller import evaluating
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import load_student, read_card
from segdistill.taps import aligned, as_logits, resize


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
            inside = files_below(path, IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"no images ({' '.join(IMAGE_SUFFIXES)}) in {path}")
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


def predict(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    run: Runtime | None = None,
    palette: list[tuple[int, int, int]] | None = None,
    alpha: float = 0.5,
    size: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, Tensor]]:
    """Segment image files into `ids/` (class numbers), `colour/` and `blend/` (over the image) PNGs.

    The files are written when the function is called. For more images than their class numbers fit into memory,
    `iterate_predictions` gives one at a time.

    Args:
        model: a network with a `card`, or the path of a run or a student's file.
        images: files or folders.
        out: folder of the results; made if it is missing.
        run: device and precision (default: the model's device, float32).
        palette: a colour per class (default: the card's).
        alpha: share of the colour in the blend.
        size: (H,W) that images are resized to for the network (default: as the card says that they were when it was
            trained and validated, else as they are); results have the images' own.
        progress: called with (images done, images in all) after each image.

    Returns:
        Each image's path and its class numbers (H,W) uint8.

    Raises:
        ValueError: if there is no such model or image, or the model has no palette and none is given.
    """
    files = find_images(images)
    found = []
    for item in iterate_predictions(model, images, out, run=run, palette=palette, alpha=alpha, size=size):
        found.append(item)
        if progress is not None:
            progress(len(found), len(files))
    return found


def iterate_predictions(
    model: nn.Module | str | Path,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    run: Runtime | None = None,
    palette: list[tuple[int, int, int]] | None = None,
    alpha: float = 0.5,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[Path, Tensor]]:
    """The same as `predict`, image by image: the files of an image are written when it is asked for.

    Args:
        model: as for `predict`.
        images: likewise.
        out: likewise.
        run: likewise.
        palette: likewise.
        alpha: likewise.
        size: likewise.

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
    transform = EvalTransform(size=size or card.get("size"))
    run = run or Runtime(next((p.device for p in network.parameters()), torch.device("cpu")))
    network.to(run.device)
    with evaluating(network), torch.no_grad():
        for path, name in files:
            picture = read_image(path)
            mask = torch.zeros(picture.shape[:2], dtype=torch.uint8)  # there is none
            image, _ = transform(torch.from_numpy(picture).permute(2, 0, 1), mask)
            with run.autocast():
                logits = as_logits(network(image[None].to(run.device)))
            logits = resize(logits.float(), (picture.shape[0], picture.shape[1]), aligned(network))
            ids = logits.argmax(1)[0].to("cpu", torch.uint8)
            colour = colours[ids.numpy()]
            blend = ((1 - alpha) * picture + alpha * colour).round().astype(np.uint8)
            for kind, pixels in (("ids", ids.numpy()), ("colour", colour), ("blend", blend)):
                target = (Path(out) / kind / name).with_suffix(".png")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target)
            yield path, ids
