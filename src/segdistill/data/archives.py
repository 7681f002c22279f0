"""Archives from the web, unpacked as if they were hostile: files and folders only, inside, no larger than expected."""

import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from segdistill.data.downloads import CHUNK, writing

RATIO = 200
"""An archive that grows more than so many times is taken for an attack; images hardly grow at all."""
FREE = 1 << 20
"""Bytes up to which the ratio does not matter."""
MEMBERS = 1_000_000
"""Files and folders in one archive, at most."""

BROKEN = (tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
"""What Python's readers raise on a damaged archive, or one of a kind that they do not know."""


class BadArchiveError(ValueError):
    """An archive is damaged, or holds what no data set holds."""


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive; of a folder there is nothing to open."""

    name: str
    open: Callable[[], IO[bytes]] | None


def unpack(
    archive: Path,
    folder: Path,
    *,
    limit: int,
    place: Callable[[PurePosixPath], PurePosixPath | None] = lambda name: name,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[int, int]:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive; how many files it held, and how many bytes.

    Only contents are taken over, no owners, rights or dates. It stops at the first member that is neither a file nor a
    folder, has a name that leads out of the folder or came before, and where more comes out than an archive of this
    kind holds. What has been unpacked until then stays: unpack into a folder of its own.

    Args:
        archive: the file.
        folder: where to; made if it is not there.
        limit: bytes of all files together, at most.
        place: where a member goes inside the folder, by its name; None leaves it out.
        progress: called with (bytes written, bytes in all or None).

    Raises:
        BadArchiveError: in one line, if the archive is at fault.
        ValueError: in one line, if its files cannot be written.
    """
    most = min(limit, max(FREE, RATIO * archive.stat().st_size))
    files, written = 0, 0
    total = _stated(archive)
    try:
        for count, member in enumerate(_members(archive), 1):
            if count > MEMBERS:
                raise BadArchiveError(f"{archive}: more than {MEMBERS} members; it is not unpacked")
            name = place(_checked(member.name, archive))
            if name is None or name == PurePosixPath():
                continue
            path = folder / name
            with writing(path):
                (path if member.open is None else path.parent).mkdir(parents=True, exist_ok=True)
            if member.open is not None:
                files += 1
                for size in _copied(member.open, path, archive):
                    written += size
                    if written > most:
                        raise BadArchiveError(
                            f"{archive}: more than {most} bytes come out of its {archive.stat().st_size}, which is not "
                            "what it should hold; unpacking was stopped"
                        )
                    if progress is not None:
                        progress(written, total)
    except BROKEN as error:
        raise BadArchiveError(f"{archive}: a damaged archive ({error or type(error).__name__}); remove it") from error
    return files, written


def _stated(archive: Path) -> int | None:
    """What a zip says that it holds, in bytes; a tar says so file by file only."""
    if not zipfile.is_zipfile(archive):
        return None
    with zipfile.ZipFile(archive) as opened:
        return sum(info.file_size for info in opened.infolist())


def _members(archive: Path) -> Iterator[_Member]:
    return _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchiveError(_refused(archive, info.filename, _kind(kind)))
            yield _Member(info.filename, None if info.is_dir() else _opener(opened, info))


def _opener(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: opened.open(info)


def _tar_members(archive: Path) -> Iterator[_Member]:
    with archive.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    # As a stream, in one pass. Of gz the stream's own reader does not look at the checksum, gzip's does.
    with gzip.open(archive) if zipped else archive.open("rb") as file:
        with tarfile.open(fileobj=file, mode="r|" if zipped else "r|*") as opened:
            for info in opened:
                if not (info.isreg() or info.isdir()):
                    kind = "a link" if info.issym() or info.islnk() else "a device or pipe"
                    raise BadArchiveError(_refused(archive, info.name, kind))
                yield _Member(info.name, None if info.isdir() else _extractor(opened, info))
        while file.read(CHUNK):
            pass


def _extractor(opened: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def extract() -> IO[bytes]:
        file = opened.extractfile(info)
        assert file is not None  # it is a regular file
        return file

    return extract


def _kind(kind: int) -> str:
    return "a link" if kind == stat.S_IFLNK else "a device or pipe"


def _refused(archive: Path, name: str, why: str) -> str:
    return f"{archive}: its member {name!r} is {why}; no data set has such a thing, it is not unpacked"


def _checked(name: str, archive: Path) -> PurePosixPath:
    """The name of a member as a path, if that stays inside on every system."""
    path = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or re.match("[a-zA-Z]:", name):
        raise BadArchiveError(_refused(archive, name, "of a name that is none on some systems"))
    if path.is_absolute() or ".." in path.parts:
        raise BadArchiveError(_refused(archive, name, "outside of the folder"))
    return path


def _copied(source: Callable[[], IO[bytes]], path: Path, archive: Path) -> Iterator[int]:
    """Copy a member into a new file; the sizes of the pieces."""
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except FileExistsError:
        raise BadArchiveError(f"{archive}: two members are {path.name!r} in one folder; not unpacked") from None
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; see to it, then run the same command again") from None
    with os.fdopen(target, "wb") as file, source() as opened:
        while chunk := opened.read(CHUNK):
            with writing(path):
                file.write(chunk)
            yield len(chunk)
