"""AT: attention transfer, where in the image the features are strong (Zagoruyko and Komodakis, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from segdistill.channels import squared_lengths
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.taps import Taps


@full_precision
def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the attention maps Q/‖Q‖₂, Q = mean over channels of the squared features, mean over N·H·W.

    Args:
        student: features (N,A,H,W).
        teacher: features (N,B,H,W), detached here; B may differ from A.

    Raises:
        ValueError: if N or H×W differ.

    Source:
        Zagoruyko and Komodakis, Paying More Attention to Attention, eq. 2 with p = 2 on squared differences, averaged,
        as in the authors' released code.

    >>> import torch
    >>> student, teacher = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    >>> attention_transfer(student, teacher).item()
    1.0
    """
    check_maps(student, teacher, channels=False)
    # A sum over channels is as good as a mean, since the maps are brought to length 1; 0 for an image without any.
    own, other, _ = squared_lengths(student, teacher.detach())
    difference = F.normalize(own.flatten(1)) - F.normalize(other.flatten(1))
    return difference.square().mean().to(student)


class AttentionTransfer(Method):
    """Squared difference of the attention maps of the features.

    Args:
        weight: of the term; 1000 in the authors' classification code, on the same mean. SKD's comparison does not say
            what it used.
    """

    def __init__(self, *, weight: float = 1000.0):
        super().__init__()
        self.weight = weight

    def student_taps(self) -> set[str]:
        """`features`, unless the weight is 0."""
        return {"features"} if self.weight else set()

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """The term `attention`."""
        if not self.weight:
            return {}
        return {"attention": self.weight * attention_transfer(student["features"], teacher["features"])}
