"""The wrapper that makes a network from elsewhere keep to the contract of ours."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from segdistill.models.normalisation import Normalisation
from segdistill.models.normaliser import Normaliser
from segdistill.models.proposal import propose_taps
from segdistill.taps import as_logits, resize, resize_logits


class External(nn.Module):
    """A network from elsewhere: RGB images in 0…1 (N,3,H,W), any H×W → logits (N,C,H,W).

    It normalises inside. Where the network takes sizes of some kind only, images are resized to the nearest such size,
    so that its maps still cover the whole image. Its taps are proposed by `propose_taps` when they are first asked for.

    Args:
        network: images → logits at any resolution, in a tensor, dict, tuple or model output.
        normalisation: what it wants of its images; none by default, as for networks that normalise by themselves.
        multiple: its images' sides have to be multiples of this.
        minimum: and at least this.
        square: whether they have to be equal.
        taps: tap name → path below `network`, where it is known better than it could be proposed.
        classifier: path of its final 1×1 classifier below `network`, likewise.
        classes: names, where they are known.
        align_corners: whether its logits are resized to the images with aligned corners.
    """

    spec: dict[str, Any]
    """Arguments of `build_model` that make this architecture again."""

    def __init__(
        self,
        network: nn.Module,
        *,
        normalisation: Normalisation | None = None,
        multiple: int = 1,
        minimum: int = 1,
        square: bool = False,
        taps: dict[str, str] | None = None,
        classifier: str | None = None,
        classes: list[str] | None = None,
        align_corners: bool = False,
    ):
        super().__init__()
        normalisation = normalisation or Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.normalise = Normaliser(normalisation)
        self.mean, self.std = normalisation.rgb(normalisation.mean), normalisation.rgb(normalisation.std)
        self.network = network
        self.aux: nn.Module | None = None
        self.multiple = multiple
        self.minimum = minimum
        self.square = square
        self.classes = classes
        self.align_corners = align_corners
        self._given = {k: f"network.{v}" for k, v in (taps or {}).items()}
        self._classifier = None if classifier is None else f"network.{classifier}"
        self._taps: dict[str, str] | None = None

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H,W) that the network gets for images of a size.

        Args:
            height: of the images.
            width: of the images.
        """
        if self.square:
            height = width = round((height * width) ** 0.5)
        # Negating twice would round up in fewer words, but ONNX's division truncates.
        k, sides = self.multiple, (torch.sym_max(side, self.minimum) for side in (height, width))
        height, width = (cast(int, (side + k - 1) // k * k) for side in sides)
        return height, width

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the images' resolution."""
        size = (images.shape[-2], images.shape[-1])
        inside = resize(self.normalise(images), self.input_size(*size))
        return resize_logits(self.run(inside), size, self.align_corners)

    def run(self, images: Tensor) -> Tensor:
        """Logits of normalised images of a size that the network takes."""
        return as_logits(self.network(images))

    @property
    def taps(self) -> dict[str, str]:
        """Tap name → path: those that are known, else proposed."""
        if self._taps is None:
            proposed, classifier = propose_taps(self)
            self._taps = {**proposed, **self._given}
            self._classifier = self._classifier or classifier
        return self._taps if self.aux is None else {**self._taps, "aux": "aux"}

    @property
    def classifier_path(self) -> str | None:
        """Path of the final 1×1 classifier, or None."""
        return self._classifier if self.taps else None
