import math

import pytest
import torch
import torch.nn.functional as F

from segdistill import functional
from segdistill.functional import exact, inverse_lengths, kl_terms, labelled, softmax_kl


def logs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (4,5,6) of a teacher and a student, near and far from each other."""
    teacher = torch.randn(4, 5, 6, dtype=dtype)
    student = teacher + torch.tensor([1e-6, 1e-2, 1.0, 30.0], dtype=dtype).view(4, 1, 1) * torch.randn(4, 5, 6)
    return F.log_softmax(teacher, 1), F.log_softmax(student, 1)


@pytest.mark.parametrize("block", [7, 2**18])
def test_kl_terms_agree_with_torch(block, monkeypatch):
    monkeypatch.setattr(functional, "BLOCK", block)
    teacher, student = logs()
    student.requires_grad_()
    divergence = kl_terms(teacher, student).sum(1)
    expected = F.kl_div(student, teacher, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(divergence, expected, rtol=1e-10, atol=1e-15)
    assert torch.autograd.gradcheck(lambda s: kl_terms(teacher, s), student)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_kl_terms_are_as_good_as_their_precision(dtype, accuracy):
    size = torch.logspace(-4, 1, 4000, dtype=torch.float64)
    student = torch.cat([size, -size]).to(dtype)
    terms = kl_terms(torch.zeros_like(student), student).double()
    d = student.double()
    series = sum(d**n * (1 / math.factorial(n)) for n in range(24, 1, -1))
    expected = torch.where(d.abs() < 1, series, d.expm1() - d)
    assert (terms / expected - 1).abs().max() < accuracy


def test_kl_terms_take_any_layout():
    teacher, student = logs()
    expected = kl_terms(teacher, student)
    torch.testing.assert_close(kl_terms(teacher.mT, student.mT.contiguous()).mT, expected)


def test_kl_terms_are_never_negative():
    teacher, student = logs(torch.float32)
    assert (kl_terms(teacher, student) >= 0).all()
    assert kl_terms(teacher, teacher.clone()).abs().max() == 0


def test_kl_terms_do_not_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        kl_terms(torch.zeros(2, 1), torch.zeros(2, 3))


def test_one_definition_of_which_pixels_have_a_class():
    labels = torch.tensor([[-1, 0, 2, 3, 255]])
    assert labelled(labels, 3).tolist() == [[False, True, True, False, False]]
    assert labelled(labels, 3, ignore_index=2).tolist() == [[False, True, False, False, False]]
    assert labelled(labels, 256).tolist() == [[False, True, True, True, False]]


def test_one_definition_of_which_vectors_have_a_direction():
    squares = torch.tensor([0.0, 0.9e-16, 1.1e-16, 4.0], requires_grad=True)
    scale = inverse_lengths(squares)
    assert (scale > 0).tolist() == [False, False, True, True]
    assert scale[3] == 0.5
    scale.sum().backward()
    assert (squares.grad != 0).tolist() == [False, False, True, True]


def test_exact_is_float64_with_a_graph():
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    exact(x).sum().backward()
    assert exact(x).dtype == torch.float64
    assert x.grad.dtype == torch.float16


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_softmax_kl_is_the_sum_of_the_terms(dim, layout):
    student, teacher = (x.contiguous(memory_format=layout) for x in 3 * torch.randn(2, 2, 5, 3, 4, dtype=torch.float64))
    kept = student.clone(), teacher.clone()
    student.requires_grad_()
    logs = ((x / 2).log_softmax(dim) for x in (teacher, student))
    expected = kl_terms(*logs).sum(dim)
    found = softmax_kl(student, teacher, dim, temperature=2.0)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((weights * x).sum(), student)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])
    assert torch.autograd.gradcheck(lambda s: softmax_kl(s, teacher, dim), student)
