"""How every figure in this folder is measured: interleaved times, peak memory, the machine it was done on."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler announces every start on stderr otherwise

RESULTS = Path(__file__).parent / "results"

Work = Callable[[], object]
"""One run of what is measured: forward and backward, nothing kept, nothing returned that matters."""


@dataclass(frozen=True)
class Row:
    """One comparison. Times are medians in milliseconds, memory is the peak in MiB above what was there before.

    Args:
        name: what was compared.
        ours_ms: time of ours.
        reference_ms: time of the reference (nan where there is none).
        time_ratio: ours over reference, the median over the rounds, each of which ran both.
        ours_mib: peak memory of ours.
        reference_mib: peak memory of the reference.
        memory_ratio: ours over reference.
        time_target: the ratio that `time_ratio` must not exceed, if there is one.
        memory_target: likewise for `memory_ratio`.
        ms_target: the milliseconds that `ours_ms` must not exceed, if there is such a limit.
        rounds: how often each ran.
        note: sizes, and what the reference is.
    """

    name: str
    ours_ms: float
    reference_ms: float
    time_ratio: float
    ours_mib: float
    reference_mib: float
    memory_ratio: float
    time_target: float | None
    memory_target: float | None
    ms_target: float | None
    rounds: int
    note: str

    @property
    def met(self) -> bool:
        """Whether all targets are met."""
        limits = (
            (self.time_ratio, self.time_target),
            (self.memory_ratio, self.memory_target),
            (self.ours_ms, self.ms_target),
        )
        return all(limit is None or value <= limit for value, limit in limits)


def forward_backward(loss: Callable[..., Tensor], *inputs: Tensor, **options: Any) -> Work:
    """The work of one training step's share of a loss: call it, propagate back, drop the gradients.

    Args:
        loss: returns a 0-dim tensor.
        *inputs: its positional arguments; the gradients go to those that require them.
        **options: its keyword arguments.
    """

    def work() -> None:
        loss(*inputs, **options).backward()
        for tensor in inputs:
            tensor.grad = None

    return work


def image_step(network: nn.Module, classes: int, size: tuple[int, int]) -> Work:
    """The work of a network on one image: forward, cross-entropy, backward.

    Args:
        network: images → logits.
        classes: how many.
        size: (H,W) of the image.
    """
    # In eval mode: BatchNorm cannot normalise the pyramid's 1×1 map of a single image. It is the cheaper mode.
    network.eval()
    device = next(network.parameters()).device
    image, target = torch.rand(1, 3, *size, device=device), torch.randint(0, classes, (1, *size), device=device)

    def work() -> None:
        F.cross_entropy(network(image), target).backward()
        network.zero_grad()

    return work


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Clock:
    """What times are read from: the wall's clock, or on a machine that others use the process's own processor time."""

    read: Callable[[], float] = staticmethod(time.perf_counter)

    @classmethod
    def add_option(cls, parser: argparse.ArgumentParser) -> None:
        """Give a script the option `--cpu-time`."""
        parser.add_argument("--cpu-time", action="store_true", help="processor time of the process, not wall clock")

    @classmethod
    def choose(cls, arguments: argparse.Namespace) -> None:
        """Do as the option says."""
        cls.read = staticmethod(time.process_time if arguments.cpu_time else time.perf_counter)


def seconds(work: Work) -> float:
    """Time of one run."""
    synchronize()
    start = Clock.read()
    work()
    synchronize()
    return Clock.read() - start


def peak_bytes(work: Work) -> int:
    """Most memory that one run holds at any moment, above what was allocated before it.

    On a GPU the caching allocator's own peak. On the CPU the profiler's record of every allocation and release by
    PyTorch's allocator, temporaries inside operators included; unlike the process's resident size it depends neither
    on what ran before nor on whether the C library gives memory back.

    Args:
        work: is run once.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare(
    name: str,
    ours: Work,
    reference: Work | None = None,
    *,
    repeats: int = 7,
    time_target: float | None = None,
    memory_target: float | None = None,
    ms_target: float | None = None,
    note: str = "",
) -> Row:
    """Time and peak memory of ours and of a reference, run in turns so that a busy machine hits both alike.

    Args:
        name: what is compared.
        ours: forward and backward of ours.
        reference: forward and backward of the literal formula (or the floor); None: only ours is measured.
        repeats: rounds; each runs both once, in alternating order. The first, a warm-up, is not counted.
        time_target: largest ratio of times (ours / reference) that is acceptable.
        memory_target: largest ratio of peak memories that is acceptable.
        ms_target: largest time of ours that is acceptable, in milliseconds.
        note: sizes, and what the reference is.
    """
    works = [ours] if reference is None else [ours, reference]
    memory = [peak_bytes(work) / 2**20 for work in works]
    times: list[list[float]] = [[] for _ in works]
    for round_ in range(repeats + 1):
        for i in range(len(works)) if round_ % 2 else reversed(range(len(works))):
            elapsed = 1e3 * seconds(works[i])
            if round_:
                times[i].append(elapsed)
    nothing = float("nan")
    return Row(
        name=name,
        ours_ms=statistics.median(times[0]),
        reference_ms=nothing if reference is None else statistics.median(times[1]),
        time_ratio=nothing if reference is None else statistics.median(a / b for a, b in zip(*times, strict=True)),
        ours_mib=memory[0],
        reference_mib=nothing if reference is None else memory[1],
        memory_ratio=nothing if reference is None else memory[0] / max(memory[1], 2**-20),
        time_target=time_target,
        memory_target=memory_target,
        ms_target=ms_target,
        rounds=repeats,
        note=note,
    )


def machine() -> dict[str, Any]:
    """What a figure cannot be read without: processor, cores, threads, versions, GPU, how busy the machine is."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "clock": "wall" if Clock.read is time.perf_counter else "processor time",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as text: ratios with the targets that they must not exceed, notes below."""

    def ratio(value: float, target: float | None) -> str:
        return f"{value:8.3f}" + (f" ≤ {target:<6.3g}" if target is not None else 9 * " ")

    head = f"{'':30}{'ours':>12}{'reference':>12}{'  time ratio':17}{'ours':>12}{'reference':>12}{'  memory ratio':17}"
    lines = [head]
    for row in rows:
        numbers = (
            f"{row.ours_ms:9.1f} ms{row.reference_ms:9.1f} ms{ratio(row.time_ratio, row.time_target)}"
            f"{row.ours_mib:8.1f} MiB{row.reference_mib:8.1f} MiB{ratio(row.memory_ratio, row.memory_target)}"
        )
        limit = "" if row.ms_target is None else f" ≤ {row.ms_target:g} ms"
        lines.append(f"{row.name:30}{numbers}{limit}{'' if row.met else '  MISSED'}")
    return "\n".join([*lines, *(f"  {row.name}: {row.note}" for row in rows if row.note)])


def report(name: str, rows: Sequence[Row], *, command: str, write: bool = True) -> None:
    """Print the table and write it with the machine's facts to `results/<name>.json`.

    Args:
        name: of the file.
        rows: what was measured.
        command: the command that was run.
        write: whether to write at all (a trial run must not replace a real one's numbers).
    """
    print(table(rows))
    if not write:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    # JSON has no nan; a reference that was not run is null.
    rows_json = [{k: None if v != v else v for k, v in (asdict(row) | {"met": row.met}).items()} for row in rows]
    path.write_text(json.dumps({"command": command, "machine": machine(), "rows": rows_json}, indent=1) + "\n")
    print(f"-> {path}")
