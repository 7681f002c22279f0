"""Tasks on the machines of a Ray cluster."""

import os
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill._printing import first_line, number_of, one_line
from segdistill.comparison.executors.actor import Worker
from segdistill.comparison.executors.cluster import connect
from segdistill.comparison.executors.process import restore, terminate_as_interrupt
from segdistill.comparison.executors.task import Outcome, Task
from segdistill.engine.run_folder import TEMPORARY, explaining, make_folder

LOSSES = 3
"""How often a task may lose its worker before it counts as failed: one that is killed for its memory always does."""

GIVEN_UP = {
    True: f"it lost its worker {LOSSES} times, most often for want of memory there",
    False: f"Ray could not begin it on any machine, {LOSSES} times",
}
"""What is said of a task that has failed so, by whether it had begun."""

GRACE = 30.0
"""Seconds in which tasks that are asked to stop have to end: a step and a checkpoint."""

TICK = 10.0
"""Seconds after which it is looked whether any machine is left that a task fits on."""


class Ray:
    """Tasks on a Ray cluster, each in an actor of its own that holds CPUs and GPUs.

    A task whose machine is lost, or whose process is killed, is queued again, and goes on from its last checkpoint.
    Every machine has the same version of this package, and sees data, teachers and the runs' folder at the same paths.

    Args:
        address: of the cluster, `HOST:PORT` or `ray://HOST:PORT`; `local` starts one on this machine; None: as Ray
            itself decides, `RAY_ADDRESS`, else a cluster that runs here, else a new one.
        jobs: how many tasks at a time, at most; None: as many as there is room for.
        cpus: that a task takes, and the threads that it gets.
        gpus: that a task takes; a fraction shares one; None: 1 if the cluster has any.
        say: prints a line.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: with one line, if the cluster cannot be reached, or none of its machines is large enough for a task.
    """

    prints = False

    def __init__(
        self,
        address: str | None = None,
        *,
        jobs: int | None = None,
        cpus: int = 1,
        gpus: float | None = None,
        say: Callable[[str], Any] = print,
    ):
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {jobs}")
        if cpus < 1 or (gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus)))):
            raise ValueError(f"expected cpus ≥ 1 and gpus a whole number or a fraction below 1, got {cpus} and {gpus}")
        self.ray = connect(address)
        self.limit, self.say = jobs, say
        machines = self._machines()
        if gpus is None:
            gpus = 1 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0
        self.needed: dict[str, float] = {"CPU": cpus, "GPU": gpus}
        if not self._room():
            have = " and ".join(f"{max(m.get(kind, 0) for m in machines):g} {kind}s" for kind in self.needed)
            raise ValueError(f"a run takes {self._in_words()}, the largest machine of the Ray cluster has {have}")
        total = ", ".join(f"{sum(m.get(kind, 0) for m in machines):g} {kind}s" for kind in self.needed)
        count = number_of(len(machines), "machine")
        say(f"Ray: {count} with {total}; {self._in_words()} a run, {self.jobs} at a time")

    def close(self) -> None:
        """Leave the cluster, and end one that was started here."""
        self.ray.shutdown()

    @property
    def jobs(self) -> int:
        """As many as there is room for in the cluster now, or fewer."""
        room = max(1, self._room())
        return room if self.limit is None else min(room, self.limit)

    @property
    def threads(self) -> int:
        """One for each CPU that the task takes."""
        return int(self.needed["CPU"])

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Outcome]]:
        """Carry out tasks.

        Args:
            tasks: what to do.

        Yields:
            The task's position, and its outcome.

        Raises:
            ValueError: with one line, if a machine does not see the folder, or the cluster is lost.
        """
        waiting = list(range(len(tasks)))
        lost: Counter[tuple[int, bool]] = Counter()
        running: dict[Any, _Attempt] = {}
        before = terminate_as_interrupt()
        with _seen_by_all(tasks) as token:
            try:
                while waiting or running:
                    while waiting and (self.limit is None or len(running) < self.limit):
                        position = waiting.pop(0)
                        reference, actor, begun = self._start(tasks[position], token)
                        running[reference] = _Attempt(position, actor, begun)
                    for reference in self._ended(running):
                        attempt = running.pop(reference)
                        position, outcome = attempt.position, self._outcome(reference)
                        self.ray.kill(attempt.actor)
                        if outcome is not None:
                            yield position, outcome
                            continue
                        begun = self._had_begun(attempt)
                        lost[position, begun] += 1
                        if lost[position, begun] == LOSSES:
                            yield position, Outcome(error=GIVEN_UP[begun])
                            continue
                        if begun:
                            self.say(f"{_name(tasks[position])} lost its worker; it is queued again")
                        waiting.insert(0, position)
            finally:
                self._stop(running)
                restore(before)

    def _start(self, task: Task, token: Path | None) -> tuple[Any, Any, Any]:
        """The outcome to come, its actor, which waits for room in the cluster, and the sign that this one is there."""
        options = {"num_cpus": self.needed["CPU"], "num_gpus": self.needed["GPU"], "max_concurrency": 2}
        actor = self.ray.remote(Worker).options(**options, max_restarts=0).remote(os.getcwd())
        work = pickle.dumps((task.function, task.arguments))  # unpacked in the task's process: it may import torch
        begun = actor.__ray_ready__.remote()
        return actor.carry_out.remote(work, task.log, token, hide_gpus=not self.needed["GPU"]), actor, begun

    def _had_begun(self, attempt: "_Attempt") -> bool:
        """Whether a lost task had a machine at all: for some seconds Ray gives out one that is lost already."""
        try:
            self.ray.get(attempt.begun, timeout=0)
        except self.ray.exceptions.RayError:
            return False
        return True

    def _ended(self, running: Mapping[Any, Any]) -> list[Any]:
        """Wait for tasks to end; none if for some time no machine has been there that one fits on."""
        with self._lost_cluster():
            ended: list[Any] = self.ray.wait(list(running), num_returns=1, timeout=TICK)[0]
            if not ended and not self._room():
                self.say(f"no machine of the Ray cluster has room for {self._in_words()} any more; waiting for one")
                while not ended and not self._room():
                    ended = self.ray.wait(list(running), num_returns=1, timeout=TICK)[0]
        return ended

    def _outcome(self, reference: Any) -> Outcome | None:
        """How a task ended; None if its worker was lost."""
        errors = self.ray.exceptions
        try:
            with self._lost_cluster():
                value = self.ray.get(reference)
        except errors.RayError as error:
            text = str(error)
            if "No module named 'segdistill'" in text:
                raise ValueError(
                    "the machines of the Ray cluster cannot import segdistill; install it there, or set PYTHONPATH to "
                    "where they see it"
                ) from None
            lost = (errors.ActorDiedError, errors.ActorUnavailableError, errors.WorkerCrashedError)
            if isinstance(error, lost) and "creation task" not in text:  # that one would not begin elsewhere either
                return None
            return Outcome(error=f"Ray: {one_line((text.strip() or type(error).__name__).splitlines()[-1])}")
        if isinstance(value, str):  # that machine is not one to work on, nor is the next
            raise ValueError(value)
        assert isinstance(value, Outcome)
        return None if value.killed else value

    @contextmanager
    def _lost_cluster(self) -> Iterator[None]:
        try:
            yield
        except (self.ray.exceptions.RaySystemError, self.ray.exceptions.RpcError, ConnectionError) as error:
            raise ValueError(
                f"the Ray cluster was lost ({first_line(error)}); the same command goes on with the runs"
            ) from error

    def _stop(self, running: Mapping[Any, "_Attempt"]) -> None:
        """Ask tasks to stop, wait until they have saved where they are, and end what is left of them."""
        if not running:
            return
        with suppress(Exception):  # the cluster may be gone
            stopped = {attempt.actor.stop.remote(): reference for reference, attempt in running.items()}
            begun = list(self.ray.wait(list(stopped), num_returns=len(stopped), timeout=1.0)[0])
            ends = [stopped[answer] for answer in begun]  # the others wait for room still
            if ends:
                self.ray.wait(ends, num_returns=len(ends), timeout=GRACE)
        for attempt in running.values():
            with suppress(Exception):
                self.ray.kill(attempt.actor)

    def _machines(self) -> list[dict[str, float]]:
        """What each machine has."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """How many tasks all machines together could hold, if they did nothing else."""
        needed = {kind: amount for kind, amount in self.needed.items() if amount}
        return sum(min(int(m.get(kind, 0) / amount) for kind, amount in needed.items()) for m in self._machines())

    def _in_words(self) -> str:
        return " and ".join(f"{n:g} {kind}{'s' * (n != 1)}" for kind, n in self.needed.items() if n)


@dataclass(frozen=True)
class _Attempt:
    """A task with the actor that is to carry it out.

    Args:
        position: of the task.
        actor: of its own.
        begun: what can be had as soon as the actor is on a machine.
    """

    position: int
    actor: Any
    begun: Any


@contextmanager
def _seen_by_all(tasks: Sequence[Task]) -> Iterator[Path | None]:
    """A file in the folder of the runs, by which other machines show that they see it; None for tasks without one."""
    folder = next((task.folder.parent for task in tasks if task.folder is not None), None)
    if folder is None:
        yield None
        return
    folder = folder.absolute()
    make_folder(folder)
    token = folder / f".shared.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    with explaining(token):
        token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _name(task: Task) -> str:
    return "a task" if task.log is None else task.log.parent.name
