import pytest
import torch

from conftest import check_golden
from segdistill.methods import build_method
from segdistill.methods.at import attention_transfer


def test_agrees_with_the_released_code(golden):
    student = golden["fs"].clone().requires_grad_()
    check_golden(golden, "attention_transfer", attention_transfer(student, golden["ft"]), student)


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


def test_term_and_zero_weight():
    student, teacher = {"features": torch.randn(2, 5, 4, 4)}, {"features": torch.randn(2, 7, 4, 4)}
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    terms = build_method({"name": "at", "weight": 3.0})(student, teacher, target, 0.0)
    torch.testing.assert_close(terms["at_attention"], 3 * attention_transfer(student["features"], teacher["features"]))
    nothing = build_method({"name": "at", "weight": 0.0})
    assert nothing.teacher_taps() == set()
    assert nothing({}, {}, target, 0.0) == {}
