"""A comparison as text: one set of cells, written as Markdown, LaTeX, and for the terminal; and all figures as CSV."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdistill.engine.presets import in_words
from segdistill.engine.run_folder import write_text

Comparison = Mapping[str, Any]

TEXTS = ("data", "student", "method", "verdict")
"""Columns that are not figures."""

COSTS = ("steps", "s/step", "memory MB", "params M", "GFLOPs")
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
    """The header and the rows: each teacher, then the methods of each student.

    Args:
        result: what `gather` returned.
    """
    several = {key: len({row[key] for row in result["rows"]}) > 1 for key in ("data", "student")}
    percent = f"{100 * result['confidence']:g} %"
    header = [
        *(["data"] if several["data"] else []),
        *(["student"] if several["student"] else []),
        "method",
        f"{result['split']} mIoU %",
        "difference",
        f"over seeds {percent}",
        f"over images {percent}",
        "verdict",
        "gap closed",
        *COSTS,
    ]
    lines = []
    for data, teacher in result["teachers"].items():
        lines.append([*_place(several, data, teacher["network"]), "teacher", _percent(teacher["miou"]), *["–"] * 8])
        lines[-1] += [_scaled(teacher["params"], 1e6, 2), _scaled(teacher["flops"], 1e9, 1)]
    for row in result["rows"]:
        lines.append([*_place(several, row["data"], row["student"]), *_row(row)])
    return header, lines


def notes(result: Comparison, *, costs: bool = True) -> list[str]:
    """What the table needs said below it, and the line of each run that failed.

    Args:
        result: what `gather` returned.
        costs: whether the table has the columns of costs.
    """
    seeds = result["seeds"]
    lines = [
        f"mIoU: mean ± standard deviation over {len(seeds)} seed{'s' * (len(seeds) != 1)} of the student that was best "
        f"on val. Difference from {result['baseline']}, with two intervals: over seeds, Student's t on pairs of one "
        f"seed; over images, bootstrap of {result['resamples']} resamples. The verdict is that over seeds.",
    ]
    protocols = {in_words(protocol) for protocol in result.get("protocols", {}).values()}  # none in an older file
    lines += [f"{line[0].upper()}{line[1:]}." for line in sorted(protocols)]
    if result["budget"] == "seconds":
        lines.append(f"Budget: {result['seconds']:g} s of training per run, as steps of the time measured before.")
    if costs and result["jobs"] > 1:
        lines.append(f"Times and memory with {result['jobs']} runs at a time.")
    few = {row["pairs"] for row in result["rows"] if 0 < row["pairs"] < len(seeds)}
    if few:
        lines.append(f"Differences are over the seeds that both finished, in some rows {min(few)} only.")
    sizes = {tuple(row["flops_size"]) for row in result["rows"] if row["flops_size"] and costs}
    lines += [f"GFLOPs of one image of {height}×{width}." for height, width in sorted(sizes)]
    return lines + [f"failed: {error}" for row in result["rows"] for error in row["errors"]]


def figures(result: Comparison) -> list[list[Any]]:
    """All figures of the rows as plain numbers, header first; those of the teachers have no seeds.

    Args:
        result: what `gather` returned.
    """
    plain = ["miou", "miou_deviation", "macc", "pixel_accuracy", "val_miou"]
    costs = ["gap_closed", "steps", "seconds_per_step", "training_seconds", "peak_memory", "params", "flops"]
    ranges = [f"{kind}{end}" for kind in ("difference", "bootstrap") for end in ("", "_low", "_high", "_within_noise")]
    table: list[list[Any]] = [["data", "student", "method", "seeds", *plain, *ranges, *costs, "errors"]]
    for data, teacher in result["teachers"].items():
        row = [data, teacher["network"], "teacher", "", *(teacher.get(key) for key in plain), *([None] * len(ranges))]
        table.append([*row, *(teacher.get(key) for key in costs), ""])
    for row in result["rows"]:
        table.append(
            [row["data"], row["student"], row["method"], " ".join(map(str, row["seeds"])), *(row[key] for key in plain)]
        )
        for kind in ("difference", "bootstrap"):
            values = row[kind] or {}
            table[-1] += [values.get(key) for key in ("difference", "low", "high", "within_noise")]
        table[-1] += [*(row[key] for key in costs), "; ".join(row["errors"])]
    return table


def markdown(result: Comparison) -> str:
    """The table in Markdown, with its notes.

    Args:
        result: what `gather` returned.
    """
    header, rows = cells(result)
    lines = [header, ["---" if name in TEXTS else "---:" for name in header], *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n" + "\n".join(f"- {note}" for note in notes(result)) + "\n"


def latex(result: Comparison) -> str:
    """The table in LaTeX, for the package booktabs, with its notes as comments.

    Args:
        result: what `gather` returned.
    """
    header, rows = cells(result)
    lines = [" & ".join(map(_escape, line)) + r" \\" for line in (header, *rows)]
    table = [
        rf"\begin{{tabular}}{{{''.join('l' if name in TEXTS else 'r' for name in header)}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*(f"% {note}" for note in notes(result)), *table]) + "\n"


def _place(several: Mapping[str, bool], data: str, student: str) -> list[str]:
    return [*([data] if several["data"] else []), *([student] if several["student"] else [])]


def _row(row: Mapping[str, Any]) -> list[str]:
    score = _percent(row["miou"])
    if row["miou"] is not None and row["miou_deviation"] is not None:
        score += f" ± {_percent(row['miou_deviation'])}"
    if row["errors"]:
        score += f" ({len(row['errors'])} of {row['runs']} failed)"
    return [
        row["method"],
        score,
        "–" if row["difference"] is None else f"{100 * row['difference']['difference']:+.2f}",
        _interval(row["difference"]),
        _interval(row["bootstrap"]),
        verdict(row),
        "–" if row["gap_closed"] is None else f"{100 * row['gap_closed']:.0f} %",
        "–" if row["steps"] is None else str(row["steps"]),
        _scaled(row["seconds_per_step"], 1, 3),
        _scaled(row["peak_memory"], 2**20, 0),
        _scaled(row["params"], 1e6, 2),
        _scaled(row["flops"], 1e9, 1),
    ]


def verdict(row: Mapping[str, Any]) -> str:
    """What may be said of a row's difference over the seeds, in a word or two.

    Args:
        row: of a comparison.
    """
    if row["baseline"]:
        return "baseline"
    difference = row["difference"]
    if difference is None:
        return "–"
    if difference["within_noise"] is None:
        return "one seed"
    if difference["within_noise"]:
        return "within noise"
    return "better" if difference["difference"] > 0 else "worse"


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
    marks |= {"±": r"$\pm$", "–": "--", "×": r"$\times$"}
    return "".join(marks.get(character, character) for character in text)
