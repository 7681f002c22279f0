"""From run folders to one comparison: means, spreads, differences, intervals and costs of each row."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segdistill._printing import one_line
from segdistill._version import __version__
from segdistill.comparison.bootstrap import Resampling, resampled_interval
from segdistill.comparison.cell import Cell
from segdistill.comparison.further import describe_metrics, pick_figures, summarise_figures
from segdistill.comparison.labels import PLACES
from segdistill.comparison.plan import Plan
from segdistill.comparison.statistics import (
    gap_closed,
    holm,
    mean_and_deviation,
    paired_interval,
    seeds_needed,
    sign_flip_p,
)
from segdistill.data.groups import sequences
from segdistill.engine.build import build_split
from segdistill.engine.record import read_records
from segdistill.engine.run_folder import METRICS, SUMMARY, read_json

COMPARISON = "compare.json"
FORMAT = 3
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
    """Read the runs of a comparison and hold each method against the baseline of its data, labels, length and student.

    Args:
        plan: of the comparison.
        teachers: by data set, what `evaluate_teacher` returned.
        failed: one line by the name of the run.
        facts: further entries.

    Returns:
        `split`, `budget`, `confidence`, `baseline`, `against`, …; `metrics`, the figures of further ones;
        `teachers`, `protocols` and `sequences` by data set; `rows`, one per data set, share of labels, length, student
        and method; `runs`, one per folder. Figures are shares in 0…1, bytes and seconds.

    Raises:
        ValueError: if runs on one data set were evaluated on different images, or the images' sequences are not known.
    """
    options = plan.options
    reader = _Reader(plan)
    runs = {run.folder: reader.entry(run, failed.get(run.folder.name)) for run in plan.runs}
    cells = plan.rows()
    members = {key: [runs[cell.folder] for cell in own] for key, own in cells.items()}
    told = describe_metrics(plan.runs[0].metrics)
    rows = []
    baseline, against = plan.baseline, plan.against
    for (place, method), entries in members.items():
        row: dict[str, Any] = {**dict(zip(PLACES, place, strict=True)), "method": method}
        row["labelled_images"] = cells[place, method][0].labelled_images
        row |= {"baseline": method == baseline, **_summary(entries)}
        base = [] if row["baseline"] else members.get((place, baseline), [])
        alike = row["baseline"] or against in (None, method)  # the one is held against the other already
        other = [] if alike else members.get((place, str(against)), [])
        row |= _difference(options.confidence, entries, base, reader.mious)
        row["against"] = _difference(options.confidence, entries, other, reader.mious)
        row["gap_closed"] = _gap_closed(entries, base, teachers.get(row["data"], {}).get("miou"))
        pairs = [(own["metrics"], its["metrics"]) for own, its in _pairs(entries, base)]
        row["metrics"] = summarise_figures(told, [e["metrics"] for e in _done(entries)], pairs, options.confidence)
        rows.append(row)
    correct(rows)
    correct([row["against"] for row in rows])
    for line in told:
        correct([row["metrics"][line["metric"]][line["key"]] for row in rows], ["difference"])
    return {
        "format": FORMAT,
        "segdistill": __version__,
        "split": options.split,
        "budget": options.budget,
        "seconds": options.seconds,
        "seeds": options.seeds,
        "confidence": options.confidence,
        "resamples": options.resamples,
        "baseline": baseline,
        "against": against,
        "metrics": told,
        **facts,
        "protocols": {run.data: run.config.eval.describe() for run in plan.runs},
        "sequences": {data: resampling.sequences for data, resampling in reader.resamplings.items()},
        "teachers": {
            data: {**teacher, "metrics": pick_figures(teacher.get("metrics") or {}, plan.runs[0].metrics)}
            for data, teacher in teachers.items()
        },
        "rows": rows,
        "runs": list(runs.values()),
    }


def correct(rows: Sequence[dict[str, Any]], kinds: Sequence[str] = ("difference", "bootstrap")) -> None:
    """Add to each difference its p after Holm's correction for all rows that are held against the same method.

    Args:
        rows: with `difference` and `bootstrap`, which get an entry `holm`.
        kinds: of these entries, those that the rows have.
    """
    for kind in kinds:
        known = [row[kind] for row in rows if row[kind] is not None]
        for values, p in zip(known, holm([values["p"] for values in known]), strict=True):
            values["holm"] = p


class _Reader:
    """Reads runs one by one; of an evaluation it keeps what the draws of images make of it, not the counts.

    Attributes:
        resamplings: by data set.
        mious: by the name of the run, as `Resampling.mious`.
    """

    def __init__(self, plan: Plan):
        self.options = plan.options
        self.resamplings: dict[str, Resampling] = {}
        self.mious: dict[str, Tensor] = {}

    def entry(self, run: Cell, error: str | None) -> dict[str, Any]:
        """What is known of a run.

        Args:
            run: of the grid.
            error: why it failed, one line.
        """
        found: dict[str, Any] = {}
        if error is None:
            try:
                found, counts = _read(run, self.options.split)
            except (ValueError, OSError, KeyError, SafetensorError) as unreadable:
                line = one_line(f"{type(unreadable).__name__}: {unreadable}")
                error = f"{line} (delete {run.folder} to start it afresh)"
            else:
                self._resample(run, counts)
        place = {key: getattr(run, key) for key in (*PLACES, "method", "seed")}
        status = {"status": "failed" if error else "done", "error": error}
        return {"folder": run.folder.name, **place, **status, **found}

    def _resample(self, run: Cell, counts: Tensor) -> None:
        if run.data not in self.resamplings:
            own = _sequences(run, self.options.split, len(counts))
            try:
                self.resamplings[run.data] = Resampling(counts, own, resamples=self.options.resamples)
            except ValueError as error:
                raise ValueError(f"{run.data}, {self.options.split}: {error}; choose another split") from None
        try:
            self.mious[run.folder.name] = self.resamplings[run.data].mious(counts, run.config.eval.absent)
        except ValueError as error:
            raise ValueError(f"{run.folder} was {error}; delete the eval_* files of the older ones") from None


def _sequences(run: Cell, split: str, count: int) -> list[str] | None:
    """The sequence of each image that a run was evaluated on; None where they are not told apart."""
    data = run.config.data
    if data.groups is None:
        return None
    names = build_split(data, split).names
    if len(names) != count:
        raise ValueError(
            f"{run.folder} was evaluated on {count} images, and {split} has {len(names)} now; delete eval_*"
        )
    return sequences(names, data.groups)


def _read(run: Cell, split: str) -> tuple[dict[str, Any], Tensor]:
    """A run's figures, and the counts of its images."""
    scores = ("miou", "macc", "pixel_accuracy", "iou")
    costs = ("steps", "best_step", "params", "flops", "flops_size", "peak_memory")
    summary = read_json(run.folder / SUMMARY, ("miou", "seconds", *costs))
    evaluation = read_json(evaluation_path(run.folder, split), scores)
    entry = {key: evaluation[key] for key in scores} | {key: summary[key] for key in costs}
    entry |= {"val_miou": summary["miou"], "seconds": summary["seconds"]}
    entry["metrics"] = pick_figures(evaluation.get("metrics") or {}, run.metrics)
    entry |= training_record(run.folder / METRICS, run.config.data.batch_size)
    path = counts_path(run.folder, split)
    return entry | {"counts": f"{run.folder.name}/{path.name}"}, load_file(path)["counts"]


