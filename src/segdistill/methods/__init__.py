"""The catalogue. One file per method; the folder is the registry."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pydantic

from segdistill._options import closest, options_model
from segdistill.methods._base import Composite, Method

Spec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""What a config may say under `method`: a name, a mapping with `name` and options, or a list of both."""


def list_methods() -> list[str]:
    """Names of all methods: the files of this folder that do not start with an underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@cache
def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: as in `list_methods()`.

    Raises:
        ValueError: if there is no such method, or its file does not define exactly one `Method`.
    """
    if name not in list_methods():
        raise ValueError(f"no method {name!r}{closest(name, list_methods())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Method) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"methods/{name}.py must define exactly one Method, found {[c.__name__ for c in found]}")
    return found[0]


def method_options(name: str) -> type[pydantic.BaseModel]:
    """The options of a method as a pydantic model (unknown ones are refused).

    Args:
        name: as in `list_methods()`.
    """
    return options_model(method_class(name))


def resolve_methods(spec: Spec) -> list[dict[str, Any]]:
    """Write a `method:` entry out in full: a list of mappings with `name` and every option.

    Args:
        spec: a name, a mapping with `name` and options, or a list of both.

    Raises:
        ValueError: on an unknown method or option, a wrong type, or a method named twice.
    """
    entries = [spec] if isinstance(spec, str | Mapping) else spec
    if not isinstance(entries, Sequence) or not entries:
        raise ValueError(f"method: expected a name, a mapping, or a list of both, got {spec!r}")
    resolved = []
    for entry in entries:
        if not isinstance(entry, str | Mapping):
            raise ValueError(f"method: expected a name or a mapping, got {entry!r}")
        options = {"name": entry} if isinstance(entry, str) else dict(entry)
        if "name" not in options:
            raise ValueError(f"method: {options} has no 'name'; write {{name: …, option: …}}")
        name = str(options.pop("name"))
        model = method_options(name)
        for option in options:
            if option not in model.model_fields:
                raise ValueError(f"method {name} has no option {option!r}{closest(option, model.model_fields)}")
        try:
            checked = model.model_validate(options)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"method {name}, {where}: {first['msg']}, got {first['input']!r}") from None
        resolved.append({"name": name, **checked.model_dump()})
    names = [entry["name"] for entry in resolved]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"method {name!r} is named {names.count(name)} times; give its options in one entry")
    return resolved


def build_method(spec: Spec) -> Composite:
    """Build a method, or several, from what a config says.

    Args:
        spec: a name, a mapping with `name` and options, or a list of both.

    Raises:
        ValueError: on an unknown method or option.

    >>> build_method(["kd", {"name": "cwd", "weight": 5.0}]).student_taps()
    {'logits'}
    """
    built = {}
    for options in resolve_methods(spec):
        name = options.pop("name")
        built[name] = method_class(name)(**options)
    return Composite(built)


__all__ = ["Composite", "Method", "build_method", "list_methods", "method_class", "method_options", "resolve_methods"]
