"""The images where distillation helped and hurt most: photo, truth, everyone's classes, errors, as inlined images."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from segdistill.engine.run_folder import write_atomically
from segdistill.functional import IGNORE
from segdistill.report.classes import Matrix
from segdistill.report.inference import Survey, image_means

WIDTH = 720
"""Pixels; wider images are scaled down for the page."""
FIXED, BROKEN, BOTH = (31, 119, 201), (230, 97, 1), (120, 128, 138)
"""Wrong before and right now, right before and wrong now, wrong in both."""
VOID = IGNORE

Ids = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One image of a card, as a data URI."""

    key: str
    label: str
    uri: str
    alt: str
    kind: str
    """`photo`, `classes` (one colour per class, may be filtered) or `errors`."""
    iou: float | None = None


@dataclass(frozen=True)
class Card:
    """One image of the validation split with everything that is shown of it."""

    name: str
    helped: bool
    gain: float | None
    """Mean IoU of the student over the baseline's, over the classes in the image's truth; without one the student's."""
    layers: list[Layer]
    ious: dict[str, list[float | None]] = field(default_factory=dict)
    """IoU by network and class, None for classes that are not in the truth."""


def choose(
    by_image: Mapping[str, Matrix], student: str, baseline: str | None, count: int
) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """The images where the student gained most over the baseline, and lost most.

    Without a baseline: its best and its worst ones. Neighbours of a chosen image are passed over where there are many.

    Args:
        by_image: IoU of each class in each image, by network.
        student: which network.
        baseline: which one it is compared with, or None.
        count: how many of each at most.

    Returns:
        Two lists of positions, the most telling first, and the figure of every image.
    """
    score = image_means(by_image, student)
    if baseline is not None:
        score = score - image_means(by_image, baseline)
    order = [int(i) for i in np.argsort(-score, kind="stable") if np.isfinite(score[i])]
    half = len(order) // 2
    up, down = (order[:-half], order[-half:]) if half else (order, [])
    if baseline is not None:
        up, down = [i for i in order if score[i] > 0], [i for i in order if score[i] < 0]
    gap = min(5, len(score) // (4 * count))
    return _apart(up, gap)[:count], _apart(down[::-1], gap)[:count], score


def _apart(order: Sequence[int], gap: int) -> list[int]:
    """Leave out the neighbours of what came before: frames of one video show the same scene."""
    chosen: list[int] = []
    for index in order:
        if all(abs(index - other) > gap for other in chosen):
            chosen.append(index)
    return chosen


def make_cards(found: Survey, student: str, baseline: str | None, count: int) -> list[Card]:
    """The cards of the images that `choose` picks.

    Args:
        found: a survey.
        student: label of the group in focus.
        baseline: label of its baseline, or None.
        count: how many of each kind at most.
    """
    helped, hurt, score = choose(found.by_image, student, baseline, count)
    return [_card(found, i, i in helped, float(score[i]), student, baseline) for i in (*helped, *hurt)]


def _card(found: Survey, index: int, helped: bool, gain: float, student: str, baseline: str | None) -> Card:
    image, target, predicted = found.predict(index)
    palette, classes, name = found.dataset.palette, found.dataset.classes, found.dataset.names[index]
    truth = _labels(target)
    ids = {key: _labels(one) for key, one in predicted.items()}
    layers = [
        Layer("photo", "image", photo_uri(image), f"{name}: the image", "photo"),
        Layer("truth", "truth", indexed_uri(truth, palette), f"{name}: the true classes", "classes"),
    ]
    for key, one in ids.items():
        iou = float(image_means(found.by_image, key)[index])
        alt = f"{name}: classes by {key}, mean IoU {100 * iou:.1f} %"
        layers.append(Layer(key, key, indexed_uri(one, palette), alt, "classes", iou))
    if baseline is not None:
        change = changes(truth, ids[baseline], ids[student])
        shares = [100 * float((change == value).mean()) for value in (0, 1)]
        alt = f"{name}: {student} repairs {shares[0]:.1f} % of the pixels and breaks {shares[1]:.1f} %"
        layers.append(Layer("change", "repaired / broken", indexed_uri(change, [FIXED, BROKEN, BOTH]), alt, "errors"))
    for key in [k for k in (baseline, student) if k is not None]:
        wrong = np.where((ids[key] != truth) & (truth != VOID), truth, VOID).astype(np.uint8)
        share = 100 * float((wrong != VOID).mean())
        alt = f"{name}: the {share:.1f} % of the pixels that {key} gets wrong, in the colour of their true class"
        layers.append(Layer(f"errors of {key}", f"errors of {key}", indexed_uri(wrong, palette), alt, "errors"))
    ious = {key: _known(found.by_image[key][index], len(classes)) for key in ids}
    return Card(name, helped, gain, layers, ious)


def changes(truth: Ids, before: Ids, after: Ids) -> Ids:
    """Per pixel: 0 repaired, 1 broken, 2 wrong in both, 255 right in both or unlabelled.

    Args:
        truth: (H,W) classes, 255 = unlabelled.
        before: (H,W) classes of the baseline.
        after: (H,W) classes of the student.

    >>> same, other = np.zeros((1, 4), np.uint8), np.ones((1, 4), np.uint8)
    >>> changes(same, np.uint8([[0, 1, 0, 1]]), np.uint8([[0, 0, 1, 1]])).tolist()
    [[255, 0, 1, 2]]
    """
    was, now = before == truth, after == truth
    value = np.select([~was & now, was & ~now, ~was & ~now], [0, 1, 2], VOID)
    return np.where(truth == VOID, VOID, value).astype(np.uint8)


def indexed_uri(ids: Ids, palette: Sequence[Colour]) -> str:
    """A PNG of few colours as a data URI; 255 is transparent.

    Args:
        ids: (H,W) numbers of colours.
        palette: the colours.
    """
    picture = Image.fromarray(ids)
    picture = _fit(picture, Image.Resampling.NEAREST)
    colours = [channel for colour in palette for channel in colour]
    picture.putpalette(colours + [0] * (768 - len(colours)))
    return _uri(picture, "PNG", optimize=True, transparency=VOID)


def photo_uri(image: Tensor) -> str:
    """A photo as a data URI of WebP.

    Args:
        image: (3,H,W) in 0…1.
    """
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return _uri(_fit(Image.fromarray(pixels), Image.Resampling.LANCZOS), "WEBP", quality=82, method=4)


def open_uri(uri: str) -> Image.Image:
    """The image in a data URI, as RGBA.

    Args:
        uri: what one of the above returned.
    """
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")


def _fit(picture: Image.Image, method: Image.Resampling) -> Image.Image:
    if picture.width <= WIDTH:
        return picture
    return picture.resize((WIDTH, max(1, round(picture.height * WIDTH / picture.width))), method)


def _uri(picture: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _labels(ids: Tensor) -> Ids:
    return np.asarray(ids.cpu().numpy().astype(np.uint8))


def _known(values: NDArray[np.float64], count: int) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values[:count]]


def write_sheets(folder: Path, cards: Sequence[Card], student: str, baseline: str | None) -> None:
    """The pictures as PNG files, a row per image: `helped.png` and `hurt.png`.

    Args:
        folder: of the files.
        cards: what `make_cards` returned.
        student: label of the group in focus.
        baseline: label of its baseline, or None.
    """
    wanted = ("photo", "truth", "teacher", baseline, student, "change")
    for name in ("helped", "hurt"):
        chosen = [card for card in cards if card.helped == (name == "helped")]
        rows = [[layer for layer in card.layers if layer.key in wanted] for card in chosen]
        if not rows:
            continue
        tiles = [[open_uri(layer.uri) for layer in row] for row in rows]
        width = 300
        heights = [round(row[0].height * width / row[0].width) for row in tiles]
        sheet = Image.new("RGB", (len(rows[0]) * (width + 8), sum(heights) + 26 * len(rows)), "white")
        draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(13), 0
        for card, row, images, height in zip(chosen, rows, tiles, heights, strict=True):
            for column, (layer, tile) in enumerate(zip(row, images, strict=True)):
                told = card.name[-36:] if not column else layer.label
                told += "" if layer.iou is None else f"  {100 * layer.iou:.1f} %"
                draw.text((column * (width + 8), top + 4), told, "black", font)
                tile = tile.resize((width, height), Image.Resampling.NEAREST)
                sheet.paste(tile, (column * (width + 8), top + 22), tile)
            top += height + 26
        write_atomically(folder / f"{name}.png", lambda path, sheet=sheet: sheet.save(path, format="PNG"))
