"""What training images cost: drawn, read, augmented, packed; against a student's step, a plain loop, decoding alone.

`python benchmarks/data.py` writes `results/data.json`. The first rows are of one process: a loader's process keeps up
with one that trains while the ratio stays below 1; the student is the demo's, the smallest of all. Real images are
timed where `SEGDISTILL_CAMVID` is set. The other rows are of loaders with two processes: their processor time per
image, at the papers' sizes; the photographs are drawn, smooth with as much noise as makes files of usual length.
"""

import argparse
import itertools
import os
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from _measure import Row, compare, image_step, report
from segdistill.data import build_dataset
from segdistill.data.dataset import Held
from segdistill.data.packed import PackedDataset
from segdistill.data.pairs import FileDataset
from segdistill.data.sampler import train_loader
from segdistill.data.sets.synthetic import Synthetic
from segdistill.data.transforms import TrainTransform
from segdistill.demo import GRID
from segdistill.engine.data_config import DataConfig
from segdistill.engine.pack import pack_data
from segdistill.models import build_model

CLASSES = 19
WORKERS = 2
BATCH = 4


def main() -> None:
    """Measure all rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few images: does it run? Its ratios mean nothing")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as in a loader's process
    repeats, share = (2, 0.1) if arguments.quick else (arguments.repeats, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        found = [*single(repeats), *loaders(Path(folder), max(2, repeats // 4), share)]
    report("data", found, command=f"python {shlex.join(sys.argv)}", write=not arguments.quick)


def single(repeats: int) -> Iterator[Row]:
    """Comparisons in one process."""
    indices = itertools.count()
    drawn = Synthetic("train", images=10**6)  # none is drawn twice, so that none is kept
    classes = len(drawn.classes)
    student = build_model(**GRID["student"], num_classes=classes)
    step = image_step(student, classes, (128, 128))
    yield compare(
        "synthetic", lambda: drawn[next(indices)], step, ms_target=10.0, note="128×128, drawn", repeats=repeats
    )
    transform = TrainTransform(crop=(128, 128), photometric="fast")
    image = drawn[0]
    yield compare("augmentation", lambda: transform(*image), step, note="128×128, photometric: fast", repeats=repeats)
    mmseg = TrainTransform(crop=(128, 128), photometric="mmseg", cat_max_ratio=0.75, padding="end")
    yield compare("augmentation, mmseg", lambda: mmseg(*image), step, note="128×128, as mmseg's", repeats=repeats)
    if os.environ.get("SEGDISTILL_CAMVID"):
        photos = build_dataset("camvid", "train")
        order = (index % len(photos) for index in itertools.count())
        crop = TrainTransform(crop=(256, 256), photometric="fast")
        yield compare(
            "camvid, augmented",
            lambda: crop(*photos[next(order)]),
            image_step(student, classes, (256, 256)),
            note="360×480, read from PNG, cropped to 256×256, photometric: fast",
            repeats=repeats,
        )


def loaders(folder: Path, repeats: int, share: float) -> Iterator[Row]:
    """Comparisons of loaders with two processes."""

    def count(images: int) -> int:
        return max(3 * BATCH, round(images * share) // BATCH * BATCH)

    def ours(dataset: FileDataset | PackedDataset, images: int, **options: object) -> "Loader":
        transform = TrainTransform(**options)
        return lambda: train_loader(dataset, transform, batch_size=BATCH, steps=count(images) // BATCH, workers=WORKERS)

    def other(dataset: Dataset[object]) -> "Loader":
        return lambda: DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=WORKERS)

    jpeg = write_photos(folder / "jpeg", (375, 500), count(200), noise=19, suffix=".jpg", quality=90)
    note = f"500×375 JPEG of {mean_kilobytes(jpeg):.0f} kB, scale 0.5–2, crop 512×512, flip"
    crop = (512, 512)
    yield versus(
        "JPEG: plain loop", ours(jpeg, 200, crop=crop), other(Plain(jpeg, crop)), repeats, note, time_target=1 / 1.3
    )
    yield versus("JPEG: decoding alone", ours(jpeg, 200, crop=crop), other(Decoded(jpeg)), repeats, note)

    png = write_photos(folder / "png", (1024, 2048), count(24), noise=0.5, suffix=".png")
    note = f"2048×1024 PNG of {mean_kilobytes(png) / 1e3:.1f} MB, scale 0.5–2, crop 512×1024, flip"
    crop = (512, 1024)
    yield versus("PNG: plain loop", ours(png, 24, crop=crop), other(Plain(png, crop)), repeats, note)
    yield versus("PNG: decoding alone", ours(png, 24, crop=crop), other(Decoded(png)), repeats, note)
    data = DataConfig(name="folder", **folder_options(folder / "png"))
    pack_data(data, folder / "pack", ["train"], say=lambda line: None)
    packed = PackedDataset(folder / "pack", "train")
    read, note = ours(packed, 200, crop=crop), f"the same from a pack (in the system's memory), against {note}"
    yield versus("packed: PNG", read, ours(png, 24, crop=crop), repeats, note, time_target=1 / 5)

    large = write_photos(folder / "large", (3000, 4000), count(8), noise=8, suffix=".jpg", quality=90)
    note = f"4000×3000 JPEG of {mean_kilobytes(large) / 1e3:.1f} MB, size 480×640, crop 480×480; draft against none"
    small = {"size": (480, 640), "crop": (480, 480)}
    yield versus("draft", ours(large, 16, draft=True, **small), ours(large, 16, **small), repeats, note)
    difference = draft_difference(large, small)
    print(f"draft: pixels differ by {difference[0]:.2f} of 255 on average, by {difference[1]:.0f} at most", flush=True)


Loader = Callable[[], Iterable[object]]
"""Makes something that yields batches; each call starts anew."""


def versus(
    name: str, ours: Loader, reference: Loader, repeats: int, note: str, time_target: float | None = None
) -> Row:
    """Processor time per image of two loaders, of all their processes, run in turns; in the note, images per second.

    Processor time says what a loader costs even where others use the machine, and how many cores it keeps busy.

    Args:
        name: what is compared.
        ours: of this package.
        reference: what it is compared with.
        repeats: rounds that count; one before them does not.
        note: sizes.
        time_target: largest ratio of times that is acceptable.
    """
    times: list[list[float]] = [[], []]
    speeds: list[list[float]] = [[], []]
    for round_ in range(repeats + 1):
        for which in (0, 1) if round_ % 2 else (1, 0):
            cost, speed = measure((ours, reference)[which])
            if round_:
                times[which].append(1e3 * cost)
                speeds[which].append(speed)
    a, b = map(statistics.median, times)
    fast, slow = map(statistics.median, speeds)
    nothing = float("nan")
    return Row(
        name=name,
        ours_ms=a,
        reference_ms=b,
        time_ratio=statistics.median(x / y for x, y in zip(*times, strict=True)),
        ours_mib=nothing,
        reference_mib=nothing,
        memory_ratio=nothing,
        time_target=time_target,
        memory_target=None,
        ms_target=None,
        rounds=repeats,
        note=f"processor time per image; {fast:.0f} against {slow:.0f} images/s of {WORKERS} processes; {note}",
    )


def measure(loader: Loader) -> tuple[float, float]:
    """Processor seconds per image, and images per second after the first batch, which waits for processes to start."""
    before, count = processor_seconds(), 0
    batches = iter(loader())
    next(batches)
    began = time.perf_counter()
    for _ in batches:
        count += BATCH
    speed = count / (time.perf_counter() - began)
    del batches  # its processes end, and their time is counted
    return (processor_seconds() - before) / (count + BATCH), speed


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


class Plain(Dataset[tuple[Tensor, Tensor]]):
    """Pillow and torchvision without further thought: decode, resize as a whole, crop, flip."""

    def __init__(self, dataset: FileDataset, crop: tuple[int, int]):
        self.images, self.masks, self.crop = dataset.images, dataset.masks, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = Image.open(self.images[index]).convert("RGB"), Image.open(self.masks[index])
        factor = float(torch.empty(()).uniform_(0.5, 2.0))
        size = [round(image.height * factor), round(image.width * factor)]
        image = tv.resize(image, size, v2.InterpolationMode.BILINEAR)
        mask = tv.resize(mask, size, v2.InterpolationMode.NEAREST)
        down, right = max(0, self.crop[0] - size[0]), max(0, self.crop[1] - size[1])
        if down or right:
            image, mask = (
                tv.pad(image, [0, 0, right, down], fill=[124, 116, 104]),
                tv.pad(mask, [0, 0, right, down], fill=255),
            )
        top = int(torch.randint(0, image.height - self.crop[0] + 1, ()))
        left = int(torch.randint(0, image.width - self.crop[1] + 1, ()))
        image, mask = (tv.crop(picture, top, left, *self.crop) for picture in (image, mask))
        if torch.rand(()) < 0.5:
            image, mask = tv.horizontal_flip(image), tv.horizontal_flip(mask)
        pixels = tv.to_dtype(tv.pil_to_tensor(image), torch.float32, scale=True)
        return pixels, torch.from_numpy(np.array(mask)).long()


class Decoded(Dataset[int]):
    """Images and masks that are decoded, and no more: what no loader of these files can do without."""

    def __init__(self, dataset: FileDataset):
        self.images, self.masks = dataset.images, dataset.masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        for path in (self.images[index], self.masks[index]):
            with Image.open(path) as image:
                image.load()
        return index


def write_photos(
    root: Path, size: tuple[int, int], count: int, *, noise: float, suffix: str, **how: int
) -> FileDataset:
    """Draw images and masks into a folder.

    Args:
        root: the folder.
        size: (H,W).
        count: how many; no more than 40 are different.
        noise: deviation of the noise, of 255.
        suffix: of the images.
        **how: options of Pillow's writer.
    """
    rng = np.random.default_rng(0)
    height, width = size
    for index in range(count):
        image, mask = root / f"images/train/{index:04d}{suffix}", root / f"masks/train/{index:04d}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        if index >= 40:
            image.hardlink_to(root / f"images/train/{index - 40:04d}{suffix}")
            mask.hardlink_to(root / f"masks/train/{index - 40:04d}.png")
            continue
        smooth = rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), np.uint8)
        colours = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
        noisy = colours + rng.normal(0, noise, colours.shape).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(image, **how)
        blocks = rng.integers(0, CLASSES, (height // 32 + 1, width // 32 + 1), np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(mask)
    return build_dataset("folder", "train", **folder_options(root))


def folder_options(root: Path) -> dict[str, object]:
    """The options with which `folder` reads what `write_photos` wrote."""
    return {"root": str(root), "classes": [f"class{index}" for index in range(CLASSES)]}


def mean_kilobytes(dataset: FileDataset) -> float:
    """Mean length of the images' files."""
    return statistics.mean(path.stat().st_size for path in dataset.images) / 1e3


def draft_difference(dataset: FileDataset, options: dict[str, object]) -> tuple[float, float]:
    """How much pixels of the same windows differ if JPEGs are decoded at a fraction of their size: mean and largest.

    Args:
        dataset: of JPEGs.
        options: of the transform.
    """
    transform, means, largest = TrainTransform(draft=True, **options), [], 0.0
    for index in range(min(8, len(dataset))):
        pair = []
        for source in (dataset.source(index), Held(*dataset[index])):
            torch.manual_seed(index)
            pair.append(transform.draw(source).image.float())
        difference = (pair[0] - pair[1]).abs()
        means.append(float(difference.mean()))
        largest = max(largest, float(difference.max()))
    return statistics.mean(means), largest


if __name__ == "__main__":
    main()
