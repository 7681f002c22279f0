"""A device of float32 at most, as Apple's MPS is: its tensors say `meta` and are computed on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from segdistill.functional import has_float64

DEVICE = torch.device("meta")


class Held(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Held":
        if inner.dtype == torch.float64:
            raise TypeError("this device has no float64")
        self = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE, requires_grad=False
        )
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Held({self.inner})"


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; its result is the device's if its operands are, or if it is asked for there."""
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    held = [x for x in operands if isinstance(x, Held)]
    foreign = [x for x in operands if not isinstance(x, Held) and x.dim() > 0]
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if held and foreign and not moves:
        raise RuntimeError(f"{func}: operands on two devices")
    here = bool(held)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Held) else x, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    result = tree_map(lambda x: Held(x) if here and isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if here and held else result


class Computing(TorchDispatchMode):
    """Lets functions that make tensors make them on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def device_without_float64(monkeypatch: Any) -> Iterator[torch.device]:
    """The device, while the context lasts."""
    autocast, tensor = torch.autocast, torch.tensor

    def make(data: Any, *, device: Any = None, **options: Any) -> Tensor:  # `torch.tensor` asks no mode
        return tensor(data, **options).to(device)

    monkeypatch.setattr(torch, "tensor", make)
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: autocast(kind.replace("meta", "cpu"), **options))
    has_float64.cache_clear()
    try:
        with Computing():
            yield DEVICE
    finally:
        has_float64.cache_clear()
