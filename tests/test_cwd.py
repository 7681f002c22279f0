import pytest
import torch

from conftest import check_golden
from segdistill.losses import channel_kl
from segdistill.methods import build_method


@pytest.mark.parametrize("temperature", [1, 4])
def test_agrees_with_the_released_code(golden, temperature):
    student = golden["zs"].clone().requires_grad_()
    loss = channel_kl(student, golden["zt"], temperature=temperature)
    check_golden(golden, f"channel_kl_T{temperature}", loss, student)


def test_a_constant_per_channel_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    shifted = student + torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(channel_kl(student, teacher), channel_kl(shifted, teacher))


def test_constant_maps_are_finite():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = channel_kl(student, torch.ones(2, 3, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.isfinite().all()


def test_positions_that_do_not_count_change_nothing():
    student, teacher = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    valid = torch.rand(3, 4, 4) < 0.5
    valid[1] = False  # an image without any
    other = torch.where(valid[:, None], student, 1e4 * torch.randn_like(student)).requires_grad_()
    loss = channel_kl(other, teacher, valid=valid)
    torch.testing.assert_close(loss, channel_kl(student[::2], teacher[::2], valid=valid[::2]))
    loss.backward()
    assert other.grad.isfinite().all()
    assert other.grad.movedim(1, 3)[~valid].abs().sum() == 0
    every = torch.ones_like(valid)
    torch.testing.assert_close(channel_kl(student, teacher, valid=every), channel_kl(student, teacher))
    with pytest.raises(ValueError, match=r"valid: expected \(3, 4, 4\), got \(4, 4\)"):
        channel_kl(student, teacher, valid=valid[0])


def test_features_are_projected_and_zero_weights_read_nothing():
    student = {"logits": torch.randn(2, 3, 4, 4), "features": torch.randn(2, 5, 4, 4)}
    teacher = {"logits": torch.randn(2, 3, 4, 4), "features": torch.randn(2, 7, 4, 4)}
    method = build_method({"name": "cwd", "weight": 0.0, "features_weight": 50.0})
    assert method.teacher_taps() == {"features"}
    method.adapt(student, teacher)
    terms = method(student, teacher, torch.zeros(2, 8, 8, dtype=torch.long), 0.0)
    assert set(terms) == {"cwd_features"}
    terms["cwd_features"].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert build_method({"name": "cwd", "weight": 0.0}).teacher_taps() == set()


def test_a_temperature_of_a_term_that_is_off():
    with pytest.raises(ValueError, match=r"method cwd, features_temperature: of the term on features, which is off"):
        build_method({"name": "cwd", "features_temperature": 2.0})
    build_method({"name": "cwd", "features_temperature": 2.0, "features_weight": 50.0})
