import pytest
import torch
from torch import nn

from segdistill.methods import build_method


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
