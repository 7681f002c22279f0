"""The data sets, one file each: the folder is the registry."""

from typing import TYPE_CHECKING, Any

from segdistill._registry import Registry

if TYPE_CHECKING:
    import pydantic

    from segdistill.data.dataset import SegmentationDataset

SETS: "Registry[SegmentationDataset]" = Registry(
    __name__, "segdistill.data.dataset:SegmentationDataset", "data set", skip=("split",)
)


def list_datasets() -> list[str]:
    """Names of all data sets: the files of this folder."""
    return SETS.names()


def dataset_class(name: str) -> "type[SegmentationDataset]":
    """The class of a data set.

    Args:
        name: as in `list_datasets()`.

    Raises:
        ValueError: if there is no such data set, or its file does not define exactly one `SegmentationDataset`.
    """
    return SETS.load(name)


def dataset_options(name: str) -> "type[pydantic.BaseModel]":
    """The options of a data set as a pydantic model (unknown ones are refused).

    Args:
        name: as in `list_datasets()`.
    """
    return SETS.options(name)


def build_dataset(name: str, split: str, **options: Any) -> "SegmentationDataset":
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
    make: Any = SETS.load(name)
    dataset: SegmentationDataset = make(split, **SETS.resolve(name, options))
    return dataset
