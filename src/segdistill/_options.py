"""Options of methods, data sets and networks, and the one line that a mistake in them gets."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

import pydantic


class Checked(pydantic.BaseModel):
    """What a configuration gives: `true`, which is also what YAML makes of `on` and `yes`, is no number."""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _refuse_flags_for_numbers(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        given = next((part for part in (value if isinstance(value, list) else [value]) if isinstance(part, bool)), None)
        if given is not None:
            wanted = _parts(cls.model_fields[str(info.field_name)].annotation)
            if not wanted & {bool, Any, object, True, False} and wanted & {int, float}:
                raise ValueError(f"expected a number, got {str(given).lower()}")
        return value


def _parts(annotation: Any) -> set[Any]:
    """All that an annotation is made of."""
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*map(_parts, inner))


class Options(Checked):
    """Options of an entry; others are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def options_model(callable_: Callable[..., Any], skip: tuple[str, ...] = ()) -> type[pydantic.BaseModel]:
    """Derive a config's options from a signature: a config accepts exactly the keyword arguments that the code does.

    Args:
        callable_: a class (its `__init__` counts) or a function, with annotations.
        skip: arguments that are not options.
    """
    function = callable_.__init__ if inspect.isclass(callable_) else callable_
    hints = get_type_hints(function)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or name in skip or parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return pydantic.create_model(callable_.__name__, __base__=Options, **fields)


def closest(name: str, known: Iterable[str]) -> str:
    """The end of an error line about an unknown name: the nearest known one, or all of them.

    Args:
        name: what was asked for.
        known: what there is.

    >>> closest("cdw", ["cwd", "kd"])
    '; did you mean cwd?'
    """
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else f"; there are {', '.join(known)}"


def refuse_unknown(keys: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ValueError with one line if a key is unknown.

    Args:
        keys: what was given.
        known: what there is.
        what: the beginning of the line, with `{}` where the key stands.

    >>> refuse_unknown(["lrr"], ["lr", "steps"], "unknown key train.{}")
    Traceback (most recent call last):
    ValueError: unknown key train.lrr; did you mean lr?
    """
    known = list(known)
    for key in keys:
        if key not in known:
            raise ValueError(f"{what.format(key)}{closest(str(key), known)}")


def first_mistake(error: pydantic.ValidationError) -> tuple[tuple[str, ...], str, str]:
    """The first thing that pydantic found wrong: where, its kind, and a line that says what and what was given.

    Args:
        error: of a validation.

    Returns:
        The path of keys, pydantic's name of the mistake (`missing`, `extra_forbidden`, …), and the line without the
        path.
    """
    first = error.errors(include_url=False)[0]
    line = str(first["msg"]).removeprefix("Value error, ")
    where = tuple(map(str, first["loc"]))
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):  # of a pair there is one value
        return where[:-1], "too_short", f"too few values, got {list(first['input'])!r}"
    if first["type"] == "tuple_type":
        line = f"expected a list of values, got {first['input']!r}"
    elif first["type"] == "missing":
        line = "missing"
    elif first["type"] != "value_error":  # our own lines say what was given where that helps
        line += f", got {first['input']!r}"
    return where, str(first["type"]), line
