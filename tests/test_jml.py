import pytest
import torch

from segdistill.losses import soft_jaccard
from segdistill.methods import build_method

LABELS = torch.tensor([[[0, 1], [1, 255]], [[0, 0], [1, 1]]])


def taps(logits):
    return {"logits": logits}


def test_with_hard_labels_it_is_the_soft_jaccard_loss():
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64).softmax(1)
    expected = []
    for c in (0, 1):  # nothing is labelled 2
        x, y = student[:, c][LABELS != 255], (LABELS[LABELS != 255] == c).double()
        both = (x * y).sum()
        expected.append(1 - both / (x.sum() + y.sum() - both))
    torch.testing.assert_close(soft_jaccard(student, LABELS), torch.stack(expected).mean())


def test_it_is_a_metric_on_soft_labels():
    a, b, c = (torch.randn(2, 3, 4, 5, dtype=torch.float64).softmax(1) for _ in range(3))
    every = torch.ones(3, dtype=torch.bool)
    ab, bc, ac, ba = (soft_jaccard(x, y, present=every).item() for x, y in ((a, b), (b, c), (a, c), (b, a)))
    assert soft_jaccard(a, a, present=every) == 0
    assert ab == pytest.approx(ba)
    assert ac <= ab + bc
    assert 0 < ab < 1


def test_nothing_in_common_is_1():
    student = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    assert soft_jaccard(student, torch.ones(1, 1, 2, dtype=torch.long)).item() == 1


def test_a_soft_label_counts_where_it_is_the_most_probable():
    student = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    target = torch.tensor([0.1, 0.7, 0.2]).view(1, 3, 1, 1)
    assert soft_jaccard(student, target).item() == pytest.approx(1 - 0.3 / 0.7)
    other = torch.tensor([True, False, False])
    assert soft_jaccard(student, target, present=other).item() == pytest.approx(1 - 0.1 / 0.5)


@pytest.mark.parametrize("target", [LABELS, torch.rand(2, 3, 2, 2)], ids=["hard", "soft"])
def test_pixels_that_do_not_count_change_nothing(target):
    student = torch.randn(2, 3, 2, 2).softmax(1)
    valid = torch.tensor([[[True, False], [True, True]], [[False, True], [True, True]]])
    other = torch.where(valid[:, None], student, torch.rand_like(student)).requires_grad_()
    loss = soft_jaccard(other, target, valid=valid)
    assert loss == soft_jaccard(student, target, valid=valid)
    loss.backward()
    assert other.grad[~valid[:, None].expand_as(other)].abs().sum() == 0
    with pytest.raises(ValueError, match=r"valid: expected \(2, 2, 2\), got \(2, 2\)"):
        soft_jaccard(student, target, valid=valid[0])
    with pytest.raises(ValueError, match=r"present: expected \(3,\), got \(2,\)"):
        soft_jaccard(student, target, present=torch.ones(2, dtype=torch.bool))


def test_classes_of_the_labels_and_of_the_teacher_are_present():
    student, teacher = torch.randn(1, 4, 1, 2), torch.full((1, 4, 1, 2), -1.0)
    teacher[0, 1] = 3.0
    target = torch.tensor([[[2, 2]]])
    term = build_method({"name": "jml", "weight": 2.0, "temperature": 2.0})(taps(student), taps(teacher), target, 0.0)
    x, y = (student / 2).softmax(1), (teacher / 2).softmax(1)
    expected = [
        1 - torch.minimum(x[:, c], y[:, c]).sum() / torch.maximum(x[:, c], y[:, c]).sum()  # 1: teacher, 2: labels
        for c in (1, 2)
    ]
    torch.testing.assert_close(term["jml_logits"], 2 * torch.stack(expected).mean())


def test_unlabelled_pixels_teach_on_request_alone():
    student, teacher = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    target = torch.full((1, 4, 4), 255)
    assert build_method("jml")(taps(student), taps(teacher), target, 0.0)["jml_logits"] == 0
    method = build_method({"name": "jml", "weight": 1.0, "labelled_only": False})
    expected = soft_jaccard(student.softmax(1), teacher.softmax(1))
    torch.testing.assert_close(method(taps(student), taps(teacher), target, 0.0)["jml_logits"], expected)


def test_zero_weight_reads_nothing():
    method = build_method({"name": "jml", "weight": 0.0})
    assert method.teacher_taps() == set()
    assert method({}, {}, LABELS, 0.0) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("soft", [False, True])
def test_half_precision_is_computed_in_single(dtype, soft):
    student, other = (torch.randn(2, 3, 2, 2).softmax(1).to(dtype) for _ in range(2))
    target = other if soft else LABELS
    loss = soft_jaccard(student, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_jaccard(student.float(), target.float() if soft else target))
