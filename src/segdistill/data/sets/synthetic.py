"""Street scenes that are drawn, not photographed: a data set without a download."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.data.dataset import SPLITS, SegmentationDataset, check_split
from segdistill.data.street.patterns import smooth_noise
from segdistill.data.street.scene import NAMES, Street
from segdistill.data.street.things import things, tree

IMAGES = {"train": 400, "val": 100, "test": 100}

MEMORY = 100_000_000
"""Bytes of images that a data set keeps instead of drawing them anew: a training sees each of them many times."""

PALETTE = {
    "sky": (70, 130, 180),
    "building": (110, 75, 70),
    "fence": (190, 153, 153),
    "tree": (107, 142, 35),
    "grass": (152, 251, 152),
    "road": (128, 64, 128),
    "marking": (250, 250, 250),
    "pavement": (244, 35, 232),
    "pole": (153, 153, 153),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
}


class Synthetic(SegmentationDataset):
    """Procedural streets of 11 classes, which texture and shape tell apart more than colour does.

    Houses of brick, board and plaster, fences, trees, grass, asphalt with markings, pavement, poles, cars and people in
    perspective, under changing light. Colours are drawn anew in each scene from groups that classes share. As in real
    streets, poles and people are rare. An image depends on (seed, split, index) and the options, on nothing else.

    Args:
        split: train, val or test; they share no image.
        size: (H,W) of the images.
        images: how many; None: 400 for train, 100 for val and test.
        seed: of the scenes.
        difficulty: spread of colours and light, and noise; 0 is clean, 1 usual.
        label_noise: of the masks of train: 0 none, 1 as of a hasty annotator: outlines off by about 2 % of the image's
            height, and a third of the poles, cars and people missing.

    Raises:
        ValueError: if an option is out of its range.
    """

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] = (128, 128),
        images: int | None = None,
        seed: int = 0,
        difficulty: float = 1.0,
        label_noise: float = 0.0,
    ):
        check_split(split)
        if min(size) < 32:
            raise ValueError(f"synthetic: size must be at least [32, 32], got {list(size)}")
        count = IMAGES[split] if images is None else images
        if count < 1:
            raise ValueError(f"synthetic: images must be at least 1, got {images}")
        if seed < 0 or difficulty < 0 or label_noise < 0:
            raise ValueError(
                f"synthetic: seed {seed}, difficulty {difficulty} and label_noise {label_noise} must not be negative"
            )
        self.classes = list(NAMES)
        self.palette = [PALETTE[name] for name in NAMES]
        self.names = [f"{split}_{index:05d}" for index in range(count)]
        self.split = split
        self.size = size
        self.seed = seed
        self.difficulty = difficulty
        self.label_noise = label_noise if split == "train" else 0.0
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"synthetic: item {index} of {len(self)}")
        item = self._drawn.get(index) or self._draw(index)
        if (len(self._drawn) + 1) * item[0].numel() < MEMORY:
            self._drawn[index] = item
        return item[0], item[1].long()

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        street = Street(rng, *self.size, self.difficulty)
        street.draw()
        # A generator of its own: the image is the same with and without noise in the labels.
        annotator = np.random.default_rng([self.seed, SPLITS.index(self.split), index, 1])
        for z, x, thing in things(street):
            forgotten = thing is not tree and annotator.random() < self.label_noise / 3
            before = street.labels.copy() if forgotten else street.labels
            thing(street, x, z)
            street.labels = before
        street.light()
        labels = _ragged(street.labels, annotator, self.label_noise) if self.label_noise else street.labels
        image = (street.image * 255).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(image), torch.from_numpy(labels)


def _ragged(labels: NDArray[np.uint8], rng: np.random.Generator, amount: float) -> NDArray[np.uint8]:
    """Labels whose outlines wander: each pixel takes the label of one nearby, smoothly displaced."""
    height, width = labels.shape
    reach = 0.01 * amount * height
    down, right = (reach * smooth_noise(rng, height, width, max(2, height // 16), max(2, height // 16)) for _ in "yx")
    rows = (np.arange(height)[:, None] + np.round(down).astype(int)).clip(0, height - 1)
    columns = (np.arange(width)[None] + np.round(right).astype(int)).clip(0, width - 1)
    moved: NDArray[np.uint8] = labels[rows, columns]
    return moved
