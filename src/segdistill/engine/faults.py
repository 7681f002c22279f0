"""What ends a run early, said in one line."""

import errno
import re
from pathlib import Path

from segdistill.engine.run_folder import CHECKPOINT

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""What CUDA, MPS, torch's CPU allocator and the system say."""


class TrainingStopped(ValueError):  # noqa: N818 -- it is not always an error
    """Training ended early, with its last good checkpoint in the run folder."""


def not_finite(what: str, value: object, step: int, folder: Path) -> TrainingStopped:
    """The end of a run whose numbers overflowed.

    Args:
        what: is not finite.
        value: of it.
        step: how many steps are done.
        folder: of the run.
    """
    return TrainingStopped(
        f"{what} is {value} at step {step}; {kept(folder)}. Go on from there with --resume --override and a lower "
        "train.lr, a train.clip or train.precision=fp32, or start afresh with a lower weight of that term"
    )


def kept(folder: Path) -> str:
    """Where the last good checkpoint of a run is.

    Args:
        folder: of the run.
    """
    path = folder / CHECKPOINT
    return f"last good checkpoint: {path if path.is_file() else 'none yet'}"


def known_fault(error: BaseException) -> str | None:
    """What happened and what helps, where the machine and not the program is at fault; None for other errors.

    Args:
        error: as it was raised.
    """
    if isinstance(error, ValueError):  # it has its line
        return None
    text = str(error)
    lost = re.search(r"DataLoader worker \(pid.*?(killed by signal: [\w ]+|exited unexpectedly)", text)
    if lost:
        shared = "; a larger /dev/shm helps as well" if "Bus error" in text else ""
        return (
            f"a process that loads images was lost ({lost[1].strip()}), most often for want of memory; lower "
            f"data.workers (0 loads them in the training process) or data.batch_size{shared}"
        )
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if system or isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        return (
            "out of memory; lower data.batch_size, data.crop or data.workers, or raise train.accumulate (a run goes on "
            "with other data.workers, and with another train.accumulate under --override)"
        )
    return None
