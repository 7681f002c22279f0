"""Class by class: how hard, how frequent, how much the student gains; and what it takes for what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segdistill.report.study import Group, Study

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ClassRow:
    """One class; shares and IoU in 0…1, None where unknown."""

    name: str
    share: float | None
    """Of the labelled pixels."""
    teacher: float | None
    baseline: float | None
    student: float | None

    @property
    def gain(self) -> float | None:
        """Of the student over the baseline."""
        return None if self.student is None or self.baseline is None else self.student - self.baseline


def class_rows(study: Study, group: Group, confusion: Matrix | None = None) -> list[ClassRow]:
    """The classes in order of difficulty: the lower the baseline's IoU (else the student's), the earlier.

    Args:
        study: the runs.
        group: the student.
        confusion: (C,C) counts, truth along rows, for the pixel shares; of any network.
    """
    baseline = study.baseline(group)
    shares = pixel_shares(confusion, study.classes)
    rows = [
        ClassRow(
            name,
            shares.get(name),
            study.teacher.iou(name) if study.teacher else None,
            baseline.iou(name) if baseline else None,
            group.iou(name),
        )
        for name in study.classes
    ]
    known = [row for row in rows if row.student is not None or row.baseline is not None]
    return sorted(known, key=lambda row: row.baseline if row.baseline is not None else row.student or 0.0)


def pixel_shares(confusion: Matrix | None, classes: Sequence[str]) -> dict[str, float]:
    """Share of the labelled pixels that each class has.

    Args:
        confusion: (C,C) counts, truth along rows, or None.
        classes: C names.

    >>> pixel_shares(np.array([[3.0, 0.0], [1.0, 0.0]]), ["road", "sky"])
    {'road': 0.75, 'sky': 0.25}
    """
    if confusion is None or not confusion.sum():
        return {}
    return dict(zip(classes, (confusion.sum(1) / confusion.sum()).tolist(), strict=True))


def stored_confusions(study: Study) -> tuple[str, dict[str, Matrix]]:
    """Confusion matrices that `segdistill eval` left in the run folders, by group, all of one split.

    Args:
        study: the runs.

    Returns:
        The split of which most groups have one (of equals: val, then test), and the matrices summed over seeds.
    """
    best: tuple[str, dict[str, Matrix]] = ("", {})
    for split in ("val", "test", "train"):
        found: dict[str, Matrix] = {}
        for group in study.everyone:
            stored = (run.evaluations.get(split, {}).get("confusion") for run in group.runs)
            matrices = [np.array(matrix, dtype=np.float64) for matrix in stored if matrix]
            size = len(study.classes)
            if matrices and all(matrix.shape == (size, size) for matrix in matrices):
                found[group.label] = np.sum(matrices, axis=0)
        if len(found) > len(best[1]):
            best = (split, found)
    return best


def improvement(student: Matrix, other: Matrix) -> Matrix:
    """Where the student is better than another network, in shares of each true class: (C,C), truth along rows.

    On the diagonal: pixels it gets right that the other does not. Beside it: confusions it avoids. Below 0 it is the
    reverse. A class that has no pixels is NaN.

    Args:
        student: (C,C) counts.
        other: (C,C) counts.

    >>> improvement(np.array([[3.0, 1.0], [0.0, 4.0]]), np.array([[2.0, 2.0], [0.0, 4.0]])).round(2).tolist()
    [[0.25, 0.25], [0.0, 0.0]]
    """
    difference = _rates(student) - _rates(other)
    sign = 2 * np.eye(len(difference)) - 1
    return difference * sign + 0.0  # no −0


def largest_changes(change: Matrix, classes: Sequence[str], count: int = 6) -> list[tuple[str, str, float]]:
    """The confusions that changed most: true class, what it is taken for, by how much less (below 0: more).

    Args:
        change: what `improvement` returned.
        classes: C names.
        count: how many at most.
    """
    off = np.nan_to_num(change * (1 - np.eye(len(change))))
    order = np.argsort(-np.abs(off), axis=None)[:count]
    places = [np.unravel_index(place, off.shape) for place in order]
    return [(classes[i], classes[j], float(off[i, j])) for i, j in places if abs(off[i, j]) >= 0.001]


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs, or where one side is constant.

    Args:
        xs: numbers.
        ys: as many.

    >>> rank_correlation([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(xs) < 3 or len(set(xs)) == 1 or len(set(ys)) == 1:
        return None
    return float(round(np.corrcoef(_ranks(xs), _ranks(ys))[0, 1], 6))


def gain_table(study: Study, order: Sequence[ClassRow]) -> list[tuple[str, list[float | None]]]:
    """Gains of every student by class, for a table.

    Args:
        study: the runs.
        order: the classes in the order wanted.
    """
    students = [group for group in study.groups if group.role == "student" and study.baseline(group)]
    table: list[tuple[str, list[float | None]]] = []
    for row in order:
        cells = []
        for group in students:
            baseline = study.baseline(group)
            a, b = group.iou(row.name), baseline.iou(row.name) if baseline else None
            cells.append(None if a is None or b is None else a - b)
        table.append((row.name, cells))
    return table


def _rates(counts: Matrix) -> Matrix:
    total = counts.sum(1, keepdims=True)
    rates: Matrix = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return rates


def _ranks(values: Sequence[float]) -> Matrix:
    array = np.asarray(values, dtype=np.float64)
    less, equal = (array[None] < array[:, None]).sum(1), (array[None] == array[:, None]).sum(1)
    return np.asarray(less + (equal - 1) / 2, dtype=np.float64)  # ties share their mean rank
