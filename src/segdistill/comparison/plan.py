"""From one configuration to the runs of a grid: methods × students × data sets × seeds, each one complete."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

import pydantic
import yaml
from pydantic import Field

from segdistill._options import first_mistake, refuse_unknown
from segdistill.comparison.mirror import is_url, scratch_folder
from segdistill.engine.config import Config, check_keys, load_config, read_config
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.section import Section
from segdistill.engine.shipped import find_config
from segdistill.methods._catalogue import method_entries, method_options, resolve_methods


class GridConfig(Section):
    """What a comparison adds to a run's configuration, at the top level of the file or as `key=value`."""

    methods: list[Any] = Field(min_length=1)
    """What is compared: entries as for `method:`, that is names, mappings with options, or lists of both that run
    together."""
    seeds: list[int] = Field([0, 1, 2])
    """How many runs each entry gets, or the list of their seeds."""
    students: list[Any] | None = Field(None, min_length=1)
    """Entries as for `student:`, names of networks, or configuration files; left out, the configuration's own."""
    widths: list[Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    """The one student at several widths instead: multipliers of its channels, as for `student.width`."""
    budget: Literal["steps", "seconds"] | None = None
    """`steps`: all entries train for `train.steps`; `seconds`: all train for the same time. Told by `seconds`."""
    seconds: float | None = Field(None, gt=0)
    """Seconds of training per run, without validation."""
    split: Literal["val", "test"] = "test"
    """The split on which the students are compared; the best on `val` is what each run delivers."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Of the intervals."""
    resamples: int = Field(2000, ge=100)
    """Of the bootstrap over images."""

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> "GridConfig":
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected a count or different whole numbers, got {self.seeds}")
        if self.widths is not None:
            if self.students is not None:
                raise ValueError("students and widths: give one of them; widths are of the one student")
            if len(set(self.widths)) < len(self.widths):
                raise ValueError(f"widths: expected different ones, got {self.widths}")
        if self.budget is None:
            self.budget = "steps" if self.seconds is None else "seconds"
        if (self.budget == "seconds") != (self.seconds is not None):
            raise ValueError("budget=seconds and seconds=N go together")
        return self


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Args:
        data: label of the data set.
        student: label of the network.
        method: label of the method.
        seed: of the run.
        config: the complete configuration.
        folder: where the run is written.
    """

    data: str
    student: str
    method: str
    seed: int
    config: Config
    folder: Path

    @property
    def row(self) -> tuple[str, str, str]:
        """What the runs of all seeds share."""
        return self.data, self.student, self.method

    def with_steps(self, steps: int) -> "Cell":
        """The same run with its schedule fitted to another number of steps: warm-up and validations keep their shares.

        Milestones are shares.

        Args:
            steps: how many.
        """
        train, share = self.config.train, steps / self.config.train.steps
        changes = {"steps": steps, "warmup": round(train.warmup * share)}
        if train.eval_every:
            changes["eval_every"] = -(-steps // max(1, round(train.steps / train.eval_every)))
        return replace(self, config=self.config.model_copy(update={"train": train.model_copy(update=changes)}))


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Args:
        options: of the grid.
        runs: in the order in which they are trained: seed by seed, so that an unfinished grid has whole seeds first.
        teachers: a teacher's configuration by its folder; they are trained first.
        out: folder of the comparison.
        url: what the folder is a copy of; None: it is the place itself.
    """

    options: GridConfig
    runs: tuple[Cell, ...]
    teachers: Mapping[Path, Config]
    out: Path
    url: str | None = None

    @property
    def baseline(self) -> str:
        """The method that the others are held against: `none` if it is there, else the first one."""
        methods = [run.method for run in self.runs]
        return "none" if "none" in methods else methods[0]

    def rows(self) -> dict[tuple[str, str, str], list[Cell]]:
        """The runs of each data set, student and method."""
        rows: dict[tuple[str, str, str], list[Cell]] = {}
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
    labels = _unique("methods", [method_label(method) for method in methods])
    data_labels, student_labels = _labels("data", datas), _labels("students", students)
    teachers: dict[Path, Config] = {}
    cells = []
    for data_label, data in zip(data_labels, datas, strict=True):
        teacher = _teacher(raw.get("teacher"), data, data_label if len(datas) > 1 else "", out, teachers)
        for student_label, student in zip(student_labels, students, strict=True):
            for label, method in zip(labels, methods, strict=True):
                whole = {**raw, "data": data, "student": student, "method": method, "teacher": teacher}
                config = load_config(whole)
                if not config.distils:  # a baseline is the same whoever teaches the others
                    config = config.model_copy(update={"teacher": None})
                elif config.teacher is None:
                    raise ValueError(
                        f"method {label} needs a teacher; set teacher.checkpoint=RUN or teacher.config=FILE"
                    )
                cells.append((data_label, student_label, label, config))
    runs = [_run(*cell, seed, out) for seed in options.seeds for cell in cells]
    return Plan(options, tuple(runs), teachers, out, url)


def method_label(method: Sequence[Mapping[str, Any]]) -> str:
    """The name of a method in tables: its names, and the options that are not the defaults.

    Args:
        method: what `resolve_methods` returned.

    >>> method_label(resolve_methods(["kd", {"name": "cwd", "weight": 5}]))
    'kd+cwd(weight=5.0)'
    """
    parts = []
    for entry in method:
        defaults = method_options(entry["name"]).model_fields
        changed = [f"{k}={v}" for k, v in entry.items() if k != "name" and v != defaults[k].default]
        parts.append(entry["name"] + (f"({', '.join(changed)})" if changed else ""))
    return "+".join(parts)


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


def _labels(section: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each entry; where names are the same, with the settings in which the entries differ."""
    names = [str(entry.get("name") or Path(str(entry.get("checkpoint", section))).stem) for entry in entries]
    labels = []
    for name, entry in zip(names, entries, strict=True):
        same = [other for other, its in zip(entries, names, strict=True) if its == name]
        keys = {key for other in same for key in other}
        differing = [k for k in sorted(keys) if any(other.get(k) != entry.get(k) for other in same)]
        labels.append("_".join([name, *(f"{key}={entry[key]}" for key in differing if key in entry)]))
    return _unique(section, labels)


def _unique(section: str, labels: list[str]) -> list[str]:
    folders = [_slug(label) for label in labels]
    for label, folder in zip(labels, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{section}: {label} is named {folders.count(folder)} times")
    return labels


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
        folder = folder.with_name(f"{folder.name}_{_slug(label)}")
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


def _run(data: str, student: str, method: str, config: Config, seed: int, out: Path) -> Cell:
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    folder = out / "_".join(map(_slug, (data, student, method, f"seed{seed}")))
    return Cell(data, student, method, seed, config, folder)


def _slug(label: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", label).strip("-")


def _beside(source: Any, path: str) -> str:
    """A file that a configuration names: from here, or from the folder of the configuration."""
    near = Path(source).parent / path if isinstance(source, str | Path) else Path(path)
    return path if Path(path).is_file() or not near.is_file() else str(near)
