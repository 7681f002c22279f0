"""Get a standard data set: fetch its archives, unpack them safely, and see that all of it is there."""

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segdistill._options import refuse_unknown
from segdistill.data.archives import BadArchiveError, unpack
from segdistill.data.downloads import digests, download, writing
from segdistill.data.sources import LIMIT, SOURCES, Archive, Source
from segdistill.data.walk import names_below

NOTES = ".segdistill"
"""Folder in the root for locks, for what is being unpacked, and for what is known of the archives."""

Told = Callable[[int, int | None], None]
Bar = Callable[[str], AbstractContextManager[Told]]


def prepare_dataset(
    name: str,
    root: str | Path,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    timeout: float = 30.0,
    say: Callable[[str], None] | None = None,
    bar: Bar | None = None,
) -> Path:
    """Get a data set, or whatever of it is missing; the folder that the data set's variable is to be set to.

    Archives are fetched and unpacked one after another; what is complete is left alone, a download that was cut goes
    on. An archive that lies in the root already is taken. Several processes may do this at once: one works, the others
    wait for it.

    Args:
        name: as in `SOURCES`.
        root: folder that everything goes into.
        mirror: address of a folder that the archives are fetched from, instead of their own addresses; default
            $SEGDISTILL_MIRROR.
        keep_archives: keep what was downloaded after it is unpacked.
        timeout: seconds without a byte after which a download is tried again.
        say: called with lines on what happens.
        bar: called with the name of something lengthy; a context that gives a function of (bytes done, in all).

    Raises:
        ValueError: in one line, if there is no such data set, the disk has no room, an archive cannot be had or is not
            what it should be, or a package has to be fetched by hand.
    """
    refuse_unknown([name], SOURCES, "{}: nothing is known on how to get it")
    say = say or (lambda line: None)
    bar = bar or (lambda what: nullcontext(lambda done, total: None))
    source, folder = SOURCES[name], Path(root).expanduser().absolute()
    mirror = mirror or os.environ.get("SEGDISTILL_MIRROR")
    with writing(folder):
        (folder / NOTES).mkdir(parents=True, exist_ok=True)
    with _locked(folder / NOTES / f"{name}.lock", lambda: say(f"another process prepares {name} there; waiting")):
        job = _Job(name, source, folder, mirror, keep_archives, timeout, say, bar)
        job.run()
    return folder / source.folder


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Job:
    """One call of `prepare_dataset`, while it holds the lock."""

    name: str
    source: Source
    root: Path
    mirror: str | None
    keep_archives: bool
    timeout: float
    say: Callable[[str], None]
    bar: Bar

    def run(self) -> None:
        lacking = {a.name: lines for a in self.source.archives if (lines := missing(a, self.root, self._note(a)))}
        wanted = [archive for archive in self.source.archives if archive.name in lacking]
        by_hand = [a for a in wanted if a.url is None and self.mirror is None and not (self.root / a.name).is_file()]
        if by_hand:
            self._refuse(by_hand, lacking)
        if wanted:
            self.say(f"{self.name}: {self.source.terms}")
            self._ask_for_room(wanted)
        for archive in wanted:
            self._get(archive)
        for archive in self.source.archives:
            for holds in archive.holds:
                self.say(f"{holds.folder}: {len(names_below(self.root / holds.folder, [holds.suffix]))} {holds.suffix}")
        if self.source.hint and not any(a.url is None for a in self.source.archives):
            self.say(self.source.hint)
        self.say(f"export {self.source.variable}={shlex.quote(str(self.root / self.source.folder))}")

    def _refuse(self, by_hand: list[Archive], lacking: dict[str, list[str]]) -> None:
        names = " ".join(archive.name for archive in by_hand)
        self.say(f"{self.name}: {self.source.terms}")
        for archive in by_hand:
            self.say(f"missing: {archive.name} ({_bytes(archive.size)}): {'; '.join(lacking[archive.name])}")
        self.say(self.source.hint.format(missing=names))
        self.say(f"put the zip files, or what they hold, into {self.root}, and run the same command again")
        raise ValueError(
            f"{self.name}: {len(by_hand)} packages, which only a login gives, are not in {self.root}: {names}"
        )

    def _ask_for_room(self, wanted: list[Archive]) -> None:
        """Say what it takes, and stop where the disk is too small."""
        download = sum(max(0, archive.size - self._have(archive)) for archive in wanted)
        unpacked = sum(archive.unpacked for archive in wanted)
        free = shutil.disk_usage(self.root).free
        need = f"about {_bytes(download)} to download, {_bytes(unpacked)} unpacked"
        self.say(f"{need}; {_bytes(free)} free in {self.root}")
        if download + unpacked > free:
            raise ValueError(f"{self.root}: {need}, but {_bytes(free)} are free; make room, or name another --root")

    def _have(self, archive: Archive) -> int:
        """Bytes of an archive that are there already."""
        for path in (self.root / archive.name, self.root / f"{archive.name}.part"):
            if path.is_file():
                return path.stat().st_size
        return 0

    def _get(self, archive: Archive) -> None:
        path = self.root / archive.name
        there = path.is_file()
        ours = not there or self._note(archive).get("downloaded", False)
        sha256 = self._verify(path, archive) if there else self._download(path, archive)
        known = {"sha256": sha256, "bytes": path.stat().st_size}
        if ours:  # if it ends here, the next call will know whose the archive is
            self._write_note(archive, known | {"downloaded": True})
        try:
            files, size = self._unpack(path, archive)
        except BadArchiveError:
            if ours:
                self.say(f"{path}: removed")
                path.unlink()
            raise
        self._write_note(archive, known | {"files": files, "unpacked": size} | _sizes(archive, self.root))
        lines = missing(archive, self.root, self._note(archive))
        if lines:
            raise ValueError(f"{path}: unpacked, but it did not hold what it should: {'; '.join(lines)}")
        if ours and not self.keep_archives:
            path.unlink()

    def _verify(self, path: Path, archive: Archive) -> str:
        """See that an archive that lies there already is the right one; its SHA-256."""
        found = digests(path, archive.checksum)
        if archive.checksum is not None and archive.checksum not in found:
            raise ValueError(f"{path}: it has {found[-1]}, expected {archive.checksum}; remove it to fetch it anew")
        self.say(f"{path}: taken as it is there, {found[0]}")
        return found[0].removeprefix("sha256:")

    def _download(self, path: Path, archive: Archive) -> str:
        url = f"{self.mirror.rstrip('/')}/{archive.name}" if self.mirror else archive.url
        assert url is not None  # what has none was refused
        self.say(f"from {url}")
        with self.bar(archive.name) as told:
            sha256 = download(url, path, checksum=archive.checksum, limit=LIMIT * archive.size,
                              timeout=self.timeout, progress=told, say=self.say)  # fmt: skip
        known = f"{archive.checksum} as published" if archive.checksum else "no checksum is published"
        self.say(f"{archive.name}: {path.stat().st_size} bytes, sha256:{sha256} ({known})")
        return sha256

    def _unpack(self, path: Path, archive: Archive) -> tuple[int, int]:
        """Unpack beside the place, then move: what is there is never half a file."""
        staging = self.root / NOTES / f"{archive.name}.unpacking"
        shutil.rmtree(staging, ignore_errors=True)

        def place(name: PurePosixPath) -> PurePosixPath | None:
            parts = name.parts[archive.strip :]
            if not parts or (archive.only and parts[0] != archive.only):
                return None
            return PurePosixPath(archive.into, *parts)

        try:
            with self.bar(f"unpacking {archive.name}") as told:
                found = unpack(path, staging, limit=LIMIT * archive.unpacked, place=place, progress=told)
            _move(staging, self.root)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return found

    def _notes(self) -> Path:
        return self.root / NOTES / f"{self.name}.json"

    def _note(self, archive: Archive) -> dict[str, Any]:
        """What was written down when an archive was unpacked; nothing if it was not, or cannot be read."""
        with suppress(OSError, ValueError, AttributeError):
            return dict(json.loads(self._notes().read_text(encoding="utf-8")).get(archive.name, {}))
        return {}

    def _write_note(self, archive: Archive, known: dict[str, Any]) -> None:
        notes = {a.name: self._note(a) for a in self.source.archives} | {archive.name: known}
        temporary = self._notes().with_suffix(".tmp")
        with writing(temporary):
            temporary.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self._notes())


