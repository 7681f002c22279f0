"""From one configuration to the runs of a grid: methods × students × data sets × seeds, each one complete."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeGuard

import pydantic
import yaml

from segdistill._options import first_mistake, refuse_unknown
from segdistill.comparison.cell import Cell, Place
from segdistill.comparison.grid_config import GridConfig
from segdistill.comparison.labels import (
    baseline_of,
    entry_labels,
    find_against,
    method_label,
    share_label,
    slug,
    unique,
)
from segdistill.comparison.mirror import is_url, scratch_folder
from segdistill.engine.config import Config, check_keys, load_config, read_config
from segdistill.engine.data_config import DataConfig
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.shipped import find_config
from segdistill.methods._catalogue import method_entries, resolve_methods
from segdistill.metrics._catalogue import choose_metrics, need_teacher

LABELS = ("labelled", "labelled_per_batch", "labelled_seed")
"""Keys of `data` that say which labels count; where they differ from run to run, a teacher has all labels."""


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Args:
        options: of the grid.
        runs: in the order in which they are trained: seed by seed, so that an unfinished grid has whole seeds first.
        teachers: a teacher's configuration by its folder; they are trained first.
        out: folder of the comparison.
        url: what the folder is a copy of; None: it is the place itself.
        against: a method besides the baseline that the others are held against.
    """

    options: GridConfig
    runs: tuple[Cell, ...]
    teachers: Mapping[Path, Config]
    out: Path
    url: str | None = None
    against: str | None = None

    @property
    def baseline(self) -> str:
        """The method that the others are held against: `none` if it is there, else the first one."""
        return baseline_of([run.method for run in self.runs])

    def rows(self) -> dict[tuple[Place, str], list[Cell]]:
        """The runs of each place and method."""
        rows: dict[tuple[Place, str], list[Cell]] = {}
        for run in self.runs:
            rows.setdefault(run.row, []).append(run)
        return rows


def load_plan(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), out: str | Path | None = None
) -> Plan:
    """Read and check the configuration of a comparison.

    Args:
        source: a YAML file, the name of a shipped one, or a mapping: a run's configuration, and the keys of
            `GridConfig`. `data` may be a list; `teacher`, or each of several, may be `{config: …}`, a file or a
            mapping, from which the teacher is trained first.
        overrides: `key.sub=value`; those of `data.` and `student.` count for all data sets and students.
        out: folder (default: `runs/compare_<file>`), or a URL of any kind that fsspec knows, as `s3://bucket/table`.

    Raises:
        ValueError: with one line on the first thing that is wrong in any of the runs.
    """
    source = source if isinstance(source, Mapping) else find_config(source)
    raw = read_config(source)
    raw, data_entries = _take_list(raw, overrides)
    own = [o for o in overrides if o.partition("=")[0].split(".")[0] not in ("data", "student")]
    if "teacher" in raw:
        raw["teacher"] = _read_teacher(raw["teacher"], source)
    raw = read_config(raw, own)
    options = _options(raw)
    if out is None:
        out = Path("runs") / f"compare_{Path(source).stem if isinstance(source, str | Path) else 'grid'}"
    url = str(out) if is_url(out) else None
    out = Path(out) if url is None else scratch_folder(url)

    def expand(section: str, entries: Iterable[Any] | None) -> list[dict[str, Any]]:
        changes = [o for o in overrides if o.startswith(f"{section}.") or (o.startswith(f"{section}=") and not entries)]
        found = list(_variants(section, raw.get(section), entries or [{}], source))
        return [_mapping(section, read_config({section: entry}, changes)[section]) for entry in found]

    datas, students = expand("data", data_entries), expand("student", options.students or _of_widths(options.widths))
    _check_keys(raw, datas, students, options.methods)
    if options.widths and students[0].get("pretrained") and set(options.widths) != {1}:
        raise ValueError(
            "student.pretrained: ImageNet weights are of width 1 alone, and the other widths would start without; "
            "student.pretrained=false starts all of them alike"
        )
    methods = [resolve_methods(entry) for entry in options.methods]
    labels = unique("methods", [method_label(method) for method in methods])
    against = find_against(options.against, labels)
    data_labels, student_labels = entry_labels("data", datas), entry_labels("students", students)
    given = options.labelled or []
    shares = dict(zip(unique("labelled", list(map(share_label, given))), given, strict=True))
    by_label = list(zip(labels, methods, strict=True))
    lengths: Sequence[int | None] = options.lengths or [None]
    places = list(product(shares or [None], lengths, zip(student_labels, students, strict=True)))
    teachers: dict[Path, Config] = {}
    cells: list[Cell] = []
    for data_label, data in zip(data_labels, datas, strict=True):
        all_labels = data
        if options.labelled:  # all that there are: some images may have no mask
            all_labels = {k: v for k, v in data.items() if k not in LABELS} | {"labelled": "masks"}
        teacher = _teacher(raw.get("teacher"), all_labels, data_label if len(datas) > 1 else "", out, teachers)
        parts = {**raw, "teacher": teacher}
        for share, length, (student_label, student) in places:
            part = dict(data)
            if share is not None:
                DataConfig.replace(part, "labelled", shares[share])
            for label, method in by_label:
                config = _cell_config({**parts, "data": part, "student": student, "method": method}, label)
                config = config if share is None else _with_own_cache(config, share)
                cell = Cell(data_label, student_label, label, 0, config, out, share, length)
                cells.append(cell if length is None else _of_length(cell, length))
    runs = [_run(cell, seed, out) for seed in options.seeds for cell in cells]
    return Plan(options, _with_metrics(runs, options.metrics), teachers, out, url, against)


