"""What a shell may complete: names that the package knows. Files are the shell's own business."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

COMPLETE = "_SEGDISTILL_COMPLETE"
"""Variable with which a shell's script asks for completions, set to `complete_bash` and the like."""


def mend_words() -> None:
    """Give a bash that asks for completions an empty word after the equals sign that it takes for a word."""
    if os.environ.get(COMPLETE) != "complete_bash":
        return
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", "")
    if at.isdecimal() and int(at) < len(words) and words[int(at)] == "=":
        os.environ["COMP_CWORD"] = str(int(at) + 1)
        os.environ["COMP_WORDS"] = "\n".join(words[: int(at) + 1])


AUTOLOADED = """
# The first TAB in a shell runs this file as a function; later ones go to the function above.
if [[ $funcstack[1] = _%(prog_name)s ]]; then
  %(complete_func)s "$@"
fi
"""


def mend_scripts() -> None:
    """Let the first TAB of a zsh complete, too: typer's script, which a zsh loads then, only defines a function."""
    from typer import _completion_shared as shared

    scripts: dict[str, str] = getattr(shared, "_completion_scripts", {})
    script = scripts.get("zsh", "")
    if script and "funcstack" not in script:
        scripts["zsh"] = script.rstrip() + "\n" + AUTOLOADED


def config(incomplete: str) -> list[str]:
    """Configurations of the package, and the files that begin alike, as a shell names no file beside them.

    Args:
        incomplete: what was typed so far.
    """
    from segdistill.engine.shipped import list_configs

    names = [name for name in list_configs() if name.startswith(incomplete)]
    if not names or not incomplete:
        return names
    folder, _, start = incomplete.rpartition("/")
    try:
        paths = sorted(path for path in Path(folder or ".").iterdir() if path.name.startswith(start))
    except OSError:
        paths = []
    return names + [f"{path}/" if path.is_dir() else str(path) for path in paths]


def overrides(incomplete: str) -> list[str]:
    """Values of `method=`, `data=` and `data.name=`.

    Args:
        incomplete: `key=va`; of a bash `va`, which takes the equals sign for a word.
    """
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={name}" for name in _values(key) if name.startswith(value)]
    if os.environ.get(COMPLETE) == "complete_bash":
        words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
        if at >= 2 and words[at - 1 : at] == ["="]:
            return [name for name in _values(words[at - 2]) if name.startswith(incomplete)]
    return []


def _values(key: str) -> list[str]:
    if key in ("method", "method.name"):
        return methods("")
    return data_sets("") if key in ("data", "data.name") else []


def methods(incomplete: str) -> list[str]:
    """Names of methods.

    Args:
        incomplete: what was typed so far.
    """
    from segdistill.methods import list_methods

    return _beginning(list_methods, incomplete)


def data_sets(incomplete: str) -> list[str]:
    """Names of data sets.

    Args:
        incomplete: what was typed so far.
    """
    from segdistill.data.sets import list_datasets

    return _beginning(list_datasets, incomplete)


def sources(incomplete: str) -> list[str]:
    """Names of data sets that can be fetched.

    Args:
        incomplete: what was typed so far.
    """
    from segdistill.data.sources import SOURCES

    return _beginning(lambda: sorted(SOURCES), incomplete)


def words(*known: str) -> Callable[[str], list[str]]:
    """A function that completes some words.

    Args:
        *known: the words.
    """

    def complete(incomplete: str) -> list[str]:
        return _beginning(lambda: list(known), incomplete)

    return complete


def _beginning(names: Callable[[], Iterable[str]], incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]
