"""What one training image costs, drawn or read, and augmented, against a small student's forward and backward on it.

`python benchmarks/data.py` writes `results/data.json`. A loader process keeps up with one that trains while the ratio
stays below 1; the student is the demo's, the smallest of all. Real images are timed where `SEGDISTILL_CAMVID` is set.
"""

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterator

import torch

from _measure import Row, compare, image_step, report
from segdistill.data import build_dataset
from segdistill.data.sets.synthetic import Synthetic
from segdistill.data.transforms import TrainTransform
from segdistill.demo import GRID
from segdistill.models import build_model

CLASSES = 11


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as in a loader's process
    report("data", list(rows(arguments.repeats)), command=f"python {shlex.join(sys.argv)}")


def rows(repeats: int) -> Iterator[Row]:
    """All comparisons, one after the other."""
    indices = itertools.count()
    drawn = Synthetic("train", images=10**6)  # none is drawn twice, so that none is kept
    student = build_model(**GRID["student"], num_classes=CLASSES)
    step = image_step(student, CLASSES, (128, 128))
    yield compare(
        "synthetic", lambda: drawn[next(indices)], step, ms_target=10.0, note="128×128, drawn", repeats=repeats
    )
    transform = TrainTransform(crop=(128, 128), photometric=True)
    image = drawn[0]
    yield compare("augmentation", lambda: transform(*image), step, note="128×128, with photometric", repeats=repeats)
    if os.environ.get("SEGDISTILL_CAMVID"):
        photos = build_dataset("camvid", "train")
        order = (index % len(photos) for index in itertools.count())
        crop = TrainTransform(crop=(256, 256), photometric=True)
        yield compare(
            "camvid, augmented",
            lambda: crop(*photos[next(order)]),
            image_step(student, CLASSES, (256, 256)),
            note="360×480, read from PNG, cropped to 256×256, with photometric",
            repeats=repeats,
        )


if __name__ == "__main__":
    main()
