"""Networks of other libraries, and the user's own, by name, wrapped so that they keep to the contract of ours.

- `smp:DECODER:ENCODER` of segmentation_models_pytorch
- `torchvision:NAME`
- `hf:NAME` of transformers: an architecture, an identifier on the hub, or a folder with a config.json
- `python:MODULE:FUNCTION`, a function of the user's own that returns a network: the only one that runs code by name
"""

from collections.abc import Callable
from typing import Any

import pydantic

from segdistill._options import closest, options_model
from segdistill.models._external import External
from segdistill.models._external_hf import ARCHITECTURES, build_hf
from segdistill.models._external_python import build_python
from segdistill.models._external_smp import DECODERS, build_smp
from segdistill.models._external_torchvision import NAMES, build_torchvision

LIBRARIES: dict[str, Callable[..., External]] = {
    "smp": build_smp,
    "torchvision": build_torchvision,
    "hf": build_hf,
    "python": build_python,
}
"""What builds the networks whose names start with this and a colon."""


def is_external(name: str) -> bool:
    """Whether a name is one of another library's networks."""
    return ":" in name


def _library(name: str) -> tuple[str, str]:
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise ValueError(f"no model {name!r}: {library} is no library that is known{closest(library, LIBRARIES)}")
    if not rest:
        raise ValueError(f"no model {name!r}; write for example {external_names()[library][0]}")
    return library, rest


def external_names() -> dict[str, list[str]]:
    """Examples of each library's names."""
    return {
        "smp": [f"smp:{decoder}:resnet18" for decoder in DECODERS],
        "torchvision": [f"torchvision:{name}" for name in NAMES],
        "hf": ["hf:nvidia/mit-b0", *(f"hf:{name}" for name in ARCHITECTURES)],
        "python": ["python:my_package.my_module:make_model"],
    }


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
    return options_model(LIBRARIES[library])


def build_external(name: str, num_classes: int | None, options: dict[str, Any]) -> External:
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
        for option in options:
            if option not in model.model_fields:
                raise ValueError(f"{library} has no option {option!r}{closest(option, model.model_fields)}")
    network = LIBRARIES[library](rest, num_classes, **options)
    network.spec = {"name": name, **network.spec}
    return network
