"""Which executor the command line asks for."""

from collections.abc import Callable
from typing import Any

from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.task import Executor
from segdistill.comparison.plan import Plan


def choose_executor(
    name: str,
    plan: Plan,
    *,
    jobs: int | None = None,
    address: str | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    silent: bool = False,
    say: Callable[[str], Any] = print,
) -> Executor:
    """The executor of a name.

    Args:
        name: `local` or `ray`.
        plan: of the comparison.
        jobs: runs at a time; None: one on this machine, as many as there is room for in a cluster.
        address: of a Ray cluster.
        cpus: that a run takes there; None: one.
        gpus: that a run takes there; None: one, unless the configuration says `train.device=cpu` or there is none.
        silent: as for `Local`; tasks on Ray are silent in any case.
        say: prints a line.

    Raises:
        ImportError: if it is not installed.
        ValueError: if an option is not of this executor, or it cannot be had.
    """
    if name == "local":
        given = {"address": address, "cpus": cpus, "gpus": gpus}
        foreign = [f"--{key}" for key, value in given.items() if value is not None]
        if foreign:
            raise ValueError(f"{', '.join(foreign)}: of --executor ray alone")
        return Local(jobs or 1, silent=silent)
    from segdistill.comparison.executors.ray import Ray

    devices = {config.train.device for config in (*(run.config for run in plan.runs), *plan.teachers.values())}
    if gpus is None and devices == {"cpu"}:
        gpus = 0
    if gpus is None and any(device.startswith("cuda") for device in devices):
        gpus = 1
    return Ray(address, jobs=jobs, cpus=cpus or 1, gpus=gpus, say=say)
