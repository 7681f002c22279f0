"""One writer at a time in a folder: a lock that the system itself takes back when its process dies."""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segdistill.engine.run_folder import TEMPORARY, explaining, make_folder

LOCK = ".lock"
"""Name of the file that is locked; it says who holds it, and stays when they let go."""

GRACE = 15.0
"""Seconds to wait for the helpers of a process that is gone: they hold what it held until they notice."""

UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems say that have no locks."""


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, making it if need be, and clear away what killed writers left half-written there.

    Args:
        folder: of a run or of a comparison.
        patience: seconds to wait for another process that holds it.

    Raises:
        ValueError: if another process holds it, or it cannot be written to.
    """
    from filelock import FileLock

    make_folder(folder)
    lock = FileLock(folder / LOCK)
    held = _acquire(lock, folder, patience)
    try:
        if held:
            with suppress(OSError):  # a full disk, or a system on which what is locked cannot be written
                holder = {"pid": os.getpid(), "host": socket.gethostname()}
                (folder / LOCK).write_text(json.dumps(holder) + "\n", encoding="utf-8")
            remove_leftovers(folder)
        yield
    finally:
        if held:
            lock.release()


def _acquire(lock: Any, folder: Path, patience: float) -> bool:
    """Whether the folder is held now; False where its file system has no locks."""
    from filelock import Timeout

    began = time.monotonic()
    with explaining(folder / LOCK):
        while True:
            try:
                lock.acquire(timeout=0)
                return True
            except Timeout:
                holder, waited = _holder(folder), time.monotonic() - began
                if waited >= (patience if is_alive(holder) else max(patience, GRACE)):
                    who = f"pid {holder['pid']} on {holder['host']}" if holder else "it did not say which"
                    raise ValueError(
                        f"{folder} is in use: another process ({who}) works there; wait for it, end it, "
                        "or name another folder with --out"
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                print(f"segdistill: {folder} cannot be locked; let one process only train there", file=sys.stderr)
                return False


def _holder(folder: Path) -> dict[str, Any] | None:
    """Who wrote itself into the lock; None where that cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("pid"), int) and "host" in found:
            return found
    return None


def is_alive(holder: dict[str, Any] | None) -> bool:
    """Whether a process is there still, as far as can be told from here.

    Args:
        holder: its `pid` and `host`; None: it is not known.
    """
    if holder is None:
        return False
    if holder["host"] != socket.gethostname() or sys.platform == "win32":  # os.kill would end it there
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path("/proc", str(holder["pid"]), "stat")
    with suppress(OSError, IndexError):  # killed, and not yet waited for by its parent
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
    return True


def remove_leftovers(folder: Path) -> None:
    """Delete files that were half-written when their process died.

    Args:
        folder: one that this process holds.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        pid = path.name.removesuffix(TEMPORARY).rpartition(".")[2].partition("-")[0]
        other = pid.isdecimal() and int(pid) != os.getpid()
        if other and is_alive({"pid": int(pid), "host": socket.gethostname()}):
            continue  # an evaluation, say, that writes beside the run
        with suppress(OSError):
            path.unlink()
