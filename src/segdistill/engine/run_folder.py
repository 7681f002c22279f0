"""The files of a run's folder: their names, JSON, and writing that leaves no half a file behind."""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STUDENT, CHECKPOINT, CONFIG, SUMMARY, METRICS, ENVIRONMENT = (
    "student.safetensors",
    "checkpoint.pt",
    "config.yaml",
    "summary.json",
    "metrics.jsonl",
    "env.json",
)
TEMPORARY = ".tmp"
"""How the names end under which files are written first: `.NAME.PID-RANDOM.tmp`."""

ADVICE = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOENT: "the folder was removed, or cannot be made; put it back",
    errno.EEXIST: "a file is where the folder should be; name another folder",
    errno.ENOTDIR: "a file is where the folder should be; name another folder",
    errno.EISDIR: "a folder is where the file should be; name another file",
    errno.EACCES: "allow writing there, or name another place",
    errno.EPERM: "allow writing there, or name another place",
    errno.EROFS: "name a place that can be written to",
}
"""What helps, by what the system said."""


class CannotWriteError(ValueError):
    """The system did not take what was to be written; the line says why, and what helps."""


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn what the system says about writing a file into one line that says what helps.

    Args:
        path: of the file or folder.

    Raises:
        CannotWriteError: instead of an `OSError`, or of an error that a library raised on one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch.save hides it behind one of its own
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        advice = ADVICE.get(cause.errno or 0, "see to it")
        line = f"cannot write {path}: {cause.strerror or cause}; {advice}, then run the same command again"
        raise CannotWriteError(line) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those that it is in.

    Args:
        path: of the folder.

    Raises:
        ValueError: if there is a file instead, or nothing can be written there.
    """
    with explaining(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, write: Any) -> None:
    """Write a file under another name first, so that whatever goes wrong leaves the old one whole, and nothing else.

    The file is on the disk when this returns, and its new name too.

    Args:
        path: of the file.
        write: called with the temporary path.

    Raises:
        ValueError: if it cannot be written, as where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    with explaining(path):
        try:
            write(temporary)
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    with suppress(OSError):  # Windows opens no folders, some file systems have nothing to do
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, atomically; bytes of file names that are none are escaped as JSON does it.

    Args:
        path: of the file.
        text: what it will hold.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, as_json(value) + "\n")


def as_json(value: Any) -> str:
    """A value as indented JSON, as all files have it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def read_json(path: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        needed: keys that it must have.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object; delete it, or run what wrote it again")
    lacking = [key for key in needed if key not in value]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; delete it, and run what wrote it again")
    return value


def stored_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as `read_json`; empty if there is no file.

    Args:
        path: of the file.
    """
    return read_json(path) if path.is_file() else {}
