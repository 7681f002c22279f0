"""The one state dict that is wanted of what training code saved, and its names without what was put before them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from segdistill._options import closest

Tensors = dict[str, Tensor]

RAW = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module")
"""Keys under which training code puts the weights that it trains."""
AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "model_state_dict_ema")
"""Keys under which it puts their running average."""
EMA = "ema"
"""What asks for the running average, whatever its key."""
PREFIXES = ("module.", "model.", "net.", "network.")
"""What DataParallel, AveragedModel, Lightning and scripts put before all names of a network that they wrap."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts into names, wherever the compiled module stands."""
COUNTERS = ("n_averaged", "steps")
"""Of running averages (torch's, mmengine's), beside the network that they wrap as `module`."""


def choose_tensors(
    loaded: Mapping[str, Any], source: str, key: str | None = None, say: Callable[[str], Any] = print
) -> Tensors:
    """The state dict in a loaded file.

    Where the file holds a running average besides the trained weights, a printed line says which of them is taken.

    Args:
        loaded: what the file holds.
        source: the file, for messages.
        key: under which the tensors are, `ema` for the running average under any name, or None for the trained weights.
        say: prints a line.

    Raises:
        ValueError: if there is no such key, or nothing but tensors is expected and something else is found.
    """
    chosen = _chosen(loaded, source, key, say)
    tensors = loaded if chosen is None else loaded[chosen]
    if tensors and all(isinstance(value, Tensor) for value in tensors.values()):
        return dict(tensors)
    if chosen is not None and any(name in (*RAW, *AVERAGES) for name in _inside(tensors)):
        return choose_tensors(tensors, source, None, say)
    raise ValueError(f"{source} holds no state dict of tensors{_there(loaded)}")


def _chosen(loaded: Mapping[str, Any], source: str, key: str | None, say: Callable[[str], Any]) -> str | None:
    """The key under which the wanted tensors are; None for the file itself."""
    inside = _inside(loaded)
    if key not in (None, EMA):
        if key not in inside:
            raise ValueError(f"{source} has no {key!r}{_there(loaded, key)}")
        return key
    average, raw = (next((name for name in names if name in inside), None) for names in (AVERAGES, RAW))
    # mmengine saves the average in the network's place, as what is loaded, and the trained weights in the average's.
    swapped = average is not None and raw is not None and "steps" in loaded[average]
    if swapped:
        average, raw = raw, average
    if average is None:
        if key == EMA:
            raise ValueError(f"{source} holds no running average ({', '.join(AVERAGES)}){_there(loaded)}")
        return raw
    if key == EMA or swapped or raw is None:
        say(
            f"{source}: {average} taken, the running average" + (f"; weights_key: {raw} takes the other" if raw else "")
        )
        return average
    say(f"{source}: {raw} taken, the trained weights; weights_key: ema takes their running average, {average}")
    return raw


def _inside(loaded: Mapping[str, Any]) -> list[str]:
    return [name for name, value in loaded.items() if isinstance(value, Mapping)]


def _there(loaded: Mapping[str, Any], key: str | None = None) -> str:
    inside = _inside(loaded)
    if not inside:
        return ""
    return closest(key, inside) if key is not None else f"; weights_key may be {', '.join(inside)}"


def unwrapped(tensors: Mapping[str, Tensor]) -> list[Tensors]:
    """A state dict's names as they are, then without one more of the prefixes that all of them share.

    Args:
        tensors: name → tensor.

    >>> import torch
    >>> [list(names) for names in unwrapped({"n_averaged": torch.tensor(3), "module.model.a": torch.zeros(1)})]
    [['module.model.a'], ['model.a'], ['a']]
    """
    named = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    wrapped = {name: tensor for name, tensor in named.items() if name not in COUNTERS}
    if wrapped and all(name.startswith("module.") for name in wrapped):
        named = wrapped
    stages = [named]
    while named:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in named)), None)
        if prefix is None:
            break
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        stages.append(named)
    return stages


def fitting(readings: Iterable[Tensors], wanted: Collection[str]) -> Tensors:
    """The one of several readings of a state dict of whose names a network has most; the first of equals.

    Args:
        readings: the same tensors under other names.
        wanted: the network's names.
    """
    return max(readings, key=lambda names: sum(name in wanted for name in names))
