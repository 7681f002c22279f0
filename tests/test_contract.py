"""What every method keeps to, whatever it computes: a new file in `methods/` is tested here without another line."""

import pytest
import torch
from torch import nn

from segdistill.methods import Composite, Method, build_method, list_methods, method_class, resolve_methods
from segdistill.taps import Taps

CLASSES = 5


def make_taps(channels: int, size: tuple[int, int] = (12, 16)) -> Taps:
    """Random taps of a batch of two, as a network with `channels` features would give them."""
    h, w = size
    low2 = torch.randn(2, channels, h, w)
    taps = {
        "image": torch.rand(2, 3, 8 * h, 8 * w),
        "low1": torch.randn(2, channels // 2, 2 * h, 2 * w),
        "low2": low2,
        "features": torch.randn(2, channels, h, w),
        "logits": torch.randn(2, CLASSES, h, w),
        "weight": torch.randn(CLASSES, channels),
    }
    taps["output"] = nn.functional.interpolate(taps["logits"], scale_factor=8.0)
    return taps


def prepare(name: str) -> tuple[Composite, Taps, Taps, torch.Tensor]:
    method = build_method(name)
    student, teacher = make_taps(8), make_taps(16)
    method.adapt(student, teacher)
    method.train()
    for key, tap in student.items():
        tap.requires_grad_(key != "image")
    target = torch.randint(0, CLASSES, (2, 96, 128))
    target[:, :10] = 255
    return method, student, teacher, target


def all_terms(method: Composite, student: Taps, teacher: Taps, target: torch.Tensor, critic: nn.Module | None):
    terms = method(student, teacher, target, 0.5)
    if critic is not None:
        terms |= method.adversarial_loss(critic.requires_grad_(False), student, teacher)
    return terms


@pytest.mark.parametrize("name", list_methods())
def test_terms_are_finite_scalars_with_names(name):
    method, student, teacher, target = prepare(name)
    for term, value in all_terms(method, student, teacher, target, method.make_critic()).items():
        assert term.startswith(f"{name}_")
        assert value.dim() == 0
        assert value.isfinite()
        assert value.dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in list_methods() if n != "none"])
def test_gradients_reach_the_student_and_every_trained_layer(name):
    method, student, teacher, target = prepare(name)
    for _ in range(2):  # what a method remembers is filled by its first step
        terms = all_terms(method, student, teacher, target, method.make_critic())
    sum(terms.values()).backward()
    read = [tap.grad for key, tap in student.items() if key in method.student_taps() and tap.requires_grad]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in read)
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", list_methods())
def test_all_labels_ignored_is_finite(name):
    method, student, teacher, target = prepare(name)
    terms = all_terms(method, student, teacher, torch.full_like(target, 255), method.make_critic())
    total = sum(terms.values())
    if terms:
        total.backward()
        assert total.isfinite()
        assert all(tap.grad is None or tap.grad.isfinite().all() for tap in student.values())


EXACT_IN_PARTS = {"ifvd_variation"}
"""Divided by all pixels, with and without labels, so that the mean over parts of a batch is that of the batch."""


@pytest.mark.parametrize("name", list_methods())
def test_terms_that_labels_alone_feed_are_named(name):
    method, student, teacher, target = prepare(name)
    method(student, teacher, target, 0.5)  # what a method remembers is filled by its first step
    with_labels = method(student, teacher, target, 0.5)
    without = method(student, teacher, torch.full_like(target, 255), 0.5)
    fed = {term for term in with_labels if with_labels[term] != 0 and without[term] == 0}
    assert fed - EXACT_IN_PARTS == method.labelled_terms()


@pytest.mark.parametrize("name", list_methods())
def test_state_survives_a_save(name):
    method, student, teacher, target = prepare(name)
    all_terms(method, student, teacher, target, method.make_critic())
    other, *_ = prepare(name)
    other.load_state_dict(method.state_dict())
    for key, value in method.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value)


WITH_CRITIC = [name for name in list_methods() if method_class(name).make_critic is not Method.make_critic]


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_critic_trains_on_detached_taps_and_the_student_step_leaves_it_alone(name):
    method, student, teacher, target = prepare(name)
    critic = method.make_critic()
    terms = all_terms(method, student, teacher, target, critic)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in critic.parameters())
    critic.requires_grad_(True)
    optimizer = method.make_critic_optimizer(critic)
    detached = {key: tap.detach() for key, tap in student.items()}
    losses = method.critic_loss(critic, detached, teacher)
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.parameters())
    optimizer.step()


@pytest.mark.parametrize("name", list_methods())
def test_options_are_keywords_with_defaults_and_documented(name):
    resolved = resolve_methods(name)
    assert resolved == resolve_methods(resolved)
    cls = method_class(name)
    assert cls.__doc__
    for option in resolved[0]:
        assert option == "name" or f"{option}:" in cls.__doc__, f"{cls.__name__} does not document {option}"


def test_mistakes_get_a_hint():
    with pytest.raises(ValueError, match="did you mean cwd"):
        build_method("cdw")
    with pytest.raises(ValueError, match="named 2 times"):
        build_method(["kd", "kd"])
    with pytest.raises(ValueError, match="method kd has no option 'wieght'; did you mean weight"):
        build_method({"name": "kd", "wieght": 1.0})
    with pytest.raises(ValueError, match=r"method kd, weight: .*got 'much'"):
        build_method({"name": "kd", "weight": "much"})
    with pytest.raises(ValueError, match="has no 'name'"):
        build_method({"weight": 1.0})
