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


@KINDS
def test_agrees_with_loops(kind):
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 2, 4, 5, dtype=torch.float64)
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    squares = []
    for n in range(2):
        for y in range(1, 3):
            for x in range(1, 4):
                differences = []
                for dy, dx in around:
                    values = []
                    for f in (student[n], teacher[n]):
                        p, q = f[:, y, x], f[:, y + dy, x + dx]
                        value = p @ q / p.norm() / q.norm() if kind == "cosine" else (p - q).square().sum()
                        values.append(value.item())
                    differences.append(values[0] - values[1])
                squares += [d**2 for d in differences] if kind == "cosine" else [sum(differences) ** 2]
    loss = local_similarity(student, teacher, kind=kind)
    assert loss.item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


@KINDS
def test_gradcheck(kind):
    student, teacher = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: local_similarity(s, teacher, kind=kind), student.requires_grad_())


@KINDS
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_near_equality_keeps_its_relative_accuracy(kind, scale):
    teacher = scale * torch.randn(2, 64, 20, 20).relu()
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = local_similarity(student.double(), teacher.double(), kind=kind)
    assert local_similarity(student, teacher, kind=kind).item() == pytest.approx(exact.item(), rel=1e-3)


@KINDS
def test_equal_inputs_give_zero_and_no_gradient(kind):
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = local_similarity(student, student.detach().clone(), kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


@KINDS
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-30])
def test_constant_maps_are_finite(kind, value):
    student = torch.full((2, 3, 4, 4), value, requires_grad=True)
    loss = local_similarity(student, torch.randn(2, 5, 4, 4), kind=kind)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e3


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


def test_half_precision_is_upcast_and_the_teacher_detached():
    student, teacher = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 5, 4, 4).bfloat16()
    student.requires_grad_()
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = local_similarity(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, local_similarity(student.float(), teacher.float()))
    assert teacher.grad is None


def test_errors():
    with pytest.raises(ValueError, match="need equal N and H×W"):
        local_similarity(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
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
