"""Where the time of a run goes: training, validation, waiting for data."""

import time
from collections.abc import Iterable
from typing import Any


class Clock:
    """Seconds of a run over its interruptions, and of its laps without validation and samples of gradients.

    Args:
        before: seconds that the run has taken before.
    """

    def __init__(self, before: float = 0.0):
        self.before = before
        self.began = self.since = time.monotonic()

    def total(self) -> float:
        """Seconds of the whole run so far."""
        return self.before + time.monotonic() - self.began

    def lap(self) -> float:
        """Seconds since the last call, without pauses."""
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        return seconds

    def pause(self, seconds: float) -> None:
        """Keep some seconds out of the present lap."""
        self.since += seconds


class Waited:
    """An iterator that knows how long its consumer waited for it.

    Args:
        batches: what to iterate over.
    """

    def __init__(self, batches: Iterable[Any]):
        self.batches = (batch for batch in batches)
        self.seconds = 0.0

    def __iter__(self) -> "Waited":
        return self

    def __next__(self) -> Any:
        began = time.monotonic()
        batch = next(self.batches)
        self.seconds += time.monotonic() - began
        return batch

    def close(self) -> None:
        """Stop iterating; processes that load ahead end."""
        self.batches.close()

    def take(self) -> float:
        """Seconds waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
