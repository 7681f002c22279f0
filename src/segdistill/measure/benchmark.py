"""What networks cost on this machine: parameters, operations, peak memory, latency; eager, compiled, ONNX Runtime."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from segdistill._printing import first_line
from segdistill._types import Told
from segdistill.deploy.graph import Interface, to_onnx
from segdistill.engine.onnx_network import OnnxNetwork
from segdistill.engine.runtime import environment, pick_device, synchronize
from segdistill.engine.student import load_student
from segdistill.measure.method_costs import method_costs
from segdistill.models import build_model
from segdistill.models.stats import model_stats

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler announces every start on stderr otherwise

CLASSES = 19
"""Of a network that is given by name: Cityscapes', as in the papers' tables."""
SIZES = ((512, 1024),)
"""(H,W) of the image, as in the papers' tables."""
WARMUP = 2
"""Passes that are not counted, on top of the one whose memory is measured."""


def load_network(model: str) -> nn.Module:
    """A trained student by its path, or an untrained network by its name.

    Args:
        model: run folder, student.safetensors, ONNX file, or name of a network.

    Raises:
        ValueError: if it is neither.
    """
    path = Path(model).expanduser()
    return load_student(path) if path.exists() else build_model(model, num_classes=CLASSES).eval()


def benchmark_models(
    student: str, teacher: str | None = None, *, method: str | None = None, **options: Any
) -> dict[str, Any]:
    """`benchmark` of a student and its teacher by name or path, and what a method adds in training.

    Args:
        student: run folder, student.safetensors, or name of a network.
        teacher: likewise.
        method: name; needs a teacher.
        **options: of `benchmark`.

    Returns:
        What `benchmark` returns; with a method besides `method`, `costs` (as `method_costs` returns them, at the first
        size), `costs_size` and `costs_student_flops`.

    Raises:
        ValueError: as `load_network`, `benchmark` and `method_costs` do, or if the method has no teacher.
    """
    if method is not None and teacher is None:
        raise ValueError(f"method {method} needs two networks; give --teacher MODEL")
    if student == teacher:
        raise ValueError(f"student and teacher are both {student}; leave out the teacher")
    networks = {name: load_network(name) for name in (student, teacher) if name is not None}
    added = {}
    if method is not None and teacher is not None:
        files = [name for name, network in networks.items() if isinstance(network, OnnxNetwork)]
        if files:
            raise ValueError(f"method {method} needs networks whose maps can be read; {files[0]} is an ONNX file")
        size = next(iter(options.get("sizes", SIZES)))
        costs = method_costs(method, networks[student], networks[teacher], size)
        added = {"method": method, "costs": costs, "costs_size": list(size)}
    result = benchmark(networks, **options)
    return {**result, **added, "costs_student_flops": result["rows"][0]["flops"]} if added else result


def benchmark(
    networks: Mapping[str, nn.Module],
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    repeats: int = 10,
    device: str = "auto",
    threads: int | None = None,
    compiled: bool = False,
    onnx: bool = False,
    progress: Told | None = None,
) -> dict[str, Any]:
    """Count and time one forward pass on one image, in float32, network by network and size by size.

    The networks take turns, so that whatever else the machine does hits all of them alike.

    Args:
        networks: by what they are called in the table.
        sizes: (H,W) of the image.
        repeats: passes that are timed; 0: nothing is run, only counted.
        device: as for `segdistill.engine.runtime.pick_device`.
        threads: of the CPU; None: torch's own choice.
        compiled: whether to measure `torch.compile`d networks besides the eager ones.
        onnx: whether to export the networks and measure them in ONNX Runtime too, with as many threads.
        progress: called with (timed passes done, in all), of each size anew.

    Returns:
        `rows` of `network`, `mode` (`eager`, `compiled`, `onnxruntime`), `size`, `params`, `flops` (a multiply-add is
        two; both None for an ONNX file) and, if anything was run, `peak_mib` (None where the device or ONNX Runtime
        does not tell), `ms`, `ms_p95`;
        `repeats`, `device`, `environment`.

    Raises:
        ValueError: if the device is missing, a network cannot be compiled or exported, ONNX Runtime is missing or has
            no such device, or a number is out of range.
    """
    if repeats < 0 or (threads is not None and threads < 1):
        raise ValueError(f"expected repeats of at least 0 and threads of at least 1, got {repeats} and {threads}")
    if any(min(size) < 32 for size in sizes):
        raise ValueError(f"size: expected at least 32×32, got {' '.join(f'{h}×{w}' for h, w in sizes)}")
    place = pick_device(device)
    rows = []
    with _threads(threads):
        for size in sizes:
            works: dict[int, Any] = {}
            for name, network in networks.items():
                if isinstance(network, OnnxNetwork):
                    rows.append(_file_row(name, network, size))
                    works[len(rows) - 1] = network
                    continue
                rows.append({"network": name, "mode": "eager", "size": list(size), **_counts(network, size)})
                works[len(rows) - 1] = network.to(place).eval()
                if compiled:
                    rows.append({**rows[-1], "mode": "compiled"})
                    works[len(rows) - 1] = torch.compile(network)
                if onnx:
                    rows.append({**rows[-1], "mode": "onnxruntime"})
                    if repeats:
                        works[len(rows) - 1] = ExportedWork(name, network, torch.rand(1, 3, *size, device=place))
            if repeats:
                for index, figures in _measure(works, torch.rand(1, 3, *size, device=place), repeats, progress).items():
                    rows[index] |= figures
        facts = environment()
    return {"rows": rows, "repeats": repeats, "device": str(place), "environment": facts}