def missing(archive: Archive, root: Path, note: dict[str, Any]) -> list[str]:
    """What an archive should have brought and is not there, a line each.

    Files are counted; none may be empty; and where the archive was unpacked by us, the bytes of each folder are those
    of then at least.

    Args:
        archive: whose files are looked for.
        root: where.
        note: what was written down when it was unpacked.
    """
    lines = []
    for holds in archive.holds:
        folder = root / holds.folder
        names = names_below(folder, [holds.suffix]) if folder.is_dir() else []
        sizes = [os.stat(folder / name).st_size for name in names]
        before = note.get("folders", {}).get(holds.folder, [0, 0])
        if len(names) < max(holds.count, before[0]):
            lines.append(f"{holds.folder} has {len(names)} of {max(holds.count, before[0])} files *{holds.suffix}")
        elif not all(sizes):
            lines.append(f"{holds.folder} has {sizes.count(0)} empty files, such as {names[sizes.index(0)]}")
        elif sum(sizes) < before[1]:
            lines.append(f"{holds.folder} has {sum(sizes)} bytes; there were {before[1]}")
    return lines


def _sizes(archive: Archive, root: Path) -> dict[str, dict[str, list[int]]]:
    """Number and bytes of the files in each folder of an archive."""
    found = {}
    for holds in archive.holds:
        folder = root / holds.folder
        sizes = [os.stat(folder / n).st_size for n in names_below(folder, [holds.suffix])] if folder.is_dir() else []
        found[holds.folder] = [len(sizes), sum(sizes)]
    return {"folders": found}


def _move(staging: Path, root: Path) -> None:
    """Move files to where they belong, over older ones of their names."""
    for place, _, files in os.walk(staging):
        target = root / Path(place).relative_to(staging)
        # A link in the tree that is there already would carry files out of the root.
        if not target.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{target}: a link out of {root}; name the folder that it leads to as --root")
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                os.replace(Path(place, file), target / file)


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
