import pytest
import torch

from segdistill.methods import build_method
from segdistill.methods.local import local_similarity

KINDS = pytest.mark.parametrize("kind", ["cosine", "l2"])


@KINDS
def test_agrees_with_the_released_code(golden, kind):
    student = golden["fs"].clone().requires_grad_()
    loss = local_similarity(student, golden["ft"], kind=kind)
    torch.testing.assert_close(loss, golden[f"local_{kind}.loss"][0], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, student)
    expected = golden[f"local_{kind}.grad"]
    # The released code ran in float32: its smallest elements, sums of larger ones, are good to 1e-6 of the largest.
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def test_invariances():
    student, teacher = (torch.randn(2, 6, 5, 7, dtype=torch.float64) for _ in range(2))
    lengths = torch.rand(2, 1, 5, 7).add(0.5)
    torch.testing.assert_close(local_similarity(student * lengths, teacher), local_similarity(student, teacher))
    moved = student + torch.randn(2, 6, 1, 1)
    torch.testing.assert_close(
        local_similarity(moved, teacher, kind="l2"), local_similarity(student, teacher, kind="l2")
    )


@KINDS
@pytest.mark.parametrize("size", [(2, 5), (5, 1)])
def test_no_pixel_with_eight_neighbours_gives_zero(kind, size):
    student = torch.randn(2, 3, *size, requires_grad=True)
    loss = local_similarity(student, torch.randn(2, 3, *size), kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


def test_errors():
    with pytest.raises(ValueError, match="kind: expected"):
        local_similarity(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), kind="l1")


@KINDS
def test_term_and_zero_weight(kind):
    student, teacher = {"features": torch.randn(2, 5, 4, 4)}, {"features": torch.randn(2, 7, 4, 4)}
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    terms = build_method({"name": "local", "weight": 3.0, "kind": kind})(student, teacher, target, 0.0)
    expected = 3 * local_similarity(student["features"], teacher["features"], kind=kind)
    torch.testing.assert_close(terms["local_features"], expected)
    nothing = build_method({"name": "local", "weight": 0.0})
    assert nothing.teacher_taps() == set()
    assert nothing({}, {}, target, 0.0) == {}
