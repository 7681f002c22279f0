"""What lies in a folder: files by their names, through links, without what the system has left there."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar, cast, overload

Found = TypeVar("Found")

FOREIGN = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found")
"""What systems leave in folders of images, in lower case."""


def is_foreign(name: str) -> bool:
    """Whether a file or folder is something that a system has left there, and never an image.

    Args:
        name: without its folder.
    """
    return name.lower() in FOREIGN or name.startswith("._") or name == ".DS_Store"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: its name starts with a dot, or a system has left it there.

    Args:
        name: without its folder.
    """
    return name[:1] == "." or name.lower() in FOREIGN  # all of what `is_foreign` knows beside starts with a dot


def files_below(folder: Path, suffixes: Collection[str], without: Iterable[Path] = ()) -> list[Path]:
    """Files below a folder, sorted by the parts of their paths; hidden ones, and those in hidden folders, are left out.

    Links are followed, each folder is searched once: links that lead in a circle end.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted; case makes no difference.
        without: folders below it that are left out.

    Raises:
        ValueError: if a folder cannot be read, or a link leads nowhere.
    """
    return [folder / name for name in names_below(folder, suffixes, without)]


def names_below(folder: Path, suffixes: Collection[str], without: Iterable[Path] = ()) -> list[str]:
    """The same as `files_below`, as paths inside the folder, with `/`: texts are cheap where there are many files.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted; case makes no difference.
        without: folders below it that are left out.
    """
    without = list(without)

    def search() -> list[str]:
        # Folder by folder, as paths are sorted: nothing sorts before NUL. Lists of parts would take thrice as long.
        return sorted(_walk(folder, tuple(suffixes), without), key=lambda name: name.replace("/", "\0"))

    return once((os.fspath(folder), tuple(suffixes), tuple(map(os.fspath, without))), search)


_FOUND: ContextVar[dict[tuple[object, ...], object] | None] = ContextVar("found", default=None)


@contextmanager
def searched_once() -> Iterator[None]:
    """Search each folder at most once while it lasts, and share what was found: for the splits of one data set."""
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)


def once(key: tuple[object, ...], find: Callable[[], Found]) -> Found:
    """What a function finds; within `searched_once`, what it found the first time.

    Args:
        key: tells what is looked for.
        find: is called if that is not known. Nobody may change what it returns.
    """
    known = _FOUND.get()
    if known is None:
        return find()
    if key not in known:
        known[key] = find()
    return cast("Found", known[key])


