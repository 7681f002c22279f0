import pytest
import torch

from segdistill.losses import inter_class_relation, intra_class_relation
from segdistill.methods import build_method

BOTH = pytest.mark.parametrize("relation", [inter_class_relation, intra_class_relation])


@BOTH
def test_only_the_probabilities_count(relation):
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    shifted = student + torch.randn(2, 1, 4, 5)
    torch.testing.assert_close(relation(shifted, teacher), relation(student, teacher))


def test_a_linear_change_of_probabilities_keeps_the_order_and_costs_nothing():
    teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    student = (0.5 * teacher.softmax(1) + 0.5 / 3).log()
    assert inter_class_relation(student, teacher).abs() < 1e-12
    assert intra_class_relation(student, teacher).abs() < 1e-12


def test_what_runs_against_the_teacher_costs_2():
    teacher = torch.tensor([[2.0, -1.0], [-2.0, 1.0]]).view(1, 2, 1, 2)
    for relation in (inter_class_relation, intra_class_relation):
        assert relation(-teacher, teacher).item() == pytest.approx(2)


@BOTH
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-30])
def test_a_constant_ranks_nothing(relation, value):
    constant, other = torch.full((2, 3, 40, 50), value, requires_grad=True), torch.randn(2, 3, 40, 50)
    loss = relation(constant, other)
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert constant.grad.abs().sum() == 0
    assert relation(other, constant).item() == pytest.approx(1)
    assert relation(constant, torch.zeros_like(other)).item() == 0


def test_pixels_of_all_images_are_of_one_class():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    one = [x.movedim(0, 1).reshape(1, 3, 8, 5) for x in (student, teacher)]
    torch.testing.assert_close(intra_class_relation(*one), intra_class_relation(student, teacher))


def test_one_pixel_has_no_relation_to_others():
    assert intra_class_relation(torch.randn(1, 3, 1, 1), torch.randn(1, 3, 1, 1)).item() == 0


def test_terms_have_their_weights_and_zero_reads_nothing():
    student, teacher = ({"logits": torch.randn(2, 3, 4, 5)} for _ in range(2))
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    terms = build_method({"name": "dist", "inter_weight": 2.0, "intra_weight": 3.0, "temperature": 4.0})(
        student, teacher, target, 0.0
    )
    logits = student["logits"], teacher["logits"]
    torch.testing.assert_close(terms["dist_inter"], 2 * inter_class_relation(*logits, temperature=4.0))
    torch.testing.assert_close(terms["dist_intra"], 3 * intra_class_relation(*logits, temperature=4.0))
    one = build_method({"name": "dist", "inter_weight": 0.0})
    assert set(one(student, teacher, target, 0.0)) == {"dist_intra"}
    none = build_method({"name": "dist", "inter_weight": 0.0, "intra_weight": 0.0})
    assert none.teacher_taps() == set()
    assert none({}, {}, target, 0.0) == {}
