"""The section `supervised:` of the configuration."""

from typing import Any, Literal

import pydantic
from pydantic import Field

from segdistill.engine.section import Section


class SupervisedConfig(Section):
    """`supervised:` — what the student learns from labels, alone or beside a method, its auxiliary head too."""

    ce: float = Field(1.0, ge=0)
    """Weight of the cross-entropy; 0 leaves it out. With `jaccard: 0` as well, the student learns from the teacher
    alone."""
    jaccard: float = Field(0.0, ge=0)
    """Weight of the soft Jaccard loss: the overlap of probabilities and labels, mean over the classes that the batch
    has; of a micro-batch where `train.accumulate` cuts it up."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """What a pixel of each class weighs in the cross-entropy: a number for each class, in their order, or `balanced`:
    the inverse of the class's share of the labelled pixels of all training images, as scikit-learn has it. These are
    counted once, when the run begins. The loss is divided by the sum of the weights, as torch's. Left out, all weigh
    alike."""
    ohem: float | None = Field(None, gt=0, le=1)
    """Online hard example mining: in the cross-entropy only those pixels count to whose true class the student gives
    less than this probability, such as 0.7. Left out, all count."""
    ohem_min_kept: int = Field(100_000, ge=0)
    """With `ohem`: how many pixels an image count at least, the hardest ones of the micro-batch. As a default
    OpenMMLab's number, for crops of 512×1024."""

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

    @pydantic.model_validator(mode="after")
    def _check_cross_entropy(self) -> "SupervisedConfig":
        for name in ("class_weights", "ohem"):
            if self.ce == 0 and getattr(self, name) is not None:
                raise ValueError(f"{name} is of the cross-entropy, whose weight, ce, is 0; leave it out, or raise ce")
        if self.ohem is None and self.ohem_min_kept != type(self).model_fields["ohem_min_kept"].default:
            raise ValueError("ohem_min_kept is of hard pixels; set ohem beside it, 0.7 say, or leave it out")
        return self


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
