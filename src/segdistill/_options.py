"""Options read from a signature: what methods, data sets and networks accept in a config is what their code accepts."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

import pydantic


def options_model(callable_: Callable[..., Any], skip: tuple[str, ...] = ()) -> type[pydantic.BaseModel]:
    """A pydantic model of a callable's keyword arguments, which refuses unknown ones.

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
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return pydantic.create_model(callable_.__name__, __config__=config, **fields)


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
