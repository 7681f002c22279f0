"""From a configuration to the things it names: data sets, student, teacher, optimisers."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdistill._options import closest
from segdistill.data import SegmentationDataset, build_dataset
from segdistill.engine.checkpoint import load_student, read_card, student_path
from segdistill.engine.config import Config, DataConfig, NetworkConfig, TrainConfig
from segdistill.models import build_model
from segdistill.models._proposal import propose_taps
from segdistill.models.checkpoints import load_weights
from segdistill.models.external import is_external
from segdistill.taps import ClassMap, Tapped


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
        if len(classes) != num_classes and config.class_map is None:
            raise ValueError(
                f"{role}: {config.checkpoint} has {len(classes)} classes ({', '.join(classes)}), the data "
                f"{num_classes}{_MAP_HINT if role == 'teacher' else ''}"
            )
        return network
    if config.name is None:
        raise ValueError(f"{role}: name a network (name: pspnet_resnet18) or a trained one (checkpoint: runs/…)")
    own = config.num_classes or (None if config.classes is None else len(config.classes))
    options = {**config.options, "normalisation": config.normalisation, "source": config.source}
    if config.weights == "published":
        options["pretrained"] = "published"
        network = build_model(config.name, num_classes=own, **options)
    elif config.weights is not None:
        if own is None and is_external(config.name):
            own = num_classes
        network = load_weights(config.name, config.weights, num_classes=own, **options)
    else:
        network = build_model(config.name, num_classes=num_classes if own is None else own, **options)
    count = count_classes(network, num_classes)
    if count != num_classes and config.class_map is None:
        raise ValueError(f"{role}: {config.name} has {count} classes, the data {num_classes}{_MAP_HINT}")
    return network


_MAP_HINT = "; say which is which: teacher.class_map={its class: the data's class, …}, or names for those of one name"


def count_classes(network: nn.Module, default: int) -> int:
    """How many classes a network says that it has.

    Args:
        network: any.
        default: where it does not say.
    """
    spec: dict[str, Any] = getattr(network, "spec", None) or {}
    return int(spec.get("num_classes") or default)


def build_class_map(config: NetworkConfig, network: nn.Module, names: Sequence[str]) -> ClassMap | None:
    """What the teacher's classes are among the data's; None where they are the same.

    Args:
        config: the teacher's section.
        network: the teacher.
        names: of the data's classes.

    Raises:
        ValueError: if a class is unknown, or too few have a counterpart.
    """
    if config.class_map is None:
        return None
    card: dict[str, Any] = getattr(network, "card", None) or {}
    own = config.classes or card.get("classes") or getattr(network, "classes", None) or []
    count = len(own) or count_classes(network, len(names))
    if config.class_map == "names":
        if not own:
            raise ValueError("teacher.class_map=names: the teacher's names are not known; list them in teacher.classes")
        pairs: dict[Any, Any] = {name: name for name in own if name in names}
    else:
        pairs = config.class_map
    sources: list[list[int]] = [[] for _ in names]
    for theirs, ours in pairs.items():
        number = _class_number(theirs, own, count, "teacher")
        if ours is not None:
            sources[_class_number(ours, names, len(names), "data")].append(number)
    return ClassMap(sources)


def _class_number(given: int | str, names: Sequence[str], count: int, whose: str) -> int:
    if given in names:
        return list(names).index(str(given))
    if str(given).isdecimal() and int(given) < count:  # a run's configuration has numbers as text
        return int(given)
    have = f"{closest(str(given), names)}" if names else f"; its classes have numbers below {count} and no names"
    raise ValueError(f"teacher.class_map: the {whose} has no class {given!r}{have}")


def tap(network: nn.Module, config: NetworkConfig | None = None, class_map: ClassMap | None = None) -> Tapped:
    """A network with its own taps, or proposed ones, and those that its section adds.

    Args:
        network: any.
        config: its section of the configuration.
        class_map: of a teacher with other classes.
    """
    if hasattr(network, "taps"):
        own: Any = network
        taps, classifier = dict(own.taps), getattr(own, "classifier_path", None)
    else:
        taps, classifier = propose_taps(network)
    if config is not None:
        taps |= config.taps or {}
        classifier = config.classifier or classifier
    return Tapped(network, taps, classifier, class_map)


def build_student(config: Config, num_classes: int, network: nn.Module | None = None) -> Tapped:
    """The tapped student.

    Args:
        config: the configuration.
        num_classes: of the data set.
        network: the user's own network instead of the configured one.
    """
    section = config.student
    if section.class_map is not None:
        raise ValueError("student.class_map: the student has the data's classes; class_map belongs into teacher")
    network = build_network(section, num_classes, "student") if network is None else network
    aux = getattr(network, "aux", None)
    if config.train.aux_weight == 0 and isinstance(aux, nn.Module):
        aux.requires_grad_(False)  # it would be left without a gradient, which several processes cannot have
    return tap(network, section)


def build_teacher(config: Config, classes: Sequence[str], network: nn.Module | None = None) -> Tapped | None:
    """The tapped teacher, frozen and in eval mode; None for a student that learns alone.

    Args:
        config: the configuration.
        classes: names of the data set's.
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
        if section.checkpoint is None and section.weights is None and not section.is_code:  # which may load its own
            raise ValueError("teacher: an untrained network teaches nothing; set teacher.checkpoint or teacher.weights")
        network = build_network(section, len(classes), "teacher")
    class_map = None if section is None else build_class_map(section, network, classes)
    return tap(network.requires_grad_(False), section, class_map).eval()


def teacher_digest(config: Config) -> str | None:
    """What tells one teacher from another: the SHA-256 of the file that its weights are from; None without such a file.

    Args:
        config: the configuration.
    """
    section = config.teacher
    path = (section.checkpoint or section.weights) if section is not None and config.distils else None
    if path is None:
        return None
    try:
        file = student_path(path)
    except ValueError:  # what a library publishes or installs, which has a version of its own
        return None
    return _file_digest(file, file.stat().st_mtime_ns)


@cache
def _file_digest(file: Path, _written: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
