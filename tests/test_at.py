import pytest
import torch

from conftest import check_golden
from segdistill.methods import build_method
from segdistill.methods.at import attention_transfer


def test_agrees_with_the_released_code(golden):
    student = golden["fs"].clone().requires_grad_()
    check_golden(golden, "attention_transfer", attention_transfer(student, golden["ft"]), student)


def test_agrees_with_loops():
    student, teacher = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.randn(2, 5, 2, 4, dtype=torch.float64)
    expected = 0.0
    for n in range(2):
        maps = []
        for features in (student[n], teacher[n]):
            strength = [sum(float(v) ** 2 for v in features[:, y, x]) for y in range(2) for x in range(4)]
            length = sum(v**2 for v in strength) ** 0.5
            maps.append([v / length for v in strength])
        expected += sum((s - t) ** 2 for s, t in zip(*maps, strict=True)) / 16
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    student, teacher = torch.randn(2, 2, 2, 3, dtype=torch.float64), torch.randn(2, 3, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: attention_transfer(s, teacher), student.requires_grad_())


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_near_equality_keeps_its_relative_accuracy(scale):
    teacher = scale * torch.randn(2, 128, 24, 24)
    student = teacher + scale * 1e-4 * torch.randn_like(teacher)
    exact = attention_transfer(student.double(), teacher.double())
    assert attention_transfer(student, teacher).item() == pytest.approx(exact.item(), rel=1e-4)


def test_neither_scale_nor_rotated_channels_matter():
    student, teacher = (torch.randn(2, 6, 5, 7, dtype=torch.float64) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = 3 * torch.einsum("ab,nbhw->nahw", rotation, student)
    torch.testing.assert_close(attention_transfer(moved, teacher), attention_transfer(student, teacher))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_maps_are_finite(value):
    student = torch.full((2, 3, 4, 4), value, requires_grad=True)
    loss = attention_transfer(student, torch.ones(2, 5, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert loss.item() == pytest.approx(0.0 if value else 1 / 16, abs=1e-12)
    assert student.grad.isfinite().all()


def test_equal_inputs_give_zero_and_no_gradient():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = attention_transfer(student, student.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


def test_half_precision_is_upcast_and_the_teacher_detached():
    student, teacher = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 5, 4, 4).bfloat16()
    student.requires_grad_()
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = attention_transfer(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, attention_transfer(student.float(), teacher.float()))
    assert teacher.grad is None


def test_errors():
    with pytest.raises(ValueError, match="need equal N and H×W"):
        attention_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_term_and_zero_weight():
    student, teacher = {"features": torch.randn(2, 5, 4, 4)}, {"features": torch.randn(2, 7, 4, 4)}
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    terms = build_method({"name": "at", "weight": 3.0})(student, teacher, target, 0.0)
    torch.testing.assert_close(terms["at_attention"], 3 * attention_transfer(student["features"], teacher["features"]))
    nothing = build_method({"name": "at", "weight": 0.0})
    assert nothing.teacher_taps() == set()
    assert nothing({}, {}, target, 0.0) == {}