def training_record(metrics: Path, batch_size: int) -> dict[str, Any]:
    """What a run's record says of its way: times without validation, and what the validations found.

    Args:
        metrics: the `metrics.jsonl` of the run.
        batch_size: images with labels per step.

    Returns:
        `seconds_per_step` (median), `training_seconds` (of all steps), `validations` ([step, mIoU] each).
    """
    times, total, before = [], 0.0, 0
    validations = []
    for line in read_records(metrics):
        if isinstance(line.get("val_miou"), float):
            validations.append([line["step"], line["val_miou"]])
        if "images_per_s" in line:
            times.append(batch_size / line["images_per_s"])
            total += times[-1] * (line["step"] - before)
            before = line["step"]
    steady = times[1:] or times  # the first record has the warm-up
    return {
        "seconds_per_step": statistics.median(steady) if steady else None,
        "training_seconds": total or None,
        "validations": validations,
    }


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


def _pairs(
    entries: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The runs of both sides by the seeds that both finished."""
    mine, theirs = ({entry["seed"]: entry for entry in _done(side)} for side in (entries, against))
    return [(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]


def _difference(
    confidence: float,
    entries: Sequence[Mapping[str, Any]],
    against: Sequence[Mapping[str, Any]],
    mious: Mapping[str, Tensor],
) -> dict[str, Any]:
    """A row's difference from another over the seeds that both finished: over the seeds, and over the images."""
    pairs = _pairs(entries, against)
    if not pairs:
        return {"pairs": 0, "difference": None, "bootstrap": None}
    values, base = ([pair[side]["miou"] for pair in pairs] for side in (0, 1))
    differences = [a - b for a, b in zip(values, base, strict=True)]
    _, deviation = mean_and_deviation(differences)
    ours, its = (torch.stack([mious[pair[side]["folder"]] for pair in pairs]) for side in (0, 1))
    needed = None if deviation is None else seeds_needed(deviation, confidence)
    seeds = {"deviation": deviation, "sign_flip_p": sign_flip_p(differences), "seeds_needed": needed}
    return {
        "pairs": len(pairs),
        "difference": paired_interval(values, base, confidence).as_dict() | seeds,
        "bootstrap": resampled_interval(ours, its, confidence).as_dict(),
    }


def _gap_closed(
    entries: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]], teacher: float | None
) -> float | None:
    pairs = _pairs(entries, against)
    if not pairs or teacher is None:
        return None
    value, base = (statistics.fmean(pair[side]["miou"] for pair in pairs) for side in (0, 1))
    return gap_closed(value, base, teacher)
