"""Where and how a run computes: device, precision, processes, seeds, and the facts of the machine."""

import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from segdistill import _draws
from segdistill._printing import first_line
from segdistill._version import __version__
from segdistill.engine.joining import join

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Runtime:
    """The circumstances of one run.

    Args:
        device: where it computes.
        precision: `fp32`, `bf16` or `fp16`, of the networks; losses are always in float32.
        rank: number of this process.
        world: number of processes.
        behind: images of each micro-batch of a process that stand behind the others, as those without labels do, kind
            by kind.
    """

    device: torch.device
    precision: str = "fp32"
    rank: int = 0
    world: int = 1
    behind: tuple[int, ...] = ()
    stopped: list[int] = field(default_factory=list)

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """The networks' precision, as a context."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    def seed(self, *numbers: int) -> None:
        """Seed all draws from whole numbers, so that a step's randomness depends on its address alone.

        What the methods draw is the same for any number of processes; the networks' dropout differs between them.

        Args:
            *numbers: for example the run's seed and the step.
        """
        torch.manual_seed(_seed(*numbers, self.rank))
        _draws.begin(_seed(*numbers, SHARED), self.behind)

    def average_gradients(self, module: nn.Module) -> None:
        """Average a module's gradients over processes (what DDP does for the module that it wraps)."""
        if self.world > 1:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.world

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether a flag is up in any process."""
        return flag if self.world == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor summed over processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Numbers averaged over processes, which all have them in one order."""
        if self.world == 1:
            return dict(numbers)
        total = self.sum(torch.tensor(list(numbers.values()), device=self.device))
        return dict(zip(numbers, (total / self.world).tolist(), strict=True))

    def share(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers, such as statistics of batch norm."""
        if self.world > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)


SHARED = 2**32 - 1
"""Stands in the place of a rank where all processes draw the same."""


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def pick_device(name: str) -> torch.device:
    """A device by name.

    Args:
        name: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps`, …

    Raises:
        ValueError: if this machine does not have it.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not available here: {first_line(error)}") from None
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The networks' precision by name.

    Args:
        name: `fp32`, `bf16`, `fp16`, or `auto`: bf16 where the hardware computes in it, else fp32. On a CPU without
            such instructions bf16 is several times slower than float32.
        device: of the run.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "fp32"
    return "fp32"


@contextmanager
def runtime(device: str = "auto", precision: str = "fp32", threads: int | None = None) -> Iterator[Runtime]:
    """Set up a run's circumstances, and take them down again; under torchrun this joins the other processes.

    Args:
        device: as for `pick_device`.
        precision: of the networks; as for `pick_precision`.
        threads: of the CPU; torch's own choice if None.

    Raises:
        ConnectionError: if another process of the run ends before this one, or cannot be reached.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    started = world > 1 and not dist.is_initialized()
    if world > 1 and place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(place)
    if started:
        join("nccl" if place.type == "cuda" else "gloo")
    run = Runtime(place, pick_precision(precision, place), rank, world)
    handlers = _stop_politely(run)
    try:
        yield run
    except RuntimeError as error:
        if world > 1 and (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise ConnectionError(
                f"another one of the {world} processes of this run ended or cannot be reached; what it said, or the "
                "system's log if it was killed, is why; --resume auto goes on from the last checkpoint"
            ) from error
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.set_num_threads(before)
        _draws.end()
        if started:
            dist.destroy_process_group()


def stop_signals() -> list[int]:
    """Signals that ask a process to stop: Ctrl-C, a scheduler's SIGTERM, and SIGHUP of a terminal that was closed.

    There is no SIGHUP on Windows; one that is ignored, as under nohup, stays ignored.
    """
    hangup = getattr(signal, "SIGHUP", None)
    heard = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if hangup is not None and heard else [])]


def _stop_politely(run: Runtime) -> dict[int, Any]:
    """Let the first signal end the run after its current step; a second Ctrl-C ends it at once."""

    def note(number: int, _frame: Any) -> None:
        if run.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        if run.main and not run.stopped:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            with suppress(OSError, RuntimeError, ValueError):  # it may have come while something else was printed
                print(f"stopping after this step, which is saved{again}", file=sys.stderr, flush=True)
        run.stopped.append(number)

    handlers: dict[int, Any] = {}
    for number in stop_signals():
        try:
            handlers[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: whoever started the thread decides
            return {}
    return handlers


def environment() -> dict[str, Any]:
    """Facts of the machine and of the installed versions, for `env.json` and for `segdistill doctor`."""
    versions = {}
    for name in ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pydantic", "safetensors"):
        versions[name] = metadata.version(name)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "segdistill": __version__,
        "python": sys.version.split()[0],
        "versions": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given.

    Args:
        device: of the run; nothing is to be waited for on a CPU.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak allocation on CUDA, else the process's peak resident size.

    Args:
        device: of the run.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows does not say; nothing else depends on it
        return 0

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
