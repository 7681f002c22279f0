"""Batch norm with the statistics of the whole batch, where several processes have a share of it each."""

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdistill._processes import sum_over_processes
from segdistill.functional import upcast

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` computes on accelerators, for CPUs, which it refuses, and for critics."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(N,A,...) → the same shape."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        x = upcast(input)
        dims, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        sums = sum_over_processes(torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)  # first, since a mean of squares would be rounded more than a variance bears
        variance = sum_over_processes(centred.square().sum(dims)) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        x = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        out: Tensor = x.to(input.dtype)
        return out

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class SyncBatchNormAct(SyncBatchNorm):
    """The same of timm's batch norm that has an activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """(N,A,H,W) → the same shape."""
        x: Tensor = self.act(self.drop(super().forward(input)))
        return x


def synchronise(module: nn.Module, device: torch.device, *, second_derivative: bool = False) -> None:
    """Let all batch norm in a module take its statistics over all processes; names and tensors stay as they are.

    Args:
        module: whose batch norm is changed in place.
        device: on which it is.
        second_derivative: whether a gradient is differentiated again, which torch's own cannot do.

    Raises:
        ValueError: on batch norm of a kind that is not known.
    """
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)}
    for name, norm in norms.items():
        if type(norm) not in (*PLAIN, nn.SyncBatchNorm) and not isinstance(norm, BatchNormAct2d):
            raise ValueError(f"train.sync_batchnorm: {name} is a {type(norm).__name__}, which is not known; set false")
    if device.type != "cpu" and not second_derivative:
        convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for norm in norms.values():
        norm.__class__ = SyncBatchNormAct if isinstance(norm, BatchNormAct2d) else SyncBatchNorm
