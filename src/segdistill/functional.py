"""What every loss is built from: precision, shape checks, labels on a map, a stable Kullback-Leibler divergence."""

import functools
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

    BLOCK = 2**18  # entries at a time, so that what lies in between stays in the processor's cache

    @staticmethod
    def forward(ctx: Any, log_teacher: Tensor, log_student: Tensor) -> Tensor:
        terms, slope = (torch.empty_like(log_student, memory_format=torch.contiguous_format) for _ in range(2))
        flat = (torch.split(x.reshape(-1), _KLTerms.BLOCK) for x in (log_teacher, log_student, terms, slope))
        for log_t, log_s, term, s_minus_t in zip(*flat, strict=True):
            t = log_t.exp()
            d = log_s - log_t
            torch.exp(log_s, out=s_minus_t).sub_(t)
            torch.addcmul(s_minus_t, t, d, value=-1, out=term)
            series = (d / 120).add_(1 / 24).mul_(d).add_(1 / 6).mul_(d).add_(1 / 2).mul_(d).mul_(d).mul_(t)
            torch.where(d.abs() < 2**-5, series, term, out=term)
        ctx.save_for_backward(slope)
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (slope,) = ctx.saved_tensors
        return None, gradient * slope


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
    members = labels[:, None] == torch.arange(num_classes, device=labels.device)[:, None]  # (N,C,M)
    if 0 <= ignore_index < num_classes:
        members[:, ignore_index] = False
    return members.to(features.dtype) @ features.flatten(2).transpose(1, 2), members.sum(2)
