"""What a student learns from labels."""

import torch.nn.functional as F
from torch import Tensor

from segdistill.functional import IGNORE, empty
from segdistill.taps import resize


def cross_entropy(logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
    """Cross-entropy, mean over the labelled pixels; 0 with a graph where there is none.

    Args:
        logits: (N,C,h,w), resized bilinearly to the target.
        target: (N,H,W) int64 labels, 255 = ignored.
        align_corners: whether corners are aligned in that.
    """
    logits = resize(logits.float(), (target.shape[-2], target.shape[-1]), align_corners)
    labelled = (target != IGNORE).sum()
    if labelled == 0:
        return empty(logits)
    return F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum") / labelled
