"""What every function of `segdistill.losses` keeps to; a new one is refused here until it has a case."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import naive
from segdistill import losses

CLASSES = 3
LABELS = torch.tensor([[[0, 1, 1, 2], [0, 0, 2, 255]], [[1, 1, 0, 0], [255, 1, 0, 0]]])
LABELS = LABELS.repeat_interleave(4, 1).repeat_interleave(3, 2)
"""(2,8,12): twice the maps' resolution; the second image lacks a class."""
PRESENT = torch.tensor([True, True, False, True])
MAP = (4, 6)
KNOWN = LABELS[:, ::2, ::2] < CLASSES

generator = torch.Generator().manual_seed(5)
WEIGHT = torch.randn(CLASSES, 4, dtype=torch.float64, generator=generator)
COVARIANCE = 0.1 * torch.rand(CLASSES, 4, dtype=torch.float64, generator=generator)
VARIANCE = torch.rand(2, CLASSES, *MAP, dtype=torch.float64, generator=generator)


def like(constant: Tensor, student: Tensor) -> Tensor:
    """A constant in the precision that the loss is computed in."""
    return constant if student.dtype == torch.float64 else constant.float()


def probabilities(logits: Tensor) -> Tensor:
    """Of classes, in single precision at least."""
    return (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)


def one_hot(student: Tensor) -> tuple[Tensor, Tensor]:
    """The labels as probabilities (N,C,H,W), and which pixels have one."""
    labels = LABELS[:, ::2, ::2].where(KNOWN, 0)
    return torch.nn.functional.one_hot(labels, CLASSES).movedim(3, 1).to(student), KNOWN


@dataclass(frozen=True)
class Case:
    """One loss as a function of student and teacher."""

    loss: Callable[[Tensor, Tensor], Tensor]
    naive: Callable[[Tensor, Tensor], Tensor] | None = None
    """The formula in float64; None where the loss's own tests hold it against something else."""
    student: tuple[int, ...] = (2, 4, *MAP)
    teacher: tuple[int, ...] = (2, 4, *MAP)
    near: float | None = 1e-6
    """How close student and teacher may be for float32 to be good to 1e-3; None: the loss is not 0 at equality."""
    empty: Callable[[Tensor], Tensor] | None = None
    """The loss with nothing to compare."""
    labels: Callable[[Tensor, Tensor], Tensor] | None = None
    """The loss of a student's map and labels."""
    takes_teacher: bool = True
    derivative: bool = True
    """Whether its gradient is its derivative everywhere; SSTKD's outermost levels follow the student as constants, so
    that test_sstkd.py holds it where they stand still."""
    channels_agree: bool = True
    """Whether the channels must agree, since it compares them one by one."""


