"""Our losses beside those that CIRKD's authors have released, on the same tensors: forward and backward, in one run.

    git clone https://github.com/winycg/CIRKD
    python benchmarks/released.py CIRKD [--quick] [--only NAME …] [--device cpu|cuda] [--cpu-time]

Their code is run as it lies in that folder. On a CPU, what it moves to a GPU stays where it is, and its projector gets
the BatchNorm of one process.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from _measure import Clock, Row, Work, compare, forward_backward, report
from segdistill.functional import resize_labels
from segdistill.losses import (
    attention_transfer,
    channel_kl,
    cross_image_similarity,
    intra_class_variation,
    pairwise_similarity,
    pixel_kl,
)
from segdistill.methods import build_method
from segdistill.methods.cirkd import CrossImageRelations

A_STUDENT, A_TEACHER, CLASSES, BATCH = 128, 512, 19, 4
PIXELS, REGIONS = 4096 // CLASSES + 1, 1024 // CLASSES + 1
"""What is drawn of each class from the memory."""


class Peers:
    """The released losses, and the tensors that both sides get.

    Args:
        folder: a clone of the authors' repository.
        quick: small maps, few rounds.
        device: cpu or cuda.
    """

    def __init__(self, folder: Path, quick: bool, device: str):
        self.folder, self.quick, self.device = folder, quick, device
        self.size = (12, 24) if quick else (48, 96)

    def theirs(self, module: str, name: str, *arguments: Any) -> Any:
        """A loss of theirs, built with its arguments."""
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
            sys.modules.pop("losses", None)  # ours has that name, too
        made = getattr(import_module(f"losses.{module}"), name)(*arguments)
        if self.device == "cpu":
            for part in made.modules():
                for key, child in part.named_children():
                    if isinstance(child, nn.SyncBatchNorm):
                        setattr(part, key, nn.BatchNorm2d(child.num_features))
        return made.to(self.device)

    def maps(self, student: int, teacher: int) -> tuple[Tensor, Tensor]:
        """Random maps of both, (4,A,H,W); the student's requires a gradient."""
        make = [torch.randn(BATCH, channels, *self.size, device=self.device) for channels in (student, teacher)]
        return make[0].requires_grad_(), make[1]

    def labels(self) -> Tensor:
        """Labels of the images, eight times the map: squares of one class, 1/20 of them ignored."""
        h, w = self.size
        squares = torch.randint(0, CLASSES, (BATCH, max(1, h // 8), max(1, w // 8)), device=self.device)
        squares[torch.rand(squares.shape, device=self.device) < 0.05] = 255
        return squares.repeat_interleave(8 * h // squares.shape[1], 1).repeat_interleave(8 * w // squares.shape[2], 2)

    def row(self, name: str, ours: Work, theirs: Work, target: float = 1.0, note: str = "") -> Row:
        """One comparison."""
        rounds = 2 if self.quick else 3 if name.startswith(("mini", "memory term")) else 9
        size = f"{BATCH} images, map {self.size[0]}×{self.size[1]}"
        return compare(name, ours, theirs, repeats=rounds, time_target=target, note=f"{size}, {note}")


def logits(p: Peers) -> Iterator[Row]:
    """KD and CWD."""
    maps = p.maps(CLASSES, CLASSES)
    kd, cwd = p.theirs("kd", "CriterionKD"), p.theirs("cwd", "CriterionCWD", CLASSES, CLASSES, "channel", "kl", 4.0)
    yield p.row("kd", forward_backward(pixel_kl, *maps), forward_backward(kd, *maps), note=f"{CLASSES} classes")
    ours = forward_backward(channel_kl, *maps, temperature=4.0)
    yield p.row("cwd", ours, forward_backward(cwd, *maps), note=f"{CLASSES} classes")


def features(p: Peers) -> Iterator[Row]:
    """MIMIC, AT, SKD's pairs and IFVD."""
    student, teacher = p.maps(A_STUDENT, A_TEACHER)
    labels = p.labels()
    sides = f"{A_STUDENT} and {A_TEACHER} channels"
    mimic, their_mimic = build_method("mimic"), p.theirs("fitnet", "CriterionFitNet", A_STUDENT, A_TEACHER)
    mimic.adapt({"features": student.detach()}, {"features": teacher})
    mimic.to(p.device)

    def our_mimic(s: Tensor, t: Tensor) -> Tensor:
        return sum(mimic({"features": s}, {"features": t}, labels, 0.0).values(), torch.zeros((), device=p.device))

    yield p.row(
        "mimic",
        forward_backward(our_mimic, student, teacher),
        forward_backward(their_mimic, student, teacher),
        target=1.05,  # both are one convolution
        note=sides,
    )
    at = p.theirs("at", "CriterionAT")
    for channels in (A_TEACHER, A_STUDENT):
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = [x.detach().contiguous(memory_format=layout) for x in p.maps(A_STUDENT, channels)]
            maps[0].requires_grad_()
            row = f"at {channels}{' channels_last' if layout is torch.channels_last else ''}"
            works = forward_backward(attention_transfer, *maps), forward_backward(_reshaped(at), *maps)
            yield p.row(row, *works, note=f"{A_STUDENT} and {channels} channels")
    pair = p.theirs("skd", "CriterionStructuralKD")
    works = forward_backward(pairwise_similarity, student, teacher), forward_backward(pair, student, teacher)
    yield p.row("pair", *works, note=f"{sides}, windows of 2×2")
    ifvd = p.theirs("ifvd", "CriterionIFV", CLASSES)
    ours = forward_backward(intra_class_variation, student, teacher, labels, num_classes=CLASSES)
    yield p.row("ifvd", ours, forward_backward(ifvd, student, teacher, labels), note=sides)


def _reshaped(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Theirs calls `view`, which maps in channels_last refuse where it comes after a mean: that becomes `reshape`."""

    def run(*maps: Tensor) -> Tensor:
        with mock.patch.object(Tensor, "view", Tensor.reshape):
            return loss(*maps)

    return run


def relations(p: Peers) -> Iterator[Row]:
    """CIRKD's pairs of images, and its memory: update and sampling alone, and the terms that read it."""
    student, teacher = p.maps(A_STUDENT, A_TEACHER)
    sides = f"{A_STUDENT} and {A_TEACHER} channels"
    mini_batch = p.theirs("cirkd_mini_batch", "CriterionMiniBatchCrossImagePair", 0.1)
    ours = forward_backward(cross_image_similarity, student, teacher)
    yield p.row("mini-batch", ours, forward_backward(mini_batch, student, teacher), note=sides)
    peer = p.theirs(
        "cirkd_memory",
        "StudentSegContrast",
        CLASSES,
        20_000,
        2_000,
        REGIONS,
        PIXELS,
        1.0,
        0.1,
        A_STUDENT,
        A_TEACHER,
        255,
    )
    method = CrossImageRelations(pixel_weight=0.0, mini_batch_weight=0.0)
    shape = {"logits": torch.zeros(BATCH, CLASSES, 1, 1, device=p.device)}
    method.adapt({**shape, "features": student.detach()}, {**shape, "features": teacher})
    method.to(p.device)
    queues = dict(method._queues())
    for queue in queues.values():  # full queues are the usual case
        queue.vectors.normal_()
        queue.written.fill_(queue.vectors.shape[1])
    labels = p.labels()
    small = resize_labels(labels, p.size)
    unit = F.normalize(teacher, dim=1)
    rows, valid = unit.permute(0, 2, 3, 1).flatten(0, 2), (small < CLASSES).flatten()

    def our_memory() -> None:
        method._remember(rows, small, valid)
        for kind, count in (("pixel", PIXELS), ("region", REGIONS)):
            queues[kind].sample(count).float()

    @torch.no_grad()
    def their_memory() -> None:
        peer._dequeue_and_enqueue(unit, small)
        for queue, count in ((peer.teacher_pixel_queue, PIXELS), (peer.teacher_segment_queue, REGIONS)):
            peer._sample_negative(queue, torch.randperm(queue.shape[1])[:count])

    yield p.row("memory", our_memory, their_memory, 0.3, f"{A_TEACHER} channels, update and sampling, forward only")

    def our_terms(s: Tensor, t: Tensor) -> Tensor:
        terms = method({"features": s}, {"features": t}, labels, 0.0)
        return terms["memory_pixel"] + terms["memory_region"]

    def their_terms(s: Tensor, t: Tensor) -> Tensor:
        pixel, region = peer(s, t, labels, small)
        return 0.1 * (pixel + region)

    works = forward_backward(our_terms, student, teacher), forward_backward(their_terms, student, teacher)
    yield p.row("memory terms", *works, note=f"{sides}; three matrix products that both sides do are most of it")


CASES: dict[str, Callable[[Peers], Iterator[Row]]] = {case.__name__: case for case in (logits, features, relations)}


@contextmanager
def one_process(device: str) -> Iterator[None]:
    """A process group of one, which their memory asks for; on a CPU nothing moves to a GPU."""
    dist.init_process_group("gloo" if device == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    stay = mock.patch.object(Tensor, "cuda", lambda self, *_, **__: self) if device == "cpu" else mock.MagicMock()
    try:
        with stay:
            yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Measure, print the table, write `results/released_<device>.json` (partial runs are not written)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a clone of the authors' repository")
    parser.add_argument("--quick", action="store_true", help="small maps, few rounds: does it run?")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the cases")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    Clock.add_option(parser)
    arguments = parser.parse_args()
    Clock.choose(arguments)
    if not (arguments.folder / "losses" / "cirkd_memory.py").is_file():
        parser.error(f"{arguments.folder}: expected a clone of https://github.com/winycg/CIRKD, with losses/ in it")
    peers = Peers(arguments.folder.resolve(), arguments.quick, arguments.device)
    rows: list[Row] = []
    with one_process(arguments.device):
        for name in arguments.only:
            torch.manual_seed(0)
            for row in CASES[name](peers):
                rows.append(row)
                print(f"{row.name}: {row.ours_ms:.1f} ms, time ratio {row.time_ratio:.3f}", file=sys.stderr, flush=True)
    whole = not arguments.quick and set(arguments.only) == set(CASES)
    report(f"released_{arguments.device}", rows, command=" ".join(["python", *sys.argv]), write=whole)


if __name__ == "__main__":
    main()
