"""Look at every item of a data set before training does, and list all that is wrong."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segdistill._printing import number_of
from segdistill.data.dataset import SPLITS, MissingMasks, SegmentationDataset
from segdistill.data.groups import SharedSequences
from segdistill.data.packed import PackedDataset
from segdistill.data.records import Record, RecordStore, read_records
from segdistill.data.sets import build_dataset
from segdistill.data.subsets import Only, keep_only
from segdistill.functional import IGNORE

ONE_CLASS = "the only class is {!r}: every pixel is right from the start; add a background class"
SHOWN = 100
"""Problems that are printed; all of them are in the JSON file."""
BINARY = "nothing but 0 and 255, which is ignored; if 255 is a class, set data.values: {0: 0, 255: 1}"


@dataclass
class DatasetReport:
    """What a data set holds, and what is wrong with it.

    Attributes:
        images: how many there are.
        sizes: (height, width) → how many images have it; unreadable ones are left out.
        share: class → its share of the labelled pixels.
        images_with: class → how many images have a pixel of it.
        ignored: share of all pixels that are 255.
        unseen: classes without a single pixel.
        mean: of red, green and blue over all pixels, where 0 is black and 1 is white.
        std: standard deviation, likewise.
        readable: indices of the items that could be read.
        seen: (N,C), which classes an image holds.
        problems: one line each; empty: training can start.
        remarks: what is conspicuous and may be meant so, one line each.
    """

    images: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    share: dict[str, float] = field(default_factory=dict)
    images_with: dict[str, int] = field(default_factory=dict)
    ignored: float = 0.0
    unseen: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    readable: list[int] = field(default_factory=list, repr=False)
    seen: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool), repr=False)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        sizes = [f"{count} of {width}×{height}" for (height, width), count in self.sizes.most_common(5)]
        sizes += [f"{len(self.sizes) - 5} more sizes"] if len(self.sizes) > 5 else []
        lines = [f"{number_of(self.images, 'image')}: {', '.join(sizes) or 'none readable'}"]
        if self.mean:
            mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std))
            lines.append(f"mean {mean}, deviation {std} (RGB, 0 to 1)")
        if any(self.share.values()):
            lines += [
                f"{share:8.3%} in {self.images_with[name]:6} images  {name}" for name, share in self.share.items()
            ]
            lines += [f"{self.ignored:8.3%}  ignored (of all pixels)"]
            if self.unseen:
                lines.append(f"never seen: {', '.join(self.unseen)}")
        else:
            lines.append("no labels: every pixel is ignored")
        lines += [f"note: {remark}" for remark in self.remarks]
        lines += [f"problem: {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"… and {len(self.problems) - SHOWN} more; --json FILE keeps all of them")
        return [*lines, number_of(len(self.problems), "problem") if self.problems else "no problems"]

    def figures(self) -> dict[str, Any]:
        """The report as JSON can hold it, without what each image holds."""
        sizes = [{"height": h, "width": w, "images": count} for (h, w), count in self.sizes.most_common()]
        names = ("images", "share", "images_with", "ignored", "unseen", "mean", "std", "problems", "remarks")
        return {"sizes": sizes} | {name: getattr(self, name) for name in names}


class Copies:
    """Finds images of equal pixels, within a split and between splits; it keeps digests only."""

    def __init__(self) -> None:
        self.first: dict[bytes, tuple[str, str, bytes]] = {}
        self.pairs: dict[tuple[str, str], list[tuple[str, str, bool]]] = {}

    def add(self, split: str, name: str, record: Record) -> None:
        """Look for an image among the earlier ones.

        Args:
            split: of the image.
            name: of the image.
            record: of the image.
        """
        image, mask = bytes.fromhex(record["image"]), bytes.fromhex(record["mask"])
        earlier = self.first.setdefault(image, (split, name, mask))
        if earlier[:2] != (split, name):
            self.pairs.setdefault((earlier[0], split), []).append((earlier[1], name, earlier[2] == mask))

    def lines(self, one: str, other: str) -> list[str]:
        """One line on the copies of images of one split in another, or in itself.

        Args:
            one: the split that was looked at first.
            other: the other, or the same.
        """
        found = self.pairs.get((one, other), [])
        if not found:
            return []
        occur = "occurs" if len(found) == 1 else "occur"
        where = f"{occur} in {one} and in {other}" if one != other else f"{occur} more than once"
        differ = sum(not same for _, _, same in found)
        masks = f", {differ} of them with another mask" if differ else ""
        shown = ", ".join(f"{first} = {second}" for first, second, _ in found[:3]) + (", …" if len(found) > 3 else "")
        return [f"{number_of(len(found), 'image')} {where}, pixel by pixel{masks} ({shown})"]


def check_dataset(
    dataset: SegmentationDataset,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
    store: RecordStore | None = None,
    copies: Copies | None = None,
    split: str = "it",
) -> DatasetReport:
    """Read every item and count; problems are collected instead of raised.

    Args:
        dataset: to be checked.
        progress: called with (items done, items in all) after each item.
        workers: processes that read; 0: this one.
        store: what is known of items from an earlier check.
        copies: that knows the images of other splits.
        split: its name, for the lines on copies.
    """
    report = DatasetReport(len(dataset), remarks=list(dataset.remarks))
    copies = Copies() if copies is None else copies
    counts, sums, squares = np.zeros(256, np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64)
    report.seen = np.zeros((len(dataset), len(dataset.classes)), bool)
    empty = []
    for index, record in enumerate(read_records(dataset, workers=workers, store=store)):
        name = dataset.names[index]
        if "problems" in record:
            report.problems += record["problems"]
        else:
            height, width = record["size"]
            report.sizes[(height, width)] += 1
            report.readable.append(index)
            values = np.array([int(value) for value in record["counts"]])
            counts[values] += np.array(list(record["counts"].values()))
            sums += record["sums"]
            squares += record["squares"]
            report.seen[index, values[values < len(dataset.classes)]] = True
            if values.tolist() == [IGNORE]:
                empty.append(name)
            copies.add(split, name, record)
        if progress is not None:
            progress(index + 1, len(dataset))
    _summarise(report, dataset.classes, counts, sums, squares)
    report.problems += _conspicuous(dataset, counts, empty)
    report.remarks += copies.lines(split, split)
    return report


def _summarise(
    report: DatasetReport, classes: list[str], counts: np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> None:
    """Shares and means from the counts of all pixels."""
    labelled, pixels = counts[: len(classes)], int(counts.sum())
    total = max(1, int(counts[:IGNORE].sum()))
    report.share = {name: float(count / total) for name, count in zip(classes, labelled, strict=True)}
    report.images_with = dict(zip(classes, report.seen.sum(0).tolist(), strict=True))
    report.ignored = float(counts[IGNORE] / max(1, pixels))
    report.unseen = [name for name, count in zip(classes, labelled, strict=True) if not count]
    if pixels:
        mean = sums / pixels
        report.mean = (mean / 255).tolist()
        report.std = (np.sqrt(np.maximum(0, squares / pixels - mean**2)) / 255).tolist()


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
    """Look at a few items, evenly spaced, before work: what `check_dataset` would call a problem of all of them.

    Args:
        dataset: images with labels.
        sample: how many items are read.

    Returns:
        What is conspicuous and may be meant so, a line each.

    Raises:
        ValueError: if an item cannot be read, or if the work cannot make sense: there is one class alone, or there
            are no labels, or every mask of the sample is 255 throughout.
    """
    if len(dataset.classes) == 1:
        raise ValueError(ONE_CLASS.format(dataset.classes[0]))
    if len(dataset) and not any(map(dataset.has_mask, range(len(dataset)))):
        raise ValueError("; ".join(["images without labels: nothing can be learned or scored", *dataset.remarks]))
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
        raise ValueError(f"all of {seen} are 255 throughout, which is ignored: nothing can be learned or scored; {why}")
    lines = [*dataset.remarks]
    lines += [f"{empty} of {seen} are 255 throughout, which is ignored"] if empty else []
    if _binary(np.sum(counts, axis=0)):
        lines.append(f"all of {seen} hold {BINARY}")
    return lines


def check_data(
    name: str,
    split: str,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
    **options: Any,
) -> DatasetReport:
    """Check one split of a data set; images without a mask are listed with the other problems.

    Args:
        name: as in `list_datasets()`.
        split: train, val or test.
        progress: called with (items done, items in all) after each item.
        workers: processes that read; 0: this one.
        **options: of the data set, as a config gives them.

    Raises:
        ValueError: if there is nothing to check: no such folder, split or option.
    """
    return _check_split(name, split, options, progress=progress, workers=workers)


def _check_split(
    name: str,
    split: str,
    options: dict[str, Any],
    packed: str | None = None,
    shared: SharedSequences | None = None,
    only: Only | None = None,
    unmasked: bool = False,
    **how: Any,
) -> DatasetReport:
    dataset, problems = open_split(name, split, options, packed, only)
    report = check_dataset(dataset, split=split, **how)
    if unmasked and problems:
        count = f"{number_of(len(problems), 'image')} {'have' if len(problems) > 1 else 'has'} no mask"
        report.remarks.append(f"{count}; what is learned there comes from the teacher (data.labelled)")
    else:
        report.problems = problems + report.problems
    if shared is not None:
        try:
            shared.add(split, dataset.names)
            report.remarks += shared.lines(split)
        except ValueError as error:  # the pattern does not fit: what was found of the images counts all the same
            report.problems.insert(0, str(error))
    return report


def open_split(
    name: str, split: str, options: dict[str, Any], packed: str | None = None, only: Only | None = None
) -> tuple[SegmentationDataset, list[str]]:
    """A split as far as it is there, and a line for each image of it that has no mask.

    Args:
        name: as in `list_datasets()`.
        split: train, val or test.
        options: of the data set.
        packed: folder of a pack whose images are taken instead of the files.
        only: split → patterns of the images that are used, as `data.only`.

    Raises:
        ValueError: if there is no such folder, split or option, the pack is of other data, or a pattern fits nothing.
    """
    problems: list[str] = []
    try:
        dataset = (
            build_dataset(name, split, **options)
            if packed is None
            else PackedDataset(packed, split, name=name, options=options)
        )
    except MissingMasks as error:
        dataset, problems = error.dataset, error.problems
    return keep_only(dataset, split, only), problems


def check_splits(
    name: str,
    options: dict[str, Any],
    *,
    packed: str | None = None,
    groups: str | None = None,
    only: Only | None = None,
    unmasked: bool = False,
    workers: int = 0,
    records: Path | None = None,
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]] | None = None,
) -> dict[str, DatasetReport | str]:
    """Check all splits of a data set, each by itself and against the others; why a split is not there, in its place.

    An image of train that occurs in val or test as well is a problem of the latter, whose figures it makes too good. A
    name of which `groups` does not tell the sequence is a problem of its split.

    Args:
        name: as in `list_datasets()`.
        options: of the data set.
        packed: folder of a pack whose images are checked instead of the files.
        groups: pattern of the images' sequences, as `data.groups`; those that are in two splits are named.
        only: split → patterns of the images that are used, as `data.only`.
        unmasked: whether training images may be without masks, as with `data.labelled`.
        workers: processes that read; 0: this one.
        records: file in which what was found is kept, image by image.
        progress: called with a split's name; a context that gives a function of (items done, items in all).
    """
    found: dict[str, DatasetReport | str] = {}
    copies, shared = Copies(), None if groups is None else SharedSequences(groups)
    settings = {"name": name, **options}
    with RecordStore(records, settings) if records is not None else nullcontext() as store:
        for split in SPLITS:
            try:
                with progress(split) if progress is not None else nullcontext() as told:
                    how = {"progress": told, "workers": workers, "store": store, "copies": copies}
                    bare = unmasked and split == "train"
                    report = _check_split(name, split, options, packed, shared, only, bare, **how)
            except ValueError as error:
                found[split] = str(error)
                continue
            if split != "train":
                report.problems += copies.lines("train", split)
            if split == "test":
                report.remarks += copies.lines("val", split)
            found[split] = report
    return found