def _file_row(name: str, network: OnnxNetwork, size: tuple[int, int]) -> dict[str, Any]:
    """The row of an ONNX file, which does not say what it is made of."""
    taken = network.predictor.size
    if taken is not None and taken != tuple(size):
        raise ValueError(f"{name} takes images of {taken[0]}×{taken[1]} alone; give --size {taken[0]} {taken[1]}")
    return {"network": name, "mode": "onnxruntime", "size": list(size), "params": None, "flops": None}


def _counts(network: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    stats = model_stats(network, size)
    return {"params": stats["params"], "flops": stats["flops"]}


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _measure(works: Mapping[int, Any], image: Tensor, repeats: int, progress: Told | None) -> dict[int, dict[str, Any]]:
    """Peak memory and times of each work, by its number."""
    memory: dict[int, int | None] = {}
    for index, work in works.items():
        for _ in range(WARMUP):  # the first pass of a compiled network compiles it
            _first(work, image)
        own = not isinstance(work, ExportedWork | OnnxNetwork)  # nobody tells what another library allocates
        memory[index] = None if not own else peak_bytes(lambda work=work: work(image), image.device)  # type: ignore[misc]
    times: dict[int, list[float]] = {index: [] for index in works}
    for turn in range(repeats):
        for index in works if turn % 2 else reversed(list(works)):
            times[index].append(milliseconds(lambda work=works[index]: work(image), image.device))  # type: ignore[misc]
        if progress is not None:
            progress((turn + 1) * len(works), repeats * len(works))
    return {
        index: {
            "peak_mib": None if (peak := memory[index]) is None else peak / 2**20,
            "ms": statistics.median(spent),
            "ms_p95": torch.tensor(spent, dtype=torch.float64).quantile(0.95).item(),
        }
        for index, spent in times.items()
    }


def _first(work: Any, image: Tensor) -> None:
    try:
        work(image)
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise ValueError(f"torch.compile: {first_line(error)}; leave out --compile") from error
        raise


class ExportedWork:
    """A network in ONNX Runtime, which reads images and writes logits on their device, without copies to another.

    Args:
        name: of the network, for messages.
        network: in eval mode.
        image: (1,3,H,W), the size that is exported.

    Raises:
        ValueError: if the extra `export` is missing, the network cannot be exported, or ONNX Runtime lacks the device.
    """

    def __init__(self, name: str, network: nn.Module, image: Tensor):
        try:
            import onnxruntime
            import onnxscript  # noqa: F401 -- torch's exporter needs it
        except ImportError as error:
            raise ValueError(f"ONNX Runtime: {error.name} is missing; pip install 'segdistill[export]'") from None
        provider = f"{image.device.type.upper()}ExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(f"this ONNX Runtime does not run on {image.device.type}; leave out --onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        interface = Interface((image.shape[-2], image.shape[-1]), output="logits")
        try:
            model = to_onnx(network, interface).SerializeToString()
            self.session = onnxruntime.InferenceSession(model, options, providers=[provider])
        except Exception as error:
            told = first_line(error)
            raise ValueError(f"{name} cannot run in ONNX Runtime: {told}") from error
        if provider not in self.session.get_providers():
            raise ValueError(f"ONNX Runtime could not load its libraries for {image.device.type}; leave out --onnx")
        self.binding = self.session.io_binding()

    def __call__(self, image: Tensor) -> None:
        """Compute the logits of an image of the exported size, and leave them on its device."""
        (source,), (target,) = self.session.get_inputs(), self.session.get_outputs()
        device, index = image.device.type, image.device.index or 0
        self.binding.bind_input(source.name, device, index, np.float32, tuple(image.shape), image.data_ptr())
        self.binding.bind_output(target.name, device, index)
        self.session.run_with_iobinding(self.binding)


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one run."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return 1e3 * (time.perf_counter() - began)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that one run holds at any moment beyond what was held before it; None where nobody tells.

    On the CPU it is the profiler's record of every allocation and release by PyTorch, which depends neither on what
    ran before nor on whether the C library gives memory back.

    Args:
        work: is run once.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    results = record.profiler.kineto_results if record.profiler is not None else None
    if results is None:
        return None
    held = peak = 0
    for event in sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
