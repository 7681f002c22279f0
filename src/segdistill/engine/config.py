"""The configuration: what a YAML file may say, with overrides, defaults and helpful refusals.

Nothing here imports torch before the keys have been checked, so that a mistake in one of them costs no waiting.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
import yaml
from pydantic import ConfigDict, Field

from segdistill._options import closest, first_mistake, refuse_unknown
from segdistill._printing import one_line
from segdistill._types import Size
from segdistill.data.augmentations import AUGMENTATIONS, augmentation
from segdistill.data.sets import SETS
from segdistill.engine.eval_config import EvalConfig as EvalConfig
from segdistill.engine.section import Section as Section
from segdistill.engine.shipped import find_config, is_shipped
from segdistill.methods._catalogue import METHODS, method_entries, resolve_methods
from segdistill.models.external import external_keywords, is_external
from segdistill.models.families import FAMILIES, named_family
from segdistill.models.normalisation import Normalisation


class Open(Section):
    """A section whose other keys are options of the entry that `name` names."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def extra_keys(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})

    def _complete(self, options: Mapping[str, Any]) -> None:
        """Write the entry's options out in full."""
        assert self.__pydantic_extra__ is not None
        self.__pydantic_extra__.update({k: v for k, v in options.items() if k not in type(self).model_fields})


class UnlabelledConfig(Open):
    """Images without labels, mixed into each batch: every term but cross-entropy sees them.

    Other keys are options of the data set `name`.
    """

    name: str = "folder"
    """Name of the data set whose training images they are; `folder` is any folder of images. Labels that it has are not
    read."""
    root: str | None = None
    """Folder of the images, whose subfolders are searched too; of a data set with another `name`, its own root."""
    batch_size: int = Field(gt=0)
    """How many of them join each batch, beside `data.batch_size` labelled ones."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set itself."""
        return self.extra_keys | ({} if self.root is None else {"root": self.root})

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "UnlabelledConfig":
        known = SETS.options(self.name).model_fields
        refuse_unknown(self.options, {*known, *UnlabelledConfig.model_fields}, "unknown key data.unlabelled.{}")
        SETS.resolve(self.name, self.options)
        return self


