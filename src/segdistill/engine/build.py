"""From a configuration to the things it names: data sets, student, teacher, optimisers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdistill.data import SegmentationDataset, build_dataset
from segdistill.engine.checkpoint import load_strictly, load_student, read_card
from segdistill.engine.config import Config, DataConfig, NetworkConfig, TrainConfig
from segdistill.models import build_model, read_tensors
from segdistill.taps import Tapped


def build_split(data: DataConfig, split: str) -> SegmentationDataset:
    """One split of the configured data set.

    Args:
        data: section of the configuration.
        split: `train`, `val` or `test`.
    """
    return build_dataset(data.name, split, **data.options)


def build_unlabelled(data: DataConfig) -> SegmentationDataset | None:
    """The images without labels that join each batch, or None.

    Args:
        data: section of the configuration.
    """
    if data.unlabelled is None:
        return None
    return build_dataset("folder", "train", root=data.unlabelled.root, images=".", masks=None, classes=["unlabelled"])


def build_network(config: NetworkConfig, num_classes: int, role: str) -> nn.Module:
    """The network that a section names, from a checkpoint, or by name with or without weights.

    Args:
        config: section of the configuration.
        num_classes: of the data set.
        role: `student` or `teacher`, for messages.

    Raises:
        ValueError: if nothing is named, or the classes do not agree.
    """
    if config.checkpoint is not None:
        network = load_student(config.checkpoint)
        classes = read_card(config.checkpoint)["classes"]
        if len(classes) != num_classes:
            raise ValueError(
                f"{role}: {config.checkpoint} has {len(classes)} classes ({', '.join(classes)}), the data {num_classes}"
            )
        return network
    if config.name is None:
        raise ValueError(f"{role}: name a network (name: pspnet_resnet18) or a trained one (checkpoint: runs/…)")
    network = build_model(config.name, num_classes=num_classes, **config.options)
    if config.weights is not None:
        path = Path(config.weights).expanduser()
        load_strictly(network, read_tensors(path), str(path))
    return network


def build_student(config: Config, num_classes: int, network: nn.Module | None = None) -> Tapped:
    """The tapped student.

    Args:
        config: the configuration.
        num_classes: of the data set.
        network: the user's own network instead of the configured one.
    """
    network = build_network(config.student, num_classes, "student") if network is None else network
    aux = getattr(network, "aux", None)
    if config.train.aux_weight == 0 and isinstance(aux, nn.Module):
        aux.requires_grad_(False)  # it would be left without a gradient, which several processes cannot have
    return Tapped(network, config.student.taps, config.student.classifier)


def build_teacher(config: Config, num_classes: int, network: nn.Module | None = None) -> Tapped | None:
    """The tapped teacher, frozen and in eval mode; None for a student that learns alone.

    Args:
        config: the configuration.
        num_classes: of the data set.
        network: the user's own network instead of the configured one.

    Raises:
        ValueError: if the methods need a teacher and none is given, or its weights are missing.
    """
    if not config.distils:
        return None
    section = config.teacher
    if network is None:
        if section is None:
            raise ValueError(f"method {', '.join(config.method_names)} needs a teacher; set teacher.checkpoint=RUN")
        if section.checkpoint is None and section.weights is None:
            raise ValueError("teacher: an untrained network teaches nothing; set teacher.checkpoint or teacher.weights")
        network = build_network(section, num_classes, "teacher")
    taps, classifier = (None, None) if section is None else (section.taps, section.classifier)
    return Tapped(network.requires_grad_(False), taps, classifier).eval()


def build_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the student and of the layers that the method trains.

    Args:
        parameters: those that need a gradient.
        train: section of the configuration.
    """
    trained = [p for p in parameters if p.requires_grad]
    options: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options)
    return torch.optim.SGD(trained, momentum=train.momentum, **options)


def schedule(step: int, train: TrainConfig) -> float:
    """Factor on every learning rate at a step: linear warm-up, then (1 − step/steps)^power.

    Args:
        step: from 0.
        train: section of the configuration.
    """
    warm = min(1.0, (step + 1) / train.warmup) if train.warmup else 1.0
    return float(warm * (1 - step / train.steps) ** train.power)


def set_rate(optimizers: Iterable[torch.optim.Optimizer | None], factor: float) -> None:
    """Set every group's learning rate to its initial one times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if optimizer is not None else ():
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
