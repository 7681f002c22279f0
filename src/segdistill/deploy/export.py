"""From a run to a file for a runtime, which is verified before it is there."""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from segdistill._types import Size
from segdistill.deploy.child import export_in_child
from segdistill.deploy.graph import Input, Interface, Output, to_onnx
from segdistill.deploy.metadata import make_metadata, write_metadata
from segdistill.deploy.samples import Samples, find_samples, native_size
from segdistill.deploy.verify import Check, example_batches, open_onnx, verify
from segdistill.engine.run_folder import make_folder, write_atomically
from segdistill.engine.student import load_student, read_card, student_path

if TYPE_CHECKING:
    from onnx import ModelProto

Format = Literal["onnx"]
TOLERANCE = 1e-4
"""The largest difference of a logit, relative to the largest one, that a file in float32 may have."""


@dataclass
class Student:
    """A trained student that is exported, and the images that it is checked on."""

    path: Path
    network: nn.Module
    card: dict[str, Any]
    validation: Samples
    images: int
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        with student_path(self.path).open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()


def export_student(
    model: str | Path,
    out: str | Path,
    *,
    format: Format = "onnx",
    size: Size | None = None,
    dynamic: bool = False,
    output: Output = "both",
    input: Input = "float",
    tolerance: float | None = None,
    images: int = 32,
    config: str | Path | None = None,
    timeout: float | None = 600,
    allow_code: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a trained student as one file for a runtime, if the file computes what the student computes.

    The file takes `image` and gives `ids`, the class of each pixel at the image's size, and `logits`; the normalisation
    and the weights are inside. It is run in its runtime on validation images before it is put in its place.

    Args:
        model: run folder or `student.safetensors`.
        out: the file to write.
        format: `onnx`.
        size: (H,W) of the images (default: that of the run's evaluation).
        dynamic: whether images may have any size, and a batch any number of them.
        output: `ids`, `logits` or `both`.
        input: `float`, RGB in 0…1, or `uint8`, RGB in 0…255.
        tolerance: the largest difference of a logit that is accepted, relative to the largest logit.
        images: validation images that it is checked on.
        config: a configuration whose data is used instead of the run's own.
        timeout: seconds that the exporter gets, in a process of its own; None: as many as it takes, in this one.
        allow_code: as for `load_student`.
        say: is told what happens.

    Returns:
        The metadata that the file holds under `segdistill`.

    Raises:
        ValueError: if there is no such student, a package is missing, the exporter fails or takes too long, the file
            computes something else, or it cannot be written.
    """
    path, out = Path(model).expanduser(), Path(out).expanduser()
    check_packages("onnx", "onnxscript", "onnxruntime")
    _check_place(out)
    card = read_card(path)
    network = load_student(path, allow_code=allow_code)
    validation = find_samples(path, card, "val", None if config is None else Path(config))
    student = Student(path, network, card, validation, images)
    interface = Interface(_size(student, size), dynamic, input, output)
    graph = _graph(student, interface, timeout, allow_code)
    check = verify(network, open_onnx(graph), interface, _batches(student, interface), card["classes"])
    _accept(student, check, TOLERANCE if tolerance is None else tolerance)
    runtime = f"onnxruntime {version('onnxruntime')}"
    verification = {"runtime": runtime, "images": student.validation.label, **check.figures()}
    metadata = make_metadata(
        network, card, interface, digest=student.digest, precision="fp32", verification=verification
    )
    write_metadata(graph, metadata)
    write_atomically(out, lambda place: place.write_bytes(graph.SerializeToString()))
    return metadata


def check_packages(*names: str, extra: str = "export") -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        names: of the modules that are imported.
        extra: that brings them.

    Raises:
        ValueError: if one is missing.
    """
    for name in names:
        try:
            __import__(name)
        except ImportError:
            raise ValueError(f"export: {name} is missing; pip install 'segdistill[{extra}]'") from None


def _check_place(out: Path) -> None:
    """See that the file can be written, before the work that it is to hold."""
    if out.suffix != ".onnx":
        raise ValueError(f"--out {out}: expected a name that ends in .onnx")
    if out.is_dir():
        raise ValueError(f"--out {out}: a folder; name a file in it")
    make_folder(out.parent)
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise ValueError(f"cannot write {out} ({error.strerror or error}); name another place with --out") from error


def _size(student: Student, wanted: Size | None) -> Size:
    """The size of the images: what is asked for, else that of the evaluation, else of the data's first image."""
    found = wanted or student.card.get("size") or native_size(student.validation)
    if found is None:
        raise ValueError(f"{student.path} does not say how large its images are; give --size HEIGHT WIDTH")
    height, width = found
    if min(height, width) < 32:
        raise ValueError(f"size: expected at least 32×32, got {height}×{width}")
    return height, width


def _graph(student: Student, interface: Interface, timeout: float | None, allow_code: bool | None) -> "ModelProto":
    if timeout is not None:
        return export_in_child(student.path, interface, timeout, allow_code=allow_code)
    try:
        return to_onnx(student.network, interface)
    except ValueError as error:
        raise ValueError(f"{student.path} cannot be exported: {error}") from error


def _batches(student: Student, interface: Interface) -> Any:
    return example_batches(student.validation, interface, student.images)


def _accept(student: Student, check: Check, tolerance: float) -> None:
    if not check.difference <= tolerance:
        raise ValueError(
            f"{student.path}: the exported file computes something else: its logits differ by {check.difference:.2g} "
            f"of the largest, --tolerance {tolerance:g}; nothing was written"
        )
