"""A configuration as flat settings: which of them a run is bound to, and whether a folder holds that run."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdistill.engine.config import Config
from segdistill.engine.run_folder import ENVIRONMENT, stored_json
from segdistill.engine.teacher import teacher_digest

FREE_TO_CHANGE = {
    "data.augmentation",  # a name for other settings
    "data.packed",
    "data.workers",
    "train.device",
    "train.gradient_samples",
    "train.log_every",
    "train.save_every",
    "train.shard",
    "train.tensorboard",
    "train.threads",
}
"""Settings that a resumed run may change: they change neither what is computed nor which student is kept."""

OVERRIDABLE = {
    "train.accumulate",
    "train.betas",
    "train.clip",
    "train.gamma",
    "train.lr",
    "train.milestones",
    "train.min_lr",
    "train.momentum",
    "train.nesterov",
    "train.power",
    "train.precision",
    "train.schedule",
    "train.warmup",
    "train.weight_decay",
}
"""Settings of the optimisation that a resumed run may change if it is told to: it is another run from there on."""

TEACHER_PATHS = {"teacher.checkpoint", "teacher.weights"}
"""Where a teacher is, which may change while its weights do not."""


def unnumbered(key: str) -> str:
    """A setting's name without the number that says which of several teachers it is of.

    Args:
        key: dotted.

    >>> unnumbered("teacher.1.checkpoint")
    'teacher.checkpoint'
    """
    return re.sub(r"^teacher\.\d+\.", "teacher.", key)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of mappings as one mapping of `key.sub` → value.

    Args:
        tree: mappings, lists and values.
        prefix: of the keys.

    >>> flat({"train": {"steps": 4}, "method": [{"name": "kd"}]})
    {'train.steps': 4, 'method.0.name': 'kd'}
    """
    if isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        tree = {str(index): item for index, item in enumerate(tree)}
    if isinstance(tree, Mapping) and tree:
        return {key: value for name, sub in tree.items() for key, value in flat(sub, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): tree}


def all_settings(config: Config) -> dict[str, Any]:
    """The settings of a run by dotted name, without `data.groups` where it says nothing of what a run does.

    Args:
        config: of the run.
    """
    settings = flat(config.model_dump(mode="json"))
    if not config.data.groups_choose:
        settings.pop("data.groups", None)
    return settings


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings of a run that are not free to change, by dotted name.

    Args:
        config: of the run.
    """
    settings = {key: value for key, value in all_settings(config).items() if key not in FREE_TO_CHANGE}
    for key in settings:
        if unnumbered(key) == "teacher.cache":  # where it lies says nothing; the run looks into it when it is opened
            settings[key] = settings[key] is not None
    return settings


def settings_digest(config: Config, *parts: str) -> str:
    """What tells one configuration from another, whatever its seed and wherever its teacher is.

    Args:
        config: of a run.
        *parts: beginnings of the names of the settings that matter.
    """
    skipped = TEACHER_PATHS | {"train.seed"}
    fixed = fixed_settings(config).items()
    settings = {key: value for key, value in fixed if key.startswith(parts) and unnumbered(key) not in skipped}
    return hashlib.sha256(json.dumps([settings, teacher_digest(config)], sort_keys=True).encode()).hexdigest()[:16]


def check_same(old: Config, new: Config, folder: Path, *, override: bool = False) -> dict[str, list[Any]]:
    """Refuse to go on with a run under another configuration, but for the settings that are free to change.

    A teacher is told by its weights, so that it may have moved but not changed.

    Args:
        old: what the run was started with.
        new: what it would go on with.
        folder: of the run.
        override: whether the settings in `OVERRIDABLE` may differ.

    Returns:
        The settings that differ, name → [old, new]; none unless `override`.

    Raises:
        ValueError: with the first setting that differs and may not.
    """
    if new.train.precision == "auto":  # what it means was decided when the run began
        new = new.model_copy(update={"train": new.train.model_copy(update={"precision": old.train.precision})})
    before, now = stored_json(folder / ENVIRONMENT).get("teacher"), teacher_digest(new)
    told = before is not None and now is not None
    if told and before != now:
        raise ValueError(f"{folder} was taught by another teacher than the one that is there now")
    a, b = fixed_settings(old), fixed_settings(new)
    # Names first: the options of one method are not those of another, and would say nothing.
    keys = sorted(a.keys() | b.keys(), key=lambda key: (not key.endswith(".name"), key))
    keys = [key for key in keys if not (told and unnumbered(key) in TEACHER_PATHS)]
    changed = {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}
    for key, (was, now) in changed.items():
        if key not in OVERRIDABLE:
            raise ValueError(f"{folder} was started with {key}={was}, not {now}; resume it unchanged")
        if not override:
            raise ValueError(f"{folder} was started with {key}={was}, not {now}; resume it unchanged, or --override it")
    return changed
