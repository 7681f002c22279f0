"""A table of what could be deployed: teacher, baseline and student in every format that there is a file of."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill._printing import counted, untold
from segdistill._types import Size, Stages, Told
from segdistill._version import __version__
from segdistill.data import SegmentationDataset
from segdistill.data.transforms import EvalTransform
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.onnx_network import OnnxNetwork, is_onnx
from segdistill.engine.protocol import infer_ids, read_protocol
from segdistill.engine.run_folder import CONFIG
from segdistill.engine.runtime import environment
from segdistill.engine.student import load_student, student_path
from segdistill.measure.footprint import peak_rss
from segdistill.metrics import confusion_matrix, scores

BENCHMARK = "benchmark.json"
KIND = "formats"
"""What such a file says that it is."""
EAGER = "PyTorch fp32"
WARMUP = 2


class Candidate:
    """One row: a network in one format.

    Args:
        role: teacher, baseline or student.
        file: of the network.
    """

    def __init__(self, role: str, file: Path):
        self.role, self.file = role, file
        self.format = file.name if is_onnx(file) else EAGER
        self.network = load_student(file)
        card: Any = self.network.card
        self.classes = list(card["classes"])
        self.protocol = read_protocol(card.get("protocol"))

    def prepare(self, image: Tensor) -> Callable[[], Any]:
        """What is timed: the network's work on an image that lies ready as the format takes it.

        Args:
            image: (3,H,W) in 0…1.
        """
        if not isinstance(self.network, OnnxNetwork):
            return lambda: self.network(image[None])
        predictor = self.network.predictor
        batch = image[None]
        if predictor.size is not None and predictor.size != tuple(image.shape[-2:]):
            batch = F.interpolate(batch, size=predictor.size, mode="bilinear", antialias=True)
        pixels = (255 * batch).round().clamp(0, 255).byte().numpy()
        return lambda: predictor.run(pixels)

    def ids(self, image: Tensor, size: Size) -> Tensor:
        """The class of each pixel, (H,W), as in an evaluation.

        Args:
            image: (3,H,W) in 0…1.
            size: (H,W) of the result.
        """
        return infer_ids(self.network, image[None], self.protocol, size=size)[0]


def benchmark_formats(
    student: str | Path,
    *,
    baseline: str | Path | None = None,
    teacher: str | Path | None = None,
    files: Sequence[str | Path] = (),
    images: int | None = None,
    size: Size | None = None,
    threads: int | None = None,
    repeats: int = 30,
    say: Callable[[str], Any] = lambda line: None,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Measure a student, its teacher and its baseline in every format that there is a file of, on the CPU.

    Args:
        student: run folder, or a student's file. ONNX files in the folders of all three are rows as well.
        baseline: likewise.
        teacher: likewise.
        files: further ONNX files of the student.
        images: of val that are scored, the first ones; None: all; 0: none.
        size: (H,W) of the image that is timed (default: what the evaluation sees, else 512×1024).
        threads: of the CPU; None: torch's own choice.
        repeats: passes that are timed.
        say: prints a line.
        progress: called with what is done next; a context that gives a function of (images or passes done, in all).

    Returns:
        `rows` of `role`, `format`, `file`, `bytes`, `miou` and `agreement` (of pixels with the student in PyTorch; None
        where there are no data, or other classes), `ms`, `ms_p95`, `peak_rss` (of a process that holds nothing else);
        `kind`, `split`, `images`, `size`, `threads`, `repeats`, `environment`.

    Raises:
        ValueError: if a file is missing or cannot be run, or a number is out of range.
    """
    if repeats < 1 or (threads is not None and threads < 1) or (images is not None and images < 0):
        raise ValueError("expected repeats and threads of at least 1, and images of at least 0")
    before = torch.get_num_threads()
    count = threads or before
    torch.set_num_threads(count)
    try:
        candidates = [Candidate(*row) for row in _rows(student, baseline, teacher, files)]
        dataset, resize = _validation(student_path(student).parent, say)
        size = size or (None if dataset is None else _seen(dataset, resize)) or (512, 1024)
        with torch.inference_mode():
            with (progress or untold)("images") as told:
                scored = _score(candidates, dataset, resize, images, told)
            with (progress or untold)("passes") as told:
                timed = _time(candidates, size, repeats, told)
    finally:
        torch.set_num_threads(before)
    rows = [
        {
            "role": c.role,
            "format": c.format,
            "file": str(c.file),
            "bytes": c.file.stat().st_size,
            **scored[index],
            **timed[index],
            "peak_rss": peak_rss(c.file, size, count),
        }
        for index, c in enumerate(candidates)
    ]
    used = 0 if dataset is None else len(dataset) if images is None else min(images, len(dataset))
    facts = {"images": used, "size": list(size), "threads": count, "repeats": repeats, "environment": environment()}
    return {"kind": KIND, "segdistill": __version__, "split": "val", "rows": rows, **facts}


