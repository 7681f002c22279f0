"""What a student learns from labels: cross-entropy, weighted by class or of hard pixels alone, and soft Jaccard."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill._processes import mean_over_processes, sum_over_processes
from segdistill.functional import IGNORE, full_precision
from segdistill.methods.jml import mean_distance, overlaps
from segdistill.taps import resize


@full_precision
def cross_entropy(
    logits: Tensor,
    target: Tensor,
    labelled: Tensor | None = None,
    *,
    class_weights: Tensor | None = None,
    align_corners: bool = False,
) -> Tensor:
    """Cross-entropy, summed over the labelled pixels and divided by their number; 0 with a graph where there is none.

    With weights, each pixel counts as often as its class weighs, above and below the fraction's line, as in torch.

    Args:
        logits: (N,C,h,w), resized bilinearly to the target.
        target: (N,H,W) int64 labels, 255 = ignored.
        labelled: what the sum is divided by instead, where these images are a part of the batch: the mean over all
            parts of their `mass`, so that the mean of all parts' losses is the loss of the whole batch.
        class_weights: (C,) what a pixel of each class weighs; all alike as a default.
        align_corners: whether corners are aligned in the resize.

    >>> logits, target = torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]])
    >>> round(cross_entropy(logits, target, class_weights=torch.tensor([1.0, 3.0])).item(), 4)
    0.6931
    """
    logits = resize(logits, (target.shape[-2], target.shape[-1]), align_corners)
    count = mass(target, class_weights) if labelled is None else labelled
    total = F.cross_entropy(logits, target, class_weights, ignore_index=IGNORE, reduction="sum")
    return total / torch.where(count > 0, count, 1)


def mass(target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """What the cross-entropy of some images is divided by: their labelled pixels, each as often as its class weighs.

    Args:
        target: (N,H,W) int64 labels, 255 = ignored.
        class_weights: (C,); all 1 as a default.

    >>> mass(torch.tensor([[[0, 1, 255]]]), torch.tensor([1.0, 3.0]))
    tensor(4.)
    """
    if class_weights is None:
        return (target != IGNORE).sum()
    classes = len(class_weights)
    return F.pad(class_weights.to(target.device), (0, 1))[target.clamp(max=classes)].sum()


@torch.no_grad()
@full_precision
def hard_labels(
    logits: Tensor, target: Tensor, *, threshold: float = 0.7, min_kept: int = 100_000, align_corners: bool = False
) -> Tensor:
    """Labels of the hard pixels of a batch alone; the easy ones become 255 (online hard example mining).

    A pixel is hard if its true class has a probability below the threshold. If there are fewer than `min_kept` times
    the number of images with labels, the threshold is raised until there are as many.

    Args:
        logits: (N,C,h,w), resized bilinearly to the target.
        target: (N,H,W) int64 labels, 255 = ignored.
        threshold: of the probability.
        min_kept: pixels an image, on average over the batch.
        align_corners: whether corners are aligned in the resize.

    Returns:
        (N,H,W) int64.

    Source:
        `OHEMPixelSampler` of mmsegmentation 1.2.2, with a threshold.

    >>> logits = torch.tensor([2.0, 0.5, -1.0]).view(1, 1, 1, 3)
    >>> hard_labels(torch.cat([logits, -logits], 1), torch.tensor([[[0, 0, 255]]]), threshold=0.8, min_kept=0)
    tensor([[[255,   0, 255]]])
    """
    logits = resize(logits, (target.shape[-2], target.shape[-1]), align_corners)
    known = target != IGNORE
    surprise = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    probability = torch.where(known, torch.exp(-surprise), torch.inf)
    # Nothing is asked of the device here, which would make it wait: the place is a tensor.
    # Differs from the source: images without labels raise no number, and where there are no more than the least number
    # of pixels, all are kept; there, the easiest is left out. The loss is a mean over the kept pixels, as in HRNet's
    # code; there, it is a mean over all pixels, ignored ones too, so that it grows smaller as fewer are hard.
    ordered = F.pad(probability.flatten().sort().values, (0, 1), value=torch.inf)
    place = min_kept * known.flatten(1).any(1).sum()
    least = ordered.gather(0, place.clamp(max=len(ordered) - 1)[None])
    return torch.where(probability < least.clamp(min=threshold), target, IGNORE)


@full_precision
def label_jaccard(logits: Tensor, target: Tensor, *, align_corners: bool = False) -> Tensor:
    """Soft Jaccard loss of logits and labels: `losses.soft_jaccard` of their probabilities, at the labels' resolution.

    Several processes compare the batch of all of them. Images without labels change nothing.

    Args:
        logits: (N,C,h,w), resized bilinearly to the target.
        target: (N,H,W) int64 labels, 255 = ignored.
        align_corners: whether corners are aligned in the resize.
    """
    logits = resize(logits, (target.shape[-2], target.shape[-1]), align_corners)
    parts = sum_over_processes(overlaps(logits.softmax(1), target))
    return mean_distance(parts, parts[2] > 0)


class Supervised(nn.Module):
    """The loss of the labels, as the section `supervised:` of a configuration says.

    Of a batch that comes in parts, micro-batches or processes, the mean of all parts' cross-entropies is that of the
    whole batch, with class weights too. The Jaccard loss is of a micro-batch of all processes, and hard pixels are
    looked for in each micro-batch of each process; such a part counts as much as it has labels, so that parts without
    any do not make the mean smaller.

    Args:
        ce: weight of the cross-entropy; 0: none.
        jaccard: weight of the soft Jaccard loss; 0: none.
        class_weights: what a pixel of each class weighs in the cross-entropy; None: all alike.
        ohem: probability of the true class from which on a pixel is too easy for the cross-entropy; None: none is.
        ohem_min_kept: pixels an image that count in any case.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        ce: float = 1.0,
        jaccard: float = 0.0,
        class_weights: Sequence[float] | None = None,
        ohem: float | None = None,
        ohem_min_kept: int = 100_000,
    ):
        super().__init__()
        self.ce = ce
        self.jaccard = jaccard
        self.ohem = ohem
        self.ohem_min_kept = ohem_min_kept
        # A part of the checkpoint, so that what was counted is counted once.
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights)

    def mass(self, target: Tensor) -> Tensor:
        """What the cross-entropy of some images is divided by; see `mass`.

        Args:
            target: (N,H,W) int64 labels, 255 = ignored.
        """
        return mass(target, self.class_weights)

    def share(self, target: Tensor, labelled: Tensor | None) -> Tensor | float:
        """How much a micro-batch of all processes counts among those of a batch, 1 on average: by the labels it has.

        It is for a mean over labelled pixels that is taken in each micro-batch.

        Args:
            target: (N,H,W) int64 labels of this process, 255 = ignored.
            labelled: the mean of the `mass` of all parts; None: there is one part.
        """
        return 1.0 if labelled is None else self._share(mean_over_processes(self.mass(target)), labelled)

    def forward(
        self, logits: Tensor, target: Tensor, labelled: Tensor | None = None, *, align_corners: bool = False
    ) -> dict[str, Tensor]:
        """The weighted terms `ce` and `jaccard`; one whose weight is 0 is not there.

        Args:
            logits: (N,C,h,w).
            target: (N,H,W) int64 labels, 255 = ignored.
            labelled: where these images are a part of the batch, the mean of the `mass` of all parts.
            align_corners: whether corners are aligned in the resize.
        """
        terms = {}
        if self.ce:
            labels = target
            if self.ohem is not None:
                threshold, min_kept = self.ohem, self.ohem_min_kept
                labels = hard_labels(
                    logits, target, threshold=threshold, min_kept=min_kept, align_corners=align_corners
                )
            whole = labelled if self.ohem is None else None
            loss = cross_entropy(logits, labels, whole, class_weights=self.class_weights, align_corners=align_corners)
            terms["ce"] = self.ce * (loss if self.ohem is None else loss * self._share(self.mass(target), labelled))
        if self.jaccard:
            terms["jaccard"] = (
                self.jaccard * self.share(target, labelled) * label_jaccard(logits, target, align_corners=align_corners)
            )
        return terms

    @staticmethod
    def _share(own: Tensor, labelled: Tensor | None) -> Tensor | float:
        """How much a part that is looked at by itself counts among all parts of a batch, 1 on average."""
        return 1.0 if labelled is None else torch.where(labelled > 0, own / torch.where(labelled > 0, labelled, 1), 1.0)
