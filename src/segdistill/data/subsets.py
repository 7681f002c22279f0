"""Parts of a data set: some of its items, or all of them with the labels of some."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from segdistill.data.dataset import SegmentationDataset, Source, Unlabelled
from segdistill.data.splits import choose_listed, lot, without_split
from segdistill.functional import IGNORE

Only = Mapping[Literal["train", "val", "test"], str | list[str]]
"""Split → pattern or patterns of names, as `data.only`."""

MASKS = "masks"
"""As `data.labelled`: every image that has a mask."""


class Subset(SegmentationDataset):
    """Some items of a data set, in the order that is given.

    Args:
        dataset: the whole.
        indices: of the items.
    """

    def __init__(self, dataset: SegmentationDataset, indices: Iterable[int]):
        self.dataset, self.indices = dataset, list(indices)
        self.classes, self.palette, self.remarks = dataset.classes, dataset.palette, dataset.remarks
        self.image_range = dataset.image_range
        self.names = [dataset.names[index] for index in self.indices]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.dataset[self.indices[index]]

    def source(self, index: int) -> Source:
        """The item of the whole, to be read in pieces."""
        return self.dataset.source(self.indices[index])

    def problems(self, index: int) -> list[str]:
        """What is wrong with the item."""
        return self.dataset.problems(self.indices[index])

    def has_mask(self, index: int) -> bool:
        """Whether the item has labels."""
        return self.dataset.has_mask(self.indices[index])

    def files(self, index: int) -> list[Path]:
        """The files of the item."""
        return self.dataset.files(self.indices[index])


class PartlyLabelled(Subset):
    """All items of a data set, with the labels of some alone: the masks of the others are 255 and never read.

    Args:
        dataset: the whole.
        labelled: the items whose labels count.
    """

    def __init__(self, dataset: SegmentationDataset, labelled: Iterable[int]):
        super().__init__(dataset, range(len(dataset)))
        self.labelled = frozenset(labelled)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.has_mask(index):
            return self.dataset[index]
        source = self.source(index)
        whole = (slice(0, source.size[0]), slice(0, source.size[1]))
        return source.image(whole), torch.full(source.size, IGNORE)

    def source(self, index: int) -> Source:
        """The item; one without labels never reads its mask."""
        return self.dataset.source(index) if self.has_mask(index) else Unlabelled(self.dataset.source(index))

    def has_mask(self, index: int) -> bool:
        """Whether the item is one of those whose labels count."""
        return index in self.labelled


def masked(dataset: SegmentationDataset) -> list[int]:
    """The items that have masks, by position.

    Args:
        dataset: images, of which some may lack a mask.
    """
    return [index for index in range(len(dataset)) if dataset.has_mask(index)]


def keep_labelled(dataset: SegmentationDataset) -> SegmentationDataset:
    """The items that have masks; the data set itself where all have one, or none.

    Args:
        dataset: images, of which some may lack a mask.
    """
    having = masked(dataset)
    return Subset(dataset, having) if 0 < len(having) < len(dataset) else dataset


def keep_only(dataset: SegmentationDataset, split: str, only: Only | None) -> SegmentationDataset:
    """The items of a split whose names fit one of its patterns; all of them where there is none for it.

    Args:
        dataset: the split.
        split: its name.
        only: split → pattern or patterns, as for `match_names`.

    Raises:
        ValueError: if a pattern fits no name.
    """
    patterns = {str(name): fits for name, fits in (only or {}).items()}.get(split)
    return dataset if patterns is None else Subset(dataset, match_names(dataset.names, patterns, f"data.only.{split}"))


def match_names(names: Sequence[str], patterns: str | Sequence[str], key: str) -> list[int]:
    """Positions of the names that fit one of some patterns, in their order.

    The folder of a split at a name's beginning, as in `train/0001TP_006690`, may be left out of a pattern.

    Args:
        names: of items.
        patterns: one or several, with `*` for any characters, `?` for one, `[…]` for one of some; capitals count.
        key: of the configuration, for the error line.

    Raises:
        ValueError: if one of the patterns fits no name, or there is none.

    >>> match_names(["a_1", "a_2", "b_1"], "a_*", "data.labelled")
    [0, 1]
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(f"{key}: expected a pattern of names, or several, got []; leave it out if all are meant")
    shown = [{name, without_split(name)} for name in names]
    chosen: set[int] = set()
    for pattern in patterns:
        fitting = {n for n, forms in enumerate(shown) if any(fnmatchcase(form, pattern) for form in forms)}
        if not fitting:
            few = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
            raise ValueError(f"{key}: {pattern!r} fits none of the {len(names)} names ({few})")
        chosen |= fitting
    return sorted(chosen)


def choose_labelled(
    dataset: SegmentationDataset, labelled: int | float | str | Sequence[str], seed: int = 0
) -> list[int]:
    """The items whose labels count, by position, in their order.

    A count or a share takes the first of a ranking by a hash of the names, as `val_fraction` does: the same on every
    machine, and a smaller choice is a part of a larger one of the same seed.

    Args:
        dataset: the training images.
        labelled: how many; or their share, above 0 and up to 1.0; or a pattern of their names, or several; or a text
            file that lists them, whose name ends in .txt; or `masks`: all that have a mask.
        seed: of the ranking.

    Raises:
        ValueError: if there are not so many, a name or pattern fits nothing, or a chosen image has no mask.
    """
    names = dataset.names
    able = masked(dataset)
    if labelled == MASKS:
        if not able:
            raise ValueError("data.labelled=masks: none of the training images has a mask")
        return able
    if isinstance(labelled, int | float):
        count = labelled if isinstance(labelled, int) else max(1, round(labelled * len(names)))
        if not 0 < count <= len(able):
            raise ValueError(
                f"data.labelled={labelled}: expected 1 to {len(able)} images, or a share above 0 and up to 1.0"
                + ("" if len(able) == len(names) else f" of the {len(names)}, of which {len(able)} have masks")
            )
        ranked = sorted(able, key=lambda index: lot(names[index], seed))
        return sorted(ranked[:count])
    if isinstance(labelled, str) and labelled.endswith(".txt"):
        listed = choose_listed(Path(labelled).expanduser(), {name: index for index, name in enumerate(names)})
        chosen = sorted(listed.values())
        if not chosen:
            raise ValueError(f"data.labelled: {labelled} is empty; write an image a line")
    else:
        chosen = match_names(names, labelled, "data.labelled")
    bare = [index for index in chosen if not dataset.has_mask(index)]
    if bare:
        more = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
        raise ValueError(
            f"data.labelled: {names[bare[0]]}{more} has no mask; data.labelled=masks takes those that have one"
        )
    return chosen
