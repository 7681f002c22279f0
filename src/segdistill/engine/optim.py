"""The optimiser, and how its learning rate goes over the steps."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from segdistill.engine.train_config import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimiser of the student and of the method's layers, as `train.optimizer` names it.

    A further optimiser is a branch here and a name in `TrainConfig.optimizer`.

    Args:
        parameters: of the distiller; those that need no gradient are left out.
        train: section of the configuration.
    """
    trained = [p for p in parameters if p.requires_grad]
    options: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options)
    return torch.optim.SGD(trained, momentum=train.momentum, **options)


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


def schedule(step: int, train: TrainConfig) -> float:
    """Factor on every learning rate at a step: linear warm-up, then from 1 to min_lr/lr by (1 − step/steps)^power.

    Args:
        step: from 0.
        train: section of the configuration.
    """
    warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    floor = train.min_lr / train.lr
    return float(warm * (floor + (1 - floor) * (1 - step / train.steps) ** train.power))


def set_rate(optimizers: Iterable[torch.optim.Optimizer | None], factor: float) -> None:
    """Set every group's learning rate to its initial one times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
