"""Images that an exported student is calibrated and verified on: those of its run, else random ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdistill._types import Size
from segdistill.data import SegmentationDataset
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.student import student_path
from segdistill.engine.teacher import check_order, tell_range

Batch = tuple[Tensor, Tensor | None]
"""Images (N,3,H,W) uint8, and masks (N,H,W) int64 where there are any."""


@dataclass
class Samples:
    """Images of one split, spread evenly over it.

    Args:
        dataset: None for random images.
        label: where the images are from.
        resize: (H,W) that they are resized to in the run's evaluation; None: as they are.
    """

    dataset: SegmentationDataset | None
    label: str
    resize: Size | None = None

    def __len__(self) -> int:
        return 0 if self.dataset is None else len(self.dataset)

    @property
    def size(self) -> Size | None:
        """(H,W) of the images in the run's evaluation, of the first one if they are as they are; None: unknown."""
        if self.dataset is None:
            return None
        image, _ = self.dataset[0]
        return self.resize or (image.shape[1], image.shape[2])

    def batches(self, count: int, size: Size, batch: int = 1) -> Iterator[Batch]:
        """Images with their masks, at a size.

        Args:
            count: how many images, at most.
            size: (H,W).
            batch: how many at a time.
        """
        if self.dataset is None:
            generator = torch.Generator().manual_seed(0)
            for _ in range(-(-count // batch)):
                shape = (batch, 3, *size)
                yield torch.randint(256, shape, generator=generator).to(torch.uint8), None
            return
        count = min(count, len(self.dataset))
        transform = EvalTransform(size=size)
        chosen = [i * len(self.dataset) // count for i in range(count)]
        for start in range(0, count, batch):
            group = [chosen[(start + i) % count] for i in range(batch)]
            images, masks = zip(*(transform(*self.dataset[i]) for i in group), strict=True)
            yield (255 * torch.stack(images)).round().to(torch.uint8), torch.stack(masks)


def find_samples(model: Path, card: dict[str, Any], split: str, config: Path | None) -> Samples:
    """A split of the data that a student was trained on; random images where they are not there.

    Args:
        model: run folder or `student.safetensors`.
        card: its card.
        split: `train` or `val`.
        config: a configuration whose data is used instead of the run's own.

    Raises:
        ValueError: if the data of a given configuration are missing, or any have other classes.
    """
    source = student_path(model).parent if config is None else config
    if config is None and not (source / CONFIG).is_file():
        return Samples(None, f"random images: {source} has no {CONFIG}")
    try:
        data = load_config(source).data
        dataset = build_split(data, split)
    except ValueError as error:
        if config is not None:
            raise
        return Samples(None, f"random images: {error}")
    if len(dataset.classes) != len(card["classes"]):
        raise ValueError(
            f"{model} has {len(card['classes'])} classes ({', '.join(card['classes'])}), the data "
            f"{len(dataset.classes)} ({', '.join(dataset.classes)})"
        )
    if not len(dataset):
        return Samples(None, f"random images: {split} of {data.name} is empty")
    check_order(card["classes"], dataset.classes, str(model))
    tell_range(card, dataset, str(model))
    return Samples(dataset, f"{split} of {data.name}", data.resize)