class DataConfig(Open):
    """`data:` — the data set and how it is fed. Other keys are options of the data set `name`."""

    name: str
    """Name of the data set; `segdistill list data` prints all of them with their options."""
    size: Size | None = None
    """[height, width] that images and masks are resized to before anything else, for training and for evaluation. Left
    out, they stay as they are. A data set that draws its images makes them of this size."""
    crop: Size | None = None
    """[height, width] of the random crop that is trained on; images that are smaller are padded. Left out, whole images
    are used, which then must all have one size."""
    augmentation: str | None = None
    """Name of an augmentation as a paper's code does it, which sets the keys from `scale` to `padding` below: `skd`,
    `cwd`, `cirkd`, `mmseg` (ADE20K, VOC, COCO-Stuff), `mmseg_cityscapes`, `mmseg_context` (docs/data.md). Keys that are
    given beside it win."""
    scale: tuple[float, float] = (0.5, 2.0)
    """[least, largest] factor by which a training image is resized at random before it is cropped."""
    scale_step: float | None = Field(None, gt=0)
    """Distance of the factors that are drawn, such as 0.1: 0.5, 0.6, …, 2.0. Left out, any factor in the range is."""
    fit: tuple[int, int] | None = None
    """[long, short] sides of a rectangle, lying or standing, that a training image would just fit into at factor 1, its
    proportions kept: with [2048, 512] and factors from 0.5 to 2, short sides are 256 … 1024. Left out, factors are of
    the image itself."""
    flip: bool = True
    """Whether a training image is mirrored left to right, every second time on average."""
    cat_max_ratio: float | None = Field(None, gt=0, lt=1)
    """A crop is drawn anew, up to ten times, while it has fewer than two classes, or one that covers this share of its
    labelled pixels, such as 0.75. Left out, the first crop is taken."""
    photometric: Literal["fast", "mmseg"] | bool = False
    """Whether, and how, colours of training images vary at random: `fast` (or true) brightness, contrast, saturation;
    `mmseg` these and hue, as OpenMMLab's `PhotoMetricDistortion`."""
    padding: Literal["random", "end", "mirrored"] = "random"
    """Where an image lies that is smaller than the crop: `random` anywhere in it; `end` above and left, the padding
    below and right; `mirrored` the same, but that a flip takes the padding along."""
    fill: tuple[float, float, float] | None = None
    """RGB colour of the padding, in 0 … 1; labels there are 255. Left out, the mean that the student subtracts."""
    draft: bool = False
    """Whether training may decode JPEGs at 1/2, 1/4 or 1/8 of their size where twice the rows and columns that it needs
    remain: faster for photographs much larger than what is trained on; pixels differ slightly (docs/data.md)."""
    packed: str | None = None
    """Folder that `segdistill data pack` has written of these data: images are read from there, already decoded, and
    the data set's files are not needed. What is trained is the same to the last bit."""
    batch_size: int = Field(8, gt=0)
    """Labelled images in the batch of one step, of all processes together; `train.accumulate` splits it further."""
    workers: int = Field(2, ge=0)
    """Processes that load images ahead; 0 loads them in the training process."""
    eval_batch_size: int = Field(1, gt=0)
    """Images that are evaluated at a time; more than 1 needs images of one size."""
    unlabelled: UnlabelledConfig | None = None
    """Images without labels that join each batch."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_augmentation(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("augmentation") is not None:
            return {**augmentation(given["augmentation"]), **given}
        return given

    @pydantic.field_validator("photometric")
    @classmethod
    def _name_fast(cls, value: Any) -> Any:
        return "fast" if value is True else value

    @pydantic.field_validator("size", "crop")
    @classmethod
    def _check_size(cls, value: Size | None) -> Size | None:
        if value is not None and min(value) < 1:
            raise ValueError(f"expected [height, width] in pixels, got {list(value)}")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set itself."""
        options = self.extra_keys
        if self.size is not None and self._draws_any_size:
            options["size"] = self.size
        return options

    @property
    def images_per_step(self) -> int:
        """Images of one step, with and without labels."""
        return self.batch_size + (0 if self.unlabelled is None else self.unlabelled.batch_size)

    @property
    def resize(self) -> Size | None:
        """(H,W) that images are resized to; None where the data set makes them of that size itself."""
        return None if self._draws_any_size else self.size

    @property
    def _draws_any_size(self) -> bool:
        return "size" in SETS.options(self.name).model_fields

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "DataConfig":
        known = SETS.options(self.name)
        refuse_unknown(self.extra_keys, {*known.model_fields, *DataConfig.model_fields}, "unknown key data.{}")
        self._complete(known.model_validate(self.options).model_dump())
        return self


