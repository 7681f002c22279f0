"""From run folders to one comparison: means, spreads, differences, intervals and costs of each row."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from segdistill._version import __version__
from segdistill.compare.plan import Plan, Run
from segdistill.compare.statistics import bootstrap_interval, gap_closed, mean_and_deviation, paired_interval
from segdistill.engine.checkpoint import METRICS, SUMMARY, read_json

COMPARISON = "compare.json"
FORMAT = 1


def evaluation_path(folder: Path, split: str) -> Path:
    """Where a run's evaluation is."""
    return folder / f"eval_{split}.json"


def counts_path(folder: Path, split: str) -> Path:
    """Where the counts of a run's images are: the tensor `counts`, (images,3,C), as `image_counts` gives them."""
    return folder / f"eval_{split}_images.safetensors"


def gather(
    plan: Plan, teachers: Mapping[str, Any], failed: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the runs of a comparison and hold each method against the baseline of its student and data.

    Args:
        plan: of the comparison.
        teachers: by data set, what `evaluate_teacher` returned.
        failed: one line by the name of the run.
        facts: further entries.

    Returns:
        `split`, `budget`, `confidence`, `baseline`, …; `teachers`; `rows`, one per data set, student and method;
        `runs`, one per folder. Figures are shares in 0…1, bytes and seconds.
    """
    options = plan.options
    runs = {run.folder: _read(run, options.split, failed.get(run.folder.name)) for run in plan.runs}
    rows = []
    for (data, student, method), members in plan.rows().items():
        entries = [runs[run.folder] for run in members]
        row: dict[str, Any] = {"data": data, "student": student, "method": method, "baseline": method == plan.baseline}
        row |= _summary(entries)
        against = [runs[run.folder] for run in plan.rows().get((data, student, plan.baseline), [])]
        row |= _difference(plan, entries, [] if row["baseline"] else against)
        teacher = teachers.get(data, {}).get("miou")
        base = [entry["miou"] for entry in _done(against)]
        closed = None
        if base and teacher is not None and row["miou"] is not None and not row["baseline"]:
            closed = gap_closed(row["miou"], statistics.fmean(base), teacher)
        rows.append({**row, "gap_closed": closed})
    return {
        "format": FORMAT,
        "segdistill": __version__,
        "split": options.split,
        "budget": options.budget,
        "seconds": options.seconds,
        "seeds": options.seeds,
        "confidence": options.confidence,
        "resamples": options.resamples,
        "baseline": plan.baseline,
        **facts,
        "teachers": dict(teachers),
        "rows": rows,
        "runs": list(runs.values()),
    }


def _read(run: Run, split: str, error: str | None) -> dict[str, Any]:
    """One run's entry; its figures only if it ended."""
    entry: dict[str, Any] = {
        "folder": run.folder.name,
        "data": run.data,
        "student": run.student,
        "method": run.method,
        "seed": run.seed,
        "status": "failed" if error else "done",
        "error": error,
    }
    if error:
        return entry
    summary, evaluation = (read_json(path) for path in (run.folder / SUMMARY, evaluation_path(run.folder, split)))
    entry |= {key: evaluation[key] for key in ("miou", "macc", "pixel_accuracy", "iou")}
    entry |= {key: summary[key] for key in ("steps", "best_step", "params", "flops", "flops_size", "peak_memory")}
    entry |= {"val_miou": summary["miou"], "seconds": summary["seconds"]}
    entry |= training_time(run.folder / METRICS, run.config.data.batch_size)
    return entry | {"counts": str(counts_path(Path(run.folder.name), split))}


def training_time(metrics: Path, batch_size: int) -> dict[str, float | None]:
    """Seconds per step (median) and of the whole training, without validation, from a run's record.

    Args:
        metrics: the `metrics.jsonl` of the run.
        batch_size: images with labels per step.
    """
    times, total, before = [], 0.0, 0
    for line in map(json.loads, metrics.read_text().splitlines()):
        if "images_per_s" in line:
            times.append(batch_size / line["images_per_s"])
            total += times[-1] * (line["step"] - before)
            before = line["step"]
    steady = times[1:] or times  # the first record has the warm-up
    return {"seconds_per_step": statistics.median(steady) if steady else None, "training_seconds": total or None}


def _done(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["status"] == "done" and entry["miou"] is not None]


def _summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = _done(entries)
    failed = [f"{entry['folder']}: {entry['error']}" for entry in entries if entry["status"] == "failed"]
    row: dict[str, Any] = {"runs": len(entries), "seeds": [entry["seed"] for entry in done], "errors": failed}
    row["mious"] = [entry["miou"] for entry in done]
    row["miou"], row["miou_deviation"] = mean_and_deviation(row["mious"]) if done else (None, None)
    for key in ("macc", "pixel_accuracy", "val_miou", "seconds_per_step", "training_seconds"):
        known = [entry[key] for entry in done if entry[key] is not None]
        row[key] = statistics.fmean(known) if known else None
    row["iou"] = {
        name: statistics.fmean(known)
        if (known := [e["iou"][name] for e in done if e["iou"][name] is not None])
        else None
        for name in (done[0]["iou"] if done else ())
    }
    row["peak_memory"] = max((entry["peak_memory"] for entry in done), default=None)
    return row | {key: done[0][key] if done else None for key in ("steps", "params", "flops", "flops_size")}


def _difference(
    plan: Plan, entries: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The row's difference from the baseline over the seeds that both finished: paired, and over images."""
    mine, theirs = ({entry["seed"]: entry for entry in _done(side)} for side in (entries, against))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return {"difference": None, "bootstrap": None}
    confidence = plan.options.confidence
    paired = paired_interval([mine[s]["miou"] for s in seeds], [theirs[s]["miou"] for s in seeds], confidence)
    counts, base = (
        torch.stack([load_file(plan.out / side[s]["counts"])["counts"] for s in seeds]) for side in (mine, theirs)
    )
    images = bootstrap_interval(counts, base, confidence, resamples=plan.options.resamples)
    return {"difference": paired.as_dict(), "bootstrap": images.as_dict()}
