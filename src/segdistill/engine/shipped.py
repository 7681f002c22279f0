"""The configurations that come with the package: a folder a data set, named `camvid/student_cpu` wherever a file is."""

import difflib
from itertools import takewhile
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def list_configs() -> list[str]:
    """Names of all configurations that come with the package."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.glob("*/*.yaml"))


def describe_config(name: str) -> str:
    """The first sentence of the comment that a configuration of the package starts with.

    Args:
        name: as in `list_configs()`.
    """
    with (CONFIGS / f"{name}.yaml").open(encoding="utf-8") as lines:
        comment = " ".join(line.lstrip("# ").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".") + "."


def find_config(source: str | Path) -> Path:
    """The path of a configuration: a file or folder that is there, or else one that comes with the package.

    Args:
        source: a path, or a name as in `list_configs()`, with or without `.yaml`.

    Raises:
        ValueError: if there is neither, with the names that come close.
    """
    path = Path(source)
    name = _name(path)
    if path.exists():
        return path
    if name in list_configs():
        return CONFIGS / f"{name}.yaml"
    near = difflib.get_close_matches(name, list_configs(), n=1)
    hint = f"did you mean {near[0]}?" if near else "`segdistill list configs` names those that come with the package"
    raise ValueError(f"no configuration at {path}; {hint}")


def is_shipped(source: str | Path) -> bool:
    """Whether a configuration of the package is meant, and no file or folder of that path.

    Args:
        source: a path, or a name as in `list_configs()`.
    """
    return not Path(source).exists() and _name(Path(source)) in list_configs()


def _name(path: Path) -> str:
    """The name that a path would be in the package; `configs/` in front of it is where the repository shows them."""
    return path.as_posix().removeprefix("configs/").removesuffix(".yaml")