def _with_metrics(runs: Sequence[Cell], names: Sequence[str]) -> tuple[Cell, ...]:
    """The runs with the metrics that are meant; a baseline is compared with the teacher of the others on its data."""
    taught = [run for run in reversed(runs) if run.config.distils]
    try:
        metrics = tuple(choose_metrics(names, teacher=bool(taught)))
    except ValueError as error:
        raise ValueError(f"metrics: {error}") from None
    guides = {run.data: run.config for run in taught} if need_teacher(metrics) else {}
    return tuple(replace(run, metrics=metrics, guide=guides.get(run.data)) for run in runs)


def _cell_config(whole: Mapping[str, Any], label: str) -> Config:
    config = load_config(whole)
    if not config.distils:  # a baseline is the same whoever teaches the others
        return config.model_copy(update={"teacher": None})
    if config.teacher is None:
        raise ValueError(f"method {label} needs a teacher; set teacher.checkpoint=RUN or teacher.config=FILE")
    return config


def _with_own_cache(config: Config, share: str) -> Config:
    """A run of a share of labels, with a teacher's cache of its own where labels decide what is seen of an image."""
    section = config.cached_teacher
    if section is None or not config.data.seen_by_labels:
        return config
    own = section.model_copy(update={"cache": f"{section.cache}/labelled={slug(share)}"})
    teacher = [own, *config.teachers[1:]] if isinstance(config.teacher, list) else own
    return config.model_copy(update={"teacher": teacher})


def _take_list(raw: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[Any] | None]:
    """Take a list of data sets out of `data`, from the file or from `data=[…]`; the file's mapping stays their base."""
    entries = raw.pop("data") if isinstance(raw.get("data"), list) else None
    for override in overrides:
        if override.startswith("data="):
            value = yaml.safe_load(override.removeprefix("data="))
            entries = value if isinstance(value, list) else None
    if entries == []:
        raise ValueError("data: expected at least one data set, got []")
    return raw, entries


def _options(raw: dict[str, Any]) -> GridConfig:
    given = {key: raw.pop(key) for key in GridConfig.model_fields if key in raw}
    if "methods" not in given and method_entries(raw.get("method", "none")) != [("none", {})]:
        given["methods"] = ["none", raw["method"]]
    refuse_unknown(raw, {*GridConfig.model_fields, *Config.model_fields}, "unknown key {}")
    try:
        return GridConfig.model_validate(given)
    except pydantic.ValidationError as error:
        where, kind, line = first_mistake(error)
        if kind == "missing":
            raise ValueError("methods: say what to compare, for example methods=[none,kd,cwd]") from None
        raise ValueError(": ".join((".".join(where), line)) if where else line) from None


def _check_keys(raw: Mapping[str, Any], datas: Iterable[Any], students: Iterable[Any], methods: Iterable[Any]) -> None:
    """Refuse unknown keys in all parts of a comparison before anything that they name is imported."""
    teacher = raw.get("teacher")
    several: list[Any] = teacher if isinstance(teacher, list) else [teacher]
    trained = [entry["config"] for entry in several if _is_trained_first(entry)]
    given = [None if _is_trained_first(entry) else entry for entry in several]
    common = {**raw, "teacher": given if isinstance(teacher, list) else given[0]}
    for section, entries in (("data", datas), ("student", students), ("method", methods)):
        for entry in entries:
            check_keys({**common, section: entry})
    for config in trained:
        if isinstance(config, Mapping):
            check_keys(config)


