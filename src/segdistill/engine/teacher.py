"""The teacher: built, frozen, told apart by its weights, observed."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill._options import closest
from segdistill.data import SegmentationDataset
from segdistill.engine.build import build_network, count_classes, tap
from segdistill.engine.config import Config
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.protocol import PLAIN, Protocol
from segdistill.engine.student import student_path
from segdistill.engine.teacher_views import join, share_classes
from segdistill.taps import ClassMap, Tapped, Taps


def check_order(own: Sequence[str], names: Sequence[str], whose: str) -> None:
    """Refuse a network whose classes are those of the data in another order; other names may mean the same.

    Args:
        own: names of the network's classes, in the order of its channels.
        names: of the data's.
        whose: what the network is, for the message.

    Raises:
        ValueError: if a class of both has another number there than here.
    """
    for number, name in enumerate(own):
        if name in names and list(names).index(name) != number:
            raise ValueError(
                f"{whose}: class {number} of the network is {name}, which is class {list(names).index(name)} of the "
                "data; class_map: names, in the network's section, puts them in order"
            )


def tell_range(card: Mapping[str, Any], dataset: SegmentationDataset, whose: str) -> None:
    """Say so if a network learned from images whose values were mapped otherwise than these are.

    Args:
        card: of the network; what is not from a student's file has none.
        dataset: of images that it will see.
        whose: what the network is, for the line.
    """
    own, here = card.get("image_range"), getattr(dataset, "image_range", None)
    if own is not None and (here is None or tuple(own) != tuple(here)):
        read = "without one" if here is None else f"with {list(here)}"
        print(
            f"{whose} was trained with data.image_range {own}, these images are read {read}; set "
            f"data.image_range={own} if they are of the same kind",
            file=sys.stderr,
            flush=True,
        )


def build_class_map(
    config: NetworkConfig, network: nn.Module, names: Sequence[str], role: str = "teacher"
) -> ClassMap | None:
    """What a network's classes are among the data's; None where they are the same.

    Args:
        config: the network's section.
        network: the teacher, or one that is evaluated.
        names: of the data's classes.
        role: `teacher` or `student`, for messages.

    Raises:
        ValueError: if a class is unknown, too few have a counterpart, or they stand in another order without a map.
    """
    card: dict[str, Any] = getattr(network, "card", None) or {}
    own = config.classes or card.get("classes") or getattr(network, "classes", None) or []
    if config.class_map is None:
        check_order(own, names, role)
        return None
    count = len(own) or count_classes(network, len(names))
    if config.class_map == "names":
        if not own:
            raise ValueError(f"{role}.class_map=names: the {role}'s names are not known; list them in {role}.classes")
        pairs: dict[Any, Any] = {name: name for name in own if name in names}
    else:
        pairs = config.class_map
    sources: list[list[int]] = [[] for _ in names]
    for theirs, ours in pairs.items():
        number = _class_number(theirs, own, count, role, f"{role}.class_map")
        if ours is not None:
            sources[_class_number(ours, names, len(names), "data", f"{role}.class_map")].append(number)
    spec: dict[str, Any] = getattr(network, "spec", None) or {}
    return ClassMap(sources, len(own) or spec.get("num_classes"))


def _class_number(given: int | str, names: Sequence[str], count: int, whose: str, key: str) -> int:
    if given in names:
        return list(names).index(str(given))
    if str(given).isdecimal() and int(given) < count:  # a run's configuration has numbers as text
        return int(given)
    have = f"{closest(str(given), names)}" if names else f"; its classes have numbers below {count} and no names"
    raise ValueError(f"{key}: the {whose} has no class {given!r}{have}")


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
    if network is None:
        if not config.teachers:
            raise ValueError(f"method {', '.join(config.method_names)} needs a teacher; set teacher.checkpoint=RUN")
        return _join_trained(config.teachers, classes)
    if len(config.teachers) > 1:
        raise ValueError(
            f"teacher is a list of {len(config.teachers)}; a network of your own stands for a single one, leave it out"
        )
    section = next(iter(config.teachers), None)
    class_map = None if section is None else build_class_map(section, network, classes)
    return join([tap(network.requires_grad_(False), section, class_map)], [_views(section)]).eval()


def _join_trained(sections: Sequence[NetworkConfig], classes: Sequence[str]) -> Tapped:
    """The teacher that some sections describe, frozen and in eval mode."""
    networks, maps = [], []
    for number, section in enumerate(sections):
        role = "teacher" if len(sections) == 1 else f"teacher.{number}"
        if section.checkpoint is None and section.weights is None and not section.is_code:  # which may load its own
            raise ValueError(f"{role}: an untrained network teaches nothing; set {role}.checkpoint or {role}.weights")
        networks.append(build_network(section, len(classes), role).requires_grad_(False))
        maps.append(build_class_map(section, networks[-1], classes, role))
    maps = share_classes(maps, len(classes))
    tapped = [tap(network, section, one) for network, section, one in zip(networks, sections, maps, strict=True)]
    return join(tapped, [_views(section) for section in sections]).eval()


def _views(section: NetworkConfig | None) -> Protocol:
    return PLAIN if section is None or section.views is None else section.views.build()


class Mapped(nn.Module):
    """A network in the data's classes: images (N,3,H,W) in 0…1 → logits (N,C,H,W).

    Args:
        network: the network, or a teacher of several; classes that have no counterpart in the data are cut off.
        role: what it is in its configuration, `student` or `teacher`.
    """

    def __init__(self, network: Tapped, role: str = "teacher"):
        super().__init__()
        self.role = role
        self.network = network
        self.align_corners = network.align_corners

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the data's classes."""
        logits: Tensor = self.network(images, {"output"})["output"]
        return logits


