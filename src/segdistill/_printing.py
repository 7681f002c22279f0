"""Text as every terminal can print it: visible, on one line where it has to be."""

import sys
import unicodedata


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def tolerate_any_encoding() -> None:
    """Let this process print every character, as a question mark where the terminal's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) != "backslashreplace":
            reconfigure(errors="replace")
