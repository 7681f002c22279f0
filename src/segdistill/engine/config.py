"""The configuration: what a YAML file may say, with overrides, defaults and helpful refusals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from segdistill._options import closest
from segdistill.data import dataset_options
from segdistill.methods import resolve_methods
from segdistill.models import Normalisation, model_options

Size = tuple[int, int]


class Strict(BaseModel):
    """A section of the configuration that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid")


class UnlabelledConfig(Strict):
    """Images without labels, mixed into each batch: every term but cross-entropy sees them.

    Args:
        root: a folder of images.
        batch_size: how many join each batch.
    """

    root: str
    batch_size: int = Field(gt=0)


class DataConfig(BaseModel):
    """`data:` — the data set and how it is fed. Other keys are options of the data set `name`."""

    model_config = ConfigDict(extra="allow")
    name: str
    size: Size | None = None
    crop: Size | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    photometric: bool = False
    batch_size: int = Field(8, gt=0)
    workers: int = Field(2, ge=0)
    eval_batch_size: int = Field(1, gt=0)
    unlabelled: UnlabelledConfig | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set itself."""
        options = dict(self.model_extra or {})
        if self.size is not None and self._draws_any_size:
            options["size"] = self.size
        return options

    @property
    def resize(self) -> Size | None:
        """(H,W) that images are resized to; None where the data set makes them of that size itself."""
        return None if self._draws_any_size else self.size

    @property
    def _draws_any_size(self) -> bool:
        return "size" in dataset_options(self.name).model_fields

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "DataConfig":
        known = dataset_options(self.name)
        _refuse_unknown(self.options, {*known.model_fields, *DataConfig.model_fields}, "data")
        assert self.__pydantic_extra__ is not None
        options = known.model_validate(self.options).model_dump()
        self.__pydantic_extra__.update({k: v for k, v in options.items() if k not in DataConfig.model_fields})
        return self


class NetworkConfig(BaseModel):
    """`student:` or `teacher:` — a network. Other keys are options of its family, such as `pretrained` and `aux`.

    Args:
        name: of the network, as for `build_model`.
        checkpoint: a run folder or a student's file, instead.
        weights: a file with all of the network's tensors, or `published` for what its library publishes.
        source: where that file is from; by default it is told by its names.
        normalisation: of the images, instead of the network's own.
        taps: tap name → path, on top of the network's own or proposed ones.
        classifier: path of the final 1×1 classifier.
        classes: names of a teacher's classes, where they are not the data's.
        num_classes: how many, where they have no names.
        class_map: a teacher's class → the data's class, by name or number (null: left out); `names`: those of one name.
    """

    model_config = ConfigDict(extra="allow")
    name: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    source: str | None = None
    normalisation: Normalisation | None = None
    taps: dict[str, str] | None = None
    classifier: str | None = None
    classes: list[str] | None = None
    num_classes: int | None = Field(None, gt=1)
    class_map: Literal["names"] | dict[int | str, int | str | None] | None = None

    @property
    def is_code(self) -> bool:
        """Whether a function of the user's own makes the network."""
        return (self.name or "").startswith("python:")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the family."""
        return dict(self.model_extra or {})

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "NetworkConfig":
        if self.name is None:
            _refuse_unknown(self.options, set(NetworkConfig.model_fields), "network")
            if self.weights is not None:
                raise ValueError("weights need a name; for a run of segdistill's own use checkpoint")
            return self
        if self.checkpoint is not None:
            raise ValueError("give name or checkpoint, not both: a checkpoint says what network it is")
        known = model_options(self.name)
        if known.model_config.get("extra") == "allow":  # a function of the user's own says what it takes when called
            return self
        _refuse_unknown(self.options, {*known.model_fields, *NetworkConfig.model_fields}, "network")
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update(known.model_validate(self.options).model_dump())
        return self


class TrainConfig(Strict):
    """`train:` — optimisation, precision, what is kept when."""

    steps: int = Field(1000, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup: int = Field(0, ge=0)
    aux_weight: float = 0.4
    clip: float | None = None
    accumulate: int = Field(1, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: str = "auto"
    threads: int | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)
    eval_every: int = Field(0, ge=0)
    save_every: int = Field(200, ge=0)
    log_every: int = Field(10, gt=0)
    gradient_samples: int = Field(20, ge=0)
    tensorboard: bool = False


class Config(Strict):
    """The whole configuration of one run."""

    data: DataConfig
    student: NetworkConfig
    teacher: NetworkConfig | None = None
    method: Any = Field("none", validate_default=True)
    train: TrainConfig = TrainConfig()

    @pydantic.field_validator("method")
    @classmethod
    def _resolve(cls, value: Any) -> list[dict[str, Any]]:
        return resolve_methods(value)

    @property
    def method_names(self) -> list[str]:
        """Names of the methods."""
        return [entry["name"] for entry in self.method]

    @property
    def distils(self) -> bool:
        """Whether any method but the baseline is asked for."""
        return self.method_names != ["none"]


def _refuse_unknown(options: Mapping[str, Any], known: set[str], section: str) -> None:
    for key in options:
        if key not in known:
            raise ValueError(f"unknown key {section}.{key}{closest(key, known)}")


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        source: a YAML file, a mapping, or a configuration that is ready.
        overrides: `key.sub=value`, the value as YAML; later ones win.

    Raises:
        ValueError: with one line on the first thing that is wrong.
    """
    if isinstance(source, Config):
        return source
    try:
        return Config.model_validate(read_config(source, overrides))
    except pydantic.ValidationError as error:
        raise ValueError(_one_line(error)) from None


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration as it is written, with its overrides, before any check.

    Args:
        source: a YAML file, a run folder, or a mapping, which is left as it is.
        overrides: `key.sub=value`, the value as YAML; later ones win.

    Raises:
        ValueError: if there is no such file, or it or an override cannot be read.
    """
    raw = dict(source) if isinstance(source, Mapping) else _read_yaml(Path(source))
    for override in overrides:
        _set(raw, override)
    return raw


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        raise ValueError(f"no configuration at {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected keys data, student, …; got {type(raw).__name__}")
    return raw


def _set(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        inner = section.get(parent)
        if parent == "method" and isinstance(inner, str):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ValueError(f"override {override!r}: {parent} is {inner!r}, which has no keys")
        section[parent] = dict(inner)
        section = section[parent]
    # A checkpoint says what network it is, and a name replaces a checkpoint: the other one has to go.
    if parents and parents[-1] in ("student", "teacher") and last == "checkpoint":
        section.clear()
    if parents and parents[-1] in ("student", "teacher") and last == "name":
        section.pop("checkpoint", None)
    section[last] = value


def _one_line(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {path}{closest(str(first['loc'][-1]), _fields_at(first['loc'][:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    if message.startswith("unknown key network."):
        return message.replace("network.", f"{path}.", 1)
    if first["type"] == "missing":
        return f"{path}: missing from the configuration"
    return f"{path}: {message}" if first["type"] == "value_error" else f"{path}: {message}, got {first['input']!r}"


def _fields_at(location: tuple[int | str, ...]) -> set[str]:
    model: Any = Config
    for part in location:
        field = model.model_fields[str(part)]
        model = next(m for m in (field.annotation, *get_args(field.annotation)) if hasattr(m, "model_fields"))
    return set(model.model_fields)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; it runs again as it is.

    Args:
        config: what `load_config` returned.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
