"""Methods by name, and what a config may say about them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segdistill._registry import Registry

if TYPE_CHECKING:
    import pydantic

    from segdistill.methods._base import Composite, Method

METHODS: "Registry[Method]" = Registry("segdistill.methods", "segdistill.methods._base:Method", "method")

Spec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""What a config may say under `method`: a name, a mapping with `name` and options, or a list of both."""


def list_methods() -> list[str]:
    """Names of all methods: the files of this folder that do not start with an underscore."""
    return METHODS.names()


def method_class(name: str) -> "type[Method]":
    """The class of a method.

    Args:
        name: as in `list_methods()`.

    Raises:
        ValueError: if there is no such method, or its file does not define exactly one `Method`.
    """
    return METHODS.load(name)


def method_options(name: str) -> "type[pydantic.BaseModel]":
    """The options of a method as a pydantic model (unknown ones are refused).

    Args:
        name: as in `list_methods()`.
    """
    return METHODS.options(name)


def method_entries(spec: Spec) -> list[tuple[str, dict[str, Any]]]:
    """Read a `method:` entry as pairs of a name and the options that are given; the options are not checked yet.

    Args:
        spec: a name, a mapping with `name` and options, or a list of both.

    Raises:
        ValueError: on an unknown method, one that is named twice, or an entry of another form.
    """
    entries = [spec] if isinstance(spec, str | Mapping) else spec
    if not isinstance(entries, Sequence) or not entries:
        raise ValueError(f"method: expected a name, a mapping, or a list of both, got {spec!r}")
    found = []
    for entry in entries:
        if not isinstance(entry, str | Mapping):
            raise ValueError(f"method: expected a name or a mapping, got {entry!r}")
        options: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
        if "name" not in options:
            raise ValueError(f"method: {options} has no 'name'; write {{name: …, option: …}}")
        name = str(options.pop("name"))
        METHODS.check(name)
        found.append((name, options))
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"method {name!r} is named {names.count(name)} times; give its options in one entry")
    return found


def resolve_methods(spec: Spec) -> list[dict[str, Any]]:
    """Write a `method:` entry out in full: a list of mappings with `name` and every option.

    Args:
        spec: a name, a mapping with `name` and options, or a list of both.

    Raises:
        ValueError: on an unknown method or option, a wrong type, a weight or temperature that has no meaning, or a
            method named twice.
    """
    found = [{"name": name, **METHODS.resolve(name, options)} for name, options in method_entries(spec)]
    for options in found:
        _check_factors(options)
    return found


def _check_factors(options: Mapping[str, Any]) -> None:
    """Refuse a weight below 0, which would lead away from the teacher, and a temperature that divides by nothing."""
    for key, value in options.items():
        kind = key.rpartition("_")[2]
        if kind not in ("weight", "temperature"):
            continue
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not (0 <= number < math.inf and (number or kind == "weight")):
                least = "0 (which leaves the term out) or more" if kind == "weight" else "a number above 0"
                raise ValueError(f"method {options['name']}, {key}: expected {least}, got {number:g}")


def build_method(spec: Spec) -> "Composite":
    """Build a method, or several, from what a config says.

    Args:
        spec: a name, a mapping with `name` and options, or a list of both.

    Raises:
        ValueError: on an unknown method or option.

    >>> build_method(["kd", {"name": "cwd", "weight": 5.0}]).student_taps()
    {'logits'}
    """
    from segdistill.methods._base import Composite

    built = {}
    for options in resolve_methods(spec):
        name = options.pop("name")
        built[name] = method_class(name)(**options)
    return Composite(built)