def _variants(section: str, base: Any, entries: Iterable[Any], source: Any) -> Iterator[dict[str, Any]]:
    """Each entry as a section: a file's, a whole one, or the base with changes."""
    base = _mapping(section, {} if base is None else base)
    for entry in entries:
        if isinstance(entry, str) and entry.endswith((".yaml", ".yml")):
            yield dict(read_config(_beside(source, entry)).get(section) or {})
        elif isinstance(entry, str):
            yield {**{k: v for k, v in base.items() if k != "checkpoint"}, "name": entry}
        elif isinstance(entry, Mapping):
            yield dict(entry) if "name" in entry or "checkpoint" in entry else {**base, **entry}
        else:
            raise ValueError(f"{section}: expected names, files or mappings, got {entry!r}")


def _of_widths(widths: Sequence[float] | None) -> list[dict[str, float]] | None:
    """The student's changes for each width."""
    return None if widths is None else [{"width": width} for width in widths]


def _mapping(section: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{section}: expected a mapping, got {value!r}")
    return dict(value)


def _is_trained_first(entry: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a teacher is given by the configuration that it is trained from."""
    return isinstance(entry, Mapping) and "config" in entry


def _read_teacher(section: Any, source: Any) -> Any:
    """The `teacher` section with the configurations in the place of the files that it names."""
    if isinstance(section, list):
        return [_read_teacher(entry, source) for entry in section]
    if _is_trained_first(section) and isinstance(section["config"], str):
        return {**section, "config": read_config(_beside(source, section["config"]))}
    return section


def _teacher(section: Any, data: Mapping[str, Any], label: str, out: Path, teachers: dict[Path, Config]) -> Any:
    """The `teacher` section of the runs; what has to be trained first is noted."""
    if isinstance(section, list):
        places = [out / f"teacher{number}" for number in range(len(section))]
        return [_one_teacher(*pair, data, label, teachers) for pair in zip(section, places, strict=True)]
    return _one_teacher(section, out / "teacher", data, label, teachers)


def _one_teacher(section: Any, folder: Path, data: Mapping[str, Any], label: str, teachers: dict[Path, Config]) -> Any:
    if not _is_trained_first(section):
        return section
    config, rest = section["config"], {key: value for key, value in section.items() if key != "config"}
    more = [key for key in rest if not str(key).startswith(("cache", "views"))]
    if more:
        raise ValueError(f"teacher: config says what network it is; beside it belong views and cache, not {more[0]}")
    if isinstance(config, str):
        config = read_config(config)
    if not isinstance(config, Mapping):
        raise ValueError(f"teacher.config: expected a file or a configuration, got {config!r}")
    own = "data" in config
    whole = load_config({**config, "data": config["data"] if own else dict(data)}, ["method=none"])
    if label and not own and not _holds(folder, whole):  # it may, from when this was the only data set
        folder = folder.with_name(f"{folder.name}_{slug(label)}")
    teachers[folder] = whole
    return {"checkpoint": str(folder), **rest}


def _holds(folder: Path, config: Config) -> bool:
    """Whether a folder is that of a run of a configuration."""
    from segdistill.engine.epochs import in_steps
    from segdistill.engine.settings import check_same

    try:
        check_same(load_config(folder / CONFIG), in_steps(config), folder)
    except ValueError:
        return False
    return True


def _of_length(cell: Cell, steps: int) -> Cell:
    """A cell of the grid trained for a number of steps."""
    if cell.config.train.epochs is not None:
        raise ValueError("lengths: they are numbers of steps; give train.steps instead of train.epochs, as one of them")
    return cell.with_steps(steps)


def _run(cell: Cell, seed: int, out: Path) -> Cell:
    """The run of a seed, in its folder."""
    config = cell.config.model_copy(update={"train": cell.config.train.model_copy(update={"seed": seed})})
    share = [] if cell.labelled is None else [f"labelled={cell.labelled}"]
    length = [] if cell.length is None else [f"steps={cell.length}"]
    parts = (cell.data, *share, *length, cell.student, cell.method, f"seed{seed}")
    return replace(cell, seed=seed, config=config, folder=out / "_".join(map(slug, parts)))


def _beside(source: Any, path: str) -> str:
    """A file that a configuration names: from here, or from the folder of the configuration."""
    near = Path(source).parent / path if isinstance(source, str | Path) else Path(path)
    return path if Path(path).is_file() or not near.is_file() else str(near)
