"""No distillation: the baseline that every gain is judged against."""

from torch import Tensor

from segdistill.methods._base import Method
from segdistill.taps import Taps


class NoDistillation(Method):
    """The student alone: no term, no teacher."""

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """No terms."""
        return {}
