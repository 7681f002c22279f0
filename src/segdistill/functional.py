"""What every loss is built from: precision, shape checks, labels on a map, a stable Kullback-Leibler divergence."""

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

P = ParamSpec("P")
R = TypeVar("R")

IGNORE = 255
"""The label of pixels that belong to no class."""

SHORTEST = 1e-8
"""A vector of less than this length has no direction: its similarity to all others is 0, without a gradient."""

BLOCK = 2**18
"""Entries that are worked on at a time on a CPU, so that what lies in between stays in its cache."""


def upcast(value: Any) -> Any:
    """Bring a half-precision tensor to float32; leave everything else as it is (float64 stays float64)."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in float32 at least: half-precision tensors are upcast and autocast is off inside."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*map(upcast, args), **{k: upcast(v) for k, v in kwargs.items()})

    return wrapper


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's MPS does not.

    Args:
        device: any.
    """
    try:
        torch.ones((), dtype=torch.float64, device=device).sqrt()
    except (TypeError, RuntimeError):
        return False
    return True


def exact(x: Tensor) -> Tensor:
    """Bring a tensor to float64, on its own device where that computes in float64, and else on the CPU.

    It is meant for what is small, such as sums over channels and statistics of classes; whole maps stay in float32.

    Args:
        x: any floating or integer tensor; the gradient flows back to it, in its own precision and on its own device.
    """
    return (x if has_float64(x.device) else x.cpu()).double()


def check_maps(student: Tensor, teacher: Tensor, *, channels: bool = True) -> None:
    """Raise unless both are (N,C,H,W) of one shape (of one N and H×W where `channels` is False).

    Args:
        student: map of the student.
        teacher: map of the teacher.
        channels: whether the channel counts must agree too.

    Raises:
        ValueError: if they would only broadcast, or not even that.
    """
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.dim() != 4:
            raise ValueError(f"{name}: expected (N,C,H,W), got {tuple(tensor.shape)}")
    same = student.shape == teacher.shape if channels else student.shape[::2] == teacher.shape[::2]
    if not same or student.shape[3] != teacher.shape[3]:
        what = "shapes" if channels else "N and H×W"
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} need equal {what}; "
            "project channels with segdistill.adapters.projection, resize maps with segdistill.taps.match_maps"
        )


def check_labels(features: Tensor, labels: Tensor) -> None:
    """Raise unless `labels` is an integer (N,h,w) for the N images of `features`.

    Args:
        features: (N,A,H,W).
        labels: (N,h,w), any resolution.

    Raises:
        ValueError: on another rank, another N, or a floating type.
    """
    if labels.dim() != 3 or labels.shape[0] != features.shape[0]:
        raise ValueError(f"labels: expected ({features.shape[0]},h,w), got {tuple(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels: expected integers, got {labels.dtype}")


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring labels to a map's resolution by the nearest neighbour.

    Args:
        labels: (N,h,w) integers.
        size: (H,W) of the map.

    Returns:
        (N,H,W) int64.
    """
    if labels.shape[-2:] == size:
        return labels.long()
    # float32 holds every label exactly (they are below 2**24); integer interpolation exists on some devices only.
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()


def labelled(labels: Tensor, num_classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Which pixels belong to a class, as a mask of bool.

    Args:
        labels: integers of any shape.
        num_classes: C.
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    >>> labelled(torch.tensor([0, 2, 3, 255, -1]), 3)
    tensor([ True,  True, False, False, False])
    """
    return (labels >= 0) & (labels < num_classes) & (labels != ignore_index)


def inverse_lengths(squares: Tensor) -> Tensor:
    """1/length of vectors, from their squared lengths; 0 and without a gradient for those below `SHORTEST`.

    Args:
        squares: squared lengths, any shape.

    >>> inverse_lengths(torch.tensor([4.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    return squares.where(squares > SHORTEST**2, torch.inf).rsqrt()


def unit_vectors(x: Tensor) -> Tensor:
    """Bring the vectors along dimension 1 to length 1; those without a direction become 0, without a gradient.

    Args:
        x: (N,A,…).

    >>> unit_vectors(torch.tensor([[0.0, -2.0], [0.0, 0.0]])).tolist()
    [[0.0, -1.0], [0.0, 0.0]]
    """
    return x * inverse_lengths(x.square().sum(1, keepdim=True))


def kl_terms(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """Terms whose sum is KL(teacher‖student), each of them non-negative.

    Both arguments are log-probabilities along some dimension; summing the result over it gives the divergence.
    With d = log s − log t the term is t·(exp(d) − 1 − d): it equals −t·d in the sum, since both sides add up to one,
    but nothing cancels, so that two nearly equal distributions keep their relative accuracy in float32, and two equal
    ones give exactly 0 with a gradient of exactly 0.

    Args:
        log_teacher: log-probabilities of the teacher; gets no gradient.
        log_student: log-probabilities of the student, same shape.

    Returns:
        A tensor of the same shape.

    Raises:
        ValueError: if the shapes differ.

    >>> t, s = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(kl_terms(t, s).sum().item(), 4)
    0.1438
    """
    if log_teacher.shape != log_student.shape:
        raise ValueError(f"teacher {tuple(log_teacher.shape)} and student {tuple(log_student.shape)}: shapes differ")
    terms: Tensor = _KLTerms.apply(log_teacher, log_student)
    return terms


class _KLTerms(torch.autograd.Function):
    """`kl_terms` with its derivative, s − t, written down: the graph keeps one tensor instead of nine."""

    @staticmethod
    def forward(ctx: Any, log_teacher: Tensor, log_student: Tensor) -> Tensor:
        terms, slope = kl_terms_and_slope(log_teacher, log_student)
        ctx.save_for_backward(slope)
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, gradient * slope


def softmax_kl(student: Tensor, teacher: Tensor, dim: int, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher‖student) of the softmaxes of two tensors along a dimension, which the result lacks.

    It is the sum of `kl_terms`. The derivative by what enters the softmax is s − t; nothing else is kept for it.

    Args:
        student: any shape.
        teacher: the same shape; gets no gradient.
        dim: the softmax is along it.
        temperature: τ, divides both.

    >>> round(softmax_kl(torch.tensor([0.0, 1.0]), torch.zeros(2), 0).item(), 4)
    0.1201
    """
    divergence: Tensor = _SoftmaxKL.apply(student, teacher, dim, temperature)
    return divergence


