"""The page: one HTML file with its style, script, figures and pictures inside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segdistill._version import __version__
from segdistill.comparison.notes import notes
from segdistill.comparison.statistics import gap_closed
from segdistill.comparison.table import COSTS, TEXTS, against_cells, cells, further_cells
from segdistill.engine.presets import in_words
from segdistill.report.classes import ClassRow, gain_table
from segdistill.report.collect import SCORES, Run, Spread
from segdistill.report.comparison import Compared
from segdistill.report.curves import LINES
from segdistill.report.exhibits import Shown, by_kind
from segdistill.report.figures import Drawing, signed
from segdistill.report.metrics import Found, lines
from segdistill.report.pictures import BOTH, BROKEN, FIXED, Card
from segdistill.report.prototypes import ClassDistances
from segdistill.report.study import Group, Study

HERE = Path(__file__).parent
OTHERS = ("train", "test")
"""Splits beside val whose mean IoU is shown where `segdistill eval --split` was run."""


@dataclass
class Content:
    """What the page shows; a list that is empty is a section that is left out."""

    study: Study
    rows: list[ClassRow]
    comparisons: list[Compared] = field(default_factory=list)
    curves: list[Drawing] = field(default_factory=list)
    gradients: list[Drawing] = field(default_factory=list)
    classes: list[Drawing] = field(default_factory=list)
    gains_by_image: list[Drawing] = field(default_factory=list)
    exhibits: list[Shown] = field(default_factory=list)
    prototypes: list[Drawing] = field(default_factory=list)
    confusions: list[Drawing] = field(default_factory=list)
    costs: list[Drawing] = field(default_factory=list)
    metrics: Found | None = None
    further: list[Drawing] = field(default_factory=list)
    changes: list[tuple[str, str, float]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    features: dict[str, ClassDistances] = field(default_factory=dict)
    confusion_split: str = ""
    share_split: str = ""


def render(content: Content) -> str:
    """The page as text.

    Args:
        content: what it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": figure,
        "percent": percent,
        "points": points,
        "rgb": lambda colour: "rgb({},{},{})".format(*colour),
        "short": short,
        "tint": tint,
    }
    study, focus = content.study, content.study.focus
    baseline = study.baseline(focus)
    layers: dict[str, str] = {layer.key: layer.label for card in content.cards for layer in card.layers}
    return environment.get_template("page.html.j2").render(
        content=content,
        study=study,
        focus=focus,
        baseline=baseline,
        size=(focus.runs[0].config.get("data") or {}).get("size"),
        protocol=_protocol(focus.runs[0]),
        tiles=tiles(study),
        means=LINES if sum(len(group.runs) for group in study.groups) > LINES else None,
        table=[_line(study, group) for group in study.everyone],
        verdicts=[_verdicts(result) for result in content.comparisons],
        others=[
            split for split in ("train", "test") if any(group.evaluation(split, "miou") for group in study.everyone)
        ],
        further=[] if content.metrics is None else lines(content.metrics),
        exhibits=list(by_kind(content.exhibits)),
        gains=gain_table(study, content.rows),
        students=[group for group in study.groups if group.role == "student" and study.baseline(group)],
        layers=layers,
        legend=[("repaired", FIXED), ("broken", BROKEN), ("wrong in both", BOTH)],
        colours=dict(zip(study.classes, content.palette, strict=False)),
        facts=[_facts(run) for run in study.all_runs],
        version=__version__,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        markup=Markup,
    )


def tiles(study: Study) -> list[tuple[str, str, str]]:
    """The figures at the head of the page: what, how much, a remark."""
    focus = study.focus
    miou, gain, teacher = focus.result("miou"), study.gain(focus), study.teacher
    found = [] if miou is None else [("mIoU", percent(miou), f"{focus.label}, {_seeds(focus)}")]
    baseline = study.baseline(focus)
    if gain is not None and baseline is not None:
        found.append(("gain", points(gain), f"points over {baseline.label}, validation split"))
    best = teacher.result("miou") if teacher else None
    if teacher is None or best is None or miou is None:
        return found
    start = study.start(focus)
    closed = None if start is None else gap_closed(miou.mean, start.mean, best.mean)
    if closed is not None:
        remark = f"of the way from {percent(start)} to the teacher's {percent(best)}"
        found.append(("gap closed", f"{100 * closed:.0f} %".replace("-", "−"), remark))
    else:
        found.append(("teacher", percent(best), teacher.runs[0].network))
    own, its = focus.result("params"), teacher.result("params")
    if own is not None and its is not None and own.mean > 0:
        remark = f"{own.mean / 1e6:.2f} M parameters, the teacher {its.mean / 1e6:.2f} M"
        found.append(("smaller", f"{its.mean / own.mean:.1f}×", remark))
    return found


