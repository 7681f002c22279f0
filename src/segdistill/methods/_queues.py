"""A memory of vectors, one queue per class, that all processes share."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segdistill._draws import uniform
from segdistill._processes import several


class ClassQueues(nn.Module):
    """The newest vectors of each class, over steps and processes; empty at first.

    Kept in float16, which a unit vector fits well (2 bytes · C · size · A: 0.4 GB for 20 000 vectors of 19 classes and
    512 channels, 3.1 GB for 150 classes): the vectors are only what student and teacher are both compared with. They
    are equal on all processes without being broadcast.

    Args:
        num_classes: C.
        size: vectors that are kept of each class.
        channels: A.
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, num_classes: int, size: int, channels: int):
        super().__init__()
        # Differs from the authors' code, which starts with random unit vectors: a student has nothing to learn of them.
        self.register_buffer("vectors", torch.zeros(num_classes, size, channels, dtype=torch.float16))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))  # so far, overwritten ones included

    @torch.no_grad()
    def push(self, vectors: Tensor, classes: Tensor) -> None:
        """Add the vectors of this process and of all others; each class's oldest ones give way.

        Args:
            vectors: (P,A); P may differ between processes.
            classes: (P,) int64.
        """
        vectors, classes = _gather(vectors.to(self.vectors.dtype), classes)
        num_classes, size, _ = self.vectors.shape
        new = torch.bincount(classes, minlength=num_classes)
        rank = _ranks(classes, num_classes)
        fits = rank >= new[classes] - size  # more new vectors than places: the last ones stay
        slots = (self.written[classes] + rank) % size
        self.vectors[classes[fits], slots[fits]] = vectors[fits]
        self.written += new

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """At most `count` random vectors of each class, each at most once and with the same chance: (K,A).

        They are the same in all processes.

        A class's vectors are cut into `count` equal stretches from a random start on, and one is drawn of each: that
        takes as long for a large memory as for a small one, and what is drawn is spread over all ages.

        Args:
            count: per class; of a class with fewer vectors all are taken.
        """
        num_classes, size, _ = self.vectors.shape
        device = self.vectors.device
        held = self.written.clamp(max=size)[:, None]
        taken = held.clamp(max=count)
        stretch = torch.arange(count, device=device)
        low, high = (i * held // taken.clamp(min=1) for i in (stretch, stretch + 1))
        chance = uniform(num_classes, count + 1, device=device)
        inside = (chance[:, 1:] * (high - low)).long()
        start = (chance[:, :1] * held).long()
        places = (start + low + inside) % held.clamp(min=1)
        classes, which = (stretch < taken).nonzero(as_tuple=True)
        return self.vectors[classes, places[classes, which]]


def sort_groups(groups: Tensor, num_groups: int, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Sort elements by their group, and by a number of their own within each.

    Args:
        groups: (P,) int64, the group of each element.
        num_groups: G.
        chance: (P,), a random number gives a random order.

    Returns:
        Indices of the elements, the first group's before the second's (P,), and how many each group has (G,).

    >>> sort_groups(torch.tensor([1, 0, 1, 1]), 3, torch.tensor([0.3, 0.9, 0.1, 0.2]))
    (tensor([1, 2, 3, 0]), tensor([1, 3, 0]))
    """
    order = chance.argsort(stable=True)
    return order[groups[order].argsort(stable=True)], torch.bincount(groups, minlength=num_groups)


def _ranks(groups: Tensor, num_groups: int) -> Tensor:
    """Which one of its group each element is, in order of appearance: [b a b b a] → [0 0 1 2 1]."""
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups, minlength=num_groups)
    first = counts.cumsum(0) - counts
    ranks = torch.empty_like(groups)
    ranks[order] = torch.arange(len(groups), device=groups.device) - first[groups[order]]
    return ranks


def _gather(vectors: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors (P,A) and classes (P,) of all processes, P may differ between them; the same order everywhere."""
    if not several():
        return vectors, classes
    sizes = [torch.zeros(1, dtype=torch.long, device=classes.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(classes)], device=classes.device))
    counts = [int(size) for size in sizes]
    gathered = []
    for mine in (vectors, classes):
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        theirs = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(theirs, padded)
        gathered.append(torch.cat([part[:count] for part, count in zip(theirs, counts, strict=True)]))
    return gathered[0], gathered[1]
