"""Curves over the training steps: validation mIoU, loss terms, what the methods show of themselves."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from segdistill.methods import list_methods, method_class
from segdistill.report.collect import COSTS, SHOWN
from segdistill.report.figures import DASHES, INK, MARGINS, Album, Drawing, log_scale, note, percent_axis
from segdistill.report.study import Group, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.5, 2.3)
POINTS = 240
"""Of one curve at most; longer ones are averaged."""
TERMS = 18
"""Panels of loss terms at most; critics' own terms come last."""
LINES = 12
"""Of one panel at most; where there are more runs, a line is the mean over a group's."""


def curves(album: Album, study: Study) -> list[Drawing]:
    """Validation mIoU, the loss, and each of its terms over the training steps."""
    everyone = study.groups
    drawings = []
    if any(run.series("val_miou") for group in everyone for run in group.runs):
        drawings.append(
            album.draw(
                "miou",
                "Validation mIoU, %",
                "Curves of validation mIoU over training steps; last values: " + _last(everyone, "val_miou", 100),
                PANEL,
                lambda figure: _miou(figure, study),
                study.everyone,
                MARGINS,
            )
        )
    keys = {key for key in _keys(study) if _is_term(key)}
    terms = sorted(keys - {"loss", "ce"}, key=lambda term: (term.startswith("critic_"), term))
    if terms[TERMS:]:
        study.notes.append(f"Not drawn, for their number: the terms {', '.join(terms[TERMS:])}.")
    for term in [t for t in ("loss", "ce") if t in keys] + terms[:TERMS]:
        drawings.append(
            album.draw(
                f"term_{term}",
                "loss, all terms" if term == "loss" else f"term {term}",
                f"Curves of {term} over training steps; last values: " + _last(everyone, term),
                PANEL,
                lambda figure, term=term: _curve_panel(figure, everyone, term),  # type: ignore[misc]
                [group for group in everyone if any(term in run.keys for run in group.runs)],
                MARGINS,
            )
        )
    return drawings


def shown(album: Album, study: Study) -> list[Drawing]:
    """What the methods show of themselves over the training steps, such as distances of prototypes."""
    found = {key for key in _keys(study) if key.startswith("analysis_")}
    titles = figure_titles({name for group in study.groups for run in group.runs for name in run.methods})
    known = [key for key in (f"analysis_{name}" for name in titles) if key in found]
    keys = known + sorted(found.difference(known))
    return [
        album.draw(
            key,
            titles.get(name, name.replace("_", " ")),
            f"Curves of {name} over training steps; last values: " + _last(study.groups, key),
            PANEL,
            lambda figure, key=key: _curve_panel(figure, study.groups, key, log=False),  # type: ignore[misc]
            [group for group in study.groups if any(key in run.keys for run in group.runs)],
            MARGINS,
        )
        for key, name in ((key, key.removeprefix("analysis_")) for key in keys)
    ]


def figure_titles(methods: Iterable[str]) -> dict[str, str]:
    """The titles of what methods show of themselves, by `<method>_<figure>`.

    Args:
        methods: their names; those that this version does not have are left out.
    """
    classes = {name: method_class(name) for name in sorted(methods) if name in list_methods()}
    return {
        f"{name}_{figure}": f"{cls.__name__}: {title}"
        for name, cls in classes.items()
        for figure, title in cls.figures.items()
    }


def _keys(study: Study) -> set[str]:
    return {key for group in study.groups for run in group.runs for key in run.keys}


def _is_term(key: str) -> bool:
    return key not in ("step", *COSTS) and not key.startswith(SHOWN)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A long series averaged in pieces."""
    if len(points) <= POINTS:
        return list(points)
    pieces = np.array_split(np.asarray(points), POINTS)
    return [(float(x), float(y)) for x, y in (piece.mean(0) for piece in pieces)]


def _last(groups: Sequence[Group], key: str, factor: float = 1.0) -> str:
    told = []
    for group in groups:
        ends = [points[-1][1] for run in group.runs if (points := run.series(key))]
        if ends:
            told.append(f"{group.label} {factor * float(np.mean(ends)):.4g}")
    return ", ".join(told)


def _lines(axes: "Axes", groups: Sequence[Group], key: str) -> list[float]:
    """One line per run, or per group where they would be too many; one colour per group; returns all values."""
    values: list[float] = []
    means = sum(bool(run.series(key)) for group in groups for run in group.runs) > LINES
    for group in groups:
        for series in [group.mean_series(key)] if means else [run.series(key) for run in group.runs]:
            points = _thin(series)
            values += [y for _, y in points]
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                xs,
                ys,
                color=group.colour,
                ls=DASHES[group.cycle % len(DASHES)],
                alpha=0.95 if means or len(group.runs) == 1 else 0.6,
                marker="o" if len(points) < 12 else None,
                ms=2.5,
                gid=f"series-{group.slot}",
            )
    return values


def _miou(figure: "Figure", study: Study) -> None:
    axes = figure.subplots()
    _lines(axes, study.groups, "val_miou")
    teacher = study.teacher.result("miou") if study.teacher else None
    if teacher is not None:
        axes.axhline(teacher.mean, color=INK, ls="--", lw=1)
        note(axes, f"teacher {100 * teacher.mean:.1f}")
    axes.set_xlabel("step")
    percent_axis(axes.yaxis)


def _curve_panel(figure: "Figure", groups: Sequence[Group], key: str, *, log: bool = True) -> None:
    axes = figure.subplots()
    values = _lines(axes, groups, key)
    if log and values and min(values) > 0 and max(values) > 20 * min(values):
        log_scale(axes.yaxis)
    axes.set_xlabel("step")
