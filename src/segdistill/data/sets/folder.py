"""A user's own images and masks."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import ImageColor

from segdistill._types import Colour
from segdistill.data.dataset import SPLITS, check_classes, check_split, distinct_colours
from segdistill.data.files import (
    MASK_SUFFIXES,
    Bytes,
    FileDataset,
    check_folder,
    check_ids,
    colours_to_ids,
    find_files,
    read_mask,
)
from segdistill.functional import IGNORE

Classes = list[str] | dict[str, list[int] | str]
"""Names in the order of their ids, or names with a colour each."""


class Folder(FileDataset):
    """Images in one folder, masks of the same names in another.

    How it is split is seen from what is there: folders `images/train images/val` (with `masks/train …`); else lists
    `train.txt val.txt` in the root, an image a line; else a seeded fraction of the names. Images without masks
    (`masks: null`) are all in `train` unless there are folders or lists.

    A mask is a PNG (TIFF, BMP, GIF) of ids in one channel, or of colours if the classes have colours. A palette PNG has
    both: it is read by its colours if the classes have some, else its indices are the ids, unless `by_colour` is given.

    Args:
        split: train, val or test.
        root: the folder.
        classes: names in the order of their ids, or name → colour ([r, g, b] or "#rrggbb"), or the path of a file with
            these: YAML, JSON, or text with a class a line, `name` or `name r g b`. Images without masks need none.
        images: folder of the images, in `root`.
        masks: folder of the masks, in `root`; null: there are none, every pixel is 255.
        mask_suffix: what a mask's name has behind the image's name, such as "_label".
        ignore: values of a mask that become 255, beside 255 itself: ids, or colours ([r, g, b] or "#rrggbb").
        values: value in the mask → id, for masks that do not count 0, 1, 2, …, such as {0: 0, 255: 1}; what is not
            listed stays as it is.
        by_colour: read palette masks by colour (true) or by index (false).
        val_fraction: share of the images in `val`, without folders and lists.
        test_fraction: share of the images in `test`, without folders and lists.
        split_seed: of that choice, which depends on the names alone.

    Raises:
        ValueError: if a folder, split, list or class is missing or wrong, or an image has no mask.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str,
        classes: str | Classes | None = None,
        images: str = "images",
        masks: str | None = "masks",
        mask_suffix: str = "",
        ignore: list[int | str | list[int]] | int = IGNORE,
        values: dict[int, int] | None = None,
        by_colour: bool | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
    ):
        check_split(split)
        folder = Path(root).expanduser()
        check_folder(folder, "set data.root")
        check_folder(folder / images, "set data.images")
        if classes is None and masks is not None:
            raise ValueError("folder: no classes; set data.classes to their names, or to a file that lists them")
        names, colours = ([], []) if classes is None else _read_classes(classes, folder)
        self.classes = names
        self.palette = colours or distinct_colours(len(names))
        ignored = [ignore] if isinstance(ignore, int) else ignore
        self.has_colours = bool(colours)
        self.by_colour = self.has_colours if by_colour is None else by_colour
        self.ids = {colour: index for index, colour in reversed(list(enumerate(colours)))}
        self.ids |= {_colour(value, "ignore"): IGNORE for value in ignored if not isinstance(value, int)}
        self.values = {value: IGNORE for value in ignored if isinstance(value, int)} | (values or {})
        found = _choose(folder, split, images, masks is None, val_fraction, test_fraction, split_seed)
        if masks is None:
            super().__init__(found, None, str)
            return
        check_folder(folder / masks, "set data.masks, or `masks: null` for images without labels")
        available = find_files(folder / masks, MASK_SUFFIXES)
        paths = {name: available[name + mask_suffix] for name in found if name + mask_suffix in available}
        super().__init__(found, paths, lambda name: _expected(folder / masks, name + mask_suffix))

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask of ids or of colours."""
        values = read_mask(path, by_colour=self.by_colour)
        if values.ndim == 3:
            if not self.has_colours:
                raise ValueError(
                    f"{path}: a mask of colours, but the classes have none; give each a colour in data.classes "
                    "({road: [128, 64, 128], …}), or save class ids as an 8-bit PNG of one channel"
                )
            hint = (
                "add it to data.classes or data.ignore, or, if the mask's palette indices are ids, set by_colour: false"
            )
            return colours_to_ids(values.astype(np.uint8), self.ids, path, hint)
        mapped = values.astype(np.int64)
        for value, index in self.values.items():
            mapped[values == value] = index
        return check_ids(mapped, len(self.classes), path, self._hint(set(np.unique(mapped).tolist())))

    def _hint(self, values: set[int]) -> str:
        count = len(self.classes)
        bad = values - set(range(count)) - {IGNORE}
        if bad == {count}:
            return f"if {count} means void, set ignore: [{count}]; if ids count from 1, set values: {{1: 0, 2: 1, …}}"
        if values <= {0, 127, 128, 255, 254, 1} and bad:
            return "grey levels rather than ids? map them, for instance values: {0: 0, 255: 1}"
        return (
            "map them with data.values, drop them with data.ignore, or give colours in data.classes for a palette mask"
        )


def _choose(
    root: Path, split: str, images: str, unlabelled: bool, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Path]:
    """The images of a split by name; with folders, the name starts with the split."""
    folders = [s for s in SPLITS if (root / images / s).is_dir()]
    lists = [s for s in SPLITS if (root / f"{s}.txt").is_file()]
    if folders:
        check_split(split, folders, f"images/ is split by folders; make {root / images / split}")
        chosen = {f"{split}/{name}": path for name, path in find_files(root / images / split).items()}
        place = root / images / split
    elif lists:
        check_split(split, lists, f"the data are split by lists; write {root / split}.txt")
        place = root / f"{split}.txt"
        chosen = _listed(place, find_files(root / images))
    else:
        found = find_files(root / images)
        fractions = (0.0, 0.0) if unlabelled else (val_fraction, test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must leave some for train")
        available = ["train"] + [s for s, part in zip(("val", "test"), fractions, strict=True) if part]
        check_split(split, available, f"set data.{split}_fraction, or make {root / images / split}")
        names = _fraction(list(found), split, fractions, seed)
        chosen = {name: found[name] for name in names}
        place = root / images
    if not chosen:
        raise ValueError(f"{place}: no image in it for split {split!r}; put some there")
    return chosen


def _fraction(names: list[str], split: str, fractions: tuple[float, float], seed: int) -> list[str]:
    # Ranked by a hash of each name: the same on every machine, and a new image hardly moves the others.
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    val, test = (max(1, round(part * len(names))) if part else 0 for part in fractions)
    parts = {"val": ranked[:val], "test": ranked[val : val + test], "train": ranked[val + test :]}
    return sorted(parts[split])


def _listed(path: Path, found: dict[str, Path]) -> dict[str, Path]:
    chosen = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        entry = line.strip()
        if not entry:
            continue
        name = next((n for n in (entry, Path(entry).with_suffix("").as_posix()) if n in found), None)
        if name is None:
            raise ValueError(f"{path}, line {number}: no image {entry!r}; write its path inside the images' folder")
        if name in chosen:
            raise ValueError(f"{path}, line {number}: {entry!r} is listed twice")
        chosen[name] = found[name]
    return chosen


def _expected(folder: Path, name: str) -> str:
    lossy = next((path for path in (folder / f"{name}.jpg", folder / f"{name}.jpeg") if path.is_file()), None)
    if lossy:
        return f"{folder / name}.png; {lossy.name} does not count, since JPEG changes label values"
    return f"{folder / name}.png"


def _read_classes(classes: str | Classes, root: Path) -> tuple[list[str], list[Colour]]:
    """Names, and one colour each or no colours at all."""
    source = "data.classes"
    content: Any = classes
    if isinstance(classes, str):
        path = next((p for p in (Path(classes).expanduser(), root / classes) if p.is_file()), None)
        if path is None:
            raise ValueError(f"data.classes: no file {classes!r}, here or in {root}; give a file or a list of names")
        source, content = str(path), _parse(path)
    if isinstance(content, dict) and all(isinstance(key, int) for key in content):
        if sorted(content) != list(range(len(content))):
            raise ValueError(f"{source}: ids must be 0, 1, 2, …, got {sorted(content)[:6]}")
        content = [content[index] for index in range(len(content))]
    if isinstance(content, dict):
        return check_classes(list(map(str, content)), source), [_colour(c, source) for c in content.values()]
    if not isinstance(content, list) or not all(isinstance(name, str | int | float | bool) for name in content):
        raise ValueError(f"{source}: expected a list of names, or name: colour, got {str(content)[:60]}")
    return check_classes([str(name) for name in content], source), []


def _parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        if path.suffix.lower() in (".yaml", ".yml"):
            return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    matches = [re.fullmatch(r"(.*\S)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line) for line in lines]
    if not any(matches):
        return lines
    if not all(matches):
        bare = lines[matches.index(None)]
        raise ValueError(f"{path}: {bare!r} has no colour, others have; write `{bare} r g b`")
    return {m[1].rstrip(","): [int(m[i]) for i in (2, 3, 4)] for m in matches if m}


def _colour(value: Any, source: str) -> Colour:
    """The colour in [r, g, b] or "#rrggbb"."""
    try:
        red, green, blue = ImageColor.getrgb(value)[:3] if isinstance(value, str) else map(int, value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{source}: expected a colour as [r, g, b] or "#rrggbb", got {value!r}') from error
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{source}: colour {value!r} is not within 0 … 255")
    return red, green, blue
