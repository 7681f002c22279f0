"""ESPNet-C (Mehta et al., ECCV 2018): ESPNet's encoder with a 1×1 classifier at stride 8."""

from typing import ClassVar

from torch import Tensor

from segdistill.models.families.espnet import Encoder, check_depth
from segdistill.models.segmenter import Segmenter
from segdistill.taps import resize_logits


class ESPNetC(Segmenter):
    """ESPNet's encoder alone; logits at stride 8 are resized bilinearly.

    Args:
        name: `espnet_c`.
        num_classes: C.
        p: ESP modules at stride 4; 2 in the paper.
        q: ESP modules at stride 8; 8 in the paper's largest network.
        width: multiplies channels.
        depth: multiplies p and q.
    """

    names: ClassVar[tuple[str, ...]] = ("espnet_c",)
    taps: ClassVar[dict[str, str]] = {
        "low1": "encoder.b2",
        "low2": "encoder.level3_0",
        "features": "encoder.classifier.conv:input",
        "logits": "encoder.classifier.conv",
    }
    classifier_path = "encoder.classifier.conv"

    def __init__(
        self,
        name: str = "espnet_c",
        *,
        num_classes: int,
        p: int = 2,
        q: int = 8,
        width: float = 1.0,
        depth: float = 1.0,
    ):
        check_depth(p, q)
        super().__init__(num_classes)
        self.encoder = Encoder(num_classes, p, q, width, depth)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the images' resolution."""
        _, _, logits = self.encoder(self.normalise(images))
        return resize_logits(logits, (images.shape[-2], images.shape[-1]), self.align_corners)
