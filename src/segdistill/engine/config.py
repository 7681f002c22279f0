"""The configuration: what a YAML file may say, with overrides, defaults and helpful refusals.

Nothing here imports torch before the keys have been checked, so that a mistake in one of them costs no waiting.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_args

import pydantic
import yaml
from pydantic import Discriminator, Field, Tag

from segdistill._options import closest, first_mistake, refuse_unknown
from segdistill._printing import one_line
from segdistill.data.augmentations import AUGMENTATIONS
from segdistill.data.sets import SETS
from segdistill.engine.data_config import AugmentConfig, DataConfig, UnlabelledConfig
from segdistill.engine.eval_config import EvalConfig
from segdistill.engine.network_config import NetworkConfig, ViewsConfig
from segdistill.engine.section import Section
from segdistill.engine.shipped import find_config, is_shipped
from segdistill.engine.supervised_config import SupervisedConfig
from segdistill.engine.train_config import TrainConfig
from segdistill.methods._catalogue import METHODS, method_entries, resolve_methods
from segdistill.models.external import external_keywords, is_external
from segdistill.models.families import FAMILIES, named_family

SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C where PyYAML has it: a comparison reads the configuration of every run that is there."""

ONE, SEVERAL = "<one>", "<several>"
"""What pydantic calls the two kinds of `teacher` in the path of a mistake."""
Teachers = Annotated[
    Annotated[NetworkConfig, Tag(ONE)] | Annotated[list[NetworkConfig], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]


class Config(Section):
    """The whole configuration of one run."""

    data: DataConfig
    """The data set, and how its images are loaded and augmented."""
    student: NetworkConfig
    """The network that is trained."""
    teacher: Teachers | None = None
    """The network that the student learns from; it has to be trained already. With a list of networks, the student
    learns from the mean of their probabilities, and from the features of the first one (docs/training.md)."""
    method: Any = Field("none", validate_default=True)
    """What is transferred: a method's name, a mapping with `name` and options, or a list of both; `none` trains the
    student alone. `segdistill list methods` prints all methods with their options."""
    supervised: SupervisedConfig = SupervisedConfig()
    """What the student learns from labels."""
    train: TrainConfig = TrainConfig()
    """Optimiser, learning rate, precision, checkpoints and logging."""
    eval: EvalConfig = EvalConfig()
    """How networks see images in validation, evaluation and prediction."""

    @pydantic.model_validator(mode="after")
    def _complete_eval(self) -> "Config":
        try:
            self.eval.complete(self.data.name)
        except ValueError as error:
            raise ValueError(f"eval.{error}") from None
        return self

    @pydantic.model_validator(mode="after")
    def _check_learning(self) -> "Config":
        if not self.distils and not self.supervised.labels:
            raise ValueError(
                "supervised.ce and supervised.jaccard are 0, and method is none: nothing would be learned; give one of "
                "them a weight, or name a method"
            )
        return self

    @pydantic.field_validator("method")
    @classmethod
    def _resolve(cls, value: Any) -> list[dict[str, Any]]:
        return resolve_methods(value)

    @pydantic.field_validator("student")
    @classmethod
    def _check_cache(cls, value: NetworkConfig) -> NetworkConfig:
        if value.cache is not None:
            raise ValueError("a student that learns cannot be cached; cache belongs into teacher")
        if value.views is not None:
            raise ValueError("a student learns from one view at a time; views belong into teacher, or into eval")
        return value

    @pydantic.field_validator("teacher", mode="before")
    @classmethod
    def _count_teachers(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("expected a network, or a list of networks, got []")
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @pydantic.field_validator("teacher")
    @classmethod
    def _check_caches(cls, value: NetworkConfig | list[NetworkConfig] | None) -> Any:
        for number, section in enumerate(value if isinstance(value, list) else []):
            if number and section.cache is not None:
                raise ValueError(f"teacher.0.cache keeps the mean of all; leave teacher.{number}.cache out")
        return value

    @property
    def teachers(self) -> list[NetworkConfig]:
        """The networks that the student learns from; none where none is named."""
        if self.teacher is None:
            return []
        return self.teacher if isinstance(self.teacher, list) else [self.teacher]

    @property
    def cached_teacher(self) -> NetworkConfig | None:
        """The section that says how the teacher is cached, the first one's; None where it is not."""
        return next((section for section in self.teachers if section.cache is not None), None)

    @property
    def method_names(self) -> list[str]:
        """Names of the methods."""
        return [entry["name"] for entry in self.method]

    @property
    def distils(self) -> bool:
        """Whether any method but the baseline is asked for."""
        return self.method_names != ["none"]


SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "student": NetworkConfig,
    "teacher": NetworkConfig,
    "supervised": SupervisedConfig,
    "train": TrainConfig,
}
"""Section → what its keys are, where some of them are used by others alone."""

INSTEAD = {"steps": "epochs", "epochs": "steps", "warmup": "warmup_epochs", "warmup_epochs": "warmup"}
"""Keys of `train` that stand for one another: an override with one of them replaces the other."""


def check_keys(raw: Mapping[str, Any]) -> None:
    """Refuse unknown keys, and nothing else: what values mean is checked when what they name is imported.

    Args:
        raw: a configuration as it is written.

    Raises:
        ValueError: with one line on the first unknown key, method or data set.
    """
    refuse_unknown(raw, Config.model_fields, "unknown key {}")
    own = {
        "data": set(DataConfig.model_fields),
        "supervised": set(SupervisedConfig.model_fields),
        "train": set(TrainConfig.model_fields),
        "eval": set(EvalConfig.model_fields),
    }
    network = set(NetworkConfig.model_fields)
    sections = {section: raw.get(section) for section in ("data", "student", "teacher", "supervised", "train", "eval")}
    teacher = sections["teacher"]
    if isinstance(teacher, list):
        sections |= {f"teacher.{number}": entry for number, entry in enumerate(teacher)}
    for section, given in sections.items():
        if isinstance(given, Mapping):
            closed = section in ("supervised", "train", "eval")
            more = set() if closed else _options_of(section, str(given.get("name")))
            if more is not None:
                refuse_unknown(given, own.get(section, network) | more, f"unknown key {section}.{{}}")
            if section not in own and isinstance(given.get("views"), Mapping):
                refuse_unknown(given["views"], ViewsConfig.model_fields, f"unknown key {section}.views.{{}}")
            inner = given.get("augment") if section == "data" else None
            if isinstance(inner, Mapping):
                refuse_unknown(inner, AugmentConfig.model_fields, "unknown key data.augment.{}")
            inner = given.get("unlabelled") if section == "data" else None
            if isinstance(inner, Mapping):
                more = _options_of("data", str(inner.get("name", "folder")))
                if more is not None:
                    refuse_unknown(inner, more | set(UnlabelledConfig.model_fields), "unknown key data.unlabelled.{}")
    for name, options in method_entries(raw.get("method", "none")):
        known = METHODS.keywords(name)
        if known is not None:
            refuse_unknown(options, known, f"method {name} has no option '{{}}'")


def _options_of(section: str, name: str) -> set[str] | None:
    """Names of the options of a data set or network; None where they are not known without importing it."""
    if section == "data":
        return SETS.keywords(name) if name in SETS.names() else None
    if is_external(name):
        return external_keywords(name)
    family = named_family(name)
    return None if family is None else FAMILIES.keywords(family)


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        source: as for `read_config`, or a configuration that is ready.
        overrides: `key.sub=value`, the value as YAML; later ones win.

    Raises:
        ValueError: with one line on the first thing that is wrong.
    """
    if isinstance(source, Config):
        return source
    raw = read_config(source, overrides)
    check_keys(raw)
    try:
        return Config.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ValueError(_one_line(error)) from None


def is_config(path: str | Path) -> bool:
    """Whether a path is a configuration's file or the name of a shipped one, rather than a run or a student's file.

    Args:
        path: any.
    """
    return Path(path).suffix in (".yaml", ".yml") or is_shipped(path)


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration as it is written, with its overrides, before any check.

    Args:
        source: a YAML file, a run folder, the name of a configuration of the package such as `camvid/student_cpu`, or a
            mapping, which is left as it is.
        overrides: `key.sub=value`, the value as YAML; later ones win.

    Raises:
        ValueError: if there is no such file, or it or an override cannot be read.
    """
    raw = dict(source) if isinstance(source, Mapping) else _read_yaml(find_config(source))
    given: set[str] = set()
    for override in sorted(overrides, key=lambda text: not text.startswith("eval.protocol=")):  # others change it
        _set(raw, override, given)
    return raw


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        raise ValueError(f"no configuration at {path}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), SAFE_LOADER)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text in UTF-8; save it as one") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(str(error))}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected keys data, student, …; got {type(raw).__name__}")
    return raw


