"""A sheet of samples: images with their masks over them, and a legend of the classes."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdistill.data.dataset import SegmentationDataset
from segdistill.functional import IGNORE

TILE, GAP, COLUMNS, LINE = 320, 8, 3, 20
"""Pixels: width of an image, distance between things, height of a line of text; and pairs beside each other."""


def choose_samples(seen: np.ndarray, count: int) -> list[int]:
    """Items that hold as many classes as possible between them, then others, evenly spaced; in their order.

    The rarest class that is not covered yet chooses next, among its images the one with most classes that are not.

    Args:
        seen: (N,C), which classes an item holds.
        count: how many items.
    """
    chosen: list[int] = []
    missing = np.asarray(seen.any(0))
    by_rarity = np.argsort(seen.sum(0), kind="stable")
    while missing.any() and len(chosen) < count:
        rarest = next(int(c) for c in by_rarity if missing[c])
        gain = (seen[:, missing].sum(1)) * seen[:, rarest]
        chosen.append(int(gain.argmax()))
        missing &= ~seen[chosen[-1]]
    for index in np.linspace(0, len(seen) - 1, 2 * count).round().astype(int).tolist() if len(seen) else []:
        if len(chosen) < count and index not in chosen:
            chosen.append(index)
    return sorted(chosen)


def draw_sheet(samples: Mapping[str, tuple[SegmentationDataset, list[int]]]) -> Image.Image:
    """Draw images and, beside each, its mask at half strength over it; void is dark.

    Args:
        samples: split → the data set, and which of its items.
    """
    rows = [_title(f"{split}: {len(chosen)} of {len(data)} images") for split, (data, chosen) in samples.items()]
    blocks: list[Image.Image] = []
    for row, (data, chosen) in zip(rows, samples.values(), strict=True):
        blocks += [row, *_rows([_pair(data, index) for index in chosen])]
    data = next(iter(samples.values()))[0]
    blocks.append(_legend(data.classes, data.palette))
    return _stack(blocks)


def _pair(data: SegmentationDataset, index: int) -> Image.Image:
    image, mask = data[index]
    pixels, ids = image.permute(1, 2, 0).numpy(), mask.numpy()
    colours = np.zeros((256, 3), np.float32)
    if data.classes:
        colours[: len(data.classes)] = data.palette
    colours[IGNORE] = 0
    over = (0.5 * pixels + 0.5 * colours[ids]).round().astype(np.uint8)
    height = max(1, round(TILE * ids.shape[0] / ids.shape[1]))
    pair = Image.new("RGB", (2 * TILE, height + LINE), "white")
    for column, part in enumerate((pixels, over)):
        pair.paste(Image.fromarray(np.ascontiguousarray(part)).resize((TILE, height)), (column * TILE, 0))
    ImageDraw.Draw(pair).text((2, height + 2), data.names[index][-80:], fill="black", font=_font())
    return pair


def _rows(pairs: list[Image.Image]) -> list[Image.Image]:
    rows = []
    for start in range(0, len(pairs), COLUMNS):
        group = pairs[start : start + COLUMNS]
        row = Image.new("RGB", (COLUMNS * (2 * TILE + GAP), max(p.height for p in group)), "white")
        for column, pair in enumerate(group):
            row.paste(pair, (column * (2 * TILE + GAP), 0))
        rows.append(row)
    return rows


def _legend(classes: list[str], palette: list[tuple[int, int, int]]) -> Image.Image:
    entries = [*zip(classes, palette, strict=True), ("255: ignored", (0, 0, 0))]
    columns = 8
    wide = COLUMNS * (2 * TILE + GAP) // columns
    legend = Image.new("RGB", (columns * wide, -(-len(entries) // columns) * LINE), "white")
    pen = ImageDraw.Draw(legend)
    for place, (name, colour) in enumerate(entries):
        x, y = place % columns * wide, place // columns * LINE
        pen.rectangle((x + 2, y + 3, x + 30, y + LINE - 3), fill=tuple(colour), outline="black")
        pen.text((x + 36, y + 3), name[:28], fill="black", font=_font())
    return legend


def _title(text: str) -> Image.Image:
    title = Image.new("RGB", (COLUMNS * (2 * TILE + GAP), LINE + GAP), "white")
    ImageDraw.Draw(title).text((2, GAP), text, fill="black", font=_font(16))
    return title


def _stack(blocks: list[Image.Image]) -> Image.Image:
    sheet = Image.new(
        "RGB", (max(b.width for b in blocks) + 2 * GAP, sum(b.height + GAP for b in blocks) + GAP), "white"
    )
    y = GAP
    for block in blocks:
        sheet.paste(block, (GAP, y))
        y += block.height + GAP
    return sheet


def _font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
