"""Folders that are registries: each file of theirs is an entry, and there is no list of entries anywhere else."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic

from segdistill._options import closest, first_mistake, options_model, refuse_unknown

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """The entries of a package: one file each, named as the file, with one class of a kind in it.

    Nothing is imported before an entry is asked for, so that names, and the mistakes in them, cost nothing.

    Args:
        package: whose files are the entries; those that start with an underscore are not.
        base: the class that each entry's class is a subclass of, as `module:Class`.
        what: an entry is called in messages, such as "data set".
        skip: keyword arguments of the classes that are not options of a config.
    """

    def __init__(self, package: str, base: str, what: str, skip: tuple[str, ...] = ()):
        self.package, self.base, self.what, self.skip = package, base, what, skip
        self._load: Any = cache(self._import)
        self._options: Callable[[str], type[pydantic.BaseModel]] = cache(self._model)

    @property
    def _paths(self) -> Sequence[str]:
        return list(importlib.import_module(self.package).__path__)

    def names(self) -> list[str]:
        """Names of all entries, sorted."""
        return sorted(module.name for module in pkgutil.iter_modules(self._paths) if not module.name.startswith("_"))

    def load(self, name: str) -> type[Entry]:
        """The class of an entry.

        Args:
            name: as in `names()`.

        Raises:
            ValueError: if there is no such entry, or its file does not define exactly one class of the kind.
        """
        self.check(name)
        found: type[Entry] = self._load(name)
        return found

    def check(self, name: str) -> None:
        """Raise ValueError with one line if there is no such entry."""
        names = self.names()
        if name not in names:
            raise ValueError(f"no {self.what} {name!r}{closest(name, names)}")

    def _import(self, name: str) -> type[Entry]:
        base_module, _, base_name = self.base.partition(":")
        base = getattr(importlib.import_module(base_module), base_name)
        module = importlib.import_module(f"{self.package}.{name}")
        found: list[Any] = [
            c
            for c in vars(module).values()
            if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__
        ]
        if len(found) != 1:
            place = f"{self.package.rpartition('.')[2]}/{name}.py"
            raise ValueError(f"{place} must define exactly one {base_name}, found {[c.__name__ for c in found]}")
        entry: type[Entry] = found[0]
        return entry

    def options(self, name: str) -> type[pydantic.BaseModel]:
        """The options of an entry as a pydantic model, which refuses unknown ones.

        Args:
            name: as in `names()`.
        """
        self.check(name)
        return self._options(name)

    def _model(self, name: str) -> type[pydantic.BaseModel]:
        return options_model(self._load(name), self.skip)

    def keywords(self, name: str) -> set[str] | None:
        """The names of an entry's options, read from its file without running it.

        Args:
            name: as in `names()`.

        Returns:
            The keyword arguments of the file's one class whose base is named as the kind is (`…Method`, `…Dataset`,
            `…Segmenter`); None where the text does not say which class that is, and `options` has to.
        """
        self.check(name)
        file = next((f for path in self._paths if (f := Path(path) / f"{name}.py").is_file()), None)
        kind = re.findall("[A-Z][a-z]+", self.base)[-1]
        found = [] if file is None else class_keywords(file, kind)
        return found[0] - set(self.skip) if len(found) == 1 else None

    def resolve(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Options as a config gives them, checked and completed by the defaults.

        Args:
            name: as in `names()`.
            options: of the entry.

        Raises:
            ValueError: with one line on an unknown option, a missing one, or a wrong value.
        """
        model = self.options(name)
        refuse_unknown(options, model.model_fields, f"{self.what} {name} has no option '{{}}'")
        try:
            checked = model.model_validate(options)
        except pydantic.ValidationError as error:
            where, kind, line = first_mistake(error)
            path = ".".join(where)
            if kind == "missing":
                raise ValueError(f"{self.what} {name} needs the option {path!r}") from None
            raise ValueError(f"{self.what} {name}, {path}: {line}") from None
        return {key: getattr(checked, key) for key in model.model_fields}


def class_keywords(file: Path, kind: str) -> list[set[str]]:
    """The keyword-only arguments of the classes of a kind in a file.

    Args:
        file: Python source; it is read, not run.
        kind: how the name of their base class ends.

    Returns:
        One set per class of the kind that has an `__init__`.
    """
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef) or not any(ast.unparse(base).endswith(kind) for base in node.bases):
            continue
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                found.append({argument.arg for argument in member.args.kwonlyargs})
    return found


def function_keywords(file: Path, function: str) -> set[str]:
    """The keyword-only arguments of a function in a file, which is read, not run.

    Args:
        file: Python source.
        function: its name, at the top level.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return {argument.arg for argument in node.args.kwonlyargs}
    return set()
