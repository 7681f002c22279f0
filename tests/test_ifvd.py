import pytest
import torch
import torch.nn.functional as F

from conftest import check_golden
from segdistill.methods import build_method
from segdistill.methods.ifvd import intra_class_variation


def blocks(classes: int = 3) -> torch.Tensor:
    """Labels (2,8,12) at twice the map's resolution, with an ignored stripe."""
    labels = torch.randint(0, classes, (2, 4, 6)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels[:, :2] = 255
    return labels


def test_agrees_with_the_released_code(golden):
    student = golden["fs"].clone().requires_grad_()
    loss = intra_class_variation(student, golden["ft"], golden["labels"], num_classes=5)
    check_golden(golden, "ifvd", loss, student)


def test_lengths_do_not_matter():
    student, teacher, labels = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6), blocks()
    loss = intra_class_variation(student, teacher, labels, num_classes=3)
    torch.testing.assert_close(intra_class_variation(7 * student, teacher, labels, num_classes=3), loss)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_maps_are_finite(value):
    student = torch.full((2, 3, 4, 6), value, requires_grad=True)
    loss = intra_class_variation(student, torch.randn(2, 3, 4, 6), blocks(), num_classes=3)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 1.0


def test_pixels_without_a_class_count_zero():
    student, teacher, labels = torch.randn(2, 3, 4, 6, requires_grad=True), torch.randn(2, 3, 4, 6), blocks()
    loss = intra_class_variation(student, teacher, labels, num_classes=3)
    for other in (-1, 7):
        relabelled = torch.where(labels == 255, other, labels)
        torch.testing.assert_close(intra_class_variation(student, teacher, relabelled, num_classes=3), loss)
    nothing = intra_class_variation(student, teacher, torch.full_like(labels, 255), num_classes=3)
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad.abs().sum() == 0


def test_a_class_can_be_the_ignored_one():
    student, teacher, labels = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6), blocks()
    loss = intra_class_variation(student, teacher, labels, num_classes=3, ignore_index=2)
    expected = intra_class_variation(student, teacher, torch.where(labels == 2, 255, labels), num_classes=3)
    torch.testing.assert_close(loss, expected)


def test_terms_and_their_weights():
    student = {"logits": torch.randn(2, 3, 4, 6), "features": torch.randn(2, 5, 4, 6)}
    teacher = {"logits": torch.randn(2, 3, 4, 6), "features": torch.randn(2, 7, 4, 6)}
    labels = blocks()

    def terms(**options: float) -> dict[str, torch.Tensor]:
        method = build_method({"name": "ifvd", **options})
        method.adapt(student, teacher)
        return method(student, teacher, labels, 0.0)

    both = terms()
    assert set(both) == {"ifvd_pixel", "ifvd_variation"}
    log_s, p_t = student["logits"].log_softmax(1), teacher["logits"].softmax(1)
    # The authors' pixel loss: summed over classes, averaged over pixels, divided by the number of classes.
    torch.testing.assert_close(both["ifvd_pixel"], 10 * F.kl_div(log_s, p_t, reduction="none").sum(1).mean() / 3)
    variation = intra_class_variation(student["features"], teacher["features"], labels, num_classes=3)
    torch.testing.assert_close(both["ifvd_variation"], 50 * variation)
    assert set(terms(pixel_weight=0.0)) == {"ifvd_variation"}
    assert build_method({"name": "ifvd", "pixel_weight": 0.0}).teacher_taps() == {"features"}
    assert build_method({"name": "ifvd", "weight": 0.0}).teacher_taps() == {"logits"}
