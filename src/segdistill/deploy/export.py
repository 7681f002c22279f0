"""From a run to a file for a runtime, which is verified before it is there."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from segdistill._printing import counted, untold
from segdistill._types import Size, Stages
from segdistill.deploy.child import trace_in_child
from segdistill.deploy.formats import FORMATS, Array, Format, FormatName, Runner
from segdistill.deploy.graph import Input, Interface, Output, as_input, deployed
from segdistill.deploy.latency import cpu_times
from segdistill.deploy.locate import first_difference
from segdistill.deploy.metadata import make_metadata
from segdistill.deploy.samples import Samples, find_samples
from segdistill.deploy.verify import Check, count_batches, example_batches, verify
from segdistill.engine.onnx_network import is_onnx
from segdistill.engine.run_folder import make_folder, write_atomically
from segdistill.engine.student import load_student, read_card, student_path

Precision = Literal["fp32", "fp16", "int8"]
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": float("inf")}
"""The largest difference of a logit, relative to the largest one, that is accepted; of int8 the mean IoU decides."""
Say = Callable[[str], None]


def export_student(
    model: str | Path,
    out: str | Path,
    *,
    format: FormatName = "onnx",
    size: Size | None = None,
    dynamic: bool = False,
    output: Output = "both",
    input: Input = "float",
    int8: bool = False,
    fp16: bool = False,
    calibrate: int = 64,
    tolerance: float | None = None,
    max_drop: float = 0.5,
    images: int = 32,
    config: str | Path | None = None,
    timeout: float | None = 600,
    allow_code: bool | None = None,
    say: Say | None = None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Write a trained student as a file for a runtime, if the file computes what the student computes.

    The file takes `image` and gives `ids`, the class of each pixel at the image's size, and `logits`; the normalisation
    and the weights are inside. It is run in its runtime on validation images before it is put in its place.

    Args:
        model: run folder or `student.safetensors`.
        out: the file to write; `.onnx`, `.xml` with a `.bin` beside it, or `.pte` with a `.pte.json`.
        format: `onnx`, `openvino` or `executorch`.
        size: (H,W) of the images (default: that of the run's evaluation, else that of its data's images).
        dynamic: whether images may have any size, and a batch any number of them.
        output: `ids`, `logits` or `both`.
        input: `float`, RGB in 0…1, or `uint8`, RGB in 0…255.
        int8: compute in whole numbers of 8 bits, but for layers that lose too much by it.
        fp16: compute in half precision, for GPUs.
        calibrate: training images that the ranges of activations are taken from, for int8.
        tolerance: the largest difference of a logit that is accepted, relative to the largest logit of its images
            (default: `TOLERANCES`).
        max_drop: points of mIoU, of 100, that int8 and fp16 may lose.
        images: validation images that the file is checked on.
        config: a configuration whose data is used instead of the run's own.
        timeout: seconds that the exporter gets, in a process of its own; None: as many as it takes, in this one.
        allow_code: as for `load_student`.
        say: is told what happens.
        progress: called with what is done next; a context that gives a function of (images or layers done, in all).

    Returns:
        The metadata that the file holds under `segdistill`; docs/deploy.md describes it.

    Raises:
        ValueError: if there is no such student, a package is missing, the exporter fails or takes too long, the file
            computes something else, or it cannot be written. Then there is no file.
    """
    path, place = Path(model).expanduser(), Path(out).expanduser()
    if int8 and fp16:
        raise ValueError("int8 and fp16: a file has one precision; leave one of them out")
    precision: Precision = "int8" if int8 else "fp16" if fp16 else "fp32"
    _check_options(format, dynamic, precision, images, calibrate)
    FORMATS[format].check()
    _check_place(place, FORMATS[format])
    source = None if config is None else Path(config)
    job = _Job.of(path, FORMATS[format], source, images, allow_code, say or _nothing, progress or untold)
    interface = Interface(job.size(size), dynamic, input, output)
    limits = _Limits(TOLERANCES[precision] if tolerance is None else tolerance, max_drop)
    with tempfile.TemporaryDirectory(prefix="segdistill-export-") as folder:
        traced = Path(folder) / "traced"
        if timeout is None:
            job.trace(interface, traced)
        else:
            with job.progress(f"exporting to {format}"):
                trace_in_child(path, interface, format, traced, timeout, allow_code=allow_code)
        work = _Work(job, interface, Path(folder), limits)
        final, facts = work.finish(traced, precision, source, calibrate)
        metadata = make_metadata(job.network, job.card, interface, digest=job.digest, precision=precision, **facts)
        _deliver(job.format, final, metadata, Path(folder), place)
    return metadata


