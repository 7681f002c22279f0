"""Where commands print: results go to standard output, or into a file, or as JSON to a script."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segdistill import show
from segdistill.show.bars import STANDARD_OUTPUT, manner, print_json

console = show.PlainConsole(quiet=os.environ.get("RANK", "0") != "0")
"""Where results go."""


def say(line: str) -> None:
    """Print a line on what happens: with the results, unless these are for a script.

    Args:
        line: as it is.
    """
    if manner().quiet:
        return
    show.plain(console)(line)


def apart(watch: object) -> bool:
    """Whether processes of a comparison print into their logs: a table is drawn, or a script reads what is printed.

    Args:
        watch: what draws the table; None where there is none.
    """
    return watch is not None or manner().quiet or manner().json


def deliver(result: Mapping[str, Any], path: Path | None, show_it: Callable[..., None]) -> None:
    """Write a result before it is printed, and print it even if it cannot be written: neither costs the other.

    Args:
        result: of a command.
        path: of a JSON file; `-`: the result alone goes to standard output, as JSON.
        show_it: prints the result on a console.
    """
    from segdistill.engine.run_folder import as_json, write_json

    if path == STANDARD_OUTPUT:
        print_json(as_json(result))
        return
    try:
        if path is not None:
            write_json(path, result)
    finally:
        show_it(console, result)
    if path is not None:
        say(f"written to {path}")
