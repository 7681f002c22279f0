"""What the submodules of a network give, and where its taps are."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from segdistill.engine.build import tap
from segdistill.engine.student import load_student
from segdistill.models import build_model
from segdistill.taps import Tapped, as_map


class Layer(NamedTuple):
    """What one submodule gives."""

    kind: str
    shape: tuple[int, ...]
    map: tuple[int, ...]
    """(N,A,h,w) of the shape as a map of the image; empty where it is none."""


class Layers(NamedTuple):
    """A network's submodules by path, and its taps."""

    layers: dict[str, Layer]
    tapped: Tapped

    @property
    def taps(self) -> dict[str, list[str]]:
        """The taps at each path; one of a submodule's input says so."""
        found: dict[str, list[str]] = {}
        for name, path in self.tapped.paths.items():
            found.setdefault(path.removesuffix(":input"), []).append(name + (" (its input)" if ":" in path else ""))
        return found

    def lines(self) -> list[str]:
        """What a configuration says to have these taps, and which are missing."""
        paths = self.tapped.paths
        lines = [f"taps: {{{', '.join(f'{name}: {path}' for name, path in paths.items() if name != 'aux')}}}"]
        lines += [f"classifier: {self.tapped.classifier}"] if self.tapped.classifier else []
        return lines + [
            f"no {name}: write taps: {{{name}: PATH}} for methods that read it"
            for name in ("low1", "low2", "features")
            if name not in paths
        ]


def named_layers(model: str, size: tuple[int, int], depth: int) -> Layers:
    """The submodules of a network with what they give for an image of a size, and the network's taps.

    Args:
        model: name of a network, which gets 19 classes, or a run.
        size: (H,W).
        depth: levels of nesting; submodules that are tapped are there in any case.

    Raises:
        ValueError: if there is no such network or run, or no image of that size.
    """
    if min(size) < 1:
        raise ValueError(f"size: expected height and width in pixels, got {size[0]}×{size[1]}")
    tapped = tap(_network(model))
    found = Layers({}, tapped)
    paths = [path for path, _ in tapped.network.named_modules() if path]
    wanted = {path for path in paths if path.count(".") < depth or path in found.taps}
    try:
        shapes = layer_shapes(tapped.network.to("meta"), wanted, torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, NotImplementedError):  # something in there needs numbers
        shapes = layer_shapes(_network(model), wanted, torch.rand(1, 3, *size))
    return Layers(shapes, tapped)


def _network(model: str) -> nn.Module:
    network: nn.Module = load_student(model) if Path(model).exists() else build_model(model, num_classes=19)
    return network.eval()


def layer_shapes(network: nn.Module, paths: set[str], images: torch.Tensor) -> dict[str, Layer]:
    """What each submodule gives.

    Args:
        network: in eval mode.
        paths: of the submodules.
        images: (N,3,H,W).
    """
    shapes: dict[str, Layer] = {}
    inner = getattr(network, "input_size", None)
    size = (images.shape[-2], images.shape[-1])
    size = size if inner is None else inner(*size)

    def keep(module: nn.Module, output: Any, path: str) -> None:
        value = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(value, torch.Tensor):
            mapped = as_map(value, size)
            shape = () if mapped is None else tuple(mapped.shape)
            shapes[path] = Layer(type(module).__name__, tuple(value.shape), shape)

    handles = [
        network.get_submodule(path).register_forward_hook(lambda m, _args, out, path=path: keep(m, out, path))
        for path in sorted(paths)
    ]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
