"""Networks of other libraries, and the user's own, by name, wrapped so that they keep to the contract of ours.

- `smp:DECODER:ENCODER` of segmentation_models_pytorch
- `torchvision:NAME`
- `hf:NAME` of transformers: an architecture, an identifier on the hub, or a folder with a config.json
- `python:MODULE:FUNCTION`, a function of the user's own that returns a network: the only one that runs code by name
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from segdistill._options import closest, options_model, refuse_unknown
from segdistill._registry import function_keywords

if TYPE_CHECKING:
    from segdistill.models.external.wrapper import External

LIBRARIES = ("smp", "torchvision", "hf", "python")
"""What the names of their networks start with, before a colon; a file each, with `build_<library>` and `EXAMPLES`."""


def is_external(name: str) -> bool:
    """Whether a name is one of another library's networks."""
    return ":" in name


def _module(library: str) -> Any:
    return importlib.import_module(f"{__name__}.{library}")


def _builder(library: str) -> Any:
    return getattr(_module(library), f"build_{library}")


def _library(name: str) -> tuple[str, str]:
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise ValueError(f"no model {name!r}: {library} is no library that is known{closest(library, LIBRARIES)}")
    if not rest:
        raise ValueError(f"no model {name!r}; write for example {external_names()[library][0]}")
    return library, rest


def external_names() -> dict[str, list[str]]:
    """Examples of each library's names."""
    return {library: [f"{library}:{name}" for name in _module(library).EXAMPLES] for library in LIBRARIES}


def external_keywords(name: str) -> set[str] | None:
    """The names of the options of another library's network, read without importing it; None for `python:`.

    Args:
        name: with a colon.

    Raises:
        ValueError: if there is no such library.
    """
    library, _ = _library(name)
    file = Path(__file__).with_name(f"{library}.py")
    return None if library == "python" else function_keywords(file, f"build_{library}")


def external_options(name: str) -> type[pydantic.BaseModel]:
    """The options of another library's network as a pydantic model; those of `python:` are the function's own.

    Args:
        name: with a colon.

    Raises:
        ValueError: if there is no such library.
    """
    library, _ = _library(name)
    if library == "python":
        return pydantic.create_model("python", __config__=pydantic.ConfigDict(extra="allow"))
    return options_model(_builder(library))


def build_external(name: str, num_classes: int | None, options: dict[str, Any]) -> "External":
    """Build a network of another library.

    Args:
        name: with a colon.
        num_classes: C; None for as many as the published network has.
        options: `aux`, `pretrained`, and the library's own.

    Raises:
        ValueError: on an unknown name or option, a missing package, or weights that cannot be had.
    """
    library, rest = _library(name)
    model = external_options(name)
    if library != "python":
        refuse_unknown(options, model.model_fields, f"{library} has no option '{{}}'")
    network: External = _builder(library)(rest, num_classes, **options)
    # A library's file of it, on the hub or in a folder, need not be there when the network is built again.
    normalisation = network.normalise.normalisation.model_dump(mode="json")
    network.spec = {"name": name, **network.spec, "normalisation": normalisation}
    return network
