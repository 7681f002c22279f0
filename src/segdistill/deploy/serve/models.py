"""What is served: models behind one small interface, and samples of a run's validation split."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdistill._types import Colour, Size
from segdistill.data import SegmentationDataset
from segdistill.data.dataset import distinct_colours
from segdistill.data.files import Array, Bytes, Range
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.onnx_network import is_onnx
from segdistill.engine.protocol import infer_ids, read_protocol
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import load_student, read_card, student_path

ROLES = ("student", "baseline", "teacher")
WARM = (64, 64)
"""Size of the first image."""


@dataclass(frozen=True)
class Served:
    """A model as the server knows it, whatever computes it.

    Args:
        role: one of `ROLES`.
        name: that is shown.
        classes: names, in the order of the ids.
        palette: a colour per class.
        size: (H,W) that it resizes images to; None: none.
        image_range: how the files of its images are read; see `read_image`.
        params: how many numbers were trained; None: a file that does not say.
        segment: pixels (H,W,3) of 0…255 → ids (H,W) uint8.
    """

    role: str
    name: str
    classes: list[str]
    palette: list[Colour]
    size: Size | None
    image_range: Range | None
    params: int | None
    segment: Callable[[Bytes], Bytes]


def load_served(role: str, path: str | Path, run: Runtime) -> Served:
    """Load a trained network, and let it see a first image, so that no user waits for what is only done once.

    Args:
        role: what it is to the others, one of `ROLES`.
        path: run folder, `student.safetensors` or `.onnx` file.
        run: device and precision.

    Raises:
        ValueError: if there is no trained network.
    """
    network, card = load_student(path).to(run.device), read_card(path)
    file, classes = student_path(path), list(card["classes"])
    protocol, resized = read_protocol(card.get("protocol")), card.get("size")
    transform = None if resized is None else EvalTransform(size=resized)

    def check(count: int) -> None:
        if count > len(classes):
            raise ValueError(f"the network has {count} classes, its card names {len(classes)}")

    def segment(pixels: Bytes) -> Bytes:
        image, size = torch.from_numpy(pixels).permute(2, 0, 1), (pixels.shape[0], pixels.shape[1])
        if transform is not None:
            image, _ = transform(image, torch.zeros(size, dtype=torch.uint8))
        with run.autocast():
            found = infer_ids(network, image[None], protocol, size=size, check=check)
        ids: Bytes = found[0].to("cpu", torch.uint8).numpy()
        return ids

    with suppress(RuntimeError, ValueError):  # one that is bound to a size says so when it is asked
        segment(np.zeros((*WARM, 3), np.uint8))
    colours = [(int(r), int(g), int(b)) for r, g, b in card.get("palette") or distinct_colours(len(classes))]
    folder = Path(path).expanduser().resolve() if Path(path).is_dir() else file.resolve().parent
    name = file.name if is_onnx(file) else folder.name
    params = sum(parameter.numel() for parameter in network.parameters()) or None
    span: Any = card.get("image_range")
    return Served(role, name, classes, colours, card.get("size"), span, params, segment)


class Samples:
    """Images with their truth, that the page offers.

    Args:
        dataset: where they are from; None for none at all.
        split: which part it is.
    """

    def __init__(self, dataset: SegmentationDataset | None = None, split: str = "val"):
        self.split = split
        self.names: Sequence[str] = [] if dataset is None else dataset.names
        self.classes: list[str] = [] if dataset is None else list(dataset.classes)
        self.palette: list[Colour] = [] if dataset is None else list(dataset.palette)
        self._dataset = dataset

    def pixels(self, index: int) -> Bytes:
        """The image, (H,W,3).

        Args:
            index: of the sample.
        """
        return self._item(index)[0]

    def truth(self, index: int) -> Bytes:
        """The true ids, (H,W); 255 where there are none.

        Args:
            index: of the sample.
        """
        return self._item(index)[1]

    def _item(self, index: int) -> tuple[Bytes, Bytes]:
        assert self._dataset is not None
        image, mask = self._dataset[index]
        pixels: Array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        return pixels, mask.numpy().astype(np.uint8)


def find_samples(path: str | Path, say: Callable[[str], object]) -> Samples:
    """The validation split that a run's configuration names, if it is there.

    Args:
        path: run folder or `student.safetensors`.
        say: prints a line, where there is none.
    """
    folder = student_path(path).parent
    if not (folder / CONFIG).is_file():
        return Samples()
    try:
        return Samples(build_split(load_config(folder).data, "val"))
    except (ValueError, OSError) as error:
        say(f"no samples on the page: {error}")
        return Samples()
