"""The first two stages as SSTKD compares them: one map, each of the teacher's channels at one scale."""

import torch
from torch import Tensor, nn

from segdistill._processes import mean_over_processes
from segdistill.taps import Taps, resize


def both_stages(taps: Taps) -> Tensor:
    """`low1`, resized to the map of `low2`, and `low2`, concatenated: (N,A1+A2,H,W)."""
    low2 = taps["low2"]
    return torch.cat([resize(taps["low1"], (low2.shape[2], low2.shape[3])), low2], dim=1)


class UnitChannels(nn.Module):
    """Scales each channel to a mean square of 1, by its mean over all batches so far; nothing is trained.

    A channel of less than 1 % of the average amplitude is not blown up further than to that share.

    Args:
        channels: A.
    """

    energy: Tensor
    batches: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("energy", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N,A,H,W) → the same shape, detached."""
        if self.training:
            energy = mean_over_processes(x.square().mean((0, 2, 3)).to(self.energy.dtype))
            self.batches += 1
            self.energy += (energy - self.energy) / self.batches
        energy = self.energy + 1e-4 * self.energy.mean()
        return x / energy.sqrt().clamp_min(torch.finfo(energy.dtype).tiny)[:, None, None]
