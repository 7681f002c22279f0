"""A user's own images and masks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segdistill.data.classes import Classes
from segdistill.data.dataset import check_split
from segdistill.data.files import Array, Bytes, check_range, read_mask
from segdistill.data.groups import sequences
from segdistill.data.labels import Ignored, LabelRule
from segdistill.data.layouts import AUTO, Endings, Layout, detect_layout, find_pairs
from segdistill.data.pairs import FileDataset
from segdistill.data.splits import choose_fraction, choose_listed, find_lists, find_splits, split_of
from segdistill.data.walk import check_folder, folders_in, once
from segdistill.functional import IGNORE

Split = Literal["train", "val", "test"]


class Folder(FileDataset):
    """Images and masks in folders, matched by their names.

    The layout is seen from what is there: `images/` and `masks/`; `train/images` and `train/masks`, `val/…`; or both in
    one folder, as `x.jpg` with `x_mask.png` or `x.png`, or `x_sat.jpg` with `x_mask.png`. If two of these fit it is
    refused, and `images`, `masks` and the suffixes say which one is meant.

    So is the split: folders `images/train images/val` (with `masks/train …`; `training`, `valid`, `validation`, `dev`
    and `testing` are known too); else lists `train.txt val.txt` in the root, an image a line; else a seeded fraction of
    the names. Images without masks (`masks: null`) are all in `train` unless there are folders or lists.

    A mask is a PNG (TIFF, BMP, GIF) of ids in one channel, or of colours if the classes have colours. A palette PNG has
    both: it is read by its colours if the classes have some, else its indices are the ids, unless `by_colour` is given.

    Args:
        split: train, val or test.
        root: the folder.
        classes: names in the order of their ids, or name → colour ([r, g, b] or "#rrggbb"), or the path of a file with
            these: YAML, JSON, CSV (name,r,g,b), CVAT's labelmap.txt, or text with a class a line, `name` or
            `name r g b`. Images without masks need none.
        images: folder of the images, in `root`; `{split}` in it stands for the split's folder; `auto`: looked for.
        masks: folder of the masks likewise; null: there are none, every pixel is 255.
        image_suffix: what an image's name has behind the part that it shares with its mask's, such as "_sat".
        mask_suffix: what a mask's name has there, such as "_mask"; without either, that is seen from the names.
        splits: split → its folder, or its list (a path in `root` that ends in .txt), where they have other names than
            the known ones; `.` is the whole folder; {}: there are none, whatever folders and lists are called.
        ignore: values of a mask that become 255, beside 255 itself: ids, or colours ([r, g, b] or "#rrggbb").
        values: value in the mask → id, for masks that do not count 0, 1, 2, …, such as {0: 0, 255: 1}; what is not
            listed stays as it is.
        reduce_zero_label: masks count from 1, and 0 means void, as in ADE20K: 0 becomes 255, others one less.
        by_colour: read palette masks by colour (true) or by index (false).
        image_range: [lo, hi], the values in an image's file that become 0 and 1; needed for images of floats and of
            32-bit numbers. What lies beyond is cut off. Without it, 8 and 16 bits are used in full.
        max_pixels: the largest image that is read, where Pillow's limit of 179 million pixels is too low.
        val_fraction: share of the images in `val`, without folders and lists.
        test_fraction: share of the images in `test`, without folders and lists.
        split_seed: of that choice, which depends on the names alone.
        groups: as `data.groups`: that choice takes whole sequences.

    Raises:
        ValueError: if a folder, split, list or class is missing or wrong, or an image has no mask.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str,
        classes: str | Classes | None = None,
        images: str = AUTO,
        masks: str | None = AUTO,
        image_suffix: str | None = None,
        mask_suffix: str | None = None,
        splits: dict[Split, str] | None = None,
        ignore: Ignored = IGNORE,
        values: dict[int, int] | None = None,
        reduce_zero_label: bool = False,
        by_colour: bool | None = None,
        image_range: tuple[float, float] | None = None,
        max_pixels: int | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        groups: str | None = None,
    ):
        check_split(split)
        check_range(image_range, "data.image_range")
        self.image_range, self.max_pixels = image_range, max_pixels
        folder = Path(root).expanduser()
        check_folder(folder, "set data.root")
        endings = None if image_suffix is None and mask_suffix is None else (image_suffix or "", mask_suffix or "")
        layout = detect_layout(folder, Layout(images, masks, endings), (splits or {}).values())
        if classes is None and masks is not None:
            raise ValueError("folder: no classes; set data.classes to their names, or to a file that lists them")
        self.rule = LabelRule(
            classes, folder, ignore=ignore, values=values, reduce_zero_label=reduce_zero_label, by_colour=by_colour
        )
        if masks is not None:
            self.rule.check_several()
        self.classes, self.palette = self.rule.classes, self.rule.palette
        fractions = (0.0, 0.0) if masks is None else (val_fraction, test_fraction)
        files = _choose(folder, split, layout, splits, fractions, split_seed, groups)
        super().__init__(files.images, None if masks is None else files.masks, files.expected)

    def read_mask(self, path: Path) -> Array:
        """The values of a mask file: ids, or colours if the classes have some."""
        return read_mask(path, by_colour=self.rule.by_colour, max_pixels=self.max_pixels)

    def read_ids(self, path: Path) -> Bytes:
        """The class ids of a mask of ids or of colours."""
        return self.rule.ids(self.read_mask(path), path)


