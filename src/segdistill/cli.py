"""The command line as one program: its commands, its mistakes in one line, its exit codes."""

import os
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Annotated

import typer

from segdistill import completion
from segdistill._printing import one_line, tolerate_any_encoding
from segdistill.commands import compare, data, deploy, evaluate, look, train
from segdistill.engine.faults import known_fault
from segdistill.show.bars import speaking

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables by which a user says how the threads of PyTorch's builds for Linux wait for each other."""

SPINS = "2000"
"""How often they look before they sleep, some microseconds; by default it is a millisecond."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for group in (train, compare, evaluate, deploy, look):  # in the order of the help
    app.add_typer(group.app)
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from segdistill._version import __version__

        print(f"segdistill {__version__}")
        raise typer.Exit


@app.callback()
def segdistill(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the result and errors alone; it may stand anywhere.")
    ] = False,
) -> None:
    """Knowledge distillation for semantic segmentation."""


def main() -> None:
    """Entry point: a mistake is one line and exit code 2, Ctrl-C 130; `--debug` anywhere gives the traceback."""
    tolerate_any_encoding()
    wait_briefly()
    completion.mend_words()
    completion.mend_scripts()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        with speaking(arguments):
            status = app(_arguments(arguments), prog_name="segdistill", standalone_mode=False)
        if status == INTERRUPTED:  # the parser turns Ctrl-C into this, without a word
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        line = known_fault(error)
        if debug or (line is None and isinstance(error, RuntimeError)):
            raise
        fail(line or str(error))
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.exit(0)  # the help is on the screen
        if debug or not hasattr(error, "format_message"):
            raise
        fail(error.format_message())  # a mistake in the arguments


def wait_briefly() -> None:
    """Let PyTorch's threads sleep soon while they wait for each other, unless the user says otherwise.

    By default they spin long, and where other processes want the cores, they take them from the very thread that they
    wait for (`benchmarks/waiting.py`). It has to be said before PyTorch is loaded.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _arguments(given: list[str]) -> list[str]:
    """The arguments as the parser wants them: it knows no option whose value may be left out."""
    bare = {at for at, (word, after) in enumerate(pairwise([*given, ""])) if word == "--resume" and after != "auto"}
    words = ["--resume=yes" if at in bare else word for at, word in enumerate(given)]
    front = [word for word in words if word == "--quiet"]
    return [*front[:1], *(word for word in words if word not in ("--debug", "--quiet"))]


def fail(message: str, status: int = 2) -> None:
    """Say what is wrong in one line, and exit."""
    with suppress(OSError):  # the terminal may be gone
        world = int(os.environ.get("WORLD_SIZE", "1"))  # each process of torchrun has its say
        who = f", process {os.environ.get('RANK', '0')} of {world}" if world > 1 else ""
        print(f"segdistill{who}: {one_line(message)}", file=sys.stderr, flush=True)
    sys.exit(status)
