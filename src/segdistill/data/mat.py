"""Labels in MATLAB's files, as SBD and Pascal Context were published."""

from pathlib import Path

import numpy as np

from segdistill._printing import one_line
from segdistill.data.files import Array


def read_mat(path: Path, *keys: str) -> Array:
    """Read the labels of a `.mat` file, (H,W) whole numbers.

    Args:
        path: of the file.
        *keys: of the variable, and of the fields in it that lead to the labels.

    Raises:
        ValueError: if scipy is missing, the file cannot be read, or it holds something else.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"{path}: .mat files need scipy; pip install 'segdistill[data]'") from None
    try:
        value = loadmat(path, variable_names=keys[:1])
    except Exception as error:  # a damaged file makes scipy raise anything
        reason = one_line(str(error)) or type(error).__name__
        raise ValueError(f"{path}: not a readable .mat file ({reason}); replace or remove it") from error
    try:
        labels = np.asarray(value[keys[0]])
        for key in keys[1:]:
            labels = np.asarray(labels[key].item())
    except (KeyError, ValueError, IndexError):
        there = ", ".join(key for key in value if not key.startswith("__")) or "nothing"
        raise ValueError(f"{path}: no {'.'.join(keys)} in it, but {there}; take the file as it was published") from None
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        what = f"{labels.dtype} of shape {'×'.join(map(str, labels.shape))}"
        raise ValueError(f"{path}: {'.'.join(keys)} holds {what}, where a map of whole numbers was expected")
    return labels
