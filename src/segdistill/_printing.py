"""Text as every terminal can print it: visible, on one line where it has to be."""

import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TextIO, TypeVar

from segdistill._types import Told

Item = TypeVar("Item")
SELDOM, OFTEN = 60.0, 5.0
"""Seconds after which a line says how far lengthy work is, and those in which none says so again."""


def visible(text: str) -> str:
    """A text without characters that would steer the terminal: they are shown as Python writes them.

    Args:
        text: anything that a user wrote; lines and tabs stay.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        else ascii(character)[1:-1]
        for character in text
    )


def one_line(text: str) -> str:
    """A message as a single visible line.

    Args:
        text: of an error.
    """
    return " ".join(visible(text).split())


def number_of(count: int, noun: str) -> str:
    """A number of things: `1 image`, `2 images`.

    Args:
        count: how many.
        noun: for one; an s makes more of it.
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def tolerate_any_encoding() -> None:
    """Let this process print every character, as a question mark where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) != "backslashreplace":
            reconfigure(errors="replace")


def animated(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw over what it shows.

    Args:
        stream: such as standard error.
    """
    from rich.console import Console

    with suppress(ValueError, OSError):  # one that is closed
        return stream.isatty() and Console(file=stream).is_interactive
    return False


@contextmanager
def untold(what: str) -> Iterator[Told]:
    """Tells nobody how far lengthy work is: `Stages` where none are given.

    Args:
        what: is done.
    """
    yield lambda done, total: None


def counted(items: Iterable[Item], total: int, told: Told) -> Iterator[Item]:
    """The same items; it is told how many of them are done.

    Args:
        items: one after another.
        total: how many there are.
        told: is called with (items done, in all) when the next one is asked for.
    """
    for done, item in enumerate(items, 1):
        yield item
        told(done, max(done, total))


class ProgressLines:
    """Says in lines how far lengthy work is: at every tenth and every minute, but not all the time.

    Work that takes seconds gets none. A stream that nobody reads any more ends nothing.

    Args:
        what: is counted, for instance images; of bytes, what they are of.
        stream: where to.
        bytes: whether bytes are counted.
        clock: tells the seconds.
    """

    def __init__(self, what: str, stream: TextIO, *, bytes: bool = False, clock: Callable[[], float] = time.monotonic):
        self.what, self.stream, self.bytes, self.clock = visible(what), stream, bytes, clock
        self.began = self.told = clock()
        self.first: int | None = None
        self.tenth = 0

    def __call__(self, done: int, total: int | None) -> None:
        """Be told how far it is.

        Args:
            done: items or bytes.
            total: in all, if that is known.
        """
        now = self.clock()
        if self.first is None:  # what was there from an earlier time says nothing of the speed
            self.first, self.began = (0, self.began) if done <= 1 else (done, now)
        tenth = done * 10 // total if total else 0
        due = now - self.told >= (OFTEN if tenth > self.tenth else SELDOM)
        if not due:
            return
        self.told, self.tenth = now, tenth
        with suppress(OSError):
            print(self._line(done, total, now - self.began), file=self.stream, flush=True)

    def _line(self, done: int, total: int | None, seconds: float) -> str:
        whole = "" if total is None else f" of {total / 1e6:.1f}" if self.bytes else f"/{total}"
        parts = [f"{self.what}: {done / 1e6:.1f}{whole} MB" if self.bytes else f"{done}{whole} {self.what}"]
        rate = (done - (self.first or 0)) / seconds if seconds > 0 else 0
        if rate > 0:
            parts.append(f"{rate / 1e6:.1f} MB a second" if self.bytes else f"{rate:.3g} a second")
            if total is not None:
                parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
        return ", ".join(parts)
