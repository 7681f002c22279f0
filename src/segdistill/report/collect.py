"""Run folders, read as they are: finished or not, with or without validation, one by one or a whole folder of them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from segdistill.comparison.statistics import mean_and_deviation
from segdistill.engine.config import load_config, read_config
from segdistill.engine.record import read_records
from segdistill.engine.run_folder import CONFIG, ENVIRONMENT, METRICS, STUDENT, SUMMARY, stored_json
from segdistill.engine.settings import all_settings, flat

SCORES = ("miou", "macc", "pixel_accuracy")
COSTS = ("lr", "grad_norm", "images_per_s", "data_wait", "memory_mb")
SHOWN = ("val_", "analysis_", "gradient_", "cosine_")
"""Beginnings of names of what a record holds beside loss terms and costs."""

MAPPING, LIST, TEXT, WHOLE, TABLE = "a mapping", "a list", "a text", "a whole number", "rows of numbers"
ONE_OR_MORE = "a mapping or a list of mappings"
KINDS: dict[str, dict[str, str]] = {
    CONFIG: {"data": MAPPING, "student": MAPPING, "teacher": ONE_OR_MORE, "train": MAPPING},
    SUMMARY: {"iou": MAPPING, "steps": WHOLE, "best_step": WHOLE, "student": TEXT, "flops_size": LIST},
    ENVIRONMENT: {"versions": MAPPING, "gpus": LIST},
    "eval": {"iou": MAPPING, "confusion": TABLE, "metrics": MAPPING},
}
"""What a report takes apart in the files of a run, and what it has to be; single figures may be anything."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1) over runs; the deviation is None for a single one."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of those values that are known; None if there is none."""
        known = [value for value in map(number, values) if value is not None]
        if not known:
            return None
        return cls(*mean_and_deviation(known), len(known))


@dataclass
class Run:
    """What one run folder holds."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    """Recorded steps: loss terms, costs, the methods' own figures."""
    validations: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    """`eval_<split>.json` by split."""
    environment: dict[str, Any] = field(default_factory=dict)
    _series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def methods(self) -> list[str]:
        """Names of the methods; `none` is the baseline."""
        entries = self.config.get("method", self.summary.get("method", "none"))
        entries = entries if isinstance(entries, list) else [entries]
        return [str(entry.get("name")) if isinstance(entry, Mapping) else str(entry) for entry in entries]

    @property
    def alone(self) -> bool:
        """Whether it was trained without a teacher."""
        return self.methods == ["none"]

    @property
    def network(self) -> str:
        """Name of the student."""
        section = self.config.get("student") or {}
        return str(self.summary.get("student") or section.get("name") or section.get("checkpoint") or "network")

    @property
    def data(self) -> str:
        """Name of the data set."""
        return str((self.config.get("data") or {}).get("name", "data"))

    @property
    def seed(self) -> int | None:
        """Of the run."""
        seed = self.summary.get("seed", self._train.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def done(self) -> int:
        """Steps that are done, as far as the records say."""
        last = max((int(record.get("step", 0)) for record in (*self.steps, *self.validations)), default=0)
        return max(int(self.summary.get("steps") or 0), last)

    @property
    def planned(self) -> int | None:
        """Steps of the whole run."""
        return self._train.get("steps")

    @property
    def finished(self) -> bool:
        """Whether it has a summary."""
        return bool(self.summary)

    @property
    def teachers(self) -> list[str]:
        """The teachers' runs, as the configuration names them."""
        return [str(section["checkpoint"]) for section in self.sections if section.get("checkpoint")]

    @property
    def looks(self) -> int:
        """How many probabilities of a teacher are averaged: those of several networks, or views; 1 for a plain one."""
        return sum(map(views, self.sections))

    @property
    def sections(self) -> list[Mapping[str, Any]]:
        """Of the configuration, those of the teachers that it learned from."""
        section = [] if self.alone else self.config.get("teacher") or []
        return section if isinstance(section, list) else [section]

    @cached_property
    def result(self) -> dict[str, Any]:
        """Figures on the validation split: the summary's, else those of the best validation so far."""
        if self.summary:
            return self.summary
        best = max(self.validations, key=lambda record: number(record.get("val_miou")) or -1.0, default={})
        return {key.removeprefix("val_"): value for key, value in best.items()}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as `key.sub` → value, with the defaults of settings that are newer than the run."""
        with suppress(ValueError):
            return all_settings(load_config(self.config))
        return flat(self.config)

    @property
    def iou(self) -> dict[str, float | None]:
        """IoU by class on the validation split; empty where it was never validated."""
        return {name: number(value) for name, value in (self.result.get("iou") or {}).items()}

    @property
    def classes(self) -> list[str]:
        """Names, in the data set's order; empty where they are not known."""
        known = self.iou or next((e["iou"] for e in self.evaluations.values() if e.get("iou")), {})
        return list(known)

    def cost(self, name: str) -> float | None:
        """The median of a cost over the recorded steps.

        Args:
            name: such as `images_per_s`.
        """
        values = [value for _, value in self.series(name)]
        return statistics.median(values) if values else None

    def series(self, key: str) -> list[tuple[float, float]]:
        """The finite values of an entry of the records, each with its step.

        Args:
            key: such as `loss` or `val_miou`.
        """
        if key not in self._series:
            records = self.validations if key.startswith("val_") else self.steps
            found = ((float(record["step"]), number(record[key])) for record in records if key in record)
            self._series[key] = [(step, value) for step, value in found if value is not None]
        return self._series[key]

    @cached_property
    def keys(self) -> set[str]:
        """Names of all entries of the recorded steps."""
        return set().union(*self.steps)

    @property
    def _train(self) -> dict[str, Any]:
        return self.config.get("train") or {}


def views(section: Mapping[str, Any]) -> int:
    """In how many ways a teacher sees each image.

    Args:
        section: of the configuration.

    >>> views({}), views({"views": {"flip": True, "scales": [0.75, 1.0]}})
    (1, 4)
    """
    own = section.get("views") or {}
    return len(own.get("scales") or [1.0]) * (1 + bool(own.get("flip")))


def number(value: Any) -> float | None:
    """A finite number, or None: what cannot be drawn is left out."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def find_runs(path: str | Path) -> list[Path]:
    """A run folder itself, or all run folders inside a folder (a demo's, a comparison's).

    Args:
        path: a folder.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path).expanduser()
    if is_run(path):
        return [path]
    found = sorted(file.parent for file in path.rglob(CONFIG)) if path.is_dir() else []
    if not found:
        raise ValueError(f"no run at {path}: expected a folder with {CONFIG}, or a folder of such folders")
    return found


