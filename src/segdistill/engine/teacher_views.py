"""A teacher that is the mean of several: of several networks, and of the views that each of them has of an image."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from segdistill.engine.protocol import PLAIN, Protocol, looks
from segdistill.engine.rows import Given, Mirrored, resized
from segdistill.taps import ClassMap, Tapped, Taps

AVERAGED = ("logits", "output")
"""Taps that are averaged; all others are those of the first network in its plain view."""


class Ensemble(Tapped):
    """Several networks, or several views of one, in the place of a teacher: probabilities are averaged.

    The taps `logits` and `output` are the logarithm of the mean probability, log Σ w p, in float32. All networks have
    the same weight, and so have the views of one. Logits of a view are mirrored back and resized to those of the first
    network's plain view, each with its own network's `align_corners`; then their softmax is averaged. All other taps,
    `weight` too, are those of the first network in its plain view.

    The logarithm is taken without leaving logarithms (logaddexp), so that a probability too small for float32 is still
    a finite number.

    Args:
        members: the networks with their taps, in the data's classes; the first one gives the other taps.
        views: of each network, its scales and whether it is mirrored.
    """

    def __init__(self, members: Sequence[Tapped], views: Sequence[Protocol]):
        first, *others = members
        super().__init__(first.network, first.paths, first.classifier, first.class_map)
        self.others = nn.ModuleList(others)
        self.views = list(views)

    def forward(self, images: Tensor, names: Iterable[str] | None = None) -> Taps:
        """Run the networks that are needed and collect the taps.

        Args:
            images: (N,3,H,W).
            names: the taps that are wanted (default: all that run). Where neither `logits` nor `output` is named, the
                first network alone runs, once, and they do not come.

        Raises:
            ValueError: as `Tapped` does, or if the networks give different numbers of classes.
        """
        wanted = None if names is None else set(names)
        taps = super().forward(images, wanted)
        averaged = set(AVERAGED) if wanted is None else wanted & set(AVERAGED)
        plain = {name: taps.pop(name) for name in AVERAGED}
        image = Given(images)
        for number, (run, protocol) in enumerate(zip([super().forward, *self.others], self.views, strict=True)):
            weight = 1 / (len(self.views) * _count(protocol))
            align = members(self)[number].align_corners
            for seen, mirrored in looks(image, protocol) if averaged else ():
                first = number == 0 and seen is image
                found = plain if first else run(seen.rows(0, seen.size[0]), averaged)
                for name in averaged:
                    share = _back(found[name], mirrored, plain[name], align, number).log_softmax(1) + math.log(weight)
                    taps[name] = torch.logaddexp(taps[name], share) if name in taps else share
        return taps

    @property
    def looks(self) -> int:
        """How many probabilities are averaged: the views of all networks."""
        return sum(map(_count, self.views))

    def compile_between_taps(self) -> None:
        """Compile the largest parts of all networks that hold no tap."""
        super().compile_between_taps()
        for member in members(self)[1:]:
            member.compile_between_taps()


def _back(logits: Tensor, mirrored: bool, like: Tensor, align: bool, number: int) -> Tensor:
    """A view's logits, in float32 at least, where those of the plain view lie."""
    if logits.shape[1] != like.shape[1]:
        raise ValueError(
            f"teacher.{number} gives {logits.shape[1]} classes, teacher.0 {like.shape[1]}; set class_map in the "
            "section of the one whose classes are not the data's, or tap the layer of its classes as logits"
        )
    size = (like.shape[-2], like.shape[-1])
    given = Given(logits)
    return resized(Mirrored(given) if mirrored else given, size, align).rows(0, size[0])


def join(networks: Sequence[Tapped], views: Sequence[Protocol]) -> Tapped:
    """One teacher of several networks; the network itself where there is one, and it sees each image once, as it is.

    Args:
        networks: at least one.
        views: of each.
    """
    return networks[0] if list(views) == [PLAIN] else Ensemble(networks, views)


def members(teacher: Tapped) -> list[Tapped]:
    """The networks that a teacher is made of, the first one in the front; of any other, itself.

    Args:
        teacher: what `join` returned.
    """
    others = teacher.others if isinstance(teacher, Ensemble) else ()
    return [teacher, *(other for other in others if isinstance(other, Tapped))]


def title(teacher: Tapped) -> str:
    """The names of a teacher's networks, each with the number of its views where there are several.

    Args:
        teacher: what `join` returned.
    """
    views = teacher.views if isinstance(teacher, Ensemble) else [PLAIN]
    return " + ".join(_named(member, protocol) for member, protocol in zip(members(teacher), views, strict=True))


def _named(member: Tapped, protocol: Protocol) -> str:
    name = str((getattr(member.network, "spec", None) or {}).get("name", type(member.network).__name__))
    return name if _count(protocol) == 1 else f"{name} ({_count(protocol)} views)"


def _count(protocol: Protocol) -> int:
    return len(protocol.scales) * (1 + protocol.flip)


def share_classes(maps: Sequence[ClassMap | None], count: int) -> list[ClassMap | None]:
    """Class maps of several teachers, limited to the data's classes that all of them know.

    A class that one of them does not know is taken out of the distributions of all, as `ClassMap` does with a single
    one: a mean over fewer teachers for some classes would favour those classes.

    Args:
        maps: of each teacher; None where its classes are the data's.
        count: C of the data.

    Raises:
        ValueError: if fewer than two classes are left.
    """
    whole = [ClassMap([[i] for i in range(count)], count) if one is None else one for one in maps]
    known = set(range(count)).intersection(*(one.known for one in whole))
    if len(known) == count or len(maps) == 1:
        return list(maps)
    if len(known) < 2:
        raise ValueError(f"teacher: {len(known)} of the data's classes is known to all networks of the list, needs 2")
    own = [dict(zip(one.known, one.sources, strict=True)) for one in whole]
    limited = [[sources[i] if i in known else [] for i in range(count)] for sources in own]
    return [ClassMap(sources, one.count) for sources, one in zip(limited, whole, strict=True)]
