"""Data sets of Hugging Face's hub, or local Parquet and Arrow files, with a column of images and one of masks."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from segdistill._printing import first_line
from segdistill.data.classes import Classes
from segdistill.data.dataset import SegmentationDataset, check_split
from segdistill.data.files import Array, Range, check_range, read_image, read_mask
from segdistill.data.labels import Ignored, LabelRule
from segdistill.data.splits import NAMES
from segdistill.functional import IGNORE

Split = Literal["train", "val", "test"]

MASK_COLUMNS = ("mask", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask")
"""Names that are known without being told."""


class HuggingFace(SegmentationDataset):
    """A repository of Hugging Face's hub, or local Parquet and Arrow files.

    It has a column of images and one of masks. Needs the extra `data`. The library `datasets` finds and downloads the
    files; images and masks are decoded here, by the rules that hold for files everywhere. No code of a repository is
    ever run.

    Args:
        split: train, val or test.
        path: a repository, such as `zhoubolei/scene_parse_150`; or a local folder of Parquet or Arrow files, a folder
            that `save_to_disk` has written, or one such file.
        classes: as for `folder`; images without masks need none.
        image: column of the images.
        mask: column of the masks; null: there are none, every pixel is 255; `auto`: the one that is called mask, label,
            annotation or segmentation.
        subset: of a repository that has several.
        revision: branch, tag or commit of a repository; give a commit for a run that can be repeated.
        splits: split → its name in the repository, where that is none of the usual ones (`validation`, `dev`, …).
        ignore: as for `folder`.
        values: as for `folder`.
        reduce_zero_label: as for `folder`.
        by_colour: as for `folder`.
        image_range: as for `folder`.
        max_pixels: as for `folder`.

    Raises:
        ValueError: if the package, the repository, the split, a column or a class is missing or wrong.
    """

    def __init__(
        self,
        split: str,
        *,
        path: str,
        classes: str | Classes | None = None,
        image: str = "image",
        mask: str | None = "auto",
        subset: str | None = None,
        revision: str | None = None,
        splits: dict[Split, str] | None = None,
        ignore: Ignored = IGNORE,
        values: dict[int, int] | None = None,
        reduce_zero_label: bool = False,
        by_colour: bool | None = None,
        image_range: Range | None = None,
        max_pixels: int | None = None,
    ):
        check_split(split)
        check_range(image_range, "data.image_range")
        self.image_range, self.max_pixels = image_range, max_pixels
        local = Path(path).expanduser()
        self.rule = LabelRule(
            classes, local, ignore=ignore, values=values, reduce_zero_label=reduce_zero_label, by_colour=by_colour
        )
        if classes is None and mask is not None:
            raise ValueError("huggingface: no classes; set data.classes to their names, or to a file that lists them")
        if mask is not None:
            self.rule.check_several()
        self.classes, self.palette = self.rule.classes, self.rule.palette
        there = _load(path, local, subset, revision)
        name = _choose_split(split, list(there), splits)
        table = there[name]
        columns = list(table.column_names)
        self.image, self.mask = _column(image, columns, "image"), None if mask is None else _mask(mask, columns)
        self.table = _undecoded(table, [self.image] if self.mask is None else [self.image, self.mask])
        self.title = f"{path}, {name}"
        self.names = [f"{name}/{row:0{len(str(len(table)))}d}" for row in range(len(table))]
        if not self.names:
            raise ValueError(f"{self.title}: no row in it")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.table[index]
        image = self._decode(row, index, self.image)
        if self.mask is None:
            ids = np.full(image.shape[:2], IGNORE, np.uint8)
        else:
            ids = self.rule.ids(self._decode(row, index, self.mask, labels=True), self._place(index, self.mask))
        if image.shape[:2] != ids.shape[:2]:
            sizes = [f"{part.shape[1]}×{part.shape[0]}" for part in (image, ids)]
            raise ValueError(
                f"{self.title}, row {index}: the image is {sizes[0]} but its mask {sizes[1]}; they must have one size"
            )
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(ids).long()

    def has_mask(self, index: int) -> bool:
        """Whether there is a column of masks."""
        return self.mask is not None

    def _place(self, index: int, column: str) -> Path:
        return Path(f"{self.title}, row {index}, column {column}")

    def _decode(self, row: dict[str, Any], index: int, column: str, labels: bool = False) -> Array:
        place, value = self._place(index, column), row[column]
        file = value.get("path") if isinstance(value, dict) else None
        content = value.get("bytes") if isinstance(value, dict) else value
        source = Path(file) if content is None and file else content
        if not isinstance(source, bytes | Path):
            kind = "nothing" if source is None else type(source).__name__
            raise ValueError(f"{place}: {kind}, where the bytes of an image file were expected; name another column")
        try:
            if labels:
                return read_mask(source, by_colour=self.rule.by_colour, max_pixels=self.max_pixels)
            return read_image(source, image_range=self.image_range, max_pixels=self.max_pixels)
        except ValueError as error:
            raise ValueError(f"{place}: {str(error).removeprefix('image: ')}") from error


def _load(path: str, local: Path, subset: str | None, revision: str | None) -> dict[str, Any]:
    """Split → table, of a repository or of local files."""
    try:
        import datasets
    except ImportError:
        raise ValueError("data.name: huggingface needs datasets; pip install 'segdistill[data]'") from None
    kind = {".parquet": "parquet", ".arrow": "arrow"}.get(local.suffix)
    try:
        if kind is not None and local.is_file():
            found = datasets.load_dataset(kind, data_files=str(local))
        elif (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            found = datasets.load_from_disk(str(local))
        else:
            found = datasets.load_dataset(str(local) if local.is_dir() else path, subset, revision=revision)
    except Exception as error:  # of the library, of the network, of the files
        place = f"{path}: "
        if isinstance(error, ConnectionError):
            what = "cannot be reached; without a connection, give a local folder of its files as data.path"
            raise ValueError(f"{place}{what} ({first_line(error)})") from None
        raise ValueError(f"{place}cannot be loaded ({first_line(error)}); expected a repository of Hugging Face, or a "
                         "local folder or file of Parquet or Arrow") from None  # fmt: skip
    return dict(found) if isinstance(found, dict) else {"train": found}


def _choose_split(split: str, there: list[str], splits: dict[Split, str] | None) -> str:
    named: dict[Any, str] = dict(splits or {})
    if split in named and named[split] not in there:
        raise ValueError(f"data.splits: no {named[split]!r}; there is {', '.join(there)}")
    known: dict[str, str] = {s: name for s, names in NAMES.items() for name in there if name.lower() in names} | named
    check_split(split, list(known), f"found {', '.join(there)}; say what is what: data.splits: {{{split}: NAME}}")
    return known[split]


def _column(name: str, columns: list[str], option: str) -> str:
    if name not in columns:
        raise ValueError(f"data.{option}: no column {name!r}; there is {', '.join(columns)}")
    return name


def _mask(name: str, columns: list[str]) -> str:
    if name != "auto":
        return _column(name, columns, "mask")
    found = [column for column in columns if column.lower() in MASK_COLUMNS]
    if len(found) != 1:
        what = f"{found[0]} or {found[1]}" if found else "no column of a known name"
        raise ValueError(f"data.mask: {what}; say which column holds the masks, of {', '.join(columns)}, or null")
    return found[0]


def _undecoded(table: Any, columns: list[str]) -> Any:
    """The columns of a table, with the bytes of image files as they are."""
    import datasets

    table = table.select_columns(columns)
    for column in columns:
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table
