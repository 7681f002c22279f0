"""The reference of the configuration, made from the docstrings under its keys."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segdistill._options import closest
from segdistill.comparison.grid_config import GridConfig
from segdistill.engine.config import Config


class Entry(NamedTuple):
    """One key of the configuration."""

    key: str
    """With its section, as an override writes it."""
    type: str
    default: str
    """Empty where the key has to be given."""
    text: str


def config_entries() -> dict[str, list[Entry]]:
    """All keys by section: the top level, its sections, and what a comparison adds."""
    sections: dict[str, list[Entry]] = {"the top level": []}
    for name, field in Config.model_fields.items():
        sections["the top level"].append(_entry(name, field))
        model = section_model(field.annotation)
        if model is not None and name != "teacher":  # a teacher has the keys of a student
            title = "student and teacher" if name == "student" else name
            sections[title] = list(_entries(model, f"{name}."))
    sections["compare"] = list(_entries(GridConfig, ""))
    return sections


def find_entries(key: str | None) -> dict[str, list[Entry]]:
    """The entries of a section or of one key.

    Args:
        key: such as `train` or `train.lr`; None for all.

    Raises:
        ValueError: if there is no such section or key.
    """
    sections = config_entries()
    if key is None:
        return sections
    wanted = key.replace("teacher", "student", 1) if key.split(".")[0] == "teacher" else key
    if wanted in ("student", "student and teacher"):
        return {"student and teacher": sections["student and teacher"]}
    if wanted in sections:
        return {wanted: sections[wanted]}
    for title, entries in sections.items():
        found = [entry for entry in entries if entry.key == wanted]
        if found:
            return {title: found}
    known = [*sections, *(entry.key for entries in sections.values() for entry in entries)]
    raise ValueError(f"no configuration key {key!r}{closest(key, known)}")


def section_model(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, if it holds one.

    Args:
        annotation: of the key.
    """
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    kept = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return next((model for part in kept if (model := section_model(part)) is not None), None)


def _entries(model: type[BaseModel], prefix: str) -> Iterator[Entry]:
    for name, field in model.model_fields.items():
        yield _entry(f"{prefix}{name}", field)
        inner = section_model(field.annotation)
        if inner is not None and inner.__name__.endswith("Config"):
            yield from _entries(inner, f"{prefix}{name}.")


def _entry(key: str, field: FieldInfo) -> Entry:
    model = section_model(field.annotation)
    default = "" if field.is_required() else str(_plain(field.default))
    if model is not None and not field.is_required():
        default = "null" if field.default is None else ""
    return Entry(key, type_name(field.annotation), default, " ".join((field.description or "").split()))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return list(value) if isinstance(value, tuple) else value


def type_name(annotation: Any) -> str:
    """A key's type in words that a YAML file knows.

    Args:
        annotation: of the key.

    >>> type_name(tuple[int, int] | None), type_name(Literal["sgd", "adamw"]), type_name(list[Annotated[float, "> 0"]])
    ('[whole number, whole number] or null', 'sgd | adamw', 'list of number')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_name, arguments))
    if origin is tuple:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    names = {
        type(None): "null",
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        Any: "anything",
    }
    if annotation in names:
        return names[annotation]
    return "mapping" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else annotation.__name__
