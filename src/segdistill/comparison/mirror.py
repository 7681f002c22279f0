"""A folder at a URL, such as in an object store, and its copy here."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from segdistill._printing import first_line
from segdistill.engine.run_folder import CHECKPOINT, make_folder, write_atomically

UNSHARED = {"memory"}
"""Kinds of URL that each process has for itself."""


def is_url(place: object) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in str(place)


def scratch_folder(url: str) -> Path:
    """Where the copy of a URL is: in the system's folder for temporary files (`TMPDIR`), always the same.

    Args:
        url: of the folder.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"segdistill-{user}" / digest


class Mirror:
    """A folder at a URL and its copy here. What is there counts; what is here is a means to work on it.

    Each file is taken over as a whole or not at all, a run's checkpoint after all that it stands on.

    Args:
        url: of any kind that fsspec knows.
        folder: of the copy.
    """

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url, folder
        self._sent: dict[str, tuple[int, int]] = {}

    def reach(self) -> None:
        """See to it that the folder is there and can be written to.

        Raises:
            ImportError: if a package is lacking for this kind of URL.
            ValueError: with one line, if it cannot be used.
        """
        with self._explaining("use"):
            system, root = self._system()
            system.makedirs(root, exist_ok=True)

    def download(self, name: str = "", *, but: Collection[str] = ()) -> None:
        """Make the copy what is there; files that are not there are removed, hidden ones and logs apart.

        Args:
            name: of a folder inside; all of it if left out.
            but: names of files that are left as they are.
        """
        with self._explaining("read"):
            system, root = self._system()
            place = f"{root}/{name}".rstrip("/")
            system.invalidate_cache()
            found = system.find(place) if system.isdir(place) else []
            # Names of object stores have no leading slash in one call and one in the other.
            names = {str(PurePosixPath(path.lstrip("/")).relative_to(root.lstrip("/"))): path for path in found}
            for path in self._files(name):
                key = path.relative_to(self.folder).as_posix()
                if key not in names and path.name not in (*but, LOG):
                    path.unlink(missing_ok=True)
            for key, path in names.items():
                target = self.folder / key
                if target.name in but or target.name == LOG:
                    continue
                make_folder(target.parent)
                write_atomically(target, lambda temporary, path=path: system.get_file(path, str(temporary)))
                self._sent[key] = _state(target)

    def download_log(self, name: str) -> str:
        """What the log of a run says there; empty if there is none.

        Args:
            name: of the run's folder.
        """
        with self._explaining("read"):
            system, root = self._system()
            path = f"{root}/{name}/{LOG}"
            return system.cat_file(path).decode("utf-8", "replace") if system.exists(path) else ""

    def upload(self, name: str = "", *, only: Collection[str] = ()) -> None:
        """Send what is new, and remove there what was removed here.

        Args:
            name: of a folder inside; if left out, the files beside them.
            only: names of files; all if left out.
        """
        with self._explaining("write"):
            system, root = self._system()
            files = [path for path in self._files(name) if name or path.parent == self.folder]
            with _frozen(files) as copies:
                for path, copy in sorted(copies.items(), key=lambda pair: pair[0].name == CHECKPOINT):
                    key, state = path.relative_to(self.folder).as_posix(), _state(copy)
                    if self._sent.get(key) != state and (not only or path.name in only):
                        _put(system, copy, f"{root}/{key}")
                        self._sent[key] = state
            if only or not name:
                return
            for key in [key for key in self._sent if key.startswith(f"{name}/") and not (self.folder / key).exists()]:
                with suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{key}")
                del self._sent[key]

    def _files(self, name: str) -> list[Path]:
        """Files of the copy, the checkpoint first, hidden ones apart."""
        found = [p for p in (self.folder / name).rglob("*") if p.is_file() and not p.name.startswith(".")]
        return sorted(found, key=lambda path: path.name != CHECKPOINT)

    def _system(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self.url)
        return system, str(root).rstrip("/")

    @contextmanager
    def _explaining(self, what: str) -> Iterator[None]:
        try:
            yield
        except ImportError:
            raise
        except Exception as error:  # each kind of store has errors of its own
            raise ValueError(f"cannot {what} {self.url}: {first_line(error)}") from error


LOG = "log.txt"
"""What a run prints; it only ever grows, also while it is sent."""


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _put(system: Any, source: Path, target: str) -> None:
    """Send a file, which is there when all of it is."""
    system.makedirs(target.rpartition("/")[0], exist_ok=True)
    with system.transaction, source.open("rb") as file, system.open(target, "wb") as remote:
        shutil.copyfileobj(file, remote, 2**22)


@contextmanager
def _frozen(files: Collection[Path]) -> Iterator[dict[Path, Path]]:
    """Files as they are now, while new ones get their names: by hard links, in the order given.

    A run writes its student before the checkpoint that counts on it. Taken in the other order, a checkpoint never has a
    student older than itself.
    """
    copies: dict[Path, Path] = {}
    link: Callable[[Path, Path], Any] = os.link
    try:
        for number, path in enumerate(files):
            copy = path.with_name(f".{path.name}.{os.getpid()}-{number}-upload.tmp")
            with suppress(FileNotFoundError):  # it was removed meanwhile
                copy.unlink(missing_ok=True)
                try:
                    link(path, copy)
                except (OSError, NotImplementedError) as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    shutil.copy2(path, copy)
                copies[path] = copy
        yield copies
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)
