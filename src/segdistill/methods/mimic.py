"""MIMIC: the student's features are to equal the teacher's (FitNets, Romero et al., ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.adapters import projection
from segdistill.functional import check_maps, full_precision
from segdistill.methods._base import Method
from segdistill.taps import GIVEN, Taps


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

    Each tap has its own convolution, its own weight, and a term of its name.

    Args:
        weight: of each term, or a list with one weight per tap; 0 = off. 1 is our choice, SKD's comparison does not
            say.
        taps: the maps that are compared, each with the teacher's of the same name.
    """

    def __init__(self, *, weight: float | tuple[float, ...] = 1.0, taps: tuple[str, ...] = ("features",)):
        super().__init__()
        weights = (weight,) * len(taps) if isinstance(weight, int | float) else weight
        if not taps:
            raise ValueError("method mimic, taps: expected at least one, got none")
        if len(weights) != len(taps):
            raise ValueError(f"method mimic, weight: {len(weights)} weights for the {len(taps)} taps {', '.join(taps)}")
        for tap in taps:
            if tap in GIVEN:
                raise ValueError(
                    f"method mimic, taps: {tap} is no feature map; expected names such as low1 or features"
                )
            if taps.count(tap) > 1:
                raise ValueError(f"method mimic, taps: {tap} is named {taps.count(tap)} times")
        self.weights = {tap: one for tap, one in zip(taps, weights, strict=True) if one}
        self.adapters = nn.ModuleList()

    def student_taps(self) -> set[str]:
        """The taps whose weight is not 0."""
        return set(self.weights)

    def adapt(self, student: Taps, teacher: Taps) -> None:
        """The 1×1 convolutions; also where the channel counts agree, since channels have no order."""
        self.adapters.extend(projection(student[tap].shape[1], teacher[tap].shape[1]) for tap in self.weights)

    def forward(self, student: Taps, teacher: Taps, target: Tensor, progress: float) -> dict[str, Tensor]:
        """A term for each tap, under its name."""
        return {
            tap: weight * feature_mse(adapter(student[tap]), teacher[tap])
            for (tap, weight), adapter in zip(self.weights.items(), self.adapters, strict=True)
        }
