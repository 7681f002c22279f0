"""What a student learns from labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.functional import IGNORE
from segdistill.taps import resize


def cross_entropy(
    logits: Tensor, target: Tensor, labelled: Tensor | None = None, *, align_corners: bool = False
) -> Tensor:
    """Cross-entropy, summed over the labelled pixels and divided by their number; 0 with a graph where there is none.

    All classes weigh alike.

    Args:
        logits: (N,C,h,w), resized bilinearly to the target.
        target: (N,H,W) int64 labels, 255 = ignored.
        labelled: what the sum is divided by instead, where these images are a part of the batch: the mean number of
            labelled pixels over all parts, so that the mean of all parts' losses is the loss of the whole batch.
        align_corners: whether corners are aligned in the resize.
    """
    logits = resize(logits.float(), (target.shape[-2], target.shape[-1]), align_corners)
    count = (target != IGNORE).sum() if labelled is None else labelled
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / torch.where(count > 0, count, 1)
