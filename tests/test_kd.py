import pytest
import torch

from conftest import check_golden
from segdistill.losses import pixel_kl


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_agrees_with_the_released_code(golden, temperature):
    student = golden["zs"].clone().requires_grad_()
    loss = pixel_kl(student, golden["zt"], temperature=temperature)
    check_golden(golden, f"pixel_kl_T{temperature}", loss, student)


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


def test_errors():
    with pytest.raises(ValueError, match="valid: expected"):
        pixel_kl(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), valid=torch.ones(1, 4, dtype=torch.bool))
