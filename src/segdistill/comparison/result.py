"""From run folders to one comparison: means, spreads, differences, intervals and costs of each row."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segdistill._printing import one_line
from segdistill._version import __version__
from segdistill.comparison.plan import Cell, GridConfig, Plan
from segdistill.comparison.statistics import bootstrap_interval, gap_closed, mean_and_deviation, paired_interval
from segdistill.engine.record import read_records
from segdistill.engine.run_folder import METRICS, SUMMARY, read_json

COMPARISON = "compare.json"
FORMAT = 2
"""Of `compare.json`; the report reads no other."""


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
        `split`, `budget`, `confidence`, `baseline`, …; `teachers` and `protocols` by data set; `rows`, one per data
        set, student and method; `runs`, one per folder. Figures are shares in 0…1, bytes and seconds.
    """
    options = plan.options
    runs: dict[Path, dict[str, Any]] = {}
    counts: dict[str, Tensor] = {}
    for run in plan.runs:
        error = failed.get(run.folder.name)
        found: dict[str, Any] = {}
        if error is None:
            try:
                found, counts[run.folder.name] = _read(run, options.split)
            except (ValueError, OSError, KeyError, SafetensorError) as unreadable:
                line = one_line(f"{type(unreadable).__name__}: {unreadable}")
                error = f"{line} (delete {run.folder} to start it afresh)"
        place = {key: getattr(run, key) for key in ("data", "student", "method", "seed")}
        status = {"status": "failed" if error else "done", "error": error}
        runs[run.folder] = {"folder": run.folder.name, **place, **status, **found}
    rows = []
    for (data, student, method), members in plan.rows().items():
        entries = [runs[run.folder] for run in members]
        row: dict[str, Any] = {"data": data, "student": student, "method": method, "baseline": method == plan.baseline}
        row |= _summary(entries)
        against = [runs[run.folder] for run in plan.rows().get((data, student, plan.baseline), [])]
        teacher = teachers.get(data, {}).get("miou")
        absent = members[0].config.eval.absent
        rows.append(row | _difference(options, entries, [] if row["baseline"] else against, counts, teacher, absent))
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
        "protocols": {run.data: run.config.eval.describe() for run in plan.runs},
        "teachers": dict(teachers),
        "rows": rows,
        "runs": list(runs.values()),
    }


def _read(run: Cell, split: str) -> tuple[dict[str, Any], Tensor]:
    """A run's figures, and the counts of its images."""
    scores = ("miou", "macc", "pixel_accuracy", "iou")
    costs = ("steps", "best_step", "params", "flops", "flops_size", "peak_memory")
    summary = read_json(run.folder / SUMMARY, ("miou", "seconds", *costs))
    evaluation = read_json(evaluation_path(run.folder, split), scores)
    entry = {key: evaluation[key] for key in scores} | {key: summary[key] for key in costs}
    entry |= {"val_miou": summary["miou"], "seconds": summary["seconds"]}
    entry |= training_time(run.folder / METRICS, run.config.data.batch_size)
    path = counts_path(run.folder, split)
    return entry | {"counts": f"{run.folder.name}/{path.name}"}, load_file(path)["counts"]


def training_time(metrics: Path, batch_size: int) -> dict[str, float | None]:
    """Seconds per step (median) and of the whole training, without validation, from a run's record.

    Args:
        metrics: the `metrics.jsonl` of the run.
        batch_size: images with labels per step.
    """
    times, total, before = [], 0.0, 0
    for line in read_records(metrics):
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
    options: GridConfig,
    entries: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Tensor],
    teacher: float | None,
    absent: Literal["skip", "zero"],
) -> dict[str, Any]:
    """The row's difference from the baseline over the seeds that both finished: paired, over images, of the gap."""
    mine, theirs = ({entry["seed"]: entry for entry in _done(side)} for side in (entries, against))
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return {"pairs": 0, "difference": None, "bootstrap": None, "gap_closed": None}
    shapes = {counts[side[seed]["folder"]].shape for seed in seeds for side in (mine, theirs)}
    if len(shapes) > 1:
        told = ", ".join(sorted(str(shape[0]) for shape in shapes))
        raise ValueError(f"the runs were evaluated on different images ({told}); delete their eval_* files")
    values, base = ([side[seed]["miou"] for seed in seeds] for side in (mine, theirs))
    paired = paired_interval(values, base, options.confidence)
    ours, its = (torch.stack([counts[side[seed]["folder"]] for seed in seeds]) for side in (mine, theirs))
    images = bootstrap_interval(ours, its, options.confidence, resamples=options.resamples, absent=absent)
    closed = None if teacher is None else gap_closed(statistics.fmean(values), statistics.fmean(base), teacher)
    return {
        "pairs": len(seeds),
        "difference": paired.as_dict(),
        "bootstrap": images.as_dict(),
        "gap_closed": closed,
    }
