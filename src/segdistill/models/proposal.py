"""Where the taps of a network could be that does not say so: found by stride and depth in one forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.taps import as_logits, as_map

PROBES = ((128, 192), (256, 384), (224, 224), (384, 384), (512, 512))
"""Sizes of the image that is tried; unequal sides tell a map from what was pooled to a few cells."""
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass
class Layer:
    """What a submodule did in the pass."""

    path: str
    module: nn.Module
    start: int
    stride_in: float | None
    end: int = 0
    stride: float | None = None
    channels: int = 0
    output: Tensor | None = None
    version: int = 0
    calls: int = 0

    @property
    def trained(self) -> bool:
        """Whether it has parameters."""
        return any(True for _ in self.module.parameters())

    @property
    def usable(self) -> bool:
        """Whether its output is there once and stays as it was."""
        return self.calls == 1 and self.output is not None and self.output._version == self.version


def propose_taps(network: nn.Module) -> tuple[dict[str, str], str | None]:
    """Propose where `low1` (stride 4), `low2` (stride 8), `features` and `logits` are.

    `low1` and `low2` are the last stages of the encoder at strides 4 and 8, or the first at a stride that no later
    stage goes below (dilated networks); in a network of one stride, such as a plain vision transformer, the blocks
    after a quarter and a half of its depth. `logits` is the last convolution to C channels whose resized output is the
    network's, `features` its input.

    Args:
        network: images (N,3,H,W) → logits. It is run on an image of noise, in eval mode.

    Returns:
        Tap name → path, as far as they could be found, and the path of a final 1×1 classifier or None.
    """
    for size in PROBES:
        try:
            layers, output = _observe(network, size)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, NotImplementedError):
            continue
        head, classifier = _head(layers, output)
        return {**_low(layers, head.get("logits", "")), **head}, classifier
    return {}, None


def _observe(network: nn.Module, size: tuple[int, int]) -> tuple[list[Layer], Tensor]:
    """Every submodule that ran, in the order of starting, and the logits."""
    inner = getattr(network, "input_size", None)
    seen = size if inner is None else inner(*size)
    layers: dict[str, Layer] = {}
    clock = iter(range(10**9))

    def before(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        layer = layers.setdefault(path, Layer(path, module, next(clock), _stride(_first(args), seen)))
        layer.calls += 1

    def after(path: str, output: Any) -> None:
        layer, value = layers[path], _first(output)
        layer.end = next(clock)
        mapped = None if value is None else as_map(value, seen)
        if value is not None and mapped is not None:
            layer.stride, layer.channels = _stride(value, seen), mapped.shape[1]
            layer.output, layer.version = value, value._version

    handles = []
    modes = {module: module.training for module in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        for path, module in network.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(lambda m, args, path=path: before(path, m, args)))
                handles.append(module.register_forward_hook(lambda m, args, out, path=path: after(path, out)))
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = as_logits(network(torch.rand(1, 3, *size, device=device)))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return sorted(layers.values(), key=lambda layer: layer.start), output


def _first(value: Any) -> Tensor | None:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _stride(value: Tensor | None, size: tuple[int, int]) -> float | None:
    mapped = None if value is None else as_map(value, size)
    return None if mapped is None else size[0] / mapped.shape[2]


def _low(layers: list[Layer], logits: str) -> dict[str, str]:
    """`low1` and `low2`."""
    blocks = [block for block in _blocks(layers) if block.path != logits.removesuffix(":input")]
    encoder = [block for block in blocks if block.usable]
    if not encoder:
        return {}
    found = {}
    for tap, stride in (("low1", 4), ("low2", 8)):
        deeper = next((i for i, b in enumerate(blocks) if (b.stride or 0) > 1.5 * stride), None)
        before = blocks if deeper is None else blocks[:deeper]
        there = [b for b in before if b.usable and abs((b.stride or 0) / stride - 1) < 0.2]
        if deeper is None:
            there = [b for b in there if b.trained and (b.stride_in or stride) < b.stride][:1] or there  # type: ignore[operator]
            there = there[:1]
        if there:
            found[tap] = there[-1].path
    return found or _by_depth(layers)


def _by_depth(layers: list[Layer]) -> dict[str, str]:
    """The blocks after a quarter and a half of the largest set of siblings of one type and the first stride."""
    first = next((layer.stride for layer in layers if layer.stride is not None and layer.stride > 1.5), None)
    siblings: dict[tuple[str, type], list[Layer]] = {}
    for layer in layers:
        if layer.trained and layer.usable and layer.stride == layer.stride_in == first:
            siblings.setdefault((layer.path.rpartition(".")[0], type(layer.module)), []).append(layer)
    most = max(siblings.values(), key=len, default=[])
    if len(most) < 4:
        return {}
    return {"low1": most[len(most) // 4 - 1].path, "low2": most[len(most) // 2 - 1].path}


def _blocks(layers: list[Layer]) -> list[Layer]:
    """The network as a sequence: the outermost submodules that go from a map to one of at most twice the stride."""
    by_path = {layer.path: layer for layer in layers}
    inside: dict[str, list[Layer]] = {}
    for layer in layers:
        parts = layer.path.split(".")[:-1]
        while parts and ".".join(parts) not in by_path:
            parts.pop()
        inside.setdefault(".".join(parts), []).append(layer)

    def walk(path: str) -> Iterator[Layer]:
        for layer in inside.get(path, []):
            whole = layer.stride is not None and layer.stride_in is not None and layer.stride_in > 1.5
            if layer.path not in inside or (whole and 0.9 < layer.stride / layer.stride_in < 2.2):  # type: ignore[operator]
                if layer.stride is not None:
                    yield layer
            else:
                yield from walk(layer.path)

    return list(walk(""))


def _head(layers: list[Layer], output: Tensor) -> tuple[dict[str, str], str | None]:
    """`features` and `logits`, and the classifier."""
    last_first = sorted(layers, key=lambda layer: -layer.end)
    to_classes = [x for x in last_first if x.stride is not None and x.channels == output.shape[1] and x.calls == 1]
    resized, coarsest = [output], None
    for layer in to_classes:
        if layer.usable and any(_same(layer.output, other) for other in resized):
            if isinstance(layer.module, CONVOLUTIONS):
                taps = {"features": f"{layer.path}:input", "logits": layer.path}
                plain = isinstance(layer.module, nn.Conv2d) and layer.module.kernel_size == (1, 1)
                return taps, layer.path if plain else None
            assert layer.output is not None
            resized.append(layer.output)  # networks may resize twice
            coarsest = layer
    convolution = next((x for x in to_classes if isinstance(x.module, CONVOLUTIONS)), None)
    taps = {} if convolution is None else {"features": f"{convolution.path}:input"}
    return taps if coarsest is None else {**taps, "logits": coarsest.path}, None


def _same(value: Tensor | None, output: Tensor) -> bool:
    """Whether a map is the network's output but for its size."""
    if value is None or value.dim() != 4:
        return False
    if value.is_meta:
        return True
    size = (output.shape[-2], output.shape[-1])
    ways: list[dict[str, Any]] = [
        {"mode": "bilinear"},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "nearest"},
    ]
    resized = (F.interpolate(value.float(), size=size, **way) for way in ways)
    scale = output.abs().max().clamp(min=1e-12)
    return any(bool((x - output).abs().max() < 1e-3 * scale) for x in resized)
