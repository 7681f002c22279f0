"""Data sets. One file each; the folder is the registry."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import pydantic

from segdistill._options import closest, options_model
from segdistill.data._base import IGNORE, SPLITS, MissingMasks, SegmentationDataset
from segdistill.data.check import DatasetReport, check_dataset
from segdistill.data.sampler import eval_loader, train_loader
from segdistill.data.transforms import EvalTransform, TrainTransform

TOOLS = ("check", "sampler", "transforms")
"""Files of this folder that are no data set, beside those that start with an underscore."""


def list_datasets() -> list[str]:
    """Names of all data sets: the files of this folder that are neither tools nor start with an underscore."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_") and name not in TOOLS)


@cache
def dataset_class(name: str) -> type[SegmentationDataset]:
    """The class of a data set.

    Args:
        name: as in `list_datasets()`.

    Raises:
        ValueError: if there is no such data set, or its file does not define exactly one `SegmentationDataset`.
    """
    if name not in list_datasets():
        raise ValueError(f"no data set {name!r}{closest(name, list_datasets())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, SegmentationDataset) and c.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = [c.__name__ for c in found]
        raise ValueError(f"data/{name}.py must define exactly one SegmentationDataset, found {names}")
    return found[0]


def dataset_options(name: str) -> type[pydantic.BaseModel]:
    """The options of a data set as a pydantic model (unknown ones are refused).

    Args:
        name: as in `list_datasets()`.
    """
    return options_model(dataset_class(name))


def build_dataset(name: str, split: str, **options: Any) -> SegmentationDataset:
    """Build one split of a data set.

    Args:
        name: as in `list_datasets()`.
        split: train, val or test.
        **options: of the data set, as a config gives them.

    Raises:
        ValueError: on an unknown data set, option or split, or whatever is wrong with the data, in one line.

    >>> build_dataset("synthetic", "val", images=8).classes[:3]
    ['sky', 'building', 'fence']
    """
    try:
        checked = dataset_options(name).model_validate(options)
    except pydantic.ValidationError as error:
        raise ValueError(_one_line(name, error)) from None
    make: Any = dataset_class(name)
    dataset: SegmentationDataset = make(split, **{key: getattr(checked, key) for key in type(checked).model_fields})
    return dataset


def check_data(
    name: str, split: str, *, progress: Callable[[int, int], None] | None = None, **options: Any
) -> DatasetReport:
    """Check one split of a data set; images without a mask are listed with the other problems.

    Args:
        name: as in `list_datasets()`.
        split: train, val or test.
        progress: called with (items done, items in all) after each item.
        **options: of the data set, as a config gives them.

    Raises:
        ValueError: if there is nothing to check: no such folder, split or option.
    """
    try:
        return check_dataset(build_dataset(name, split, **options), progress=progress)
    except MissingMasks as error:
        report = check_dataset(error.dataset, progress=progress)
        report.problems = error.problems + report.problems
        return report


def _one_line(name: str, error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    option = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"data set {name!r} has no option {option!r}{closest(option, dataset_options(name).model_fields)}"
    if first["type"] == "missing":
        return f"data set {name!r} needs the option {option!r}"
    return f"data set {name!r}, option {option!r}: {first['msg']}, got {first['input']!r}"


__all__ = [
    "IGNORE",
    "SPLITS",
    "DatasetReport",
    "EvalTransform",
    "SegmentationDataset",
    "TrainTransform",
    "build_dataset",
    "check_data",
    "check_dataset",
    "dataset_class",
    "dataset_options",
    "eval_loader",
    "list_datasets",
    "train_loader",
]
