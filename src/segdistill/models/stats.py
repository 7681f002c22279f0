"""How large a network is, and how much it computes."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def model_stats(network: nn.Module, size: tuple[int, int] = (512, 1024)) -> dict[str, Any]:
    """Parameters and floating-point operations of one forward pass in eval mode, without an auxiliary head.

    A multiply-add counts as two operations. Nothing is computed: shapes alone are followed.

    Args:
        network: images (N,3,H,W) → logits.
        size: (H,W) of the image.

    Returns:
        `params`, `flops`, `flops_size`.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    params = sum(p.numel() for name, p in shadow.named_parameters() if "aux" not in name.split("."))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, 3, *size, device="meta"))
    return {"params": params, "flops": counter.get_total_flops(), "flops_size": list(size)}
