import pytest
import torch
from torchvision.ops import roi_align

from segdistill.texture import box_variance, candidate_boxes, crop_regions, sample_regions


def test_variance_agrees_with_loops():
    x = torch.randn(2, 9, 13) + 100
    boxes = candidate_boxes(2, (9, 13), 20, scales=(1, 3, 6))
    variance = box_variance(x, boxes)
    for n in range(2):
        for (x1, y1, x2, y2), actual in zip(boxes[n].tolist(), variance[n].tolist(), strict=True):
            expected = x[n, y1:y2, x1:x2].double().var(correction=0).item()
            assert actual == pytest.approx(expected, abs=1e-10)


def test_variance_does_not_cancel_on_a_large_offset():
    x = 1e4 + torch.randn(1, 32, 32, dtype=torch.float64)
    whole = torch.tensor([[[0, 0, 32, 32]]])
    assert box_variance(x, whole).item() == pytest.approx(x.var(correction=0).item(), rel=1e-9)


def test_crops_are_those_of_roi_align():
    x, boxes = torch.randn(2, 3, 20, 30), candidate_boxes(2, (20, 30), 2)
    crops = crop_regions(x, boxes, 5).unflatten(0, (2, -1))
    for n in range(2):
        torch.testing.assert_close(
            crops[n], roi_align(x[n : n + 1], [boxes[n].float()], 5, sampling_ratio=1, aligned=True)
        )


def test_gradcheck_of_the_crops():
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crop_regions(x, torch.tensor([[[1, 0, 5, 6]]]), 3), x)


@pytest.mark.parametrize("size", [(64, 128), (12, 16), (1, 5)])
def test_boxes_are_inside_and_have_their_scale_and_ratio_where_there_is_room(size):
    boxes = candidate_boxes(3, size, 50)
    assert boxes.shape == (3, 50 * 9, 4)
    x1, y1, x2, y2 = boxes.unbind(2)
    assert x1.min() >= 0
    assert y1.min() >= 0
    assert x2.max() <= size[1]
    assert y2.max() <= size[0]
    assert (x2 > x1).all()
    assert (y2 > y1).all()
    if size == (64, 128):
        extents = {(w, h) for w, h in torch.stack([x2 - x1, y2 - y1], dim=2).flatten(0, 1).tolist()}
        assert extents == {(w, h) for s in (8, 16, 32) for w, h in [(s, s), rounded(s, 0.5), rounded(s, 2)]}
        assert x1.min() == y1.min() == 0
        assert x2.max() == 128
        assert y2.max() == 64


def rounded(scale, ratio):
    return round(scale / ratio**0.5), round(scale * ratio**0.5)


def test_regions_are_drawn_where_the_map_varies_and_never_twice():
    importance = torch.zeros(2, 64, 128)
    importance[0, :, 64:] = torch.randn(64, 64)
    importance[1, :, :64] = torch.randn(64, 64)
    boxes = sample_regions(importance, 64, generator=torch.Generator().manual_seed(0))
    variance = box_variance(importance, boxes)
    assert boxes.shape == (2, 64, 4)
    assert (variance[:, :48] > 0).all()  # the share that is drawn by importance
    assert (variance[:, 48:] == 0).any()  # the rest is drawn anywhere
    uniform = sample_regions(importance, 64, important=0.0)
    assert variance.mean() > 1.3 * box_variance(importance, uniform).mean()
    assert sample_regions(importance, 9, oversample=1, important=1.0, scales=(8,), ratios=(1,)).shape == (2, 9, 4)


def test_the_chance_of_a_region_is_in_proportion_to_its_variance():
    images, options = 20_000, {"scales": (2,), "ratios": (1,)}
    importance = torch.rand(1, 6, 9).square().expand(images, -1, -1)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    candidates = box_variance(importance, candidate_boxes(images, (6, 9), 3, generator=seeds[0], **options))
    expected = (candidates.square().sum(1) / candidates.sum(1)).mean()  # of a draw from three by their variance
    drawn = sample_regions(importance, 1, important=1.0, generator=seeds[1], **options)
    assert box_variance(importance, drawn).mean().item() == pytest.approx(expected.item(), rel=0.02)
    assert candidates.mean() < 0.9 * expected


def test_a_constant_map_and_a_single_varying_cell_give_regions_all_the_same():
    constant = torch.full((1, 12, 16), 5.0)
    assert sample_regions(constant, 64).shape == (1, 64, 4)
    constant[0, 3, 3] = 6
    assert sample_regions(constant, 64).shape == (1, 64, 4)
    assert sample_regions(torch.zeros(1, 1, 1), 4).tolist() == [[[0, 0, 1, 1]] * 4]


def test_a_generator_makes_it_repeatable():
    importance = torch.randn(2, 30, 40)
    first, second, other = (sample_regions(importance, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_no_gradient_flows_through_the_choice():
    importance = torch.randn(1, 20, 20, requires_grad=True)
    assert not sample_regions(importance, 4).requires_grad


def test_errors():
    with pytest.raises(ValueError, match=r"importance: expected \(N,H,W\)"):
        sample_regions(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="at least 1"):
        sample_regions(torch.zeros(1, 8, 8), 0)
    with pytest.raises(ValueError, match=r"boxes \(N,R,4\)"):
        box_variance(torch.zeros(2, 8, 8), torch.zeros(1, 3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"boxes \(N,R,4\)"):
        crop_regions(torch.zeros(1, 2, 8, 8), torch.zeros(3, 4))