LOGITS = {"student": (2, CLASSES, *MAP), "teacher": (2, CLASSES, *MAP)}
SAME = {"channels_agree": False}
OTHER = {"channels_agree": False, "teacher": (2, 5, *MAP), "near": None}
# Logarithms of probabilities are rounded to 1e-7 before they are compared.
CASES: dict[str, dict[str, Case]] = {
    "pixel_kl": {
        "": Case(
            losses.pixel_kl,
            naive.pixel_kl,
            near=1e-4,
            empty=lambda s: losses.pixel_kl(s, s, valid=torch.zeros(2, *MAP, dtype=torch.bool)),
            **LOGITS,
        ),
        "tau": Case(
            lambda s, t: losses.pixel_kl(s, t, temperature=2.0),
            lambda s, t: naive.pixel_kl(s, t, 2.0),
            near=1e-4,
            **LOGITS,
        ),
    },
    "channel_kl": {
        "": Case(losses.channel_kl, naive.channel_kl, near=1e-4, **LOGITS),
        "tau": Case(
            lambda s, t: losses.channel_kl(s, t, temperature=2.0),
            lambda s, t: naive.channel_kl(s, t, 2.0),
            near=1e-4,
            **LOGITS,
        ),
        "valid": Case(
            lambda s, t: losses.channel_kl(s, t, temperature=2.0, valid=KNOWN),
            lambda s, t: naive.masked_channel_kl(s, t, KNOWN, 2.0),
            near=1e-4,
            empty=lambda s: losses.channel_kl(s, s + 1, valid=torch.zeros(2, *MAP, dtype=torch.bool)),
            **LOGITS,
        ),
    },
    **{
        f"{which}_class_relation": {
            name: Case(
                lambda s, t, which=which, tau=tau: getattr(losses, f"{which}_class_relation")(s, t, temperature=tau),
                lambda s, t, which=which, tau=tau: getattr(naive, f"{which}_class_relation")(s, t, tau),
                near=1e-4,
                **LOGITS,
            )
            for name, tau in (("", 1.0), ("tau", 2.0))
        }
        for which in ("inter", "intra")
    },
    "soft_jaccard": {
        "soft": Case(
            lambda s, t: losses.soft_jaccard(probabilities(s), probabilities(t)),
            lambda s, t: naive.soft_jaccard(
                s.softmax(1), t.softmax(1), torch.ones(2, *MAP), t.argmax(1).unique().tolist()
            ),
            near=1e-3,  # the gradient is made of signs: where both round to the same, one is lost
            empty=lambda s: losses.soft_jaccard(s, s, valid=torch.zeros(2, *MAP, dtype=torch.bool)),
            **LOGITS,
        ),
        "hard": Case(
            lambda s, t: losses.soft_jaccard(probabilities(s), LABELS),
            lambda s, t: naive.soft_jaccard(s.softmax(1), *one_hot(s), range(CLASSES)),
            near=None,
            empty=lambda s: losses.soft_jaccard(s, torch.full_like(LABELS, 255)),
            labels=losses.soft_jaccard,
            takes_teacher=False,
            **LOGITS,
        ),
    },
    "feature_mse": {"": Case(losses.feature_mse, naive.feature_mse)},
    "attention_transfer": {
        "": Case(losses.attention_transfer, naive.attention_transfer, **SAME),
        "other": Case(losses.attention_transfer, naive.attention_transfer, **OTHER),
    },
    "local_similarity": {
        f"{kind}{name}": Case(
            lambda s, t, kind=kind: losses.local_similarity(s, t, kind=kind),
            lambda s, t, kind=kind: naive.local_similarity(s, t, kind),
            empty=lambda s, kind=kind: losses.local_similarity(s[..., :2], s[..., :2], kind=kind),
            **channels,
        )
        for kind in ("cosine", "l2")
        for name, channels in (("", SAME), (" other", OTHER))
    },
    "pairwise_similarity": {
        "": Case(lambda s, t: losses.pairwise_similarity(s, t, pool=None), naive.pairwise_similarity, **SAME),
        "other": Case(lambda s, t: losses.pairwise_similarity(s, t, pool=1), naive.pairwise_similarity, **OTHER),
        "few nodes": Case(
            lambda s, t: losses.pairwise_similarity(s, t, pool=None),
            naive.pairwise_similarity,
            (2, 4, 2, 2),
            (2, 5, 2, 2),
            channels_agree=False,
        ),
    },
    "intra_class_variation": {
        name: Case(
            lambda s, t: losses.intra_class_variation(s, t, LABELS, num_classes=CLASSES),
            lambda s, t: naive.intra_class_variation(s, t, LABELS),
            empty=lambda s: losses.intra_class_variation(s, s, torch.full_like(LABELS, 255), num_classes=CLASSES),
            labels=lambda s, labels: losses.intra_class_variation(s, s, labels, num_classes=CLASSES),
            **channels,
        )
        for name, channels in (("", SAME), ("other", OTHER))
    },
    "cross_image_similarity": {
        name: Case(losses.cross_image_similarity, naive.cross_image_similarity, **{"near": 1e-3, **channels})
        for name, channels in (("", SAME), ("other", OTHER))
    },
    "class_prototypes": {
        "": Case(
            lambda s, t: losses.class_prototypes(s, LABELS, num_classes=4)[0].square().sum(),
            lambda s, t: naive.class_prototypes(s, LABELS, 4).square().sum(),
            near=None,
            empty=lambda s: losses.class_prototypes(s, torch.full_like(LABELS, 255), num_classes=4)[0].sum(),
            labels=lambda s, labels: losses.class_prototypes(s, labels, num_classes=4)[0],
            takes_teacher=False,
        ),
    },
    "prototype_triplet": {
        "": Case(
            lambda s, t: losses.prototype_triplet(s, t, PRESENT),
            lambda s, t: naive.prototype_triplet(s, t, PRESENT),
            (4, 5),
            (4, 5),
            near=None,
            empty=lambda s: losses.prototype_triplet(s, s, torch.zeros_like(PRESENT)),
        ),
    },
    "augmented_channel_kl": {
        "": Case(
            lambda s, t: losses.augmented_channel_kl(s, t, like(VARIANCE, s)),
            lambda s, t: naive.augmented_channel_kl(s, t, VARIANCE),
            near=None,
            **LOGITS,
        ),
        "none": Case(lambda s, t: losses.augmented_channel_kl(s, t, torch.zeros_like(s)), near=1e-4, **LOGITS),
    },
    "augmented_pixel_kl": {
        f"{scale}": Case(
            lambda s, t, scale=scale: losses.augmented_pixel_kl(
                s, t, LABELS, weight=like(WEIGHT, s), covariance=like(COVARIANCE, s), scale=scale
            ),
            lambda s, t, scale=scale: naive.augmented_pixel_kl(s, t, LABELS, WEIGHT, COVARIANCE, scale),
            near=None if scale else 1e-4,
            labels=lambda s, labels: losses.augmented_pixel_kl(s, s, labels, weight=WEIGHT, covariance=COVARIANCE),
            **LOGITS,
        )
        for scale in (0.0, 0.7)
    },
    "gradient_penalty": {  # how it falls and what it blends is in test_critic.py
        "": Case(
            lambda s, t: losses.gradient_penalty(lambda x: x.flatten(1).sum(1) * s.to(x.dtype).mean(), t, t),
            lambda s, t: 10 * (s.mean().abs() * t[0].numel() ** 0.5 - 1).square(),
            near=None,
            takes_teacher=False,
        ),
    },
    "structural_texture": {
        "": Case(
            lambda s, t: losses.structural_texture(s, t, levels=(2,)),
            lambda s, t: naive.structural_texture(s, t, (2,)),
            (2, 2, 8, 8),
            (2, 2, 8, 8),
        ),
    },
    "statistical_texture": {  # its parts are held against loops in test_sstkd.py and test_quantize.py
        "": Case(
            lambda s, t: losses.statistical_texture(s, t, num_levels=4, heuristic=False),
            None,
            (2, 4, 12),
            (2, 4, 12),
            near=None,  # counting has thresholds
            derivative=False,
        ),
    },
}
ALL = [pytest.param(case, id=f"{loss} {name}".strip()) for loss, cases in CASES.items() for name, case in cases.items()]


