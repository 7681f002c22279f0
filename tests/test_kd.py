import math

import pytest
import torch

from conftest import check_golden
from segdistill.losses import pixel_kl


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_agrees_with_the_released_code(golden, temperature):
    student = golden["zs"].clone().requires_grad_()
    loss = pixel_kl(student, golden["zt"], temperature=temperature)
    check_golden(golden, f"pixel_kl_T{temperature}", loss, student)


def test_agrees_with_loops():
    student, teacher = torch.randn(2, 3, 2, 4, dtype=torch.float64), torch.randn(2, 3, 2, 4, dtype=torch.float64)
    expected = 0.0
    for n in range(2):
        for y in range(2):
            for x in range(4):
                s, t = student[n, :, y, x].exp(), teacher[n, :, y, x].exp()
                s, t = s / s.sum(), t / t.sum()
                expected += sum(float(t[c]) * math.log(t[c] / s[c]) for c in range(3)) / 16
    assert pixel_kl(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    student, teacher = torch.randn(1, 3, 2, 2, dtype=torch.float64), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: pixel_kl(s, teacher, temperature=2.0), student.requires_grad_())


def test_near_equality_keeps_its_relative_accuracy():
    teacher = torch.randn(2, 11, 32, 32)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = pixel_kl(student.double(), teacher.double())
    assert pixel_kl(student, teacher).item() == pytest.approx(exact.item(), rel=1e-3)


def test_equal_inputs_give_zero_and_no_gradient():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_kl(student, student.detach().clone())
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-8


def test_extreme_logits_stay_finite():
    student = (1e4 * torch.randn(2, 3, 4, 4)).requires_grad_()
    loss = pixel_kl(student, 1e4 * torch.randn(2, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_valid_pixels_only():
    student, teacher = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[:, :2] = True
    torch.testing.assert_close(pixel_kl(student, teacher, valid=valid), pixel_kl(student[:, :, :2], teacher[:, :, :2]))
    nothing = pixel_kl(student, teacher, valid=torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad.abs().sum() == 0


def test_half_precision_is_upcast_under_autocast():
    student, teacher = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pixel_kl(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_kl(student.float(), teacher.float()))


def test_teacher_gets_no_gradient():
    teacher = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_kl(torch.randn(1, 3, 2, 2, requires_grad=True), teacher)
    loss.backward()
    assert teacher.grad is None


def test_errors():
    with pytest.raises(ValueError, match="need equal shapes"):
        pixel_kl(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"expected \(N,C,H,W\)"):
        pixel_kl(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="valid: expected"):
        pixel_kl(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), valid=torch.ones(1, 4, dtype=torch.bool))
