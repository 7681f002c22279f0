"""A function of the user's own that returns a network."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from torch import nn

from segdistill.models.external.wrapper import External
from segdistill.taps import aligned

EXAMPLES = ["my_package.my_module:make_model"]


def build_python(name: str, num_classes: int | None, **options: Any) -> External:
    """Import a module, call its function, wrap what it returns.

    The network gets RGB images in 0…1 and normalises by itself, unless a `normalisation` is given. Its attributes
    `taps` and `classifier_path`, where it has them, say where its taps are, `classes` what its classes are called, and
    `align_corners` how its logits are resized.

    Args:
        name: `MODULE:FUNCTION`; the module is looked for in the working folder, too.
        num_classes: C, passed on if the function takes it.
        **options: passed on to the function.

    Raises:
        ValueError: if there is no such module or function, or it takes other options or returns something else.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name:
        raise ValueError(f"python:{name}: expected python:MODULE:FUNCTION, as python:my_package.my_module:make_model")
    module = _imported(module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"python:{name}: {module_name} has no function {attribute}")
    signature = inspect.signature(function)
    anything = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    wanted = dict(options)
    for key, value in (("num_classes", num_classes), ("aux", False), ("pretrained", False)):
        if key in signature.parameters or (anything and key == "num_classes"):
            wanted.setdefault(key, value)
        elif not wanted.get(key):
            wanted.pop(key, None)  # `aux: false` says nothing to a function that knows of no such head
    try:
        signature.bind(**wanted)
    except TypeError as error:
        raise ValueError(f"python:{name}{signature}: {error}") from None
    network = function(**wanted)
    if not isinstance(network, nn.Module):
        raise ValueError(f"python:{name} returned a {type(network).__name__}, expected a torch.nn.Module")
    wrapped = External(
        network,
        taps=getattr(network, "taps", None),
        classifier=getattr(network, "classifier_path", None),
        classes=getattr(network, "classes", None),
        align_corners=aligned(network),
    )
    wrapped.spec = {"num_classes": num_classes, **options, "pretrained": False}
    return wrapped


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"no module {name} in the working folder or among the installed packages") from None
        raise
    finally:
        if added:
            sys.path.remove(here)