def read_run(folder: str | Path) -> Run:
    """Read a run folder; what is missing from it is empty.

    Args:
        folder: of the run.

    Raises:
        ValueError: if a file in it cannot be read.
    """
    folder = Path(folder)
    evaluations = {}
    for file in sorted(folder.glob("eval_*.json")):
        evaluations[file.stem.removeprefix("eval_")] = _of_kind(file, stored_json(file), "eval")
    records = read_records(folder / METRICS)
    return Run(
        folder,
        _of_kind(folder / CONFIG, read_config(folder), CONFIG) if (folder / CONFIG).is_file() else {},
        _of_kind(folder / SUMMARY, stored_json(folder / SUMMARY), SUMMARY),
        [record for record in records if "loss" in record],
        [record for record in records if "val_miou" in record],
        evaluations,
        _of_kind(folder / ENVIRONMENT, stored_json(folder / ENVIRONMENT), ENVIRONMENT),
    )


def _of_kind(file: Path, values: dict[str, Any], name: str) -> dict[str, Any]:
    """What a file holds, if all that is taken apart later is of the kind that it has to be."""
    for key, kind in KINDS[name].items():
        value = values.get(key)
        if value is not None and not _is(value, kind):
            found = f"{key} is {value!r:.80}, expected {kind}"
            raise ValueError(f"{file}: {found}; put a copy of the file back, or run what wrote it again")
    return values


def _is(value: Any, kind: str) -> bool:
    if kind == TABLE:
        rows = value if isinstance(value, list) else [None]
        lengths = {
            len(row) if isinstance(row, list) and all(number(n) is not None for n in row) else -1 for row in rows
        }
        return len(lengths - {-1}) == len(lengths) < 2
    if kind == ONE_OR_MORE and isinstance(value, list):
        return bool(value) and all(isinstance(one, Mapping) for one in value)
    types = {MAPPING: Mapping, ONE_OR_MORE: Mapping, LIST: list, TEXT: str, WHOLE: int}
    return isinstance(value, types[kind]) and not isinstance(value, bool)


def shared_classes(runs: Sequence[Run]) -> list[str]:
    """The class names that all runs share; empty if none of them knows.

    Args:
        runs: of one report.

    Raises:
        ValueError: if two of them differ.
    """
    known = [run for run in runs if run.classes]
    for run in known[1:]:
        if run.classes != known[0].classes:
            counts = f"{len(known[0].classes)} classes, {run.folder} {len(run.classes)}"
            if len(run.classes) == len(known[0].classes):
                a, b = next((a, b) for a, b in zip(known[0].classes, run.classes, strict=True) if a != b)
                counts = f"the class {a!r} where {run.folder} has {b!r}"
            raise ValueError(
                f"{known[0].folder} has {counts}; a report compares runs on the same classes, so report them apart"
            )
    return known[0].classes if known else []


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in (CONFIG, SUMMARY, METRICS))


def has_student(folder: Path) -> bool:
    """Whether a folder holds trained weights."""
    return (folder / STUDENT).is_file()
