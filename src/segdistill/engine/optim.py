"""The optimiser, and how its learning rate goes over the steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from segdistill.engine.groups import parameter_groups
from segdistill.engine.train_config import TrainConfig

KERNELS = ("fused", "foreach")
"""Options of an optimiser that say how it computes, which is the device's matter and no checkpoint's."""


def build_optimizer(distiller: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of the student and of the method's layers, as `train.optimizer` names it.

    On CUDA it is torch's fused one, which updates all weights in a few kernels and can leave a step out without asking
    the device. A further optimiser is a branch here and a name in `TrainConfig.optimizer`.

    Args:
        distiller: student and method; parameters that need no gradient are left out.
        train: section of the configuration.

    Raises:
        ValueError: as `parameter_groups`.
    """
    groups = parameter_groups(distiller, train)
    options: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if all(p.is_cuda and p.is_floating_point() for group in groups for p in group["params"]):
        options["fused"] = True
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=train.betas, **options)
    return torch.optim.SGD(groups, momentum=train.momentum, nesterov=train.nesterov, **options)


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimiser does with each group of parameters: its options without the parameters.

    Args:
        optimizer: just built, or loaded.
    """
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def set_options(optimizer: torch.optim.Optimizer, options: Iterable[dict[str, Any]]) -> None:
    """Give an optimiser other options, as its state stays.

    Args:
        optimizer: with the state of a run.
        options: what `optimizer_options` gave of one that was just built.
    """
    for group, given in zip(optimizer.param_groups, options, strict=True):
        group |= {**given, "initial_lr": given["lr"]}


def set_kernels(optimizer: torch.optim.Optimizer, options: Iterable[dict[str, Any]]) -> None:
    """Let an optimiser compute as this device wants it, whichever device its state comes from.

    Args:
        optimizer: with the state of a run.
        options: as for `set_options`.
    """
    for group, given in zip(optimizer.param_groups, options, strict=True):
        group |= {key: given[key] for key in KERNELS if key in given}
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), torch.Tensor):  # a fused optimiser counts on the device
                state["step"] = state["step"].to(parameter.device if group.get("fused") else "cpu")


def schedule(step: int, train: TrainConfig) -> float:
    """Factor on every learning rate at a step: linear warm-up, times what `train.schedule` says.

    With t = step/steps and floor = min_lr/lr: `poly` is floor + (1 − floor)·(1 − t)^power; `cosine` is
    floor + (1 − floor)·(1 + cos πt)/2; `step` is gamma^(number of milestones ≤ t), the floor at least; `constant` is 1.

    Args:
        step: from 0.
        train: section of the configuration.
    """
    warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    floor, done = train.min_lr / train.lr, step / train.steps
    if train.schedule == "constant":
        return warm
    if train.schedule == "step":
        return warm * max(floor, train.gamma ** sum(done >= milestone for milestone in train.milestones))
    if train.schedule == "cosine":
        return warm * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    return float(warm * (floor + (1 - floor) * (1 - done) ** train.power))


def set_rate(optimizers: Iterable[torch.optim.Optimizer | None], factor: float) -> None:
    """Set every group's learning rate to its initial one times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