def _nothing(_line: str) -> None:
    """Tell nobody."""


def _check_options(format: str, dynamic: bool, precision: Precision, images: int, calibrate: int) -> None:
    if format not in FORMATS:
        raise ValueError(f"format: expected {', '.join(FORMATS)}, got {format!r}")
    if images < 1 or calibrate < 1:
        raise ValueError(f"images, calibrate: expected at least 1, got {images} and {calibrate}")
    if format == "executorch" and dynamic:
        raise ValueError("format executorch plans its memory for one size; give size instead of dynamic")
    if format == "executorch" and precision != "fp32":
        raise ValueError(f"{precision} is for onnx and openvino; leave it out with format executorch")
    if format == "openvino" and precision == "fp16":
        raise ValueError("OpenVINO chooses half precision by itself where a device is faster so; leave fp16 out")


def _check_place(place: Path, format: Format) -> None:
    """See that the file can be written, before the work that it is to hold."""
    if place.suffix != format.suffix:
        raise ValueError(f"--out {place}: expected a name that ends in {format.suffix}, as {place.stem}{format.suffix}")
    if place.is_dir():
        raise ValueError(f"--out {place}: a folder; name a file in it")
    make_folder(place.parent)
    try:
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise ValueError(f"cannot write {place} ({error.strerror or error}); name another place with --out") from error


def _deliver(format: Format, source: Path, metadata: dict[str, Any], folder: Path, place: Path) -> None:
    """Put the file with its metadata in its place, the companion first: the file alone says that all is there."""
    built = folder / f"built{format.suffix}"
    format.write(source, metadata, built)
    companion = [] if format.companion is None else [format.companion]
    for suffix in (*companion, format.suffix):
        content = built.with_suffix(suffix).read_bytes()
        write_atomically(place.with_suffix(suffix), lambda temporary, content=content: temporary.write_bytes(content))


@dataclass
class _Limits:
    """How much a file may differ from its student."""

    tolerance: float
    max_drop: float


@dataclass
class _Job:
    """A student that is exported, and the images that its file is checked on."""

    path: Path
    format: Format
    network: nn.Module
    card: dict[str, Any]
    digest: str
    validation: Samples
    images: int
    say: Say
    progress: Stages

    @classmethod
    def of(
        cls,
        path: Path,
        format: Format,
        config: Path | None,
        images: int,
        allow_code: bool | None,
        say: Say,
        progress: Stages,
    ) -> "_Job":
        if is_onnx(path):
            raise ValueError(f"{path} is an exported file already; give the run that it was made of")
        card = read_card(path)
        network = load_student(path, allow_code=allow_code).requires_grad_(False)
        with student_path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        samples = find_samples(path, card, "val", config)
        return cls(path, format, network, card, digest, samples, images, say, progress)

    def size(self, wanted: Size | None) -> Size:
        """The size of the images: what is asked for, else that of the evaluation, else of the data's images."""
        found = wanted or self.card.get("size") or self.validation.size
        if found is None:
            raise ValueError(f"{self.path} does not say how large its images are; give --size HEIGHT WIDTH")
        height, width = found
        if min(height, width) < 32:
            raise ValueError(f"size: expected at least 32×32, got {height}×{width}")
        return height, width

    def trace(self, interface: Interface, target: Path) -> None:
        """Write the source of the file in this process."""
        try:
            self.format.trace(deployed(self.network, interface), interface, interface.outputs, target)
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be exported: {error}") from error


