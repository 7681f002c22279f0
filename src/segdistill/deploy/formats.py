"""The formats of exported files: how a network is written, and how a file is run."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segdistill.deploy.graph import INPUT, Interface, example, quietly, write_graph
from segdistill.deploy.metadata import properties, write_metadata
from segdistill.engine.run_folder import write_json

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]
Runner = Callable[[Array], Mapping[str, Array]]
"""An exported file in its runtime: an image of the interface's kind → its outputs by name."""
FormatName = Literal["onnx", "openvino", "executorch"]


@dataclass(frozen=True)
class Format:
    """One format of files.

    Args:
        suffix: of the file's name.
        runtime: package that runs it.
        extra: of this project that brings the packages.
        packages: modules that are imported.
        trace: writes a module as a source: an ONNX graph, or what the runtime takes itself. It may take forever.
        write: makes the file from a source, with metadata or without.
        open: a file in its runtime, given the names of its outputs, on so many threads (None: torch's own number).
        companion: suffix of a second file that lies beside the first.
    """

    suffix: str
    runtime: str
    extra: str
    packages: tuple[str, ...]
    trace: Callable[[nn.Module, Interface, Sequence[str], Path], None]
    write: Callable[[Path, Mapping[str, Any] | None, Path], None]
    open: Callable[[Path, Sequence[str], int | None], Runner]
    companion: str | None = None

    @property
    def label(self) -> str:
        """The runtime with its version."""
        return f"{self.runtime} {version(self.runtime)}"

    def check(self) -> None:
        """Refuse to go on without the packages.

        Raises:
            ValueError: if one is missing, or cannot be loaded.
        """
        for package in self.packages:
            try:
                with quietly():
                    import_module(package)
            except (ImportError, OSError) as error:
                if isinstance(error, ModuleNotFoundError):
                    found = f"{error.name} is missing"
                else:
                    found = f"{package} {_version(package)}cannot be loaded beside torch {torch.__version__} ({error})"
                raise ValueError(f"export: {found}; pip install 'segdistill[{self.extra}]'") from None


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return f"{version(package)} "
    return ""


def open_onnx(model: "ModelProto | Path", threads: int | None = None) -> Runner:
    """An ONNX graph, or its file, in ONNX Runtime on the CPU.

    Args:
        model: the graph.
        threads: of the CPU; None: torch's own number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _count(threads)
    options.log_severity_level = 4  # what fails is said in one line
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(None, {INPUT: image}), strict=True))


def _count(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else threads


def _trace_onnx(module: nn.Module, interface: Interface, outputs: Sequence[str], path: Path) -> None:
    path.write_bytes(write_graph(module, interface, outputs).SerializeToString())


def _write_onnx(source: Path, metadata: Mapping[str, Any] | None, path: Path) -> None:
    import onnx

    if metadata is None:
        shutil.copyfile(source, path)
        return
    graph = onnx.load(source)
    write_metadata(graph, metadata)
    path.write_bytes(graph.SerializeToString())


def _write_openvino(source: Path, metadata: Mapping[str, Any] | None, path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(source)
    for key, value in ({} if metadata is None else properties(metadata)).items():
        model.set_rt_info(value, key)
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path, outputs: Sequence[str], threads: int | None) -> Runner:
    import openvino

    # Else it computes in bf16 where the CPU can, which is no longer what was exported.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": _count(threads)}
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    ports = {name: compiled.output(name) for name in outputs}

    def run(image: Array) -> dict[str, Array]:
        results = compiled({INPUT: image})
        return {name: np.array(results[port]) for name, port in ports.items()}

    return run


def _trace_executorch(module: nn.Module, interface: Interface, outputs: Sequence[str], path: Path) -> None:
    with quietly(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(module, (example(interface),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


def _write_executorch(source: Path, metadata: Mapping[str, Any] | None, path: Path) -> None:
    shutil.copyfile(source, path)
    if metadata is not None:
        write_json(path.with_suffix(".pte.json"), metadata)


def _open_executorch(path: Path, outputs: Sequence[str], threads: int | None) -> Runner:
    with _mute():
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")

    def run(image: Array) -> dict[str, Array]:
        with _mute():
            found = method.execute([torch.from_numpy(image)])
        return {name: value.numpy().copy() for name, value in zip(outputs, found, strict=True)}

    return run


@contextmanager
def _mute() -> Iterator[None]:
    """Keep a library that writes to the process's standard error itself from doing so for a while."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx", "onnxruntime", "export", ONNX_PACKAGES, _trace_onnx, _write_onnx,
        lambda path, _outputs, threads: open_onnx(path, threads),
    ),
    "openvino": Format(
        ".xml", "openvino", "openvino", (*ONNX_PACKAGES, "openvino"), _trace_onnx, _write_openvino, _open_openvino,
        ".bin",
    ),
    "executorch": Format(
        ".pte", "executorch", "executorch", ("executorch.exir", "executorch.runtime"), _trace_executorch,
        _write_executorch, _open_executorch, ".pte.json",
    ),
}  # fmt: skip
