"""Whether one way of computing something takes less of the CPU than another, on this machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

REPEATS = 30


def cpu_times(first: Callable[[], object], second: Callable[[], object], repeats: int = REPEATS) -> dict[str, Any]:
    """CPU time of two computations, which take turns, so that whatever else the machine does hits both alike.

    Args:
        first: what the other is compared with; both on one thread.
        second: the other.
        repeats: runs of each that are timed.

    Returns:
        `threads`, `fp32_ms`, `ms` (medians) and `ratio` (median of second / first, pair by pair).
    """
    for work in (first, second):
        work()
    pairs = []
    for turn in range(repeats):
        order = (first, second) if turn % 2 else (second, first)
        spent = {id(work): _spent(work) for work in order}
        pairs.append((spent[id(first)], spent[id(second)]))
    before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / max(a, 1e-9) for a, b in pairs)
    return {"threads": 1, "fp32_ms": 1e3 * before, "ms": 1e3 * after, "ratio": ratio}


def _spent(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
