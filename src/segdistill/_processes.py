"""Sums over the processes of a run, through which gradients flow: a loss over a batch is one over the whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same in each; the tensor itself where there is one process.

    Every process has to call it, in the same order. The gradient that a process's own tensor gets is the sum of the
    gradients that the sum gets in all processes, so that a mean of their losses has its exact gradient.

    Args:
        x: of one shape in all processes.
    """
    total: Tensor = _Sum.apply(x) if several() else x
    return total


def gather_over_processes(x: Tensor) -> Tensor:
    """The tensors of all processes along dimension 0, in the order of their ranks; gradients as in the sum.

    Args:
        x: (N,...) of one shape in all processes.
    """
    if not several():
        return x
    places = x.new_zeros(dist.get_world_size(), *x.shape)
    places[dist.get_rank()] = x
    return sum_over_processes(places).flatten(0, 1)


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same in each; gradients as in the sum.

    Args:
        x: of one shape in all processes.
    """
    return sum_over_processes(x) / dist.get_world_size() if several() else x


def share_of(count: Tensor) -> Tensor | float:
    """How many elements this process has, over the mean of all processes; 1 where there is one process.

    A mean over a process's own elements, times this, makes the mean of the processes' losses the mean over the elements
    of all.

    Args:
        count: of this process's elements, one number.
    """
    if not several():
        return 1.0
    count = count.float()
    return count / mean_over_processes(count).clamp(min=torch.finfo(count.dtype).tiny)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total
