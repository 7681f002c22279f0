"""Weights of classes by how many pixels they have: `supervised.class_weights: balanced`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from segdistill.data import SegmentationDataset
from segdistill.data.loading import Loader
from segdistill.data.subsets import masked
from segdistill.engine.faults import TrainingStopped
from segdistill.functional import IGNORE

if TYPE_CHECKING:
    from segdistill.engine.training import Training


def balanced(counts: Tensor) -> Tensor:
    """What a pixel of each class weighs so that all classes have the same weight together, and the mean pixel 1.

    With n labelled pixels, of which n_c are of class c, and C classes that occur, it is n/(C·n_c): scikit-learn's
    `class_weight="balanced"`, by which people weigh the losses of torch, smp and OpenMMLab. A class without a pixel
    weighs 0. Since the loss is divided by the weights' sum, their scale means nothing: the median of the counts by a
    class's own comes to the same.

    Args:
        counts: (C,) pixels of each class.

    Returns:
        (C,) float32.

    >>> balanced(torch.tensor([6, 2, 0])).tolist()
    [0.6666666865348816, 2.0, 0.0]
    """
    there = counts > 0
    whole, classes = counts.sum().float(), there.sum()
    return torch.where(there, whole / (classes * counts.clamp(min=1)), 0.0)


class _Counts(Dataset["Tensor | ValueError"]):
    """Labelled pixels of each class, of single items."""

    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> "Tensor | ValueError":
        try:
            source = self.dataset.source(index)
            mask = source.mask((slice(0, source.size[0]), slice(0, source.size[1])))
        except ValueError as error:
            return ValueError(str(error))  # without its traceback, as a value: it comes from another process
        return torch.bincount(mask.flatten(), minlength=IGNORE + 1)[: len(self.dataset.classes)]


def count_labels(dataset: SegmentationDataset, indices: Sequence[int], workers: int = 0) -> Tensor:
    """Labelled pixels of each class, (C,) int64, of masks as they are before any augmentation.

    Args:
        dataset: images with labels.
        indices: of the items that are counted.
        workers: processes that read ahead.

    Raises:
        ValueError: if a mask cannot be read.
    """
    total = torch.zeros(len(dataset.classes), dtype=torch.int64)
    for counts in Loader(_Counts(dataset), indices, workers):
        total += counts
    return total


def balance(training: "Training") -> None:
    """Count the labels of a run's training images, each process its share, unless the run has its weights already.

    They are a part of the checkpoint, so that a run that goes on has the same, whatever lies in the folders now.

    Raises:
        ValueError: if there is no label, or a mask cannot be read.
        TrainingStopped: if the process was asked to stop.
    """
    weights = training.distiller.supervised.class_weights
    assert weights is not None
    if bool(weights.any()):
        return
    run, dataset = training.run, training.train_set
    labelled = masked(dataset)
    training.recorder.say(f"supervised.class_weights: counting the labels of {len(labelled)} training images")
    workers = training.config.data.workers
    counts = torch.zeros(len(dataset.classes), dtype=torch.int64)
    mine = labelled[run.rank :: run.world]
    with training.recorder.stage("masks counted") as told:
        for first in range(0, len(mine), PORTION):
            if run.stopped:
                break
            counts += count_labels(dataset, mine[first : first + PORTION], workers)
            told(min(first + PORTION, len(mine)), len(mine))
    counts = run.sum(counts.to(run.device)).cpu()
    if run.any(bool(run.stopped)):
        raise TrainingStopped("stopped while labels were counted; the same command begins anew")
    if not bool(counts.any()):
        raise ValueError("supervised.class_weights: no training image has a label that could be counted")
    weights.copy_(balanced(counts))
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(dataset.classes, weights.tolist(), strict=True))
    training.recorder.say(f"supervised.class_weights: {shown}")


PORTION = 1024
"""Masks that are counted between two looks at whether the process was asked to stop."""
