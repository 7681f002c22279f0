"""Files from the web: a download that was cut goes on where it stopped, and has its name only once it is checked."""

import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""What servers answer when the same request may succeed a little later."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""

# Why not a library: pooch and torch.hub start a cut download from its beginning. huggingface_hub's http_get goes on,
# but without If-Range, so that a file which changed in between becomes a mixture of two; pypdl keeps its parts in
# segments of its own and needs aiohttp. The standard library's client is what torch.hub downloads with, too.


@dataclass(frozen=True)
class _State:
    """What is known of a file that is on its way: by it a server tells whether it has changed.

    Attributes:
        validator: the ETag, if it is a strong one, else the date of its last change.
        total: its size.
    """

    validator: str | None = None
    total: int | None = None


class _PassingError(Exception):
    """What may go well at the next attempt.

    Args:
        reason: in words.
        pause: seconds that the server asks to wait.
    """

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says about writing into one line.

    Args:
        path: of the file or folder that is written.

    Raises:
        ValueError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; see to it, then run the same command again: it goes on "
            "with what is there"
        ) from error


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    limit: int | None = None,
    timeout: float = 30.0,
    attempts: int = 8,
    progress: Callable[[int, int | None], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch a file over HTTP; its SHA-256.

    What has come so far lies in `NAME.part`, and beside it what tells whether the server's file has changed since: in
    this case, and where a server cannot go on in the middle, it starts anew. The file gets its name when it is whole
    and its checksum is right.

    Args:
        url: http:// or https://.
        path: of the file.
        checksum: `md5:…`, `sha1:…` or `sha256:…`; None where none is published.
        limit: bytes, of which a server that sends more is left.
        timeout: seconds without a byte after which an attempt ends.
        attempts: how often in a row it is tried without a byte more than before.
        progress: called with (bytes that are there, bytes in all or None).
        say: called with a line when an attempt has failed.
        wait: called with the seconds to wait between two attempts.

    Raises:
        ValueError: in one line, if the server refuses, is gone for good or sends something else than expected, or if
            the file cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: expected an address that begins with http:// or https://")
    part = path.with_name(path.name + ".part")
    begun = part.exists()
    _receive(url, part, limit, timeout, attempts, progress or (lambda done, total: None), say, wait)
    found = digests(part, checksum)
    if checksum is None or checksum in found:
        with writing(path):
            os.replace(part, path)
        _note(part).unlink(missing_ok=True)
        return found[0].removeprefix("sha256:")
    size = part.stat().st_size
    _forget(part)
    if begun:  # an earlier part may have been of another file, which a server that sends no ETag does not tell
        return download(url, path, checksum=checksum, limit=limit, timeout=timeout, attempts=attempts,
                        progress=progress, say=say, wait=wait)  # fmt: skip
    raise ValueError(
        f"{url}: the {size} bytes that came have {found[-1]}, expected {checksum}; they were removed. Try again, or "
        "name another place with --mirror"
    )


def digests(path: Path, checksum: str | None = None) -> list[str]:
    """The SHA-256 of a file, and the digest of the same kind as a checksum, each with its kind before it.

    Args:
        path: of the file.
        checksum: such as `md5:…`.
    """
    kinds = ["sha256", *([checksum.partition(":")[0]] if checksum else [])]
    hashes = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for each in hashes.values():
                each.update(chunk)
    return [f"{kind}:{each.hexdigest()}" for kind, each in hashes.items()]


def _receive(
    url: str,
    part: Path,
    limit: int | None,
    timeout: float,
    attempts: int,
    progress: Callable[[int, int | None], None],
    say: Callable[[str], None],
    wait: Callable[[float], None],
) -> None:
    """Get the whole of a file into its part, however often the connection is lost."""
    furthest, failures = _size(part), 0
    while True:
        try:
            return _attempt(url, part, limit, timeout, progress)
        except _PassingError as error:
            # Only what goes beyond all earlier attempts counts: a server that is cut at one place for ever is left.
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= attempts:
                raise ValueError(
                    f"{url}: {error}, {attempts} times in a row; {_size(part)} bytes are kept, run the same command "
                    "again to go on, or name another place with --mirror"
                ) from None
            pause = min(LONGEST_WAIT, max(error.pause, 2.0 ** (failures - 1)))
            say(f"{part.stem}: {error}; trying again in {pause:g} s")
            wait(pause)


def _attempt(
    url: str, part: Path, limit: int | None, timeout: float, progress: Callable[[int, int | None], None]
) -> None:
    have, state = _size(part), _read_state(part)
    if not have:
        state = _State()
    headers = {"User-Agent": "segdistill", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state.validator is not None:
            headers["If-Range"] = state.validator
    with _answers(url, part, state, headers, timeout) as response:
        if response is None:
            return  # it was whole already
        found = _state(response)
        if have and not _goes_on(response, have, state, found):
            if response.status != 200:
                _forget(part)
                raise _PassingError("the file has changed in the meantime")
            have = 0
        with writing(part):
            _note(part).write_text(json.dumps(asdict(found)), encoding="utf-8")
            file = part.open("ab" if have else "wb")
        with file:
            while chunk := response.read1(CHUNK):
                with writing(part):
                    file.write(chunk)
                have += len(chunk)
                if limit is not None and have > limit:
                    file.close()
                    _forget(part)
                    raise ValueError(f"{url}: more than {limit} bytes, which is not the file that was expected")
                progress(have, found.total)
            with writing(part):
                file.flush()
                os.fsync(file.fileno())
    if found.total is not None and have < found.total:
        raise _PassingError(f"the connection ended at {have} of {found.total} bytes")


@contextmanager
def _answers(
    url: str, part: Path, state: _State, headers: Mapping[str, str], timeout: float
) -> Iterator[http.client.HTTPResponse | None]:
    """Ask a server; None if it says that nothing is missing. What the network does becomes passing or final."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # asked to go on at, or behind, the end
            if state.total == _size(part) and error.headers.get("Content-Range", "").endswith(f"/{state.total}"):
                yield None
                return
            _forget(part)
            raise _PassingError("the file has changed in the meantime") from None
        line = f"the server answers {error.code} {error.reason}"
        if error.code in PASSING:
            raise _PassingError(line, _seconds(error.headers.get("Retry-After"))) from None
        raise ValueError(f"{url}: {line}; see whether the address is right, or name another with --mirror") from None
    except http.client.InvalidURL as error:
        raise ValueError(f"{url}: not an address ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ValueError(f"{url}: the server's certificate is not trusted ({reason.verify_message})") from None
        silent = isinstance(reason, TimeoutError)
        what = (
            f"nothing came for {timeout:g} s"
            if silent
            else getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        )
        raise _PassingError(what) from None


def _state(response: http.client.HTTPResponse) -> _State:
    """What a response says of the file."""
    tag = response.headers.get("ETag")
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    size = response.headers.get("Content-Length")
    if response.status == 206:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return _State(validator, int(size) if size and size.isdigit() else None)


def _goes_on(response: http.client.HTTPResponse, have: int, before: _State, now: _State) -> bool:
    """Whether a response is the rest of what is there: some servers do not heed If-Range, some not Range."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return response.status == 206 and begins and before in (_State(), now)


def _seconds(value: str | None) -> float:
    return float(value) if value and value.isdigit() else 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path) -> _State:
    with suppress(OSError, ValueError, TypeError):
        value: dict[str, Any] = json.loads(_note(part).read_text(encoding="utf-8"))
        return _State(**value)
    return _State()


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