def some(wanted: Callable[[Case], object]) -> list:
    return [param for param in ALL if wanted(param.values[0])]


def sides(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(case.student, dtype=dtype, requires_grad=True), torch.randn(case.teacher, dtype=dtype)


def test_every_loss_has_a_case():
    assert set(CASES) == set(losses.__all__)


@pytest.mark.parametrize("case", some(lambda case: case.naive))
def test_value_and_gradient_are_the_formulas(case):
    student, teacher = sides(case)
    loss, expected = case.loss(student, teacher), case.naive(student, teacher)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)
    gradients = [torch.autograd.grad(x, student)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", some(lambda case: case.derivative))
def test_gradcheck(case):
    student, teacher = sides(case)
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher), student, fast_mode=True)


@pytest.mark.parametrize("kind", ["normal", "rectified", "smooth"])
@pytest.mark.parametrize("case", some(lambda case: case.near))
def test_near_equality_keeps_its_relative_accuracy(case, kind):
    teacher = torch.randn(case.student)
    if kind == "rectified":
        teacher = teacher.relu()
    if kind == "smooth":
        teacher = 3 + teacher.cumsum(-1) / 30
    student = (teacher * (1 + case.near * torch.randn(case.student))).requires_grad_()
    exact = student.detach().double().requires_grad_()
    loss, expected = case.loss(student, teacher), case.loss(exact, teacher.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3, abs=0)
    gradient, right = torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, exact)[0]
    assert (gradient - right).norm() < (1e-3 if case.near < 1e-4 else 1e-2) * right.norm()


@pytest.mark.parametrize("case", some(lambda case: case.near))
@pytest.mark.parametrize("value", [None, 0.0, 3.0])
def test_equality_gives_zero_and_no_gradient(case, value):
    student = torch.randn(case.student) if value is None else torch.full(case.student, value)
    student.requires_grad_()
    loss = case.loss(student, student.detach().clone())
    loss.backward()
    assert 0 <= loss.item() < 1e-12
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 3.0, 1e-30])
@pytest.mark.parametrize("case", ALL)
def test_a_constant_student_is_finite(case, value):
    student = torch.full(case.student, value, requires_grad=True)
    loss = case.loss(student, torch.randn(case.teacher))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 1e3


@pytest.mark.parametrize("case", some(lambda case: case.takes_teacher))
def test_the_teacher_is_detached(case):
    student, teacher = sides(case)
    case.loss(student, teacher.requires_grad_()).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ALL)
def test_half_precision_is_computed_in_single(case, dtype):
    student, teacher = (x.detach().to(dtype) for x in sides(case))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, case.loss(student.float(), teacher.float()))
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("case", some(lambda case: case.empty))
def test_nothing_to_compare_gives_zero_with_a_graph(case):
    student, _ = sides(case, torch.float32)
    loss = case.empty(student)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("case", some(lambda case: case.takes_teacher))
def test_shapes_that_would_only_broadcast_are_refused(case):
    student, teacher = sides(case)
    others = [teacher[:1], teacher[..., :1], teacher[0]] + ([teacher[:, :1]] if case.channels_agree else [])
    for one, other in [(student, other) for other in others] + [(student[0], teacher[0])]:
        with pytest.raises(ValueError, match=r"expected|need"):
            case.loss(one, other)


@pytest.mark.parametrize("case", some(lambda case: case.labels))
def test_labels_that_do_not_fit_are_refused(case):
    student, _ = sides(case)
    with pytest.raises(ValueError, match=r"labels: expected \(2,h,w\)"):
        case.labels(student, LABELS[:1])
    with pytest.raises(ValueError, match="labels: expected integers"):
        case.labels(student, LABELS.float())
