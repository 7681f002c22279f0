"""What published data sets share: where they are, which class is which, and how many images they have."""

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from segdistill._printing import number_of
from segdistill._types import Colour
from segdistill.data.classes import read_classes
from segdistill.data.files import Array, Bytes
from segdistill.data.mat import read_mat
from segdistill.data.pairs import FileDataset, check_ids
from segdistill.data.walk import check_folder, found_in, names_below


class StandardDataset(FileDataset):
    """A published data set in the folders of its download; a subclass says which files, and what mask values mean.

    Attributes:
        title: its name in messages.
        variable: the environment variable that may hold its root.
        mat_keys: the path of the labels inside the set's `.mat` files.
    """

    title: ClassVar[str]
    variable: ClassVar[str]
    mat_keys: ClassVar[tuple[str, ...]] = ()

    def find_root(self, given: str | None, marks: Sequence[str], inside: Sequence[str] = ()) -> Path:
        """The root: the folder that is given, or one of those that the download has in it.

        Args:
            given: option `root`; None: the environment variable counts.
            marks: folders of which the root has one.
            inside: where else the root may be, from the folder that is given.

        Raises:
            ValueError: with one line on which folder is missing, and what is there.
        """
        named = given or os.environ.get(self.variable)
        where = f"data.root, or {self.variable}"
        wanted = " or ".join(f"{mark}/" for mark in marks)
        if not named:
            raise ValueError(f"{self.title}: no folder given; set {where}, to the folder with {wanted}")
        folder = Path(named).expanduser()
        check_folder(folder, f"set {where}, to {self.title}'s folder")
        for place in ("", *inside):
            if any((folder / place / mark).is_dir() for mark in marks):
                return folder / place
        if folder.name in marks:
            raise ValueError(f"{folder}: a folder inside {self.title}; set {where}, to {folder.parent}")
        self.refuse_other(folder)
        others = f" (or that in {' or '.join(inside)})" if inside else ""
        raise ValueError(
            f"{folder}: no {self.title}: expected {wanted}{others}, found {found_in(folder)}; set {where}, to the "
            "folder that holds it"
        )

    def refuse_other(self, folder: Path) -> None:
        """Raise ValueError with one line if a folder holds another data set that is often taken for this one.

        Args:
            folder: in which the expected folders are missing.
        """

    def remark_count(self, split: str, expected: int) -> None:
        """Remark on it if the number of images is not the published one.

        Args:
            split: whose images these are.
            expected: how many the publishers count.
        """
        if len(self.names) != expected:
            count = number_of(len(self.names), "image")
            self.remarks = [*self.remarks, f"{self.title}: {count}, where the official {split} has {expected}"]

    def read_mask(self, path: Path) -> Array:
        """The values of a mask: a PNG, or MATLAB's file of the same labels."""
        return read_mat(path, *self.mat_keys) if path.suffix == ".mat" else super().read_mask(path)

    def read_values(self, path: Path, count: int, hint: str = "") -> Bytes:
        """The values of a mask file, as `check_values`.

        Args:
            path: of the mask.
            count: how many values there are.
            hint: what to do about other values.

        Raises:
            ValueError: if the file cannot be read, has colours, or other values.
        """
        return self.check_values(self.read_mask(path), count, path, hint)

    def check_values(self, values: Array, count: int, path: Path, hint: str = "") -> Bytes:
        """The values of a mask of one channel as bytes, if all of them are below `count`, or 255.

        Args:
            values: as `read_mask` gives them.
            count: how many values there are.
            path: of the mask, for the error line.
            hint: what to do about other values.

        Raises:
            ValueError: if there are colours, or other values.
        """
        if values.ndim == 3:
            raise ValueError(
                f"{path}: a mask of colours, where {self.title} has PNGs of one channel or with a palette; take the "
                "file as it was published"
            )
        return check_ids(values, count, path, hint)


def read_table(name: str) -> tuple[list[str], list[Colour]]:
    """The names of a data set's classes, in the order of their ids, and their colours.

    Args:
        name: of a file in `data/tables`.
    """
    table = Path(str(files("segdistill.data") / "tables" / f"{name}.json"))
    return read_classes(str(table), table.parent)


def read_list(path: Path) -> list[str]:
    """The images that a list names, each once: a name a line, or a path with folders and suffix, or that and a mask's.

    Args:
        path: of the list.

    Raises:
        ValueError: if it cannot be read, or names nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable list ({error}); take the one of the download") from None
    names = list(dict.fromkeys(Path(line.split()[0]).stem for line in lines if line.strip()))
    if not names:
        raise ValueError(f"{path}: an empty list; take the one of the download")
    return names


def choose_images(folder: Path, names: Sequence[str], source: Path | str, more: Path | None = None) -> dict[str, Path]:
    """The JPEGs of some names.

    Args:
        folder: where they are.
        names: without suffix.
        source: what names them, for the error line.
        more: a folder that has those that are not in the first.

    Raises:
        ValueError: naming the first image that is missing, and how many are.
    """
    there: dict[str, Path] = {}
    for place in (folder, more):
        if place is not None and place.is_dir():
            there = {name[:-4]: place / name for name in names_below(place, (".jpg",))} | there
    absent = [name for name in names if name not in there]
    if absent:
        count = f" ({len(absent)} of {len(names)} are missing)" if len(absent) > 1 else ""
        raise ValueError(f"{folder / absent[0]}.jpg: no such image, but {source} names it{count}; unpack all images")
    return {name: there[name] for name in names}


def masks_in(folder: Path, suffix: str = ".png") -> dict[str, Path]:
    """The masks directly in a folder or below it: name without suffix → file; none if there is no such folder.

    Args:
        folder: where they are.
        suffix: of the files, in lower case.
    """
    names = names_below(folder, (suffix,)) if folder.is_dir() else []
    return {name[: -len(suffix)]: folder / name for name in names}
