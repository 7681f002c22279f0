"""Agreement of a student with its teacher, where the teacher is right and where it is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from segdistill.functional import labelled
from segdistill.metrics._base import Headline, Metric, ratio

BOTH, LOST, CORRECTED, REPEATED, OTHER = range(5)
"""Both right; the teacher alone; the student alone; both wrong, with one class; both wrong, with two."""


class Agreement(Metric):
    """What a student makes of its teacher's right pixels and of its errors, and how often the two agree.

    A student that only copies repeats its teacher's errors; one that learns from the labels corrects some of them.
    """

    needs_teacher: ClassVar[bool] = True
    headlines: ClassVar[Mapping[str, Headline]] = {
        "agreement": Headline("agrees with teacher %", None),
        "kept": Headline("teacher's right pixels kept %"),
        "corrected": Headline("teacher's errors corrected %"),
        "repeated": Headline("teacher's errors repeated %", "lower"),
    }

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.sums["counts"] = torch.zeros(len(classes), 5, dtype=torch.long)

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says.

        Raises:
            ValueError: if the teacher's classes are missing.
        """
        if teacher is None:
            raise ValueError("agreement: expected the teacher's classes, got none; give them as teacher")
        valid = labelled(target, len(self.classes))
        truth, student, guide = (ids[valid].long() for ids in (target, prediction, teacher))
        right, taught = student == truth, guide == truth
        wrong = torch.where(student == guide, REPEATED, OTHER)
        kind = torch.where(taught, torch.where(right, BOTH, LOST), torch.where(right, CORRECTED, wrong))
        counts = torch.bincount(truth * 5 + kind, minlength=5 * len(self.classes))
        self.sums["counts"] += counts.view(-1, 5).cpu()

    def compute(self) -> dict[str, Any]:
        """Shares of the labelled pixels, of all classes together and `classes`: of each true class.

        `agreement` and `teacher_accuracy` are of all pixels; `kept` is the share of the teacher's right pixels that the
        student has right, `corrected`, `repeated` and `other` are shares of its wrong ones: right in the student, given
        the same wrong class, given another wrong class.
        """
        counts = self.sums["counts"]
        by_class = dict(zip(self.classes, map(_shares, counts), strict=True))
        return {**_shares(counts.sum(0)), "classes": by_class}


def _shares(counts: Tensor) -> dict[str, float | None]:
    n = counts.tolist()
    right, wrong = n[BOTH] + n[LOST], n[CORRECTED] + n[REPEATED] + n[OTHER]
    return {
        "agreement": ratio(n[BOTH] + n[REPEATED], right + wrong),
        "teacher_accuracy": ratio(right, right + wrong),
        "kept": ratio(n[BOTH], right),
        "corrected": ratio(n[CORRECTED], wrong),
        "repeated": ratio(n[REPEATED], wrong),
        "other": ratio(n[OTHER], wrong),
    }