class NetworkConfig(Open):
    """`student:` or `teacher:` — a network. Other keys are options of its family, such as `pretrained` and `aux`."""

    name: str | None = None
    """Name of the network, `<family>_<backbone>` or `<library>:<name>`; `segdistill list models` prints examples."""
    checkpoint: str | None = None
    """A run folder or a student's file, instead of a name: it says itself what network it is."""
    weights: str | None = None
    """A file with all tensors of the named network, `pip:PACKAGE` for one in an installed package, or `published` for
    those that the network's library publishes."""
    weights_key: str | None = None
    """Which of the state dicts in that file is taken, where there are several: `ema` is the running average, whatever
    its key (state_dict_ema, model_ema, …), any other word a key of the file. Left out, the trained weights are taken
    (of mmengine's files the average, as it does itself), and a printed line says so."""
    source: str | None = None
    """Where that file is from: openmmlab, skd, cirkd, torchvision, espnet, or segdistill. Left out, the names of its
    tensors tell. Without a file, whose details and normalisation a network of this package is built with."""
    normalisation: Normalisation | None = None
    """`{mean: …, std: …, range: 1 | 255, bgr: …}` of the images, instead of the network's own."""
    align_corners: bool | None = None
    """Whether the network's logits are resized with aligned corners, in training as in evaluation, and so are maps in
    the decoder of a network of this package. Left out, as in its source: yes for skd and cirkd, no for all others."""
    taps: dict[str, str] | None = None
    """Tap name → path of a submodule, on top of the network's own or proposed taps; `segdistill layers MODEL` prints
    paths. A path with `:input` behind it is the submodule's input."""
    classifier: str | None = None
    """Path of the final 1×1 convolution, for methods that read its weights."""
    classes: list[str] | None = None
    """Names of a teacher's classes, where they are not those of the data; likewise of a network that is evaluated as it
    is."""
    num_classes: int | None = Field(None, gt=1)
    """How many classes it has, where they have no names."""
    class_map: Literal["names"] | dict[int | str, int | str | None] | None = None
    """Which of the data's classes each class of a teacher, or of a network that is evaluated as it is, is: `{its class:
    the data's class}` by name or number, null to leave one out; or `names` for those that have one name."""

    cache: str | None = None
    """Of a teacher only: folder in which what the methods read from it is kept for `cache_views` views of each image.
    It is filled once, before training; from then on the teacher does not run, in this run or in the next that has the
    same teacher, data and augmentation, of any seed (docs/training.md)."""
    cache_views: int = Field(1, gt=0)
    """With `cache`: how many ways of augmenting each image there are; epoch e takes number e mod `cache_views`. Without
    a cache, augmentation is another one each time."""
    cache_precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """With `cache`: how its numbers are kept. `float16` holds all that a teacher in bf16 gives, and refuses values
    beyond 65 504; `bfloat16` has their range and an eighth of their precision; `float32` takes twice the room."""
    cache_topk: int | None = Field(None, gt=0)
    """With `cache`: how many of a pixel's largest logits are kept, with the probability of all others together, which
    they share evenly when read. An approximation, for data of many classes; left out, all logits are kept."""

    @property
    def is_code(self) -> bool:
        """Whether a function of the user's own makes the network."""
        return (self.name or "").startswith("python:")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the family."""
        return self.extra_keys

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "NetworkConfig":
        from segdistill.models.build import model_options

        line = "unknown key network.{}"
        given = sorted(key for key in self.model_fields_set if key.startswith("cache_"))
        defaults = {key: type(self).model_fields[key].default for key in given}
        if self.cache is None and any(getattr(self, key) != defaults[key] for key in given):
            raise ValueError(f"{given[0]} is of a cached teacher; set cache: FOLDER beside it, or leave it out")
        if self.name is None:
            refuse_unknown(self.options, NetworkConfig.model_fields, line)
            if self.weights is not None:
                raise ValueError("weights need a name; for a run of segdistill's own use checkpoint")
            if self.checkpoint is not None:
                self._refuse_what_a_checkpoint_says()
            return self
        if self.checkpoint is not None:
            raise ValueError("give name or checkpoint, not both: a checkpoint says what network it is")
        if self.weights_key is not None and self.weights in (None, "published"):
            raise ValueError("weights_key chooses among the weights of a file; give weights: FILE")
        known = model_options(self.name)
        if known.model_config.get("extra") == "allow":  # a function of the user's own says what it takes when called
            return self
        refuse_unknown(self.options, {*known.model_fields, *NetworkConfig.model_fields}, line)
        self._complete(known.model_validate(self.options).model_dump())
        return self

    def _refuse_what_a_checkpoint_says(self) -> None:
        for key in ("weights_key", "source", "normalisation", "align_corners", "num_classes"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} beside checkpoint: a checkpoint brings its own; leave {key} out")


class TrainConfig(Section):
    """`train:` — optimisation, precision, what is kept when."""

    steps: int = Field(1000, gt=0)
    """Steps of the optimiser in the whole run."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, as in the papers, or `adamw`."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at the start, after the warm-up."""
    momentum: float = Field(0.9, ge=0)
    """Of SGD."""
    weight_decay: float = Field(5e-4, ge=0)
    """Of all weights; 5e-4 in SKD, IFVD and OpenMMLab (FAKD), 1e-4 in CIRKD (I2CKD), 1e-5 in SSTKD."""
    power: float = Field(0.9, ge=0)
    """Of the polynomial schedule: the learning rate is `min_lr + (lr − min_lr) · (1 − step/steps)^power`."""
    min_lr: float = Field(0.0, ge=0)
    """Where the learning rate ends; 1e-4 in OpenMMLab's schedules."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    aux_weight: float = Field(0.4, ge=0)
    """Of the auxiliary head's cross-entropy, where the student has such a head; 0 leaves the head untrained."""
    clip: float | None = Field(None, gt=0)
    """Largest Euclidean norm of the gradient; a longer one is scaled down. Left out, none is."""
    accumulate: int = Field(1, gt=0)
    """Parts that a batch is split into, one after the other, for batches that do not fit into memory; their gradients
    are added up to one step. Batch norm, and losses that compare images with one another, see one part at a time."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running average of the student's weights, such as 0.999; the average is then what is validated and
    saved."""
    sync_batchnorm: bool = False
    """Whether batch norm of the student and of the method's layers takes its statistics over the images of all
    processes, as one process with the whole batch would; otherwise each process takes those of its own share, and the
    first one's running statistics are kept. Without effect in a single process."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the networks; losses are computed in float32 at least. `auto` is bf16 where the device has it, else fp32."""
    channels_last: bool = True
    """Whether images and maps lie in memory with their channels together, which is faster on most devices."""
    compile: bool = False
    """Whether the networks are compiled between their taps: minutes at the start, less time per step afterwards."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`; auto takes a GPU where there is one."""
    threads: int | None = Field(None, gt=0)
    """Threads of the CPU; left out, as many as torch takes."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of everything that is drawn: first weights, order of the images, augmentation, dropout, the methods' samples."""
    eval_every: int = Field(0, ge=0)
    """Steps between validations; 0 validates at the end only. The best student on the validation split is kept."""
    save_every: int = Field(200, ge=0)
    """Steps between checkpoints, from which a stopped run goes on, besides those of each validation; 0 writes only
    these."""
    log_every: int = Field(10, gt=0)
    """Steps between lines of `metrics.jsonl`."""
    gradient_samples: int = Field(20, ge=0)
    """How often in the whole run each term's own gradient is measured, for the report; 0 never."""
    tensorboard: bool = False
    """Whether to write TensorBoard's event files as well (extra `track`)."""

    @pydantic.model_validator(mode="after")
    def _check_rates(self) -> "TrainConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, above lr, {self.lr:g}; it is where the learning rate ends")
        return self


