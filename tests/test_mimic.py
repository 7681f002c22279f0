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


def maps(channels, taps="abc"):
    return {tap: torch.randn(2, channels + i, 4 + i, 4) for i, tap in enumerate(taps)}


@pytest.mark.parametrize("weight", [3.0, [3.0, 0.5, 2.0]])
def test_each_tap_has_its_own_convolution_weight_and_term(weight):
    student, teacher = maps(5), maps(7)
    method = build_method({"name": "mimic", "weight": weight, "taps": ["a", "c", "b"]})
    assert method.student_taps() == method.teacher_taps() == {"a", "b", "c"}
    method.adapt(student, teacher)
    convolutions = [layer for layer in method.modules() if isinstance(layer, nn.Conv2d)]
    assert [tuple(layer.weight.shape[:2]) for layer in convolutions] == [(7, 5), (9, 7), (8, 6)]
    terms = method(student, teacher, torch.zeros(2, 8, 8, dtype=torch.long), 0.0)
    assert list(terms) == ["mimic_a", "mimic_c", "mimic_b"]
    weights = weight if isinstance(weight, list) else [weight] * 3
    for tap, one, layer in zip("acb", weights, convolutions, strict=True):
        torch.testing.assert_close(terms[f"mimic_{tap}"], one * (layer(student[tap]) - teacher[tap]).square().mean())
    sum(terms.values()).backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in convolutions)


def test_a_tap_of_weight_zero_is_not_read():
    method = build_method({"name": "mimic", "weight": [0.0, 1.0], "taps": ["a", "layer.b"]})
    assert method.student_taps() == {"layer.b"}
    student, teacher = maps(5, ["layer.b"]), maps(5, ["layer.b"])
    method.adapt(student, teacher)
    assert len(list(method.parameters())) == 1
    assert set(method(student, teacher, torch.zeros(2, 8, 8, dtype=torch.long), 0.0)) == {"mimic_layer.b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ["a", "b"], "weight": [1.0]}, "weight: 1 weights for the 2 taps a, b"),
        ({"weight": []}, "weight: 0 weights for the 1 taps features"),
        ({"taps": ["a", "b", "a"]}, "taps: a is named 2 times"),
        ({"taps": ["low1", "image"]}, "taps: image is no feature map; expected names such as low1 or features"),
        ({"taps": []}, "taps: expected at least one, got none"),
        ({"taps": "low1"}, "taps: expected a list of values, got 'low1'"),
        ({"weight": "much"}, "weight.* got 'much'"),
    ],
)
def test_mistakes_get_one_line(options, message):
    with pytest.raises(ValueError, match=f"method mimic, {message}"):
        build_method({"name": "mimic", **options})


def test_zero_weight_reads_and_makes_nothing():
    method = build_method({"name": "mimic", "weight": 0.0})
    method.adapt({}, {})
    assert method.teacher_taps() == set()
    assert list(method.parameters()) == []
    assert method({}, {}, torch.zeros(2, 8, 8, dtype=torch.long), 0.0) == {}
