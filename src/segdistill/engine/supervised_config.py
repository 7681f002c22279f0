"""The section `supervised:` of the configuration."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Owner, Section

OF_CROSS_ENTROPY = "of the cross-entropy, whose weight, ce, is 0; leave it out, or raise ce"


class SupervisedConfig(Section):
    """`supervised:` — the losses of student and auxiliary head that use labels, with or without a method."""

    owners: ClassVar[Mapping[str, Owner]] = {
        "class_weights": Owner("ce", OF_CROSS_ENTROPY),
        "ohem": Owner("ce", OF_CROSS_ENTROPY),
        "ohem_min_kept": Owner("ohem", "of hard pixels; set ohem beside it, 0.7 say, or leave it out"),
    }

    ce: float = Field(1.0, ge=0)
    """Weight of the cross-entropy; 0 turns it off. If `jaccard` is 0 as well, the student learns from the teacher
    only."""
    jaccard: float = Field(0.0, ge=0)
    """Weight of the soft Jaccard loss: the overlap of probabilities and labels, averaged over the classes in the batch.
    If `train.accumulate` splits the batch, it is computed for each micro-batch."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """Weight of a pixel of each class in the cross-entropy: a list with one number for each class, in their order, or
    `balanced`. `balanced` is the inverse of the class's share of the labelled pixels of all training images, as in
    scikit-learn; the pixels are counted once, at the start of the run. The loss is divided by the sum of the weights,
    as in torch. If left out, all classes have the same weight."""
    ohem: float | None = Field(None, gt=0, le=1)
    """Online hard example mining: only those pixels count in the cross-entropy whose true class gets a probability
    below this value from the student, such as 0.7. If left out, all pixels count."""
    ohem_min_kept: int = Field(100_000, ge=0)
    """With `ohem`: number of pixels per image that count at least; they are the hardest ones of the micro-batch. The
    default is OpenMMLab's number, for crops of 512×1024."""

    @property
    def labels(self) -> bool:
        """Whether anything is learned from labels."""
        return self.ce > 0 or self.jaccard > 0

    @pydantic.field_validator("class_weights", mode="before")
    @classmethod
    def _check_weights(cls, value: Any) -> Any:
        if value is None or value == "balanced":
            return value
        numbers = isinstance(value, list | tuple) and all(_is_weight(weight) for weight in value)
        if not numbers or not any(value):
            raise ValueError(f"expected balanced, or a number for each class, none below 0 and not all 0, got {value}")
        return value


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
