"""Each loss against its literal formula: forward and backward, time and peak memory, in the same run.

    python benchmarks/losses.py [--quick] [--only NAME …] [--device cpu|cuda] [--cpu-time]

The references say what the formula says: matrices written down, classes and images looped over.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _measure import Clock, Row, compare, forward_backward, report
from segdistill.functional import IGNORE, resize_labels
from segdistill.losses import attention_transfer, channel_kl, local_similarity, pixel_kl
from segdistill.methods.cirkd import PIXELS_PER_REGION, CrossImageRelations, cross_image_similarity
from segdistill.methods.ifvd import intra_class_variation

A_STUDENT, A_TEACHER, CLASSES = 128, 512, 19


@dataclass(frozen=True)
class Setting:
    """Batch of 4, features of 128 and 512 channels, 19 classes (150 where ADE20K is meant)."""

    quick: bool
    device: str

    @property
    def size(self) -> tuple[int, int]:
        """The map: stride 8 of a 512×1024 image."""
        return (16, 32) if self.quick else (64, 128)

    @property
    def repeats(self) -> int:
        """Rounds of what takes milliseconds."""
        return 3 if self.quick else 15

    @property
    def few(self) -> int:
        """Rounds of what takes seconds."""
        return 2 if self.quick else 3

    def maps(self, student: int, teacher: int, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Random maps of both, (4,A,H,W); the student's requires a gradient."""
        make = [torch.randn(4, channels, *(size or self.size), device=self.device) for channels in (student, teacher)]
        return make[0].requires_grad_(), make[1]

    def labels(self, classes: int, size: tuple[int, int] | None = None) -> Tensor:
        """Labels at the image's resolution, eight times the map's: squares of one class, 1/20 of them ignored."""
        h, w = size or self.size
        squares = torch.randint(0, classes, (4, h // 8, w // 8), device=self.device)
        squares[torch.rand(squares.shape, device=self.device) < 0.05] = 255
        return squares.repeat_interleave(64, 1).repeat_interleave(64, 2)


def literal_pairwise(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine Gram matrices of all nodes, squared difference."""
    grams = [torch.einsum("nam,nak->nmk", f, f) for f in (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))]
    return (grams[0] - grams[1]).square().mean()


def literal_variation(student: Tensor, teacher: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """A map of prototypes, written class by class."""
    labels = resize_labels(labels, (student.shape[2], student.shape[3]))[:, None]
    variations = []
    for features in (student, teacher):
        centres = features.clone()
        for c in range(num_classes):
            mask = (labels == c).to(features.dtype)
            mean = (features * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 1e-6)
            centres = (1 - mask) * centres + mask * mean
        variations.append(F.cosine_similarity(features, centres, dim=1))
    return F.mse_loss(variations[0], variations[1])


def literal_prototypes(features: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """The mean of each class's pixels, class by class."""
    labels = resize_labels(labels, (features.shape[2], features.shape[3]))[:, None]
    prototypes = []
    for c in range(num_classes):
        mask = (labels == c).to(features.dtype)
        prototypes.append((features * mask).sum((0, 2, 3)) / mask.sum().clamp(min=1))
    return torch.stack(prototypes)


def literal_cross_image(student: Tensor, teacher: Tensor) -> Tensor:
    """A similarity matrix for each ordered pair of images."""
    student, teacher = F.normalize(student, dim=1).flatten(2), F.normalize(teacher, dim=1).flatten(2)
    total = student.new_zeros(())
    for i, j in itertools.product(range(len(student)), repeat=2):
        log_s = F.log_softmax(student[i].T @ student[j] / 0.1, dim=1)
        p_t = F.softmax(teacher[i].T @ teacher[j] / 0.1, dim=1)
        total = total + F.kl_div(log_s, p_t, reduction="batchmean")
    return total / len(student) ** 2


def literal_kl(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """`F.kl_div` of softmaxes; `dim` 1: over classes, 2: over positions."""
    student, teacher = student.flatten(2), teacher.flatten(2)
    divergence = F.kl_div(F.log_softmax(student, dim), F.softmax(teacher, dim), reduction="none").sum(dim)
    return divergence.mean()


def literal_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Normalised means of the squares over channels, squared difference."""
    maps = [F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher)]
    return (maps[0] - maps[1]).pow(2).mean()


def literal_local(student: Tensor, teacher: Tensor, *, kind: str) -> Tensor:
    """A map for each of the eight neighbours."""
    sides = []
    for x in (student, teacher):
        h, w = x.shape[2:]
        inner, maps = x[:, :, 1:-1, 1:-1], []
        for y, z in itertools.product(range(3), repeat=2):
            if (y, z) != (1, 1):
                other = x[:, :, y : h - 2 + y, z : w - 2 + z]
                maps.append(
                    F.cosine_similarity(inner, other, dim=1) if kind == "cosine" else (inner - other).pow(2).sum(1)
                )
        sides.append(torch.stack(maps, 1) if kind == "cosine" else torch.stack(maps, 1).sum(1))
    return (sides[0] - sides[1]).pow(2).mean()


class LoopQueues:
    """A memory that is written and read class by class."""

    def __init__(self, num_classes: int, channels: int, device: str):
        self.num_classes = num_classes
        self.pixels = torch.zeros(num_classes, 20_000, channels, dtype=torch.float16, device=device)
        self.regions = torch.zeros(num_classes, 2_000, channels, dtype=torch.float16, device=device)
        self.written = {"pixels": [0] * num_classes, "regions": [0] * num_classes}

    def write(self, kind: str, c: int, vectors: Tensor) -> None:
        """Put vectors (P,A) into the queue of one class."""
        queue = getattr(self, kind)[c]
        places = (self.written[kind][c] + torch.arange(len(vectors), device=queue.device)) % len(queue)
        queue[places] = vectors.to(queue.dtype)
        self.written[kind][c] += len(vectors)

    def sample(self, kind: str, count: int) -> Tensor:
        """At most `count` random vectors of each class."""
        drawn = []
        for queue, written in zip(getattr(self, kind), self.written[kind], strict=True):
            drawn.append(queue[torch.randperm(min(written, len(queue)), device=queue.device)[:count]])
        return torch.cat(drawn).float()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Enter a batch: unit features (N,A,H,W), labels (N,H,W)."""
        for image, label in zip(features.flatten(2), labels.flatten(1), strict=True):
            for c in label.unique().tolist():
                if c < self.num_classes:
                    members = (label == c).nonzero()[:, 0]
                    self.write("regions", c, F.normalize(image[:, members].mean(1), dim=0)[None])
                    drawn = members[torch.randperm(len(members), device=members.device)[:PIXELS_PER_REGION]]
                    self.write("pixels", c, image[:, drawn].T)


def pairwise(s: Setting) -> Iterator[Row]:
    """SKD's pair term on every pixel."""
    from segdistill.methods.skd import pairwise_similarity

    maps = s.maps(A_STUDENT, A_TEACHER)
    yield compare(
        "pairwise_similarity",
        forward_backward(pairwise_similarity, *maps, pool=None),
        forward_backward(literal_pairwise, *maps),
        repeats=s.few,
        time_target=1 / 20,
        memory_target=1 / 20,
        note=f"no pooling; reference: M×M matrices of M={maps[0][0, 0].numel()} nodes",
    )


def ifvd(s: Setting) -> Iterator[Row]:
    """IFVD's term."""
    maps, labels = s.maps(A_STUDENT, A_TEACHER), s.labels(CLASSES)
    yield compare(
        "intra_class_variation",
        forward_backward(intra_class_variation, *maps, labels, num_classes=CLASSES),
        forward_backward(literal_variation, *maps, labels, num_classes=CLASSES),
        repeats=s.few,
        time_target=1 / 5,
        note="reference: loop over 19 classes",
    )


def relations(s: Setting) -> Iterator[Row]:
    """The comparisons of AT and LOCAL: the teacher's channels, and the student's own."""
    size = (16, 32) if s.quick else (48, 96)
    references: tuple[tuple[str, Callable[..., Tensor], Callable[..., Tensor], dict[str, str]], ...] = (
        ("attention_transfer", attention_transfer, literal_attention, {}),
        ("local_similarity cosine", local_similarity, literal_local, {"kind": "cosine"}),
        ("local_similarity l2", local_similarity, literal_local, {"kind": "l2"}),
    )
    for name, loss, literal, options in references:
        for channels in (A_TEACHER, A_STUDENT):
            maps = s.maps(A_STUDENT, channels, size)
            yield compare(
                f"{name} {channels}",
                forward_backward(loss, *maps, **options),
                forward_backward(literal, *maps, **options),
                repeats=s.repeats,
                time_target=1.0,
                note=f"map {size[0]}×{size[1]}, {A_STUDENT} and {channels} channels; reference: the formula in float32",
            )


def prototypes(s: Setting) -> Iterator[Row]:
    """I2CKD's prototypes, of the teacher's 512 channels."""
    from segdistill.methods.i2ckd import class_prototypes

    features, labels = s.maps(A_TEACHER, 1)[0], s.labels(CLASSES)
    options = {"num_classes": CLASSES}
    yield compare(
        "class_prototypes",
        forward_backward(lambda f: class_prototypes(f, labels, **options)[0].square().sum(), features),
        forward_backward(lambda f: literal_prototypes(f, labels, **options).square().sum(), features),
        repeats=s.few,
        time_target=1 / 5,
        note="512 channels; reference: loop over 19 classes",
    )


def cross_image(s: Setting) -> Iterator[Row]:
    """CIRKD's mini-batch term: where the literal form fits, and alone at full size."""
    size = (16, 32) if s.quick else (48, 96) if s.device == "cpu" else s.size
    maps = s.maps(A_STUDENT, A_TEACHER, size)
    yield compare(
        "cross_image_similarity",
        forward_backward(cross_image_similarity, *maps),
        forward_backward(literal_cross_image, *maps),
        repeats=s.few,
        time_target=1.3,
        memory_target=1 / 8,
        note=f"map {size[0]}×{size[1]}; reference: a matrix per pair of images (about 9 GB at 64×128)",
    )
    if size != s.size:
        work = forward_backward(cross_image_similarity, *s.maps(A_STUDENT, A_TEACHER))
        yield compare("cross_image_similarity full", work, repeats=1, note=f"map {s.size[0]}×{s.size[1]}, ours alone")


def queues(s: Setting) -> Iterator[Row]:
    """CIRKD's memory: update and sampling (no backward pass: there is none)."""
    _, teacher = s.maps(1, A_TEACHER)
    teacher, labels = F.normalize(teacher, dim=1), resize_labels(s.labels(CLASSES), s.size)
    rows = teacher.permute(0, 2, 3, 1).flatten(0, 2)  # as the term that reads the memory needs them, too
    taps = {"logits": torch.zeros(4, CLASSES, 1, 1), "features": teacher[:, :, :1, :1]}
    method = CrossImageRelations()
    method.adapt(taps, taps)
    method.to(s.device)
    loop = LoopQueues(CLASSES, A_TEACHER, s.device)
    valid = (labels < CLASSES).flatten()
    counts = {kind: count // CLASSES + 1 for kind, count in method.contrast.items()}

    def ours() -> None:
        method._remember(rows, labels, valid)
        for kind, queue in method._queues():
            queue.sample(counts[kind]).float()

    def literal() -> None:
        loop.update(teacher, labels)
        for kind, count in counts.items():
            loop.sample(f"{kind}s", count)

    for kind, queue in method._queues():  # full queues are the usual case
        full = queue.vectors.shape[1]
        queue.vectors.normal_()
        queue.written.fill_(full)
        getattr(loop, f"{kind}s").copy_(queue.vectors)
        loop.written[f"{kind}s"] = [full] * CLASSES
    yield compare(
        "CIRKD memory",
        ours,
        literal,
        repeats=s.repeats,
        time_target=0.3,
        note="update and sampling, 19 classes, 512 channels, forward only; reference: loop over images and classes",
    )


def kl(s: Setting) -> Iterator[Row]:
    """The KL divergences of KD and CWD."""
    for classes, size in ((CLASSES, s.size), (150, (64, 64))):
        maps = s.maps(classes, classes, size)
        for function, dim in ((pixel_kl, 1), (channel_kl, 2)):
            yield compare(
                f"{function.__name__} C={classes}",
                forward_backward(function, *maps),
                forward_backward(literal_kl, *maps, dim=dim),
                repeats=s.repeats,
                note=f"map {size[0]}×{size[1]}; reference: F.kl_div",
            )


def fakd(s: Setting) -> Iterator[Row]:
    """FAKD's terms against the ones that they augment, and its covariance."""
    from segdistill.methods.fakd import ClassCovariance, augmented_channel_kl, augmented_pixel_kl

    classes, size = 150, (16, 16) if s.quick else (64, 64)
    maps, labels = s.maps(classes, classes, size), s.labels(classes, size)
    variance = torch.rand(4, classes, *size, device=s.device)
    note = f"N=4, C={classes}, map {size[0]}×{size[1]}"
    yield compare(
        "augmented_channel_kl",
        forward_backward(augmented_channel_kl, *maps, variance),
        forward_backward(channel_kl, *maps),
        repeats=s.repeats,
        time_target=1.3,
        memory_target=1.5,
        note=f"{note}; reference: channel_kl",
    )
    weight = nn.Parameter(0.05 * torch.randn(classes, A_TEACHER, device=s.device))
    covariance = torch.rand(classes, A_TEACHER, device=s.device)
    # A table of C×C is made for each class that is present: about ten in an image of ADE20K, or (nearly) all of them.
    for present, some in (
        (10, labels.where(labels == IGNORE, labels % 10)),
        (int(labels.unique().numel()) - 1, labels),
    ):
        yield compare(
            f"augmented_pixel_kl, {present} present",
            forward_backward(augmented_pixel_kl, *maps, some, weight=weight, covariance=covariance),
            forward_backward(pixel_kl, *maps),
            repeats=s.repeats,
            time_target=3.0,
            note=f"{note}, diagonal covariance of 512 channels, {present} classes present; reference: pixel_kl",
        )
    features = torch.randn(4, A_TEACHER, *size, device=s.device)
    memory = ClassCovariance(classes, A_TEACHER).to(s.device)
    yield compare(
        "ClassCovariance.update",
        lambda: memory.update(features, labels),
        repeats=s.repeats,
        ms_target=20.0,
        note=f"{note}, 512 channels, forward only, ours alone",
    )


CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    case.__name__: case for case in (pairwise, ifvd, relations, prototypes, cross_image, queues, kl, fakd)
}


def main() -> None:
    """Measure, print the table, write `results/losses_<device>.json` (quick runs are not written)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small maps, few rounds: does it run?")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="some of the cases")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    Clock.add_option(parser)
    arguments = parser.parse_args()
    Clock.choose(arguments)
    setting = Setting(arguments.quick, arguments.device)
    rows: list[Row] = []
    for name in arguments.only:
        torch.manual_seed(0)
        for row in CASES[name](setting):
            rows.append(row)
            print(f"{row.name}: {row.ours_ms:.1f} ms, time ratio {row.time_ratio:.3f}", file=sys.stderr, flush=True)
    whole = not arguments.quick and set(arguments.only) == set(CASES)
    report(f"losses_{arguments.device}", rows, command=" ".join(["python", *sys.argv]), write=whole)


if __name__ == "__main__":
    main()