def percent(value: Spread | float | None) -> str:
    """A share in percent, with its deviation over seeds; a dash where it is unknown."""
    if value is None:
        return "–"
    if isinstance(value, Spread):
        return f"{100 * value.mean:.2f}" + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")
    return f"{100 * value:.1f}"


def points(value: Spread | float | None) -> str:
    """A difference of shares in points, with its deviation; a dash where it is unknown."""
    if value is None:
        return "–"
    if isinstance(value, Spread):
        return f"{100 * value.mean:+.2f}".replace("-", "−") + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")
    return signed(value)


def short(value: Spread | float | None, factor: float = 1.0) -> str:
    """A cost with three digits, and its mean over seeds; a dash where it is unknown."""
    value = value.mean if isinstance(value, Spread) else value
    if value is None:
        return "–"
    value *= factor
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figure(value: Spread | None) -> str:
    """A figure that is no share, with its deviation over seeds; a dash where it is unknown."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" + ("" if value.sd is None else f" ± {value.sd:.3f}")


def tint(gain: float | None) -> str:
    """A background for a gain: blue above 0, orange below, stronger up to 10 points."""
    if gain is None:
        return "transparent"
    colour = "31,119,201" if gain >= 0 else "230,97,1"
    return f"rgba({colour},{min(abs(gain) / 0.1, 1.0) * 0.5:.2f})"


def _seeds(group: Group) -> str:
    if len(group.runs) == 1:
        return f"one run, seed {group.first.seed}" if group.first.seed is not None else "one run"
    return f"{len(group.runs)} runs"


def _protocol(run: Run) -> str | None:
    """How the run's networks were evaluated, in words; None of a run that does not say."""
    section = run.config.get("eval")
    return in_words({**section, "name": section.get("protocol")}) if isinstance(section, dict) else None


def _line(study: Study, group: Group) -> dict[str, Any]:
    """One line of the table of results and of that of costs."""
    runs = study.members if study.members and group is study.teacher else group.runs
    steps: Sequence[int] = sorted({run.done for run in runs})
    state = ", ".join(
        f"{run.name} stands at {run.done}" + (f" of {run.planned}" if run.planned else "") for run in group.unfinished
    )
    wait = group.cost("data_wait")
    return {
        "group": group,
        "network": "" if group.runs[0].network in group.label else group.runs[0].network,
        "unequal": ", ".join(study.unequal(group)),
        "seeds": len(runs),
        **{key: group.result(key) for key in (*SCORES, "params", "flops", "seconds", "peak_memory")},
        "others": {split: group.evaluation(split, "miou") for split in OTHERS},
        "gain": study.gain(group) if group.role == "student" else None,
        "steps": "–".join(str(step) for step in (steps if len(steps) == 1 else [steps[0], steps[-1]])),
        "state": state,
        "rate": group.cost("images_per_s"),
        "wait": wait,
        "memory": group.cost("memory_mb"),
    }


def _verdicts(compared: Compared) -> dict[str, Any]:
    """A comparison's own tables, without the columns of costs that the page has elsewhere, and its figures."""
    result = compared.result
    header, rows = cells(result)
    tables = [_table(f"against {result['baseline']}", header[: -len(COSTS)], [row[: -len(COSTS)] for row in rows])]
    against = against_cells(result)
    if against is not None:
        tables.append(_table(f"against {result['against']}", *against))
    further = further_cells(result)
    if further is not None:
        tables.append(_table("further metrics", *further))
    return {
        "tables": tables,
        "notes": [*notes(result, costs=False), *compared.remarks],
        "drawings": compared.drawings,
        "methods": compared.methods,
    }


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "columns": [(name, name not in TEXTS) for name in header], "rows": rows}


def _facts(run: Run) -> dict[str, Any]:
    """Where a run came from."""
    environment = run.environment
    versions = environment.get("versions") or {}
    machine = [environment.get("cpu"), *(environment.get("gpus") or [])]
    return {
        "run": run,
        "machine": ", ".join(str(part) for part in machine if part),
        "versions": ", ".join(f"{name} {version}" for name, version in list(versions.items())[:3]),
        "segdistill": environment.get("segdistill", ""),
    }