def _set(raw: dict[str, Any], override: str, given: set[str]) -> None:
    """Write an override into a configuration; `given` are the keys that overrides have set before it, and then its."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    section: Any = raw
    for parent, below in pairwise([*parents, last]):
        section = _inside(section, parent, below, f"override {override!r}")
    named = [parent for parent in parents if not parent.isdecimal()][-1:]
    if parents == ["eval"] and last == "protocol":  # it says what all the other keys are
        section.clear()
    # A checkpoint says what network it is, and a name replaces a checkpoint: the other one has to go.
    if named in (["student"], ["teacher"]) and last == "checkpoint":
        for key in [key for key in section if not str(key).startswith(("cache", "views"))]:
            del section[key]
    if named in (["student"], ["teacher"]) and last == "name":
        section.pop("checkpoint", None)
    if parents == ["train"] and last in INSTEAD and value is not None:
        section.pop(INSTEAD[last], None)
    if parents == ["data"] and last == "name":  # what only the other data set knows has no meaning any more
        old, new = (_options_of("data", str(name)) or set() for name in (section.get("name"), value))
        for key in old - new - set(DataConfig.model_fields):
            section.pop(key, None)
    if parents and parents[-1] == "data" and last == "augmentation":  # of another one, or of none, all keys are there
        for key in {key for keys in AUGMENTATIONS.values() for key in keys}:
            section.pop(key, None)
    if isinstance(section, list):
        section[int(last)] = value
    else:
        apart = (known.rpartition(".") for known in given)
        beside = {own for path, _, own in apart if path == ".".join(parents)}
        SECTIONS.get("".join(named), Section).replace(section, last, value, keep=beside)
    given.add(".".join([*parents, last]))


def _inside(section: Any, key: str, below: str, what: str) -> Any:
    """What is under a key of a mapping, or under a number of a list: a copy in its place, made if it is not there."""
    place: Any = int(key) if isinstance(section, list) else key
    inner = section[place] if isinstance(section, list) else section.get(key)
    if key == "method" and isinstance(inner, str):
        inner = {"name": inner}
    if key in ("teacher", "method") and below.isdecimal() and not isinstance(inner, list):
        inner = [] if inner is None else [inner]  # one network is the first of a list of one
    if inner is None:
        inner = {}
    if isinstance(inner, list):
        if not below.isdecimal() or int(below) > len(inner):
            one = f"{key}.{below} is not there" if below.isdecimal() else f"say which one, as {key}.0.{below}"
            raise ValueError(f"{what}: {key} is a list of {len(inner)}; {one}")
        inner = [*inner, *([{}] if int(below) == len(inner) else [])]
    elif isinstance(inner, dict):
        inner = dict(inner)
    else:
        raise ValueError(f"{what}: {key} is {inner!r}, which has no keys")
    section[place] = inner
    return inner


def _one_line(error: pydantic.ValidationError) -> str:
    where, kind, line = first_mistake(error)
    where = tuple(part for part in where if part not in (ONE, SEVERAL))
    path = ".".join(where)
    if kind == "extra_forbidden":
        return f"unknown key {path}{closest(where[-1], _fields_at(where[:-1]))}"
    if line.startswith("unknown key network."):
        return line.replace("network.", f"{path}.", 1)
    if kind == "missing":
        return f"{path}: missing from the configuration"
    return f"{path}: {line}" if path else line  # a mistake of the whole names its key itself


def _fields_at(location: Sequence[str]) -> set[str]:
    model: Any = Config
    for part in location:
        if part.isdecimal():  # the place in a list
            continue
        field = model.model_fields[part]
        model = next(m for m in (field.annotation, *get_args(field.annotation)) if hasattr(m, "model_fields"))
    return set(model.model_fields)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; it runs again as it is.

    Args:
        config: what `load_config` returned.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
