"""Calibration: whether a network that is sure of 80 % of its pixels' classes is right in 80 % of them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from segdistill.functional import exact, full_precision, labelled
from segdistill.metrics._base import Headline, Metric, ratio

BINS = 15
BLOCK = 2**22
"""Logits that are worked on at a time."""


class Calibration(Metric):
    """Expected calibration error, negative log-likelihood and Brier score over pixels, and a reliability diagram.

    A pixel's confidence is the largest of its class probabilities. Pixels fall into 15 bins of confidence, (b/15,
    (b+1)/15]; the expected calibration error is the mean over pixels of |accuracy − confidence| of their bins. The
    negative log-likelihood of the true class is in nats. The Brier score is the squared distance of the probabilities
    to the truth's, summed over classes: 0 … 2.

    Source:
        Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017; Brier, 1950.
    """

    reads: ClassVar[Literal["ids", "logits"]] = "logits"
    headlines: ClassVar[Mapping[str, Headline]] = {
        "ece": Headline("calibration error %", "lower"),
        "nll": Headline("NLL", "lower"),
        "brier": Headline("Brier score", "lower"),
    }

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)
        self.sums["pixels"], self.sums["right"] = torch.zeros(2, BINS, dtype=torch.long).unbind()
        self.sums["confidence"] = torch.zeros(BINS, dtype=torch.float64)
        self.sums["losses"] = torch.zeros(2, dtype=torch.float64)

    def update(self, prediction: Tensor, target: Tensor, *, teacher: Tensor | None = None) -> None:
        """As the base class says.

        Raises:
            ValueError: if the logits' number of classes is another one.
        """
        if prediction.dim() != 4 or prediction.shape[1] != len(self.classes):
            got = tuple(prediction.shape)
            raise ValueError(f"calibration: expected logits (N,{len(self.classes)},H,W), got {got}")
        rows = max(1, BLOCK // max(1, prediction[:, :, :1].numel()))
        for logits, labels in zip(torch.split(prediction, rows, 2), torch.split(target, rows, 1), strict=True):
            self._take(logits, labels)

    @torch.no_grad()
    def _take(self, logits: Tensor, target: Tensor) -> None:
        confidence, own, squares, right = _pixels(logits, target)
        edges = torch.arange(1, BINS, dtype=confidence.dtype, device=confidence.device) / BINS
        index = torch.bucketize(confidence, edges)
        precise = exact(confidence)
        found = {
            "pixels": torch.bincount(index, minlength=BINS),
            "right": torch.bincount(index[right], minlength=BINS),
            "confidence": torch.bincount(index.to(precise.device), precise, minlength=BINS),
            "losses": torch.stack([-exact(own).sum(), (exact(squares) - 2 * exact(own).exp() + 1).sum()]),
        }
        for name, value in found.items():
            self.sums[name] += value.cpu()

    def compute(self) -> dict[str, Any]:
        """`ece`, `nll`, `brier`, mean `confidence`, `accuracy`; `bins`: `pixels`, `confidence`, `accuracy` of each."""
        pixels, right, confidence = (self.sums[name].tolist() for name in ("pixels", "right", "confidence"))
        count = sum(pixels)
        gaps = sum(abs(a - b) for a, b in zip(right, confidence, strict=True))
        nll, brier = self.sums["losses"].tolist()
        return {
            "ece": ratio(gaps, count),
            "nll": ratio(nll, count),
            "brier": ratio(brier, count),
            "confidence": ratio(sum(confidence), count),
            "accuracy": ratio(sum(right), count),
            "bins": {
                "pixels": pixels,
                "confidence": [ratio(*pair) for pair in zip(confidence, pixels, strict=True)],
                "accuracy": [ratio(*pair) for pair in zip(right, pixels, strict=True)],
            },
        }


@full_precision
def _pixels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each labelled pixel: its confidence, log-probability of the true class, Σp², whether it is right."""
    valid = labelled(target, logits.shape[1])
    truth = target.long().where(valid, 0)
    log_probability = logits.log_softmax(1)
    confidence = log_probability.amax(1).exp()
    own = log_probability.gather(1, truth[:, None])[:, 0]
    squares = log_probability.exp_().square_().sum(1)
    right = logits.argmax(1) == truth
    return confidence[valid], own[valid], squares[valid], right[valid]
