"""Further metrics of a comparison: the figures that stand for them, of a run, of a row, and as numbers of a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from segdistill.comparison.notes import Comparison
from segdistill.comparison.statistics import mean_and_deviation, paired_interval
from segdistill.metrics import metric_class

ENDS = {"difference": "_difference", "low": "_difference_low", "high": "_difference_high"}
ENDS |= {"within_noise": "_difference_within_noise", "p": "_difference_p", "holm": "_difference_p_holm"}
"""Entries of a difference, and how the names of their columns end."""

Figures = Mapping[str, Mapping[str, float | None]]
"""By metric and by name, what stands for it in tables."""


def describe_metrics(names: Sequence[str]) -> list[dict[str, Any]]:
    """The figures that stand for metrics, each as `metric`, `key`, `title`, `share`, `better`.

    Args:
        names: of metrics.
    """
    told = []
    for name in names:
        for key, headline in metric_class(name).headlines.items():
            entry = {"metric": name, "key": key, "title": headline.title}
            told.append({**entry, "share": headline.share, "better": headline.better})
    return told


def pick_figures(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Of all that metrics found, the figures that stand for them; None where it could not be said.

    Args:
        found: by metric, what its `compute` gave.
        names: of the metrics.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for line in describe_metrics(names):
        value = (found.get(line["metric"]) or {}).get(line["key"])
        figures.setdefault(line["metric"], {})[line["key"]] = value
    return figures


def summarise_figures(
    told: Sequence[Mapping[str, Any]],
    runs: Sequence[Figures],
    pairs: Sequence[tuple[Figures, Figures]],
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """The figures of a row: mean and deviation over the seeds, and the paired difference from the baseline.

    Args:
        told: as `describe_metrics` gives it.
        runs: of each run of the row, its figures.
        pairs: of each seed that both finished, the row's figures and the baseline's.
        confidence: of the interval.

    Returns:
        By metric and by name: `mean`, `deviation`, `pairs`, `difference`, the last one as `Interval.as_dict` gives it.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in told:
        name, key = line["metric"], line["key"]
        known = [value for figures in runs if (value := figures[name][key]) is not None]
        mean, deviation = mean_and_deviation(known) if known else (None, None)
        both = [(a, b) for own, its in pairs if (a := own[name][key]) is not None and (b := its[name][key]) is not None]
        interval = paired_interval([a for a, _ in both], [b for _, b in both], confidence) if both else None
        found.setdefault(name, {})[key] = {
            "mean": mean,
            "deviation": deviation,
            "pairs": len(both),
            "difference": None if interval is None else interval.as_dict(),
        }
    return found


def further_figures(result: Comparison) -> list[list[Any]]:
    """The figures as plain numbers: the names of the columns, then the values of each teacher, then of each row.

    Args:
        result: what `gather` returned; an older one has none.
    """
    told = result.get("metrics") or []
    lines: list[list[Any]] = [
        [f"{x['metric']}_{x['key']}{end}" for x in told for end in ("", "_deviation", *ENDS.values())]
    ]
    for teacher in result["teachers"].values():
        lines.append([])
        for line in told:
            lines[-1] += [teacher["metrics"][line["metric"]][line["key"]], *([None] * (1 + len(ENDS)))]
    for row in result["rows"]:
        lines.append([])
        for line in told:
            found = row["metrics"][line["metric"]][line["key"]]
            difference = found["difference"] or {}
            lines[-1] += [found["mean"], found["deviation"], *map(difference.get, ENDS)]
    return lines
