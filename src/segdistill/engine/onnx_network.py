"""A student's ONNX file in the place of a network: what evaluates, predicts and measures takes it as it takes a run."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdistill.runtime import Predictor
from segdistill.taps import resize_logits

SUFFIX = ".onnx"


def is_onnx(path: str | Path) -> bool:
    """Whether a path names an ONNX file.

    Args:
        path: any.
    """
    return Path(path).suffix == SUFFIX


class OnnxNetwork(nn.Module):
    """The network in an ONNX file: RGB images in 0…1 (N,3,H,W) → logits (N,C,h,w), by ONNX Runtime on the CPU.

    Of a file that gives class numbers alone, the logits are 1 for the class and 0 for all others.

    Attributes:
        predictor: the file.
        align_corners: whether its logits are resized with aligned corners.
        card: what a student's card says.

    Args:
        path: of the file.
        threads: of the CPU (default: torch's).

    Raises:
        ValueError: if it was not written by `segdistill export`.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None):
        super().__init__()
        self.predictor = Predictor(path, threads=threads or torch.get_num_threads())
        self.align_corners = bool(self.predictor.metadata["align_corners"])
        self.card = onnx_card(self.predictor)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the file's own resolution.

        Args:
            images: (N,3,H,W) in 0…1. A file of fixed size takes that size, and smaller images filled up at their
                borders.

        Raises:
            ValueError: if they are larger than a file of fixed size takes.
        """
        height, width = images.shape[-2:]
        size = self.predictor.size
        if size is None or size == (height, width):
            return self._run(images)
        if height > size[0] or width > size[1]:
            raise ValueError(
                f"{self.predictor.path} takes images of {size[0]}×{size[1]}, these are {height}×{width}; export with "
                f"--dynamic or --size {height} {width}, or look at them through windows: eval.window={list(size)}"
            )
        filled = nn.functional.pad(images, (0, size[1] - width, 0, size[0] - height), mode="replicate")
        return resize_logits(self._run(filled), size, self.align_corners)[..., :height, :width]

    def _run(self, images: Tensor) -> Tensor:
        pixels = (images.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        free = self.predictor.metadata.get("dynamic")
        found = [self.predictor.run(part) for part in ([pixels] if free else [image[None] for image in pixels])]
        classes = len(self.predictor.classes)
        parts = [
            torch.from_numpy(part["logits"])
            if "logits" in part
            else nn.functional.one_hot(torch.from_numpy(part["ids"]).long(), classes).permute(0, 3, 1, 2).float()
            for part in found
        ]
        return torch.cat(parts).to(images.device)


def onnx_card(predictor: Predictor) -> dict[str, Any]:
    """What a file says about itself, under the names that a student's card has.

    Args:
        predictor: the file.
    """
    said = predictor.metadata
    protocol = dict(said.get("protocol") or {})
    if predictor.size is not None and said.get("eval_size") is None:
        protocol["window"] = protocol.get("window") or list(predictor.size)  # it takes no other
    return {
        "network": None,
        "classes": predictor.classes,
        "palette": [list(colour) for colour in predictor.palette],
        "size": said.get("eval_size"),
        "protocol": protocol,
        "image_range": said.get("image_range"),
        "normalisation": said.get("normalisation"),
        "onnx": said,
    }
