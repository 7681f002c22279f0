"""Where a run's teachers are; and a teacher that is the mean of several networks or views, as one."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from segdistill.engine.config import load_config
from segdistill.engine.teacher import Mapped, build_teacher
from segdistill.engine.teacher_views import AVERAGED
from segdistill.methods import build_method
from segdistill.metrics import scores
from segdistill.models.stats import model_stats
from segdistill.report.collect import Run, is_run, number, views
from segdistill.taps import Tapped


def find_teacher(run: Run, named: str) -> Path | None:
    """The folder of a teacher; one that is not there is looked for beside the run.

    Args:
        run: of a student.
        named: as its configuration names the teacher.
    """
    path = Path(named).expanduser()
    path = path.parent if path.suffix == ".safetensors" else path
    candidates = (path, run.folder.resolve().parent / path.name)
    return next((candidate.resolve() for candidate in candidates if is_run(candidate)), None)


def find_teachers(run: Run) -> list[Path]:
    """Folders of the teachers that a run's configuration names, of those that are there.

    Args:
        run: of a student.
    """
    found = (find_teacher(run, named) for named in run.teachers)
    return [folder for folder in found if folder is not None]


def learned_from(run: Run) -> tuple[list[Path], int]:
    """What a run's methods read of its teachers: the mean of all of them, or the first network alone.

    Args:
        run: of a student.

    Returns:
        Folders of the teachers that it learned from, of those that are there, and how many probabilities are averaged.
    """
    if run.looks < 2 or _reads_mean(run):
        return find_teachers(run), run.looks
    named = run.sections[0].get("checkpoint")
    folder = find_teacher(run, str(named)) if named else None
    return [] if folder is None else [folder], 1


def _reads_mean(run: Run) -> bool:
    """Whether the methods read a tap that is averaged; of methods that are not known here, yes."""
    with suppress(ValueError):
        return not build_method(run.config.get("method") or []).teacher_taps().isdisjoint(AVERAGED)
    return True


def as_one(run: Run, members: Sequence[Run]) -> Run:
    """Several teachers as one run, which stands for their mean; it has no figures before it was evaluated.

    Args:
        run: of the student that learned from them.
        members: their runs, of those that are runs.
    """
    sizes = [number(member.result.get("params")) for member in members]
    known = [size for size in sizes if size is not None]
    params = {"params": sum(known)} if len(known) == len(run.sections) else {}
    return Run(members[0].folder, {}, {"student": _title(run, members), **params}, [], [], {})


def _title(run: Run, members: Sequence[Run]) -> str:
    """How many are averaged, and which."""
    own, names = iter(members), []
    for section in run.sections:
        name = next(own).network if section.get("checkpoint") else str(section.get("name", "network"))
        count = views(section)
        names.append(name if count == 1 else f"{name} ({count} views)")
    return f"the mean of {run.looks}: {' + '.join(names)}"


def told_apart(run: Run, members: Sequence[Run]) -> str:
    """What each of several teachers reaches alone on the student's data, in a sentence; empty if that is not known.

    Args:
        run: of the student.
        members: the teachers' runs.
    """
    known = [(member.network, number(member.result.get("miou"))) for member in members if member.data == run.data]
    told = [f"{name} {100 * miou:.2f} %" for name, miou in known if miou is not None]
    return f" Alone, seeing each image once: {', '.join(told)}." if len(told) == len(members) else ""


def build_mean(run: Run, classes: Sequence[str]) -> Tapped:
    """The teacher of a run as a whole, with its taps.

    Args:
        run: of a student.
        classes: names of the data set's.

    Raises:
        ValueError: if a part of it is missing, or it does not know all of the student's classes.
    """
    config = load_config(run.folder)
    sections = []
    for section in config.teachers:
        folder = find_teacher(run, section.checkpoint) if section.checkpoint else None
        sections.append(section if folder is None else section.model_copy(update={"checkpoint": str(folder)}))
    teacher = build_teacher(config.model_copy(update={"teacher": sections}), classes)
    assert teacher is not None
    if teacher.class_map is not None and not teacher.class_map.complete:
        raise ValueError("the teacher does not know all classes of the data")
    return teacher


def take_figures(
    teacher: Run, network: Tapped, confusion: Tensor, classes: Sequence[str], absent: Literal["skip", "zero"]
) -> None:
    """Note in a run of `as_one` what the mean reaches on the validation split, and how large it is.

    Args:
        teacher: the run.
        network: what it stands for.
        confusion: (C,C) counts, truth along rows.
        classes: C names.
        absent: as the protocol counts absent classes.
    """
    teacher.summary |= scores(confusion, classes, absent) | model_stats(Mapped(network))


def take_compared(teacher: Run, run: Run, folder: Path, table: Mapping[str, Any]) -> None:
    """Note in a run of `as_one` what a comparison has found of the mean, if it is that of a student in its folder.

    Args:
        teacher: the run.
        run: of the student.
        folder: of the comparison.
        table: its `compare.json`.
    """
    own = next((one["data"] for one in table["runs"] if one["folder"] == run.name), None)
    if run.folder.resolve().parent == folder.resolve() and own in table["teachers"]:
        teacher.evaluations[table["split"]] = dict(table["teachers"][own])