@dataclass
class _Work:
    """The way from a traced source to one that may be delivered."""

    job: _Job
    interface: Interface
    folder: Path
    limits: _Limits
    opened: int = 0

    def finish(
        self, traced: Path, precision: Precision, config: Path | None, calibrate: int
    ) -> tuple[Path, dict[str, Any]]:
        """The source in the precision that is wanted, if it is what the student is, and what there is to say of it."""
        check = self.measure(traced)
        self.accept(check, self.limits.tolerance if precision == "fp32" else TOLERANCES["fp32"], lambda source: source)
        if precision == "fp32":
            return traced, self._facts(check, None)
        if precision == "int8":
            return self._int8(traced, config, calibrate)
        from segdistill.deploy.quantize import half_file

        final = half_file(traced)
        check = self.measure(final)
        self.accept(check, self.limits.tolerance, half_file)
        self._accept_drop(check)
        return final, self._facts(check, None)

    def _int8(self, traced: Path, config: Path | None, calibrate: int) -> tuple[Path, dict[str, Any]]:
        import onnx

        from segdistill.deploy.quantize import RANKING_IMAGES, Quantizer, search

        job = self.job
        training = find_samples(job.path, job.card, "train", config)
        for samples in (training, job.validation):
            if samples.dataset is None:
                raise ValueError(f"int8 needs images of the kind that it is for; give --config ({samples.label})")
        count = min(calibrate, len(training))
        job.say(f"calibrating on {count} images ({training.label})")
        with job.progress("images to calibrate") as told:
            quantizer = Quantizer(onnx.load(traced), counted(self._inputs(training, count), count, told))
        target = self.folder / "int8"

        def measure(graph: onnx.ModelProto) -> Check:
            target.write_bytes(graph.SerializeToString())
            return self.measure(target)

        by = list(self._inputs(training, RANKING_IMAGES))
        found = search(quantizer, measure, by, self.limits.max_drop, job.say, job.progress)
        target.write_bytes(found.graph.SerializeToString())
        self.accept(found.check, self.limits.tolerance, None)
        quantisation = {"calibration": count, "layers": len(quantizer.layers), "float_layers": found.kept}
        return target, self._facts(found.check, traced, target) | {"quantisation": quantisation}

    def _inputs(self, samples: Samples, count: int) -> Iterator[Array]:
        return (as_input(images, self.interface) for images, _ in samples.batches(count, self.interface.size))

    def open(self, source: Path, outputs: list[str] | None = None, threads: int | None = None) -> Runner:
        """The file that a source becomes, in its runtime."""
        # Each its own file: a runtime may still read the one before, which it mapped into memory.
        self.opened += 1
        built = self.folder / f"opened{self.opened}{self.job.format.suffix}"
        self.job.format.write(source, None, built)
        return self.job.format.open(built, outputs or self.interface.outputs, threads)

    def measure(self, source: Path) -> Check:
        """Compare the file that a source becomes with the student."""
        job = self.job
        batches = example_batches(job.validation, self.interface, job.images)
        total = count_batches(job.validation, self.interface, job.images)
        with job.progress("batches checked") as told:
            checked = counted(batches, total, told)
            return verify(job.network, self.open(source), self.interface, checked, job.card["classes"])

    def accept(self, check: Check, tolerance: float, convert: Callable[[Path], Path] | None) -> None:
        """Refuse a file that computes something else, and say where it begins to.

        Args:
            check: of the file.
            tolerance: how much it may differ.
            convert: from a traced source to the file's; None where the layers all differ a little.
        """
        if check.difference <= tolerance:
            return
        place = None
        if check.worst is not None and convert is not None:
            place = first_difference(
                self.job.network, self.interface, check.worst, tolerance, lambda m, names: self._open(m, names, convert)
            )
        where = "" if place is None else f"; {place}"
        raise ValueError(
            f"{self.job.path}: the exported file computes something else: its outputs differ by {check.difference:.2g} "
            f"of the largest logit, more than --tolerance {tolerance:g}{where}; nothing was written"
        )

    def _open(self, module: nn.Module, names: list[str], convert: Callable[[Path], Path]) -> Runner:
        source = self.folder / "outspoken"
        self.job.format.trace(module, self.interface, names, source)
        return self.open(convert(source), names)

    def _accept_drop(self, check: Check) -> None:
        if check.drop is not None and not check.drop <= self.limits.max_drop:
            raise ValueError(
                f"{self.job.path}: the file loses {check.drop:.2f} points of mIoU, more than --max-drop "
                f"{self.limits.max_drop:g}; nothing was written"
            )

    def _facts(self, check: Check, slower: Path | None, faster: Path | None = None) -> dict[str, Any]:
        found = {"runtime": self.job.format.label, "images": self.job.validation.label, **check.figures()}
        if slower is not None and faster is not None:
            images, _ = next(self.job.validation.batches(1, self.interface.size))
            image = as_input(images, self.interface)
            before, after = (self.open(source, threads=1) for source in (slower, faster))
            found["cpu"] = cpu_times(lambda: before(image), lambda: after(image))
        return {"verification": found}
