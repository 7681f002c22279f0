"""MIMIC: the student's features are to equal the teacher's (FitNets, Romero et al., ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.adapters import projection
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.taps import Taps


@full_precision
def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps, over all their elements.

    Args:
        student: features (N,C,H,W), already projected to the teacher's channels.
        teacher: features (N,C,H,W), detached here.

    Raises:
        ValueError: if the shapes differ.

    Source:
        Romero et al., FitNets: Hints for Thin Deep Nets, eq. 3 (there half the sum); MIMIC in SKD's Table 2.

    >>> import torch
    >>> feature_mse(torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)).item()
    5.0
    """
    check_maps(student, teacher)
    return F.mse_loss(student, teacher.detach())


class Mimic(Method):
    """Mean squared difference between the student's features, through a 1×1 convolution, and the teacher's.

    Args:
        weight: of the term; 1 is our choice, SKD's comparison does not say.
    """

    def __init__(self, *, weight: float = 1.0):
        super().__init__()
        self.weight = weight
        self.adapter: nn.Module = nn.Identity()

    def student_taps(self) -> set[str]:
        """`features`, unless the weight is 0."""
        return {"features"} if self.weight else set()

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The 1×1 convolution; also where the channel counts agree, since channels have no order."""
        if self.weight:
            self.adapter = projection(student["features"].shape[1], teacher["features"].shape[1])

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `features`."""
        if not self.weight:
            return {}
        return {"features": self.weight * feature_mse(self.adapter(student["features"]), teacher["features"])}
