"""Augmentations as papers' code does them, by name: what each sets of a configuration's `data:`."""

from collections.abc import Mapping
from typing import Any

from segdistill._options import closest

_IMAGE = {"flip": True, "fit": None, "cat_max_ratio": None, "photometric": False, "padding": "mirrored"}
_MMSEG = {
    "scale": (0.5, 2.0),
    "scale_step": None,
    "flip": True,
    "cat_max_ratio": 0.75,
    "photometric": "mmseg",
    "padding": "end",
}

AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = {
    "skd": {**_IMAGE, "scale": (0.7, 2.1), "scale_step": 0.1},
    "cwd": {**_IMAGE, "scale": (1.0, 1.0), "scale_step": None, "flip": False},
    "cirkd": {**_IMAGE, "scale": (0.5, 2.0), "scale_step": 0.1},
    "mmseg": {**_MMSEG, "fit": (2048, 512)},
    "mmseg_cityscapes": {**_MMSEG, "fit": (2048, 1024)},
    "mmseg_context": {**_MMSEG, "fit": (520, 520)},
}
"""Name → keys of `data:` and their values. docs/data.md says where each is from."""


def augmentation(name: str) -> Mapping[str, Any]:
    """The keys that an augmentation sets, with their values.

    Args:
        name: as in `AUGMENTATIONS`.

    Raises:
        ValueError: if there is none of that name.

    >>> augmentation("cirkd")["scale"], augmentation("cirkd")["scale_step"]
    ((0.5, 2.0), 0.1)
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation: there is none called {name!r}{closest(str(name), AUGMENTATIONS)}")
    return AUGMENTATIONS[name]