class _SoftmaxKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, dim: int, temperature: float) -> Tensor:
        sides = (x if temperature == 1 else x / temperature for x in (teacher, student))
        log_t, log_s = (F.log_softmax(x, dim).contiguous() for x in sides)
        terms, slope = kl_terms_and_slope(log_t, log_s, into=(log_t, log_s))
        ctx.save_for_backward(slope)
        ctx.dim, ctx.temperature = dim, temperature
        return terms.sum(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * (gradient / ctx.temperature).unsqueeze(ctx.dim), None, None, None


MARGIN = 16
"""Rounding errors of a probability that the difference of two may have, in units of its last place."""


@torch.no_grad()
def kl_terms_and_slope(
    log_teacher: Tensor, log_student: Tensor, into: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The terms of `kl_terms`, and their derivatives by the student's log-probabilities, s − t; without a graph.

    The Taylor polynomial of exp(d) − 1 − d that ends with an odd power lies below it everywhere. The formula itself,
    less what rounding may have added, lies below it, too; and so the larger of the two is the better one: the
    polynomial where d is small (up to 0.7), and else the formula. Neither is more than 1e-5 of the term away.

    Args:
        log_teacher: as for `kl_terms`.
        log_student: as for `kl_terms`.
        into: where both go, contiguous; it may be the two arguments, in this order.
    """
    double = log_student.dtype == torch.float64
    margin = MARGIN / 2 * torch.finfo(log_student.dtype).eps
    last, *rest = [log_student.new_full((), 1 / math.factorial(n + 2)) for n in reversed(range(10 if double else 6))]
    new = (torch.empty_like(log_student, memory_format=torch.contiguous_format) for _ in range(2))
    terms, slope = into or new
    flat = (x.reshape(-1) for x in (log_teacher, log_student, terms, slope))  # views of the last two
    blocks = (torch.split(x, BLOCK if x.device.type == "cpu" else max(1, len(x))) for x in flat)
    for log_t, log_s, term, s_minus_t in zip(*blocks, strict=True):
        t = log_t.exp()
        d = log_s - log_t
        torch.exp(log_s, out=s_minus_t).sub_(t)
        series = torch.addcmul(rest[0], d, last)
        for coefficient in rest[1:]:
            torch.addcmul(coefficient, series, d, out=series)
        series.mul_(t).mul_(d).mul_(d)
        torch.addcmul(s_minus_t, t, d.add_(margin), value=-1, out=term)
        torch.maximum(series, term, out=term)
    return terms, slope


def empty(student: Tensor) -> Tensor:
    """A zero that is connected to the student's graph: the answer where there is nothing to compare."""
    return student.sum() * 0


def class_sums(
    features: Tensor, labels: Tensor, *, num_classes: int, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """Sum of the features over each class's pixels, image by image, and how many pixels that are.

    Args:
        features: (N,A,H,W).
        labels: (N,h,w) integers, brought to H×W by the nearest neighbour.
        num_classes: C.
        ignore_index: label of pixels that belong to no class; so do labels outside 0…C−1.

    Returns:
        Sums (N,C,A) with the features' graph, and counts (N,C) int64.
    """
    check_labels(features, labels)
    labels = resize_labels(labels, (features.shape[2], features.shape[3])).flatten(1)
    labels = labels.where(labelled(labels, num_classes, ignore_index), -1)
    members = labels[:, None] == torch.arange(num_classes, device=labels.device)[:, None]  # (N,C,M)
    return members.to(features.dtype) @ features.flatten(2).transpose(1, 2), members.sum(2)
