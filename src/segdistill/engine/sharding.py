"""The optimiser's state, shared out among processes: each keeps, and steps, a part of the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """Lets each process step its own part of an optimiser's parameters, and sends all of them to all afterwards.

    That computes what every process would compute by itself, bit by bit, since they have the same gradients. Only the
    state, such as momentum, is no longer kept by all. It works with any optimiser that treats each parameter by itself
    and passes over those without a gradient, as all of torch's do. A checkpoint is the same as without: `whole`
    collects the state, and what is loaded is cut down to the own part.

    Args:
        optimizer: of the parameters that all processes hold; its `step` and `load_state_dict` are changed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.owners = share_out([p.numel() for p in self.parameters], dist.get_world_size())
        self.rank = dist.get_rank()
        optimizer.register_step_pre_hook(lambda *_: self._leave_to_others())
        optimizer.register_step_post_hook(lambda *_: self._send())
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self._own(state))

    def _leave_to_others(self) -> None:
        self.stepped = [p.grad is not None for p in self.parameters]
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            if owner != self.rank:
                parameter.grad = None

    def _send(self) -> None:
        works = [
            dist.broadcast(parameter.detach(), src=owner, async_op=True)
            for parameter, owner, stepped in zip(self.parameters, self.owners, self.stepped, strict=True)
            if stepped
        ]
        for work in works:
            if work is not None:  # this process is no part of the group
                work.wait()

    def _own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state as it is loaded: without what other processes keep."""
        kept = {index: value for index, value in state["state"].items() if self.owners[index] == self.rank}
        return {**state, "state": kept}

    def whole(self) -> dict[str, Any] | None:
        """The state of all processes as one optimiser would have it, in the first process; None in the others.

        Every process has to call it. The tensors of others arrive one at a time and lie in the memory of the CPU.
        """
        state = self.optimizer.state_dict()
        plans: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(_plan(state["state"]), plans if self.rank == 0 else None)
        if self.rank:
            for value in state["state"].values():
                for tensor in (v for v in value.values() if isinstance(v, Tensor)):
                    dist.send(tensor.to(self.parameters[0].device).contiguous(), dst=0)
            return None
        for owner, plan in enumerate(plans[1:], start=1):
            for index, values in plan.items():
                state["state"][index] = {name: self._received(value, owner) for name, value in values.items()}
        return {**state, "state": dict(sorted(state["state"].items()))}

    def _received(self, value: Any, owner: int) -> Any:
        """A value of another process; a tensor is known by its shape and type, and comes itself."""
        if not isinstance(value, tuple) or not value or value[0] != TENSOR:
            return value
        tensor = torch.empty(value[1], dtype=value[2], device=self.parameters[0].device)
        dist.recv(tensor, src=owner)
        return tensor.cpu()

    def state_bytes(self) -> int:
        """Bytes of the state that this process keeps."""
        tensors = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


TENSOR = "tensor"
"""Stands before shape and type of a tensor that is announced."""


def _plan(states: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """States with their tensors announced only."""
    return {
        index: {n: (TENSOR, tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for n, v in state.items()}
        for index, state in states.items()
    }


def share_out(sizes: Sequence[int], world: int) -> list[int]:
    """Who gets which of several things, so that all have about equally much: the largest first, to whoever has least.

    Args:
        sizes: of the things.
        world: how many share them.

    >>> share_out([5, 1, 4, 2], 2)
    [0, 0, 1, 1]
    """
    held, owners = [0] * world, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # of equal ones the first
        owners[index] = held.index(min(held))
        held[owners[index]] += sizes[index]
    return owners


class Collected:
    """A state that was collected, as a part of a checkpoint.

    Args:
        state: what `Shards.whole` gave.
    """

    def __init__(self, state: dict[str, Any] | None):
        self.state = state

    def state_dict(self) -> dict[str, Any] | None:
        """The state."""
        return self.state
