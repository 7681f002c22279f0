"""What predictions are written as: pictures for people, or the files that a benchmark's server wants."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segdistill.data.files import Array, Bytes
from segdistill.data.sets.cityscapes import LABEL_IDS, PALETTE

Found = Sequence[tuple[Path, Path]]
"""Image files, each with the relative path that its results are named by."""

KINDS = {"pictures": ("ids", "colour", "blend"), "cityscapes": ("label_ids",)}
"""The folders of the results, by format."""

CITYSCAPES_LABEL_IDS = dict(zip(PALETTE, LABEL_IDS, strict=True))
"""The 19 classes of Cityscapes in the order of their train ids, with the label ids that its server and scripts read."""

FRAME = re.compile(r"[^_]+_\d{6}_\d{6}(?!\d)")
"""City, sequence and frame: how the names of Cityscapes' images begin."""

BAND = 2**21
"""Pixels that are blended at once."""


class Pictures:
    """Class numbers, colours, and colours over the image.

    Args:
        colours: (C,3) uint8.
        alpha: share of the colour in the blend.
    """

    kinds = KINDS["pictures"]

    def __init__(self, colours: Bytes, alpha: float):
        self.colours, self.alpha = colours, alpha

    def check(self, files: Found) -> None:
        """Any image will do."""

    def check_classes(self, count: int) -> None:
        """Refuse a network with more classes than colours."""
        if count > len(self.colours):
            raise ValueError(f"the network has {count} classes, the palette {len(self.colours)} colours")

    def draw(self, ids: Bytes, picture: Bytes) -> Iterator[tuple[str, Array]]:
        """Each folder's image, one after the other, as each may be large.

        Args:
            ids: (H,W) class numbers.
            picture: (H,W,3) the image.
        """
        yield "ids", ids
        yield "colour", self.colours[ids]
        blend = np.empty_like(picture)
        step = max(1, BAND // ids.shape[1])
        for top in range(0, len(ids), step):
            rows = slice(top, top + step)
            colour = np.float32(self.alpha) * self.colours[ids[rows]]
            blend[rows] = (np.float32(1 - self.alpha) * picture[rows] + colour).round().astype(np.uint8)
        yield "blend", blend


class CityscapesLabels:
    """Label ids, one channel, one file per frame, as Cityscapes' server and its evalPixelLevelSemanticLabeling want.

    Args:
        classes: of the network, in the order of its channels.

    Raises:
        ValueError: if they are not the 19 of Cityscapes.
    """

    kinds = KINDS["cityscapes"]

    def __init__(self, classes: Sequence[str]):
        names = [name.strip().lower().replace("_", " ") for name in classes]
        if sorted(names) != sorted(CITYSCAPES_LABEL_IDS):
            wrong = next(
                (given for given, name in zip(classes, names, strict=True) if name not in CITYSCAPES_LABEL_IDS), None
            )
            told = "no class list" if not names else f"{len(names)} classes" + (f" such as {wrong!r}" if wrong else "")
            raise ValueError(f"--format cityscapes needs a model of the 19 classes of Cityscapes, this one has {told}")
        self.table = np.array([CITYSCAPES_LABEL_IDS[name] for name in names], dtype=np.uint8)

    def check(self, files: Found) -> None:
        """Refuse images that the server would not know, or two of one frame.

        Raises:
            ValueError: on the first of them.
        """
        known: dict[str, Path] = {}
        for file, name in files:
            frame = FRAME.match(name.name)
            if frame is None:
                raise ValueError(
                    f"{file}: expected a name of Cityscapes such as berlin_000000_000019_leftImg8bit.png; rename it, "
                    "or leave --format out"
                )
            if frame[0] in known:
                raise ValueError(
                    f"{known[frame[0]]} and {file} are one frame, of which Cityscapes wants one; give one of them"
                )
            known[frame[0]] = file

    def check_classes(self, count: int) -> None:
        """Refuse a network that gives another number of classes than it says."""
        if count != len(self.table):
            raise ValueError(f"the network gives {count} classes, its card {len(self.table)}")

    def draw(self, ids: Bytes, picture: Bytes) -> Iterator[tuple[str, Array]]:
        """As for `Pictures`."""
        yield "label_ids", self.table[ids]
