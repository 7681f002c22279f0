"""Random draws of the methods: those of the whole batch, however many processes have a share of it."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from segdistill._processes import several


@dataclass
class _Stream:
    """Where the numbers of a step come from."""

    seed: int
    behind: tuple[int, ...]
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


_now: _Stream | None = None


def begin(seed: int, behind: tuple[int, ...] = ()) -> None:
    """Begin the draws of a step; without it, they come from torch's own generators, and each process has its own.

    Args:
        seed: the same in all processes.
        behind: how many images of each kind a process's batch has behind those of the first kind, as images without
            labels are; in the whole batch, those of one kind of all processes stand together.
    """
    global _now
    _now = _Stream(seed, behind)


def end() -> None:
    """Let draws come from torch's own generators again."""
    global _now
    _now = None


def uniform(*shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers from [0,1), the same in all processes, which have to draw in the same order.

    Args:
        *shape: of the result.
        device: likewise.
        dtype: likewise.
    """
    generator = None if _now is None else _now.generator(torch.empty(0, device=device).device)
    return torch.rand(shape, generator=generator, device=device, dtype=dtype)


def uniform_of_images(
    images: int, *shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers from [0,1) for each image of this process: what these images get in the whole batch.

    Args:
        images: N of this process, the same in all.
        *shape: of what each image gets.
        device: of the result.
        dtype: likewise.

    Returns:
        (N,*shape).
    """
    if _now is None or not several():
        return uniform(images, *shape, device=device, dtype=dtype)
    world, rank = dist.get_world_size(), dist.get_rank()
    whole = uniform(images * world, *shape, device=device, dtype=dtype)
    kinds = [images - sum(_now.behind), *_now.behind]
    parts = torch.split(whole, [count * world for count in kinds])
    return torch.cat([part[rank * count : (rank + 1) * count] for part, count in zip(parts, kinds, strict=True)])