def _rows(student: Any, baseline: Any, teacher: Any, files: Sequence[str | Path]) -> Iterable[tuple[str, Path]]:
    for role, path in (("teacher", teacher), ("baseline", baseline), ("student", student)):
        if path is None:
            continue
        yield role, student_path(path)
        beside = sorted(Path(path).glob("*.onnx")) if Path(path).is_dir() else []
        given = [Path(file).expanduser() for file in files] if role == "student" else []
        known = {file.resolve() for file in beside}
        yield from ((role, file) for file in [*beside, *(f for f in given if f.resolve() not in known)])


def _validation(folder: Path, say: Callable[[str], Any]) -> tuple[SegmentationDataset | None, Size | None]:
    """The validation split of a run, if it is there."""
    if not (folder / CONFIG).is_file():
        say(f"no {CONFIG} in {folder}, so no data: nothing is scored")
        return None, None
    try:
        data = load_config(folder).data
        return build_split(data, "val"), data.resize
    except (ValueError, OSError) as error:
        say(f"nothing is scored: {error}")
        return None, None


def _seen(dataset: SegmentationDataset, resize: Size | None) -> Size:
    image, _ = EvalTransform(size=resize)(*dataset[0])
    return image.shape[-2], image.shape[-1]


def _score(
    candidates: Sequence[Candidate],
    dataset: SegmentationDataset | None,
    resize: Size | None,
    images: int | None,
    told: Told,
) -> list[dict[str, float | None]]:
    """Mean IoU and agreement with the student in PyTorch, all of them image by image."""
    found: list[dict[str, float | None]] = [{"miou": None, "agreement": None} for _ in candidates]
    count = 0 if dataset is None else len(dataset) if images is None else min(images, len(dataset))
    if dataset is None or not count:
        return found
    names = list(dataset.classes)
    known = [index for index, candidate in enumerate(candidates) if candidate.classes == names]
    reference = next(i for i, c in enumerate(candidates) if c.role == "student" and c.format == EAGER)
    counts = {index: confusion_matrix(len(names)) for index in known}
    same, pixels = dict.fromkeys(known, 0), 0
    see = EvalTransform(size=resize)
    for position in counted(range(count), count, told):
        image, target = see(*dataset[position])
        seen = {i: candidates[i].ids(image, (target.shape[-2], target.shape[-1])) for i in known}
        pixels += target.numel()
        for index, ids in seen.items():
            counts[index].update(ids[None], target[None])
            if reference in seen:
                same[index] += int((ids == seen[reference]).sum())
    for index in known:
        found[index] = {
            "miou": scores(counts[index].confmat, names, candidates[index].protocol.absent)["miou"],
            "agreement": same[index] / pixels if reference in known else None,
        }
    return found


def _time(candidates: Sequence[Candidate], size: Size, repeats: int, told: Told) -> list[Mapping[str, float]]:
    """Milliseconds of one image; the candidates take turns, so that whatever else the machine does hits all alike."""
    image = torch.rand(3, *size)
    prepared = [candidate.prepare(image) for candidate in candidates]
    times: list[list[float]] = [[] for _ in candidates]
    for turn in counted(range(-WARMUP, repeats), WARMUP + repeats, told):
        order = range(len(candidates)) if turn % 2 else reversed(range(len(candidates)))
        for index in order:
            began = time.perf_counter()
            prepared[index]()
            if turn >= 0:
                times[index].append(1e3 * (time.perf_counter() - began))
    return [
        {
            "ms": statistics.median(spent),
            "ms_p95": torch.tensor(spent, dtype=torch.float64).quantile(0.95).item(),
        }
        for spent in times
    ]
