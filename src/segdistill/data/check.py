"""Look at every item of a data set before training does, and list all that is wrong."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segdistill.data.dataset import MissingMasks, SegmentationDataset
from segdistill.data.sets import build_dataset
from segdistill.functional import IGNORE

ONE_CLASS = "the only class is {!r}: every pixel is right from the start; add a background class"
BINARY = "nothing but 0 and 255, which is ignored; if 255 is a class, set values: {0: 0, 255: 1}"


@dataclass
class DatasetReport:
    """What a data set holds, and what is wrong with it.

    Attributes:
        images: how many there are.
        sizes: (height, width) → how many images have it; unreadable ones are left out.
        share: class → its share of the labelled pixels.
        ignored: share of all pixels that are 255.
        unseen: classes without a single pixel.
        problems: one line each; empty: training can start.
        remarks: what is conspicuous and may be meant so, one line each.
    """

    images: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    share: dict[str, float] = field(default_factory=dict)
    ignored: float = 0.0
    unseen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        sizes = [f"{count} of {width}×{height}" for (height, width), count in self.sizes.most_common(5)]
        sizes += [f"{len(self.sizes) - 5} more sizes"] if len(self.sizes) > 5 else []
        lines = [f"{self.images} images: {', '.join(sizes) or 'none readable'}"]
        lines += [f"{share:8.3%}  {name}" for name, share in self.share.items()]
        lines += [f"{self.ignored:8.3%}  ignored (of all pixels)"]
        if self.unseen:
            lines.append(f"never seen: {', '.join(self.unseen)}")
        lines += [f"note: {remark}" for remark in self.remarks]
        lines += [f"problem: {problem}" for problem in self.problems]
        return [*lines, f"{len(self.problems)} problems" if self.problems else "no problems"]


def check_dataset(dataset: SegmentationDataset, *, progress: Callable[[int, int], None] | None = None) -> DatasetReport:
    """Read every item and count; problems are collected instead of raised.

    Args:
        dataset: to be checked.
        progress: called with (items done, items in all) after each item.
    """
    report = DatasetReport(len(dataset), remarks=list(dataset.remarks))
    counts = np.zeros(256, np.int64)
    empty = []
    for index, name in enumerate(dataset.names):
        try:
            image, mask = dataset[index]
        except ValueError:
            report.problems += dataset.problems(index)
        else:
            report.sizes[(image.shape[1], image.shape[2])] += 1
            here = np.bincount(mask.numpy().ravel(), minlength=256)
            counts += here
            if here[IGNORE] == mask.numel():
                empty.append(name)
        if progress is not None:
            progress(index + 1, len(dataset))
    labelled = counts[: len(dataset.classes)]
    total = max(1, int(counts[:IGNORE].sum()))
    report.share = {name: float(count / total) for name, count in zip(dataset.classes, labelled, strict=True)}
    report.ignored = float(counts[IGNORE] / max(1, counts.sum()))
    report.unseen = [name for name, count in zip(dataset.classes, labelled, strict=True) if not count]
    report.problems += _conspicuous(dataset, counts, empty)
    return report


def _conspicuous(dataset: SegmentationDataset, counts: np.ndarray, empty: list[str]) -> list[str]:
    """What no single item shows."""
    if not dataset.classes or (len(dataset) and len(empty) == len(dataset)):
        return []  # images without labels
    problems = [ONE_CLASS.format(dataset.classes[0])] if len(dataset.classes) == 1 else []
    if empty:
        shown = ", ".join(empty[:3]) + (", …" if len(empty) > 3 else "")
        problems.append(
            f"{len(empty)} of {len(dataset)} masks are 255 throughout ({shown}): nothing can be learned from them"
        )
    if _binary(counts):
        problems.append(f"masks hold {BINARY}")
    return problems


def _binary(counts: np.ndarray) -> bool:
    """Whether there is nothing but class 0 and 255: as a rule a foreground that is drawn in white."""
    return bool(counts[0] and counts[IGNORE] and not counts[1:IGNORE].any())


def quick_check(dataset: SegmentationDataset, sample: int = 8) -> list[str]:
    """Look at a few items, evenly spaced, before a training: what `check_dataset` would call a problem of all of them.

    Args:
        dataset: images with labels.
        sample: how many items are read.

    Returns:
        What is conspicuous and may be meant so, a line each.

    Raises:
        ValueError: if an item cannot be read, or if training cannot make sense: there is one class alone, or every
            mask of the sample is 255 throughout.
    """
    if len(dataset.classes) == 1:
        raise ValueError(ONE_CLASS.format(dataset.classes[0]))
    count = min(sample, len(dataset))
    if not count:
        return []
    masks = [dataset[index * len(dataset) // count][1].numpy() for index in range(count)]
    counts = [np.bincount(mask.ravel(), minlength=256) for mask in masks]
    empty = sum(int(here[IGNORE] == mask.size) for here, mask in zip(counts, masks, strict=True))
    seen = f"{count} masks that were looked at"
    if empty == count:
        why = "; ".join(dataset.remarks) or (
            "see what values they have (data.values, data.ignore), with `segdistill data check`"
        )
        raise ValueError(f"all of {seen} are 255 throughout, which is ignored: nothing can be learned; {why}")
    lines = [*dataset.remarks]
    lines += [f"{empty} of {seen} are 255 throughout, which is ignored"] if empty else []
    if _binary(np.sum(counts, axis=0)):
        lines.append(f"all of {seen} hold {BINARY}")
    return lines


def check_data(
    name: str, split: str, *, progress: Callable[[int, int], None] | None = None, **options: Any
) -> DatasetReport:
    """Check one split of a data set; images without a mask are listed with the other problems.

    Args:
        name: as in `list_datasets()`.
        split: train, val or test.
        progress: called with (items done, items in all) after each item.
        **options: of the data set, as a config gives them.

    Raises:
        ValueError: if there is nothing to check: no such folder, split or option.
    """
    try:
        return check_dataset(build_dataset(name, split, **options), progress=progress)
    except MissingMasks as error:
        report = check_dataset(error.dataset, progress=progress)
        report.problems = error.problems + report.problems
        return report