def build_trained(config: Config, classes: Sequence[str]) -> Mapped:
    """The trained network that a configuration names, as it is: its student if that has weights, else its teacher.

    Args:
        config: the configuration.
        classes: names of the data set's.

    Raises:
        ValueError: if neither has weights, or a class of the data has no counterpart among the network's.
    """
    for role, sections in (("student", [config.student]), ("teacher", config.teachers)):
        if any(section.checkpoint or section.weights for section in sections):
            if role == "teacher":
                tapped = _join_trained(sections, classes)
            else:
                network = build_network(config.student, len(classes), role).eval()
                tapped = Tapped(network, {}, class_map=build_class_map(config.student, network, classes, role))
            class_map = tapped.class_map
            if class_map is not None and not class_map.complete:
                lacking = next(name for number, name in enumerate(classes) if number not in class_map.known)
                raise ValueError(
                    f"{role}.class_map: none of the network's classes is the data's {lacking}; there is no fair figure "
                    "over all classes"
                )
            return Mapped(tapped, role)
    raise ValueError("nothing trained to evaluate; give a run, or student.name and student.weights=FILE")


def teacher_digest(config: Config) -> str | None:
    """What tells one teacher from another: the SHA-256 of the file that its weights are from; None without such a file.

    Of a list, that of all the files' ones; a network without a file is told by what names it.

    Args:
        config: the configuration.
    """
    sections = config.teachers if config.distils else []
    digests = [_weights_digest(section) for section in sections]
    if len(sections) < 2:
        return next(iter(digests), None)
    told = [own or one.checkpoint or one.weights or one.name for one, own in zip(sections, digests, strict=True)]
    return hashlib.sha256("\n".join(map(str, told)).encode()).hexdigest()


def _weights_digest(section: NetworkConfig) -> str | None:
    path = section.checkpoint or section.weights
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


def observe(teacher: Tapped | None, images: Tensor, names: set[str], stored: Taps | None = None) -> Taps:
    """The teacher's taps, without a graph; none at all where no name is wanted, or there is no teacher.

    Args:
        teacher: tapped, in eval mode; None where a student learns alone.
        images: (N,3,H,W) in 0…1.
        names: the taps that the method reads.
        stored: those that it gave for these images before; the teacher does not run then.
    """
    if teacher is None or not names:
        return {}
    if stored is not None:
        read = {name: tap.to(images.device, non_blocking=True) for name, tap in stored.items()}
        weight = teacher.weight
        return {**read, "image": images, **({} if weight is None else {"weight": weight.to(images.device)})}
    with torch.no_grad():
        taps: Taps = teacher(images, names)
    return taps
