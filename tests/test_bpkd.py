import itertools

import pytest
import torch

from segdistill.losses import channel_kl, pixel_kl
from segdistill.methods import build_method
from segdistill.methods.bpkd import label_border


def naive_border(labels, num_classes, reach):
    """Of each class, where its pixels' dilation is and their erosion is not."""
    border = torch.zeros(labels.shape, dtype=torch.bool)
    n, h, w = labels.shape
    for i, y, x, c in itertools.product(range(n), range(h), range(w), range(num_classes)):
        rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in (y, x))
        around = labels[i, rows, columns].flatten()
        around = around[around < num_classes]
        if labels[i, y, x] < num_classes:
            border[i, y, x] |= (around == c).any() and not (around == c).all()
    return border


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_the_border_is_the_dilation_without_the_erosion(kernel_size):
    blocks = torch.randint(0, 4, (3, 3, 4)).repeat_interleave(4, 1).repeat_interleave(5, 2)
    labels = torch.where(torch.rand(blocks.shape) < 0.1, 255, blocks)
    for these in (blocks, labels, torch.where(blocks == 3, 255, blocks)):
        border = label_border(these, num_classes=4, kernel_size=kernel_size)
        assert torch.equal(border, naive_border(these, 4, kernel_size // 2))
    assert 0 < border.sum() < border.numel()


def test_labels_may_be_bytes_and_any_number_may_be_ignored():
    labels = torch.tensor([[[0, 0, 1, 1, 2, 2]]], dtype=torch.uint8)
    expected = [False, True, True, True, True, False]
    assert label_border(labels, num_classes=3)[0, 0].tolist() == expected
    assert label_border(labels, num_classes=2)[0, 0].tolist() == [False, True, True, False, False, False]
    assert not label_border(labels, num_classes=3, ignore_index=1).any()


@pytest.mark.parametrize("kernel_size", [-1, 1, 4])
def test_a_square_without_a_centre_is_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size: expected an odd number of 3 or more, got {kernel_size}"):
        label_border(torch.zeros(1, 4, 4, dtype=torch.long), num_classes=2, kernel_size=kernel_size)
    with pytest.raises(ValueError, match=f"method bpkd, kernel_size: .* got {kernel_size}"):
        build_method({"name": "bpkd", "kernel_size": kernel_size})


def setting(target):
    student, teacher = ({"logits": torch.randn(2, 3, 6, 8)} for _ in range(2))
    return student, teacher, target.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_each_pixel_counts_in_one_term():
    labels = torch.zeros(2, 6, 8, dtype=torch.long)
    labels[0, :, 4:] = 1
    labels[1, 3:] = 2
    student, teacher, target = setting(labels)
    options = {"edge_weight": 2.0, "body_weight": 3.0, "temperature": 4.0, "kernel_size": 5}
    terms = build_method({"name": "bpkd", **options})(student, teacher, target, 0.0)
    border = naive_border(labels, 3, 2)
    maps = student["logits"], teacher["logits"]
    torch.testing.assert_close(terms["bpkd_edge"], 2 * pixel_kl(*maps, temperature=4.0, valid=border))
    torch.testing.assert_close(terms["bpkd_body"], 3 * channel_kl(*maps, temperature=4.0, valid=~border))


@pytest.mark.parametrize("label", [1, 255])
def test_without_borders_it_is_channel_wise(label):
    student, teacher, target = setting(torch.full((2, 6, 8), label))
    terms = build_method({"name": "bpkd", "body_weight": 1.0})(student, teacher, target, 0.0)
    assert terms["bpkd_edge"] == 0
    torch.testing.assert_close(terms["bpkd_body"], channel_kl(student["logits"], teacher["logits"]))


def test_nothing_but_borders_is_pixel_wise():
    student, teacher, target = setting((torch.arange(8) % 2).expand(2, 6, 8))
    student["logits"].requires_grad_()
    terms = build_method({"name": "bpkd", "edge_weight": 1.0})(student, teacher, target, 0.0)
    torch.testing.assert_close(terms["bpkd_edge"], pixel_kl(student["logits"], teacher["logits"]))
    assert terms["bpkd_body"] == 0
    terms["bpkd_body"].backward()
    assert student["logits"].grad.abs().sum() == 0


def test_zero_weights_read_nothing():
    student, teacher, target = setting(torch.zeros(2, 6, 8, dtype=torch.long))
    assert set(build_method({"name": "bpkd", "edge_weight": 0.0})(student, teacher, target, 0.0)) == {"bpkd_body"}
    assert set(build_method({"name": "bpkd", "body_weight": 0.0})(student, teacher, target, 0.0)) == {"bpkd_edge"}
    method = build_method({"name": "bpkd", "edge_weight": 0.0, "body_weight": 0.0})
    assert method.teacher_taps() == set()
    assert method({}, {}, target, 0.0) == {}