@dataclass(frozen=True)
class _Files:
    """Images and their masks, by the images' names."""

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    mask_folder: Path
    endings: Endings
    prefix: str = ""

    def expected(self, name: str) -> str:
        """Where the mask of an image was looked for."""
        image_end, mask_end = self.endings
        stem = self.mask_folder / (name.removeprefix(self.prefix).removesuffix(image_end) + mask_end)
        there = next((path for suffix in (".png", ".jpg", ".jpeg") if (path := Path(f"{stem}{suffix}")).exists()), None)
        if there is None:
            return f"{stem}.png"
        if there.is_dir():
            return f"{stem}.png; what has that name is a folder"
        return f"{stem}.png; {there.name} does not count, since JPEG changes label values"


def _choose(
    root: Path,
    split: str,
    layout: Layout,
    splits: Mapping[Split, str] | None,
    fractions: tuple[float, float],
    seed: int,
    groups: str | None,
) -> _Files:
    """The files of a split: those of a folder or a list; else a fraction of all."""
    inside = "{split}" in layout.images
    place = root if inside else root / layout.images
    if not inside:
        check_folder(place, "set data.images")
    named: Mapping[Any, str] = (
        (find_splits(folders_in(place), place, "folder") or find_lists(root)) if splits is None else splits
    )
    if inside or named:
        listed = any(name.endswith(".txt") for name in named.values())
        make = f"write {root / split}.txt" if listed else f"make {place / split}"
        check_split(split, list(named), "add it to data.splits" if splits else make)
    name = named.get(split)
    place = root / name if name and (inside or name.endswith(".txt")) else place / (name or "")
    if name is None:
        files = _read(root, layout, ".")
        hint = f"set data.{split}_fraction, or make {place / split}"
        whole = None if groups is None else sequences(files.images, groups)
        images = choose_fraction(files.images, split, *fractions, seed, hint, whole)
        files = replace(files, images=images)
    elif name.endswith(".txt"):
        files = _read(root, layout, ".")
        files = replace(files, images=choose_listed(root / name, files.images, files.endings[0]))
    else:
        files = _read(root, layout, name)
    if not files.images:
        raise ValueError(f"{place}: no image in it for split {split!r}; put some there")
    return files


def _read(root: Path, layout: Layout, name: str) -> _Files:
    """All images of a split's folder with their masks; `.` is the whole."""

    def folder(pattern: str) -> Path:
        if "{split}" in pattern:
            return root / pattern.replace("{split}", name)
        place = root / pattern / name
        if place.is_dir() or split_of(name) is None:
            return place
        alike = [other for other in folders_in(root / pattern) if split_of(other) == split_of(name)]
        return root / pattern / alike[0] if len(alike) == 1 else place

    masks = None if layout.masks is None else folder(layout.masks)
    place = folder(layout.images)
    key = "pairs", place, masks, layout.endings
    images, paths, endings = once(key, lambda: find_pairs(place, masks, layout.endings))
    prefix = "" if name == "." else f"{name}/"
    return _Files(
        images.renamed(prefix),
        paths.renamed(prefix),
        masks or root,
        endings,
        prefix,
    )
