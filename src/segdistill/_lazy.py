"""Packages load what they export when it is first used."""

from collections.abc import Callable
from typing import Any

Exports = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def exports(package: str, file: str) -> Exports:
    """Read what a package exports from the `.pyi` beside its `__init__.py`, and load each name when it is asked for.

    `segdistill.runtime` needs NumPy, Pillow and ONNX Runtime alone. Where nothing else is installed, no package exports
    anything, and its modules are imported by their own names.

    Args:
        package: its `__name__`.
        file: its `__file__`.

    Returns:
        The package's `__getattr__`, `__dir__` and `__all__`.
    """
    try:
        import lazy_loader
    except ModuleNotFoundError:
        return _missing(package)
    attached: Exports = lazy_loader.attach_stub(package, file)
    return attached


def _missing(package: str) -> Exports:
    def attribute(name: str) -> Any:
        raise AttributeError(f"{package} has no {name} here: lazy-loader is missing; `pip install segdistill`")

    return attribute, list, []
