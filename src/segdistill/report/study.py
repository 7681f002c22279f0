"""What is compared with what: runs grouped over their seeds, their baseline and their teacher."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segdistill.engine.settings import FREE_TO_CHANGE
from segdistill.report.collect import (
    Run,
    Spread,
    find_runs,
    has_student,
    number,
    read_run,
    shared_classes,
)
from segdistill.report.teachers import as_one, find_teachers, learned_from, told_apart

COLOURS = ("#1f77c9", "#d9590c", "#0f9d76", "#b5539c", "#d99a00", "#3fa7d6", "#7a5bd0", "#8a6d3b")
"""Of the students, told apart by colour-blind eyes too (after Okabe and Ito, 2008)."""
BASELINE, TEACHER = "#87909b", "#1b2027"
SAME = {*FREE_TO_CHANGE, "train.seed", "data.eval_batch_size", "eval.protocol"}
"""Settings in which runs of one group may differ; the last one is a name for others."""
DISTILS = ("method", "teacher")
"""Sections in which a student differs from its baseline because it is distilled."""
IMAGES = ("data.name", "data.size", "data.only.val", "data.only.test")
"""Settings of the data that say which images a figure is of."""


@dataclass
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]
    role: str = "student"
    colour: str = BASELINE
    slot: int = 0
    cycle: int = 0
    """How often the colours have been dealt out before; lines are then dashed."""

    @property
    def first(self) -> Run:
        """The run that stands for the group in pictures: the first whose student is there."""
        return next((run for run in self.runs if has_student(run.folder)), self.runs[0])

    def result(self, key: str) -> Spread | None:
        """Mean ± deviation over seeds of an entry of the result, such as `miou` or `seconds`."""
        return Spread.of(run.result.get(key) for run in self.runs)

    def cost(self, key: str) -> Spread | None:
        """Mean ± deviation over seeds of a recorded cost."""
        return Spread.of(run.cost(key) for run in self.runs)

    def evaluation(self, split: str, key: str) -> Spread | None:
        """Mean ± deviation over seeds of an entry of `eval_<split>.json`."""
        return Spread.of(run.evaluations.get(split, {}).get(key) for run in self.runs)

    def iou(self, name: str) -> float | None:
        """Mean IoU over seeds of one class."""
        spread = Spread.of(run.iou.get(name) for run in self.runs)
        return None if spread is None else spread.mean

    def mean_series(self, key: str) -> list[tuple[float, float]]:
        """Mean over the runs of an entry of the records, at the steps that all have of those runs that have it.

        Args:
            key: such as `loss` or `val_miou`.
        """
        curves = [dict(points) for run in self.runs if (points := run.series(key))]
        steps = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
        return [(step, statistics.fmean(curve[step] for curve in curves)) for step in steps]

    @property
    def unfinished(self) -> list[Run]:
        """Runs without a summary."""
        return [run for run in self.runs if not run.finished]


@dataclass
class Study:
    """Everything that a report shows, but for pictures."""

    groups: list[Group]
    """Of the students and the baselines."""
    teacher: Group | None = None
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: Group | None = None
    """A baseline that was named."""
    members: list[Run] = field(default_factory=list)
    """Of a teacher that is the mean of several networks or views, their runs; that of the teacher stands for them."""

    @property
    def everyone(self) -> list[Group]:
        """The teacher first, then baselines and students."""
        return [*([self.teacher] if self.teacher else []), *self.groups]

    @property
    def all_runs(self) -> list[Run]:
        """The runs of everyone, and of a teacher that is a mean those that it is made of."""
        taught = [run for group in self.groups for run in group.runs]
        return [*(self.members or (self.teacher.runs if self.teacher else [])), *taught]

    @property
    def focus(self) -> Group:
        """The student of which classes and pictures are shown: the best distilled one, else the best."""
        distilled = [group for group in self.groups if group.role == "student"]
        return max(distilled or self.groups, key=lambda group: _mean(group.result("miou")))

    def baseline(self, group: Group) -> Group | None:
        """What a group is compared with: the baseline that was named, else that of the same network.

        Args:
            group: one of `groups`.
        """
        if group.role != "student":
            return None
        if self.given is not None:
            return self.given
        same = [g for g in self.groups if g.role == "baseline" and g.runs[0].network == group.runs[0].network]
        return min(same, key=lambda other: len(_differing(group, other)), default=None)

    def unequal(self, group: Group) -> list[str]:
        """Settings in which a group differs from its baseline beside the method, so that a gain is not fair.

        Args:
            group: one of `groups`.
        """
        baseline = self.baseline(group)
        return [] if baseline is None else _differing(group, baseline)

    def gain(self, group: Group) -> Spread | None:
        """MIoU over the baseline; paired by seed, with a deviation, where every seed has its baseline.

        Args:
            group: one of `groups`.
        """
        pairs = self._pairs(group)
        if pairs:
            return Spread.of(value - other for value, other in pairs)
        a, b = group.result("miou"), self.start(group)
        return None if a is None or b is None else Spread(a.mean - b.mean, None, 1)

    def start(self, group: Group) -> Spread | None:
        """MIoU of the baseline that a gain is over: on the group's seeds where the baseline has them all.

        Args:
            group: one of `groups`.
        """
        baseline = self.baseline(group)
        pairs = self._pairs(group)
        if pairs:
            return Spread.of(other for _, other in pairs)
        return None if baseline is None else baseline.result("miou")

    def _pairs(self, group: Group) -> list[tuple[float, float]]:
        """MIoU of a group and of its baseline, seed by seed; none where a seed lacks its baseline."""
        baseline = self.baseline(group)
        known = {} if baseline is None else {run.seed: number(run.result.get("miou")) for run in baseline.runs}
        values = [(run.seed, number(run.result.get("miou"))) for run in group.runs]
        pairs = [(value, known.get(seed)) for seed, value in values if value is not None]
        paired = [(value, other) for value, other in pairs if other is not None]
        return paired if len(paired) == len(pairs) else []


def read_study(
    runs: Sequence[str | Path], *, baseline: str | Path | None = None, teacher: str | Path | None = None
) -> Study:
    """Read runs and say what is compared with what.

    Args:
        runs: run folders, or folders of them.
        baseline: what students are compared with (default: the runs among them without a teacher).
        teacher: the teacher's run (default: the one that the students' configurations name).

    Raises:
        ValueError: if there is no run, or their classes differ.
    """
    read = {folder.resolve(): read_run(folder) for path in runs for folder in find_runs(path)}
    named_teachers = [find_teachers(run) for run in read.values()] if teacher is None else [[Path(teacher).resolve()]]
    learned = [learned_from(run) for run in read.values()] if teacher is None else [(named_teachers[0], 1)]
    teachers = {(*folders, looks) for folders, looks in learned if folders}
    for folder in {folder for folders in named_teachers for folder in folders}:  # a teacher is not one of the students
        if len(read) > 1:
            read.pop(folder, None)
    named = [read_run(folder) for folder in find_runs(baseline)] if baseline is not None else []
    for run in named:
        read.pop(run.folder.resolve(), None)
    groups = _grouped([*named, *read.values()])
    for group in groups:
        alone = group.runs[0].alone
        group.role = "baseline" if any(run in group.runs for run in named) or alone else "student"
    given = next((group for group in groups if named and named[0] in group.runs), None)
    _paint(groups)
    study = Study(groups, given=given)
    first = study.focus.first
    shown, looks = ([Path(teacher)], 1) if teacher is not None else learned_from(first)
    guide = [read_run(folder) for path in shown for folder in find_runs(path)]
    several = looks > 1 and len(guide) == len(first.teachers)
    if guide:
        own = [as_one(first, guide)] if several else guide if teacher is not None else guide[:1]
        study.teacher = Group("teacher", own, "teacher", TEACHER)
    study.members = guide if several else []
    study.classes = shared_classes([*read.values(), *named, *([] if several else guide)])
    notes = study.notes
    if len(teachers) > 1:
        told = ", ".join(map(str, shown))
        notes.append(f"The runs have {len(teachers)} teachers; shown is that of {study.focus.label}, {told}.")
    if several:
        notes.append(
            f"{study.focus.label} learned from the mean of {looks} networks or views. The teacher on this page is that "
            f"mean.{told_apart(first, guide)}"
        )
    elif guide and looks > 1:
        notes.append(
            f"{study.focus.label} learned from the mean of {looks} networks or views, of which not all are there; the "
            f"teacher's figures and pictures are those of {shown[0]} alone, which sees each image once."
        )
    elif teacher is None and first.looks > 1 and looks == 1:
        line = (
            f"{study.focus.label} did not learn from the mean of {first.looks} networks or views: its methods read "
            "neither logits nor output, and all else is the first network's."
        )
        if guide:
            line += f" The teacher on this page is that network alone, {shown[0]}, which sees each image once."
        notes.append(line)
    notes += _not_comparable([*read.values(), *named])
    unequal = {key: group.label for group in groups for key in study.unequal(group)}
    if unequal:
        told = ", ".join(unequal)
        notes.append(
            f"Gains marked * are not those of the method alone: such a run differs from its baseline in {told}."
        )
    return study


def _grouped(runs: Iterable[Run]) -> list[Group]:
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        own = {key: value for key, value in run.settings.items() if key not in SAME}
        by_key.setdefault(repr(sorted(own.items())) if own else str(run.folder), []).append(run)
    groups = [Group("", sorted(runs, key=lambda run: run.seed or 0)) for runs in by_key.values()]
    networks = {group.runs[0].network for group in groups}
    for group in groups:
        run = group.runs[0]
        label = "baseline" if run.alone else " + ".join(run.methods)
        group.label = f"{label} · {run.network}" if len(networks) > 1 else label
    for label, count in Counter(group.label for group in groups).items():
        if count > 1:
            _tell_apart([group for group in groups if group.label == label])
    return groups


def _tell_apart(groups: Sequence[Group]) -> None:
    """Give groups of one label the settings in which they differ, or their folders: no label twice."""
    settings = [group.runs[0].settings for group in groups]
    keys = sorted(set().union(*settings) - SAME)
    differing = [key for key in keys if len({str(own.get(key)) for own in settings}) > 1]
    told = [", ".join(f"{key.split('.')[-1]}={own.get(key)}" for key in differing) for own in settings]
    short = 0 < len(differing) <= 3 and max(map(len, told)) <= 60
    folders = [group.runs[0].folder.resolve() for group in groups]
    names = [folder.name for folder in folders], [f"{folder.parent.name}/{folder.name}" for folder in folders]
    choices = [*([told] if short else []), *names, list(map(str, folders))]
    chosen = next(choice for choice in choices if len(set(choice)) == len(groups))
    for group, name in zip(groups, chosen, strict=True):
        group.label += f" ({name})"


def _paint(groups: list[Group]) -> None:
    """Baselines first, then students in the order given, each with a colour."""
    groups.sort(key=lambda group: group.role != "baseline")
    students = 0
    for slot, group in enumerate(groups, start=1):
        group.slot = slot
        if group.role == "student":
            group.colour, group.cycle = COLOURS[students % len(COLOURS)], students // len(COLOURS)
            students += 1


def _differing(group: Group, other: Group) -> list[str]:
    a, b = group.runs[0].settings, other.runs[0].settings
    keys = sorted(key for key in (a.keys() | b.keys()) - SAME if key.split(".")[0] not in DISTILS)
    return [key for key in keys if a.get(key) != b.get(key)]


def _not_comparable(runs: Sequence[Run]) -> list[str]:
    """A line for each setting in which runs differ, and without which their figures are not of one thing."""
    ways = {key for run in runs for key in run.settings if key.startswith("eval.")} - SAME
    lines = []
    for key in (*IMAGES, *sorted(ways)):
        found = {str(run.settings.get(key)) for run in runs if key in IMAGES or key in run.settings}
        if len(found) > 1:
            lines.append(f"The runs differ in {key} ({', '.join(sorted(found))}): their figures are not comparable.")
    return lines


def _mean(spread: Spread | None) -> float:
    return -1.0 if spread is None else spread.mean
