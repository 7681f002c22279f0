"""Connected components of a map of labels."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def components(labels: NDArray[np.integer]) -> tuple[Numbers, Numbers]:
    """Number the connected pieces of equal labels, where pixels that touch at a side or a corner are connected.

    Rows are cut into runs of one label; runs that touch are joined, so that the work is in the runs, not in the pixels.

    Args:
        labels: (H,W) integers, of at least one pixel.

    Returns:
        The number of each pixel's piece (H,W), from 0 in no particular order, and the pixels of each number (K,), which
        may be none.

    >>> pieces, sizes = components(np.array([[5, 0, 0], [0, 5, 0]]))
    >>> pieces.tolist(), sizes.tolist()
    ([[0, 1, 1], [1, 0, 1]], [2, 4, 0, 0, 0])
    """
    begins = np.ones(labels.shape, dtype=bool)
    begins[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = begins.ravel().cumsum().reshape(labels.shape) - 1
    root = np.arange(runs[-1, -1] + 1)
    above, below = _touching(labels, runs)
    while True:
        a, b = root[above], root[below]
        apart = a != b
        if not apart.any():
            break
        above, below, a, b = above[apart], below[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
    pieces = root[runs]
    return pieces, np.bincount(pieces.ravel(), minlength=len(root))


def _touching(labels: NDArray[np.integer], runs: Numbers) -> tuple[Numbers, Numbers]:
    """Pairs of runs of one label in neighbouring rows."""
    whole, first, last = slice(None), slice(None, -1), slice(1, None)
    pairs = []
    for a, b in ((whole, whole), (first, last), (last, first)):
        same = labels[:-1, a] == labels[1:, b]
        pair = np.stack([runs[:-1, a][same], runs[1:, b][same]])
        new = np.ones(pair.shape[1], dtype=bool)
        new[1:] = (pair[:, 1:] != pair[:, :-1]).any(0)
        pairs.append(pair[:, new])
    above, below = np.concatenate(pairs, 1)
    return above, below
