"""Whether an exported file computes what the student computes: run in its own runtime, on real images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdistill._printing import one_line
from segdistill._types import Size
from segdistill.deploy.formats import Array, Runner
from segdistill.deploy.graph import Interface, as_float, as_input
from segdistill.deploy.samples import Samples
from segdistill.functional import IGNORE
from segdistill.metrics import scores
from segdistill.taps import aligned, as_logits, resize_logits

RANDOM = 4
"""Images of a check without real ones: they say nothing of mIoU, and one is much like the other."""


@dataclass
class Check:
    """What a comparison of a file with its student found.

    Args:
        classes: names.
        difference: the largest difference of a logit, relative to the largest logit of its batch; of a file that gives
            class numbers alone, how much smaller the student's logit of the file's choice is than that of its own.
        batches: (N,H,W) of what was compared.
    """

    classes: list[str]
    difference: float = 0.0
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    worst: Tensor | None = None
    """The images (N,3,H,W) uint8 of the largest difference."""
    _same: int = 0
    _pixels: int = 0
    _confusions: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.classes)
        self._confusions = torch.zeros(2, count, count, dtype=torch.long)

    @property
    def agreement(self) -> float:
        """Share of the pixels that get the same class."""
        return self._same / self._pixels

    @property
    def miou(self) -> tuple[float, float] | None:
        """Mean IoU of the student and of the file; None without labels."""
        assert self._confusions is not None
        before, after = (scores(confusion, self.classes)["miou"] for confusion in self._confusions)
        return None if before is None or after is None else (before, after)

    @property
    def drop(self) -> float | None:
        """Points of mIoU, of 100, that the file loses; None without labels."""
        return None if self.miou is None else 100 * (self.miou[0] - self.miou[1])

    def add(self, images: Tensor, logits: Tensor, full: Tensor, found: Mapping[str, Array], chosen: Tensor) -> None:
        """Compare one batch.

        Args:
            images: (N,3,H,W) uint8.
            logits: (N,C,h,w), the student's.
            full: (N,C,H,W), the same at the images' size.
            found: the file's outputs.
            chosen: (N,H,W), the class that the file gives each pixel.
        """
        largest = float(logits.abs().max().clamp(min=1e-12))
        differences = [_regret(chosen, full)]
        if "logits" in found:
            differences.append(_largest_difference(torch.from_numpy(np.array(found["logits"])), logits))
        difference = max(differences, key=lambda value: math.inf if math.isnan(value) else value) / largest
        if not difference <= self.difference:
            self.difference, self.worst = difference, images
        self.batches.append((len(images), images.shape[-2], images.shape[-1]))
        if chosen.shape == full[:, 0].shape:
            self._same += int((chosen == full.argmax(1)).sum())
        self._pixels += full[:, 0].numel()

    def count(self, which: int, ids: Tensor, masks: Tensor) -> None:
        """Count pixels for the mean IoU: `which` is 0 for the student, 1 for the file."""
        assert self._confusions is not None
        labelled = masks != IGNORE
        count = len(self.classes)
        pairs = count * masks[labelled] + ids[labelled]
        self._confusions[which] += torch.bincount(pairs, minlength=count**2).view(count, count)

    def figures(self) -> dict[str, Any]:
        """The findings as JSON holds them."""
        miou = self.miou
        return {
            "count": sum(count for count, _, _ in self.batches),
            "max_difference": self.difference,
            "argmax_agreement": self.agreement,
            "miou": None if miou is None else {"student": miou[0], "file": miou[1]},
            "batches": [list(batch) for batch in dict.fromkeys(self.batches)],
        }


def _largest_difference(theirs: Tensor, logits: Tensor) -> float:
    if theirs.shape != logits.shape:
        return math.inf
    return float((theirs - logits).abs().max())


def _regret(chosen: Tensor, full: Tensor) -> float:
    """How much smaller the student's logit of another choice is than that of its own, at most."""
    if chosen.shape != full[:, 0].shape or int(chosen.max()) >= full.shape[1]:
        return math.inf
    return float((full.amax(1) - full.gather(1, chosen[:, None])[:, 0]).max())


def example_batches(samples: Samples, interface: Interface, images: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches that a file is checked on: single images of the example's size; of a dynamic file others, too.

    Args:
        samples: where the images come from.
        interface: of the file.
        images: how many of the example's size.
    """
    yield from samples.batches(images if len(samples) else min(images, RANDOM), interface.size)
    if interface.dynamic:
        for count, size in zip((1, 3, 1, 3), (*other_sizes(interface.size), interface.size), strict=True):
            for group, _ in samples.batches(count, size, count):
                yield group, None


def count_batches(samples: Samples, interface: Interface, images: int) -> int:
    """How many batches `example_batches` gives.

    Args:
        samples: as there.
        interface: likewise.
        images: likewise.
    """
    return min(images, len(samples) or RANDOM) + 4 * interface.dynamic


def other_sizes(size: Size) -> list[Size]:
    """Three more sizes for a file that takes any: an odd one, a multiple of 32, and none that is even.

    >>> other_sizes((96, 128))
    [(97, 131), (96, 160), (116, 172)]
    """
    height, width = size
    odd = (height // 2 * 2 + 1, width // 2 * 2 + 3)
    whole = (max(32, height // 32 * 32), width // 32 * 32 + 32)
    uneven = (height // 32 * 32 + 20, width // 32 * 32 + 44)
    return [odd, whole, uneven]


@torch.no_grad()
def verify(
    network: nn.Module,
    run: Runner,
    interface: Interface,
    batches: Iterator[tuple[Tensor, Tensor | None]] | Sequence[tuple[Tensor, Tensor | None]],
    classes: list[str],
) -> Check:
    """Compare a file with its student.

    Args:
        network: the student, in eval mode, on the CPU.
        run: the file in its runtime.
        interface: of the file.
        batches: images (N,3,H,W) uint8 with masks (N,H,W), which count for the mean IoU, or None.
        classes: names.

    Raises:
        ValueError: if the student gives another number of classes.
    """
    check = Check(classes)
    for images, masks in batches:
        logits = as_logits(network(as_float(images))).float()
        if logits.shape[1] != len(classes):
            raise ValueError(f"the student gives {logits.shape[1]} classes, its card names {len(classes)}")
        size = (images.shape[-2], images.shape[-1])
        full = resize_logits(logits, size, aligned(network))
        found = _run(run, images, interface)
        chosen = found_ids(found, size, network)
        check.add(images, logits, full, found, chosen)
        if masks is not None:
            check.count(0, full.argmax(1), masks)
            check.count(1, chosen, masks)
    return check


def _run(run: Runner, images: Tensor, interface: Interface) -> Mapping[str, Array]:
    try:
        return run(as_input(images, interface))
    except Exception as error:
        shape = "×".join(map(str, (len(images), *images.shape[-2:])))
        raise ValueError(
            f"the exported file cannot run on images of {shape} ({one_line(str(error))[:200]}); the exporter took "
            "something of the example's size for a constant, or its runtime lacks an operator: nothing was written"
        ) from error


def found_ids(found: Mapping[str, Array], size: Size, network: nn.Module) -> Tensor:
    """Class of each pixel (N,H,W) by a file's outputs."""
    if "ids" in found:
        return torch.from_numpy(np.array(found["ids"])).long()
    logits = torch.from_numpy(np.array(found["logits"]))
    return resize_logits(logits, size, aligned(network)).argmax(1)