def holds_files(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether there is a file of a kind below a folder; it stops at the first, and False if there is no folder.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted; case makes no difference.
    """
    return folder.is_dir() and any(True for _ in _walk(folder, tuple(suffixes), ()))


def _walk(folder: Path, suffixes: tuple[str, ...], without: Iterable[Path]) -> Iterator[str]:
    """Paths of files inside a folder, in no order."""
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    seen = {_identity(path) for path in without if path.is_dir()}
    real, linked = [""], list[str]()
    while real or linked:
        # Real folders come first, so that a folder with a link to it beside it is known by its own name.
        inside = real.pop() if real else linked.pop(0)
        here = _identity(folder / inside)
        if here in seen:
            continue
        seen.add(here)
        for entry in entries(folder / inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_hidden(entry.name):
                continue
            if entry.name.lower().endswith(suffixes) and _is_file(entry):
                yield name
            elif _is_dir(entry):
                (linked if entry.is_symlink() else real).append(name)
            elif "." not in entry.name and (dangling := dangling_link(entry)):
                raise ValueError(dangling)  # it may have been a folder of images
        linked.sort()


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies directly in a folder.

    Args:
        folder: that is there.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            yield from listing
    except OSError as error:
        raise ValueError(f"{folder}: cannot be searched ({error.strerror}); see that you may read it") from None


def folders_in(folder: Path) -> list[str]:
    """Names of the folders directly in a folder, sorted, without hidden ones; none if it is not there.

    Args:
        folder: where to look.
    """
    return sorted(e.name for e in entries(folder) if _is_dir(e) and not is_hidden(e.name)) if folder.is_dir() else []


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        if entry.is_file():
            return True
    dangling = dangling_link(entry)
    if dangling is not None:
        raise ValueError(dangling)
    return False  # a pipe or a device, from which reading would never end


def dangling_link(path: str | os.PathLike[str]) -> str | None:
    """One line on a link that leads nowhere, and what to do; None for whatever else a path is.

    Args:
        path: any.
    """
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return f"{os.fspath(path)}: a link to {os.readlink(path)}, which is not there; mend the link or remove it"


class Files(Mapping[str, Path]):
    """Files below a folder, by some name. They are held as texts, a fraction of what paths of a million files take.

    Args:
        folder: which all of them lie below.
        inside: name → path inside the folder, with `/`.
    """

    def __init__(self, folder: Path, inside: Mapping[str, str]):
        self.folder = folder
        self.inside = inside

    def __getitem__(self, name: str) -> Path:
        return self.folder / self.inside[name]

    def __contains__(self, name: object) -> bool:
        return name in self.inside

    def __iter__(self) -> Iterator[str]:
        return iter(self.inside)

    def __len__(self) -> int:
        return len(self.inside)

    def only(self, names: Iterable[str]) -> "Files":
        """Some of them, in the order of the names.

        Args:
            names: of files that are there.
        """
        return Files(self.folder, {name: self.inside[name] for name in names})

    def renamed(self, prefix: str) -> "Files":
        """All of them, by their names with something before these.

        Args:
            prefix: of the new names.
        """
        return Files(self.folder, {prefix + name: path for name, path in self.inside.items()}) if prefix else self


class FileList(Sequence[Path]):
    """Paths by number, made when they are asked for.

    Args:
        files: where they are looked up.
        names: of them, in order.
    """

    def __init__(self, files: Files, names: Iterable[str]):
        self.folder = files.folder
        self.inside = [files.inside[name] for name in names]

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self.folder / path for path in self.inside[index]]
        return self.folder / self.inside[index]

    def __len__(self) -> int:
        return len(self.inside)


def file_list(files: Mapping[str, Path], names: Iterable[str]) -> Sequence[Path]:
    """The paths of some files, by number.

    Args:
        files: name → path.
        names: of those wanted, in order.
    """
    return FileList(files, names) if isinstance(files, Files) else [files[name] for name in names]


def find_files(folder: Path, suffixes: Collection[str]) -> Files:
    """Files below a folder, by their path in it without suffix, sorted; hidden files are left out.

    Args:
        folder: where to look, in subfolders too.
        suffixes: of the files wanted; case makes no difference.

    Raises:
        ValueError: if the folder is missing, or two files differ in nothing but the suffix.
    """
    check_folder(folder)
    return by_stem(folder, names_below(folder, suffixes))


def by_stem(folder: Path, names: Iterable[str], ending: str = "") -> Files:
    """Files by their path inside a folder without suffix.

    Args:
        folder: which they lie below.
        names: paths inside it, with `/`.
        ending: of the names that count, before the suffix.

    Raises:
        ValueError: if two files differ in nothing but the suffix.
    """
    files: dict[str, str] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        if stem in files:
            raise ValueError(f"{folder / name} and {Path(files[stem]).name} have one name; keep one of the two")
        if stem.endswith(ending):
            files[stem] = name
    return Files(folder, files)


def check_folder(folder: Path, hint: str = "") -> None:
    """Raise ValueError with one line if a folder is missing; it says which part of the path is there.

    Args:
        folder: that is needed.
        hint: what to do.
    """
    if folder.is_dir():
        return
    end = f"; {hint}" if hint else ""
    if folder.is_symlink():
        raise ValueError(f"{folder}: a link to {os.readlink(folder)}, which is not there{end}")
    if folder.is_file():
        raise ValueError(f"{folder}: a file, not a folder{end}")
    parent = next((p for p in folder.parents if p.is_dir()), Path())
    raise ValueError(f"{folder}: no such folder; in {parent} there is {shown(folders_in(parent)) or 'no folder'}{end}")


def found_in(folder: Path) -> str:
    """What lies directly in a folder, for an error line: its first folders, else its first files, else "nothing".

    Args:
        folder: that is there.
    """
    files = (entry.name for entry in entries(folder) if not is_hidden(entry.name))
    return shown(folders_in(folder)) or shown(sorted(files)) or "nothing"


def shown(names: Sequence[str]) -> str:
    """The first of some names, for an error line.

    Args:
        names: of folders or files.
    """
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
