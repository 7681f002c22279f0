"""`segdistill report`: runs on one page that a person wants to look at, and its figures as files for a paper."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from segdistill._types import Stages
from segdistill.comparison.result import COMPARISON, FORMAT
from segdistill.engine.run_folder import make_folder, stored_json, write_text
from segdistill.report import curves, panels
from segdistill.report.classes import Matrix, class_rows, improvement, largest_changes, stored_confusions
from segdistill.report.comparison import draw_comparison
from segdistill.report.exhibits import exhibits
from segdistill.report.figures import Album, Format, style
from segdistill.report.formats import draw_formats, stored_formats
from segdistill.report.gradients import gradients
from segdistill.report.inference import Survey, image_means, survey
from segdistill.report.metrics import find_metrics, metric_figures
from segdistill.report.page import Content, render
from segdistill.report.pictures import make_cards, write_sheets
from segdistill.report.study import Study, read_study
from segdistill.report.teachers import take_compared

PAGE, FIGURES = "index.html", "figures"
MOST_IMAGES = 40


def write_report(
    runs: Sequence[str | Path],
    *,
    baseline: str | Path | None = None,
    teacher: str | Path | None = None,
    out: str | Path | None = None,
    images: int = 4,
    figures: Format | None = None,
    device: str = "auto",
    say: Callable[[str], object] = print,
    progress: Stages | None = None,
) -> Path:
    """Write a report on runs: one page that needs nothing else.

    Args:
        runs: run folders, or folders of them; runs that differ in their seed only are shown as mean ± deviation.
        baseline: what students are compared with (default: the runs among them without a teacher).
        teacher: the teacher's run (default: the one that the configurations name).
        out: folder of the report (default: `report/` in the first of the runs).
        images: how many of the images where distillation helped most are shown, and as many where it hurt most; 0
            leaves out all that needs the networks: pictures, confusions and prototypes at the end of training.
        figures: write the page's figures, each with its title and legend, into `figures/` beside it as well: png, pdf
            or svg; the pictures always as PNG.
        device: on which the networks run.
        say: prints a line.
        progress: called with what the networks look at; a context that gives a function of (images done, in all).

    Returns:
        The path of the page.

    Raises:
        ValueError: if there is no run, the runs' classes differ, or matplotlib or jinja2 is missing.
    """
    if figures not in (None, *get_args(Format)):
        raise ValueError(f"figures: expected one of {', '.join(get_args(Format))}, got {figures}")
    if not 0 <= images <= MOST_IMAGES:
        raise ValueError(f"images: expected 0 to {MOST_IMAGES}, got {images}")
    with style():
        study = read_study(runs, baseline=baseline, teacher=teacher)
    folder = Path(out) if out is not None else Path(runs[0]).expanduser() / "report"
    make_folder(folder)
    album = Album(folder / FIGURES, figures)
    content = Content(study, class_rows(study, study.focus))
    folders = [Path(run).expanduser() for run in runs]
    tables = {folder: table for folder in folders if (table := stored_json(folder / COMPARISON))}
    whole = {folder: table for folder, table in tables.items() if table.get("format") == FORMAT}
    content.comparisons = [
        draw_comparison(album, table, folder, f"compare{number or ''}")
        for number, (folder, table) in enumerate(whole.items())
    ]
    if len(whole) < len(tables):
        study.notes.append(f"No verdicts: {COMPARISON} is not of this version; run the comparison's command again.")
    if study.teacher is not None and study.members:
        for compared, table in whole.items():
            take_compared(study.teacher.first, study.focus.first, compared, table)
    if images:
        try:
            with survey(study, device, say, progress) as found:
                _look(content, album, found, images)
        except (ValueError, OSError) as error:
            study.notes.append(f"No pictures: {error}")
            say(study.notes[-1])
    elif study.members:
        study.notes.append(
            "The mean of the teachers has no figures here, which need the networks: leave out --images 0."
        )
    content.curves = curves.curves(album, study)
    content.gradients = gradients(album, study)
    content.prototypes = curves.shown(album, study) + content.prototypes
    split, confusions = stored_confusions(study) if not content.confusion_split else ("", {})
    if confusions:
        _compare(content, album, split, confusions)
    if content.rows:
        content.classes = [panels.class_bars(album, study, content.rows, study.focus.label)]
        content.classes += panels.gains(album, content.rows) + content.gains_by_image
    content.metrics = find_metrics(study)
    if content.metrics is not None:
        content.further = metric_figures(album, content.metrics)
    content.costs = [drawing for drawing in [panels.cost(album, study)] if drawing is not None]
    measured = stored_formats(study.focus.first.folder)
    content.costs += [] if measured is None else [draw_formats(album, measured)]
    page = folder / PAGE
    write_text(page, render(content))
    return page


def _look(content: Content, album: Album, found: Survey, images: int) -> None:
    """Everything that needs the networks."""
    study = content.study
    focus, baseline = study.focus, study.baseline(study.focus)
    _compare(content, album, "validation", found.confusion)
    content.features = found.features
    content.prototypes += panels.distances(album, found.features, study, "features")
    content.prototypes += panels.distances(album, found.scores, study, "scores")
    content.palette = found.dataset.palette
    content.exhibits = exhibits(album, found, study)
    if baseline is not None and {focus.label, baseline.label} <= found.by_image.keys():
        values = [image_means(found.by_image, group.label) for group in (baseline, focus)]
        content.gains_by_image = panels.image_gains(album, *values)
    if focus.label in found.networks:
        other = baseline.label if baseline and baseline.label in found.networks else None
        content.cards = make_cards(found, focus.label, other, images)
        if album.kind is not None:
            write_sheets(album.folder, content.cards, focus.label, other)


def _compare(content: Content, album: Album, split: str, confusions: dict[str, Matrix]) -> None:
    """Confusions of the student in focus against baseline and teacher, and pixel shares."""
    study: Study = content.study
    focus, baseline = study.focus, study.baseline(study.focus)
    content.rows = class_rows(study, focus, next(iter(confusions.values())))
    content.share_split = split
    own = confusions.get(focus.label)
    for group, name in ((baseline, "baseline"), (study.teacher, "teacher")):
        if own is None or group is None or group.label not in confusions:
            continue
        change = improvement(own, confusions[group.label])
        content.confusion_split = split
        content.confusions.append(
            panels.confusion(album, change, study.classes, focus.label, group.label, name),
        )
        if group is baseline:
            content.changes = largest_changes(change, study.classes)


__all__ = ["write_report"]
