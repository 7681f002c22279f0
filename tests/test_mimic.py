import pytest
import torch
from torch import nn

from segdistill.methods import build_method
from segdistill.methods.mimic import feature_mse


def test_agrees_with_loops():
    student, teacher = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.randn(2, 3, 2, 4, dtype=torch.float64)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    expected = sum((s - t) ** 2 for s, t in pairs) / 48
    assert feature_mse(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    student, teacher = torch.randn(1, 2, 2, 3, dtype=torch.float64), torch.randn(1, 2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: feature_mse(s, teacher), student.requires_grad_())


def test_near_equality_keeps_its_relative_accuracy():
    teacher = torch.randn(2, 64, 16, 16)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = feature_mse(student.double(), teacher.double())
    assert feature_mse(student, teacher).item() == pytest.approx(exact.item(), rel=1e-3)


def test_equal_inputs_give_zero_and_no_gradient():
    student = torch.ones(2, 3, 4, 4, requires_grad=True)
    loss = feature_mse(student, torch.ones(2, 3, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


def test_half_precision_is_upcast_and_the_teacher_detached():
    student, teacher = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    student.requires_grad_()
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_mse(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, feature_mse(student.float(), teacher.float()))
    assert teacher.grad is None


def test_errors():
    with pytest.raises(ValueError, match="need equal shapes"):
        feature_mse(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("channels", [5, 7])
def test_the_student_goes_through_a_trained_convolution(channels):
    student, teacher = {"features": torch.randn(2, channels, 4, 4)}, {"features": torch.randn(2, 7, 4, 4)}
    method = build_method({"name": "mimic", "weight": 3.0})
    method.adapt(student, teacher)
    (convolution,) = [layer for layer in method.modules() if isinstance(layer, nn.Conv2d)]
    assert convolution.weight.shape == (7, channels, 1, 1)
    assert convolution.bias is None
    terms = method(student, teacher, torch.zeros(2, 8, 8, dtype=torch.long), 0.0)
    expected = 3 * (convolution(student["features"]) - teacher["features"]).square().mean()
    torch.testing.assert_close(terms["mimic_features"], expected)


def test_zero_weight_reads_and_makes_nothing():
    method = build_method({"name": "mimic", "weight": 0.0})
    method.adapt({}, {})
    assert method.teacher_taps() == set()
    assert list(method.parameters()) == []
    assert method({}, {}, torch.zeros(2, 8, 8, dtype=torch.long), 0.0) == {}
