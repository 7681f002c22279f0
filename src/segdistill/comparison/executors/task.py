"""What runs of a comparison are to whoever carries them out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """One call in a process of its own.

    Args:
        function: at the top level of a module; what it returns is sent back.
        arguments: of the call.
        log: file for what the process prints; None: it prints where this one does.
        folder: of the run that it works on; None: it writes nothing.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Args:
        value: what the function returned.
        error: one line, if it did not return.
        killed: whether the system or somebody ended its process, and it may go on elsewhere.
    """

    value: Any = None
    error: str | None = None
    killed: bool = False


class Executor(Protocol):
    """Carries out tasks, each in a process of its own, and gives their outcomes as they come.

    When the caller stops, the tasks are asked to stop as well, which saves a run's checkpoint.
    """

    @property
    def jobs(self) -> int:
        """How many tasks there are at a time, at most."""

    @property
    def threads(self) -> int | None:
        """Of the CPU, for each task whose configuration says nothing; None: torch's own choice."""

    @property
    def prints(self) -> bool:
        """Whether a task may print into the terminal; else it has a log."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Carry out tasks.

        Args:
            tasks: what to do.

        Yields:
            The task's position, and its outcome.

        Raises:
            ValueError: with one line, if none of them can be carried out.
        """
