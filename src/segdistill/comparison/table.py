"""A comparison as text: one set of cells, written as Markdown, LaTeX, and for the terminal; and all figures as CSV."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdistill.comparison.further import further_figures
from segdistill.comparison.labels import PLACES, named_places
from segdistill.comparison.notes import Comparison, notes, verdict
from segdistill.comparison.statistics import MOST_SEEDS
from segdistill.engine.run_folder import write_text

TEXTS = ("data", "labels", "student", "method", "verdict")
"""Columns that are not figures."""

TESTS = ("p seeds", "p images", "seeds for +1")
"""Columns on how sure a difference is."""

ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
"""Which way a figure is better, behind its title."""

COSTS = ("steps", "s/step", "memory MiB", "params M", "GFLOPs")
"""Columns that say what a row cost."""


def write_tables(result: Comparison, folder: Path) -> None:
    """Write `compare.csv`, `compare.md` and `compare.tex`.

    Args:
        result: what `gather` returned.
        folder: of the comparison.
    """
    lines = io.StringIO()
    csv.writer(lines).writerows(figures(result))
    write_text(folder / "compare.csv", lines.getvalue())
    write_text(folder / "compare.md", markdown(result))
    write_text(folder / "compare.tex", latex(result))


def cells(result: Comparison) -> tuple[list[str], list[list[str]]]:
    """The header and the rows: each teacher, then the methods of each student, held against the baseline.

    Args:
        result: what `gather` returned.
    """
    places = _places(result)
    score = f"{result['split']} mIoU %"
    header = [*places.values(), "method", score, *_differences(result), "gap closed", *COSTS]
    lines = []
    for data, teacher in result["teachers"].items():
        at = _teacher_place(data, teacher)
        unknown = ["–"] * (len(header) - len(places) - 4)
        lines.append([*(at.get(key, "–") for key in places), "teacher", _percent(teacher["miou"]), *unknown])
        lines[-1] += [_scaled(teacher["params"], 1e6, 2), _scaled(teacher["flops"], 1e9, 1)]
    for row in result["rows"]:
        told = _difference(row, result["confidence"], "baseline" if row["baseline"] else "–")
        closed = "–" if row["gap_closed"] is None else f"{100 * row['gap_closed']:.0f} %"
        lines.append([*_place(row, places), row["method"], _score(row), *told, closed, *_costs(row)])
    return header, lines


def against_cells(result: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """The header and the rows of the methods held against the one that was named; None where none was.

    Args:
        result: what `gather` returned.
    """
    if result["against"] is None:
        return None
    places = _places(result)
    rows = [row for row in result["rows"] if not row["baseline"] and row["method"] != result["against"]]
    header = [*places.values(), "method", *_differences(result)]
    return header, [
        [*_place(row, places), row["method"], *_difference(row["against"], result["confidence"])] for row in rows
    ]


def further_cells(result: Comparison, metric: str | None = None) -> tuple[list[str], list[list[str]]] | None:
    """The header and the rows of the further metrics' figures, teachers first; None where none was asked for.

    Args:
        result: what `gather` returned; an older one has none.
        metric: the only one that is meant.
    """
    told = [line for line in result.get("metrics") or () if metric in (None, line["metric"])]
    if not told:
        return None
    places = _places(result)
    header = [*places.values(), "method", *(line["title"] + ARROWS[line["better"]] for line in told)]
    lines = []
    for data, teacher in result["teachers"].items():
        at = _teacher_place(data, teacher)
        means = [{"mean": teacher["metrics"][line["metric"]][line["key"]]} for line in told]
        own = [_figure(*pair, result["confidence"]) for pair in zip(told, means, strict=True)]
        lines.append([*(at.get(key, "–") for key in places), "teacher", *own])
    for row in result["rows"]:
        own = [_figure(line, row["metrics"][line["metric"]][line["key"]], result["confidence"]) for line in told]
        lines.append([*_place(row, places), row["method"], *own])
    return header, lines


def _figure(told: Mapping[str, Any], found: Mapping[str, Any], confidence: float) -> str:
    """A figure, its deviation, and its difference from the baseline, with a star where that is more than noise."""
    if found["mean"] is None:
        return "–"
    factor, digits = (100, 2) if told["share"] else (1, 4)
    text = f"{factor * found['mean']:.{digits}f}"
    if found.get("deviation") is not None:
        text += f" ± {factor * found['deviation']:.{digits}f}"
    difference = found.get("difference")
    if difference is None:
        return text
    star = "*" if difference["holm"] is not None and difference["holm"] < 1 - confidence else ""
    return f"{text} ({factor * difference['difference']:+.{digits}f}{star})"


def _differences(result: Comparison) -> list[str]:
    percent = f"{100 * result['confidence']:g} %"
    return ["difference", f"over seeds {percent}", f"over images {percent}", *TESTS[:2], "verdict", TESTS[2]]


def figures(result: Comparison) -> list[list[Any]]:
    """All figures of the rows as plain numbers, header first; those of the teachers have no seeds.

    Args:
        result: what `gather` returned.
    """
    plain = ["miou", "miou_deviation", "macc", "pixel_accuracy", "val_miou"]
    costs = ["gap_closed", "steps", "seconds_per_step", "training_seconds", "peak_memory", "params", "flops"]
    ends = {"difference": "", "low": "_low", "high": "_high", "within_noise": "_within_noise", "p": "_p"}
    ends["holm"] = "_p_holm"
    seeds = ("sign_flip_p", "seeds_needed")
    sides = ["", *(["against_"] if result["against"] is not None else [])]
    kinds = ("difference", "bootstrap")
    ranges = [f"{s}{k}{end}" for s in sides for k in kinds for end in (*ends.values(), *(f"_{key}" for key in seeds))]
    ranges = [name for name in ranges if not name.endswith(tuple(f"bootstrap_{key}" for key in seeds))]
    table: list[list[Any]] = [[*PLACES, "method", "seeds", *plain, *ranges, *costs, "errors"]]
    for data, teacher in result["teachers"].items():
        at = _teacher_place(data, teacher)
        row = [*map(at.get, PLACES), "teacher", "", *(teacher.get(key) for key in plain)]
        table.append([*row, *([None] * len(ranges)), *(teacher.get(key) for key in costs), ""])
    for row in result["rows"]:
        place = [*map(row.get, PLACES), row["method"], " ".join(map(str, row["seeds"]))]
        table.append([*place, *(row[key] for key in plain)])
        for side in (row, row["against"])[: len(sides)]:
            for kind in kinds:
                values = side[kind] or {}
                table[-1] += [values.get(key) for key in (*ends, *(seeds if kind == "difference" else ()))]
        table[-1] += [*(row[key] for key in costs), "; ".join(row["errors"])]
    return [line + more for line, more in zip(table, further_figures(result), strict=True)]


def markdown(result: Comparison) -> str:
    """The tables in Markdown, with their notes.

    Args:
        result: what `gather` returned.
    """

    def table(header: list[str], rows: list[list[str]]) -> str:
        lines = [header, ["---" if name in TEXTS else "---:" for name in header], *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    parts = [table(*cells(result))]
    for title, told in _others(result).items():
        parts += [f"{title}:", table(*told)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(result))]) + "\n"


def _others(result: Comparison) -> dict[str, tuple[list[str], list[list[str]]]]:
    """The tables below the first one, those that there are, by their titles."""
    found = {f"Against {result['against']}": against_cells(result), "Further metrics": further_cells(result)}
    return {title: told for title, told in found.items() if told is not None}


def latex(result: Comparison) -> str:
    """The tables in LaTeX, for the package booktabs, with their notes as comments.

    Args:
        result: what `gather` returned.
    """

    def table(header: list[str], rows: list[list[str]]) -> list[str]:
        lines = [" & ".join(map(_escape, line)) + r" \\" for line in (header, *rows)]
        columns = "".join("l" if name in TEXTS else "r" for name in header)
        start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
        return [*start, *lines[1:], r"\bottomrule", r"\end{tabular}"]

    others = [line for title, told in _others(result).items() for line in ("", f"% {title}:", *table(*told))]
    return "\n".join([*(f"% {note}" for note in notes(result)), *table(*cells(result)), *others]) + "\n"


def _teacher_place(data: str, teacher: Mapping[str, Any]) -> dict[str, str]:
    """The entries of `PLACES` that a teacher has; it belongs to no share of labels and to no length."""
    return {"data": data, "student": teacher["network"]}


def _places(result: Comparison) -> dict[str, str]:
    """Those entries in which rows differ, with the names of their columns."""
    return {key: PLACES[key] for key in named_places(result["rows"])}


def _place(row: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    return [str(row[key]) for key in places]


def _score(row: Mapping[str, Any]) -> str:
    score = _percent(row["miou"])
    if row["miou"] is not None and row["miou_deviation"] is not None:
        score += f" ± {_percent(row['miou_deviation'])}"
    if row["errors"]:
        score += f" ({len(row['errors'])} of {row['runs']} failed)"
    return score


def _difference(found: Mapping[str, Any], confidence: float, absent: str = "–") -> list[str]:
    """The cells on a difference, in the order of `_differences`."""
    seeds, images = found["difference"], found["bootstrap"]
    needed = "–"
    if seeds is not None and seeds["deviation"] is not None:
        needed = f"> {MOST_SEEDS}" if seeds["seeds_needed"] is None else str(seeds["seeds_needed"])
    return [
        "–" if seeds is None else f"{100 * seeds['difference']:+.2f}",
        _interval(seeds),
        _interval(images),
        _probability(seeds),
        _probability(images),
        absent if seeds is None else verdict(seeds, confidence),
        needed,
    ]


def _costs(row: Mapping[str, Any]) -> list[str]:
    return [
        "–" if row["steps"] is None else str(row["steps"]),
        _scaled(row["seconds_per_step"], 1, 3),
        _scaled(row["peak_memory"], 2**20, 0),
        _scaled(row["params"], 1e6, 2),
        _scaled(row["flops"], 1e9, 1),
    ]


def _probability(values: Mapping[str, Any] | None) -> str:
    p = None if values is None else values["holm"]
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(values: Mapping[str, float | None] | None) -> str:
    low, high = (values or {}).get("low"), (values or {}).get("high")
    return "–" if low is None or high is None else f"[{100 * low:+.2f}, {100 * high:+.2f}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"


def _escape(text: str) -> str:
    marks = {mark: rf"\{mark}" for mark in "%_&#{}$"}
    marks |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    marks |= {"±": r"$\pm$", "–": "--", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    return "".join(marks.get(character, character) for character in text)
