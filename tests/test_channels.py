import pytest
import torch

from segdistill import channels
from segdistill.channels import channel_sum, split_channels, squared_lengths
from segdistill.losses import attention_transfer, local_similarity


@pytest.mark.parametrize("block", [1, 100, 2**18])
def test_any_number_of_channels_at_a_time(block, monkeypatch):
    monkeypatch.setattr(channels, "BLOCK", block)
    x, y = torch.randn(2, 2, 7, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(channel_sum(torch.mul, x, y), (x * y).sum(1))
    x.requires_grad_()
    own, other, near = squared_lengths(x, y)
    torch.testing.assert_close(own, x.square().sum(1))
    torch.testing.assert_close(other, y.square().sum(1))
    assert near.any()
    assert not near.all()
    assert torch.autograd.gradcheck(lambda x: squared_lengths(x, y).own, x)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_lengths_are_right_however_the_two_sides_compare(scale):
    teacher = torch.randn(2, 64, 5, 6)
    for student in (scale * teacher, scale * torch.randn(2, 64, 5, 6), scale * torch.randn(2, 9, 5, 6)):
        own, other, _ = squared_lengths(student, teacher)
        torch.testing.assert_close(own, student.double().square().sum(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(other, teacher.double().square().sum(1), rtol=1e-6, atol=0)


def test_differences_of_lengths_keep_their_relative_accuracy():
    teacher = torch.randn(2, 64, 5, 6)
    student = teacher * (1 + 1e-6 * torch.randn_like(teacher))
    expected = student.double().square().sum(1) - teacher.double().square().sum(1)
    own, other, near = squared_lengths(student, teacher)
    assert near.all()
    torch.testing.assert_close(own - other, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    known = squared_lengths(student, teacher, student - teacher)
    torch.testing.assert_close(known.own - known.other, own - other, rtol=1e-5, atol=1e-12)


def test_of_vectors_without_a_direction():
    zeros = torch.zeros(1, 3, 2)
    assert squared_lengths(zeros, zeros).near.all()
    assert not squared_lengths(zeros, torch.ones(1, 3, 2)).near.any()
    assert squared_lengths(zeros, torch.ones(1, 3, 2)).own.abs().max() == 0


@pytest.mark.parametrize("block", [1, 100, 2**18])
def test_channels_that_lie_side_by_side(block, monkeypatch):
    monkeypatch.setattr(channels, "BLOCK", block)
    x, y = torch.randn(2, 2, 7, 3, 4, dtype=torch.float64)
    last = [a.contiguous(memory_format=torch.channels_last) for a in (x, y)]
    torch.testing.assert_close(channel_sum(torch.mul, *last), (x * y).sum(1))
    torch.testing.assert_close(channel_sum(torch.mul, last[0], y), (x * y).sum(1))
    pieces = list(split_channels(*last))
    for side, whole in zip(zip(*pieces, strict=True), (x, y), strict=True):
        torch.testing.assert_close(torch.cat(side, 1), whole)


@pytest.mark.parametrize("loss", [attention_transfer, local_similarity])
def test_losses_do_not_depend_on_how_channels_lie(loss):
    student, teacher = torch.randn(2, 2, 7, 5, 6, dtype=torch.float64)
    values, gradients = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        own = student.clone(memory_format=layout).requires_grad_()
        values.append(loss(own, teacher.contiguous(memory_format=layout)))
        gradients.append(torch.autograd.grad(values[-1], own)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
