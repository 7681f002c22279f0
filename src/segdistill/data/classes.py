"""The classes of a data set, as people write them down: in the configuration, or in a file."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml
from PIL import ImageColor

from segdistill._printing import one_line
from segdistill._types import Colour
from segdistill.data.dataset import check_classes

Classes = list[str] | dict[str, list[int] | str]
"""Names in the order of their ids, or names with a colour each."""


def read_classes(classes: str | Classes, root: Path) -> tuple[list[str], list[Colour]]:
    """Read the names of classes, and one colour each or no colours at all.

    Args:
        classes: names, name → colour, or the path of a file with these: YAML, JSON, CSV (`name,r,g,b`), CVAT's
            `labelmap.txt`, or text with a class a line, `name` or `name r g b`.
        root: where a file is looked for, if it is not here.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    source = "data.classes"
    content: Any = classes
    if isinstance(classes, str):
        path = next((p for p in (Path(classes).expanduser(), root / classes) if p.is_file()), None)
        if path is None:
            raise ValueError(f"data.classes: no file {classes!r}, here or in {root}; give a file or a list of names")
        source, content = str(path), _parse(path)
    if isinstance(content, dict) and all(isinstance(key, int) for key in content):
        if sorted(content) != list(range(len(content))):
            raise ValueError(f"{source}: ids must be 0, 1, 2, …, got {sorted(content)[:6]}")
        content = [content[index] for index in range(len(content))]
    if isinstance(content, dict):
        return check_classes(list(map(str, content)), source), [read_colour(c, source) for c in content.values()]
    if not isinstance(content, list) or not all(isinstance(name, str | int | float | bool) for name in content):
        raise ValueError(f"{source}: expected a list of names, or name: colour, got {str(content)[:60]}")
    return check_classes([str(name) for name in content], source), []


def read_colour(value: Any, source: str) -> Colour:
    """Read a colour.

    Args:
        value: [r, g, b] or "#rrggbb".
        source: where it stands, for the error line.

    Raises:
        ValueError: if it is no colour.

    >>> read_colour("#ff8000", "data.ignore")
    (255, 128, 0)
    """
    try:
        red, green, blue = ImageColor.getrgb(value)[:3] if isinstance(value, str) else map(int, value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{source}: expected a colour as [r, g, b] or "#rrggbb", got {value!r}') from error
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{source}: colour {value!r} is not within 0 … 255")
    return red, green, blue


def _parse(path: Path) -> Any:
    """What a file of classes holds: names, or name → colour."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text)
        if path.suffix.lower() in (".yaml", ".yml"):
            return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {one_line(str(error))}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if path.suffix.lower() == ".csv":
        return _table(path, lines)
    matches = [re.fullmatch(r"([^:]*):(?:(\d+),(\d+),(\d+))?:[^:]*:[^:]*", line) for line in lines]
    if not all(matches):  # not CVAT's `label:color_rgb:parts:actions`
        matches = [re.fullmatch(r"(.*\S)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line) for line in lines]
    return _coloured(path, [(m[1].rstrip(","), [m[2], m[3], m[4]]) if m else (line, []) for line, m in
                            zip(lines, matches, strict=True)])  # fmt: skip


def _table(path: Path, lines: list[str]) -> Any:
    """Rows of name, red, green, blue; the first may say so."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if rows and not any(cell.isdigit() for cell in rows[0]) and len(rows[0]) > 1:
        head = [cell.lower() for cell in rows.pop(0)]
        if [cell[:1] for cell in head[1:4]] != ["r", "g", "b"] or len(head) != 4:
            raise ValueError(f"{path}: expected the columns name,r,g,b, got {','.join(head)}")
    odd = next((row for row in rows if len(row) not in (1, 4) or not all(cell.isdigit() for cell in row[1:])), None)
    if odd is not None:
        raise ValueError(f"{path}: expected name,r,g,b in each line, got {','.join(odd)}")
    return _coloured(path, [(row[0], row[1:]) for row in rows])


def _coloured(path: Path, rows: list[tuple[str, list[Any]]]) -> Any:
    """Names, or name → colour if there are colours; not both."""
    rows = [(name, [int(part) for part in colour if part is not None]) for name, colour in rows]
    names = [name for name, _ in rows]
    check_classes(names, str(path))  # before a mapping hides a name that is listed twice
    bare = [name for name, colour in rows if not colour]
    if len(bare) == len(rows):
        return names
    if bare:
        raise ValueError(f"{path}: {bare[0]!r} has no colour, others have; write `{bare[0]} r g b`")
    return dict(rows)