class Config(Section):
    """The whole configuration of one run."""

    data: DataConfig
    """The data set and how it is fed."""
    student: NetworkConfig
    """The network that is trained."""
    teacher: NetworkConfig | None = None
    """The network that it learns from; it has to be trained already."""
    method: Any = Field("none", validate_default=True)
    """What is transferred: a method's name, a mapping with `name` and options, or a list of both; `none` trains the
    student alone. `segdistill list methods` prints all methods with their options."""
    train: TrainConfig = TrainConfig()
    """Optimisation, precision, what is kept when."""
    eval: EvalConfig = EvalConfig()
    """How networks look at images in validation, evaluation and prediction."""

    @pydantic.model_validator(mode="after")
    def _complete_eval(self) -> "Config":
        try:
            self.eval.complete(self.data.name)
        except ValueError as error:
            raise ValueError(f"eval.{error}") from None
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
        return value

    @property
    def method_names(self) -> list[str]:
        """Names of the methods."""
        return [entry["name"] for entry in self.method]

    @property
    def distils(self) -> bool:
        """Whether any method but the baseline is asked for."""
        return self.method_names != ["none"]


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
        "train": set(TrainConfig.model_fields),
        "eval": set(EvalConfig.model_fields),
    }
    network = set(NetworkConfig.model_fields)
    for section in ("data", "student", "teacher", "train", "eval"):
        given = raw.get(section)
        if isinstance(given, Mapping):
            more = set() if section in ("train", "eval") else _options_of(section, str(given.get("name")))
            if more is not None:
                refuse_unknown(given, own.get(section, network) | more, f"unknown key {section}.{{}}")
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
    for override in sorted(overrides, key=lambda text: not text.startswith("eval.protocol=")):  # others change it
        _set(raw, override)
    return raw


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        raise ValueError(f"no configuration at {path}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text in UTF-8; save it as one") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(str(error))}") from None
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
    if parents == ["eval"] and last == "protocol":  # it says what all the other keys are
        section.clear()
    # A checkpoint says what network it is, and a name replaces a checkpoint: the other one has to go.
    if parents and parents[-1] in ("student", "teacher") and last == "checkpoint":
        for key in [key for key in section if not str(key).startswith("cache")]:
            del section[key]
    if parents and parents[-1] in ("student", "teacher") and last == "name":
        section.pop("checkpoint", None)
    if parents == ["data"] and last == "name":  # what only the other data set knows has no meaning any more
        old, new = (_options_of("data", str(name)) or set() for name in (section.get("name"), value))
        for key in old - new - set(DataConfig.model_fields):
            section.pop(key, None)
    if parents and parents[-1] == "data" and last == "augmentation":  # of another one, or of none, all keys are there
        for key in {key for keys in AUGMENTATIONS.values() for key in keys}:
            section.pop(key, None)
    section[last] = value


def _one_line(error: pydantic.ValidationError) -> str:
    where, kind, line = first_mistake(error)
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
        field = model.model_fields[part]
        model = next(m for m in (field.annotation, *get_args(field.annotation)) if hasattr(m, "model_fields"))
    return set(model.model_fields)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; it runs again as it is.

    Args:
        config: what `load_config` returned.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
