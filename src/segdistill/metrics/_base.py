"""The contract of a metric: it is shown a split batch by batch, and says at the end what it found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Headline:
    """How a table names a figure that stands for a metric.

    Args:
        title: with `%` at its end, of a share.
        better: which figure is the better one; None where neither is, by itself.
    """

    title: str
    better: Literal["higher", "lower"] | None = "higher"

    @property
    def share(self) -> bool:
        """Whether the figure is a share, which tables give in percent."""
        return self.title.endswith("%")


class Metric(ABC):
    """A figure of a whole split that is gathered batch by batch, in memory that does not grow with the pixels.

    A metric is one file in this folder with one subclass of this class; `segdistill eval --metric NAME` names it by the
    file. What it keeps is sums of tensors, so that the sums of two parts of a split are those of the whole, exactly:
    counts of pixels are integers, other sums are in float64. What cannot be summed is kept as rows, one per image.

    Args:
        classes: names of the data set's, C of them.
    """

    reads: ClassVar[Literal["ids", "logits"]] = "ids"
    """What `update` is given of the network: the class of each pixel, or the logits at the truth's resolution."""

    needs_teacher: ClassVar[bool] = False
    """Whether `update` is given the teacher's class of each pixel, too."""

    headlines: ClassVar[Mapping[str, Headline]] = {}
    """The figures of `compute` that stand for the metric in a table, and how it names them."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        self.sums: dict[str, Tensor] = {}
        """What was summed so far, on the CPU."""
        self.rows: Tensor | None = None
        """What was kept image by image (images,…), on the CPU; None of a metric that sums."""

    @abstractmethod
    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """Take in a batch of images, or a band of rows of them where the metric reads logits.

        Args:
            prediction: class ids (N,H,W); logits (N,C,H,W) in any precision where the metric reads those.
            target: (N,H,W) labels; 255, and all that is no class, is left out.
            teacher: class ids (N,H,W), of a metric that needs them.
        """

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """What was found, as JSON holds it: shares in 0…1; None where nothing could be counted."""

    def merge(self, other: Self) -> None:
        """Take in what another one of this kind has seen.

        Args:
            other: of the same classes; it stays as it is.
        """
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value
        if self.rows is not None and other.rows is not None:
            self.rows = torch.cat([self.rows, other.rows])

    def share(self, total: Callable[[Tensor], Tensor], rank: int, world: int) -> None:
        """Take in what the other processes have seen; every process calls it, and each then has the whole.

        Args:
            total: gives the sum of a tensor over all processes.
            rank: number of this process.
            world: number of processes.
        """
        for name, value in self.sums.items():
            self.sums[name] = total(value.clone())
        if self.rows is not None:
            own = torch.zeros(world, dtype=torch.long)
            own[rank] = len(self.rows)
            counts: list[int] = total(own).tolist()
            rows = self.rows.new_zeros(sum(counts), *self.rows.shape[1:])
            start = sum(counts[:rank])
            rows[start : start + counts[rank]] = self.rows
            self.rows = total(rows)


def ratio(part: Tensor | float, whole: Tensor | float) -> float | None:
    """A share; None of nothing.

    >>> ratio(1, 4), ratio(0, 0)
    (0.25, None)
    """
    return float(part) / float(whole) if whole else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None if there is none."""
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if known else None
