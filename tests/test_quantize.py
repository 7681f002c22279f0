from functools import partial

import pytest
import torch

from segdistill.texture import (
    clip_counts,
    count,
    encode,
    heuristic_levels,
    mean_similarity,
    quantise,
    uniform_levels,
    widen_levels,
)

SIMILARITY = torch.tensor([[0.0, 0.1, 0.25, 0.4, 0.75, 1.0]], dtype=torch.float64)
COUNTS = {"triangle": [0.387755, 0.285714, 0.122449, 0.204082], "released": [0.341693, 0.231975, 0.206897, 0.219436]}


def skewed(kind: str, regions: int = 40, positions: int = 256) -> torch.Tensor:
    """Similarities of several distributions, in (−1,1)."""
    noise = torch.randn(regions, positions, dtype=torch.float64)
    return {
        "normal": 0.2 * noise,
        "skewed": torch.rand_like(noise).pow(4),
        "two peaks": torch.where(torch.rand_like(noise) < 0.8, 0.9 + 0.02 * noise, 0.2 + 0.1 * noise),
        "uniform": torch.rand_like(noise),
        "few": torch.rand(regions, 5, dtype=torch.float64),
        "opposite": 1 - 2 * (torch.rand_like(noise) < 0.1).double(),
    }[kind].clamp(-1, 1)


KINDS = ["normal", "skewed", "two peaks", "uniform", "few", "opposite"]


def entropy(counts):
    return -torch.xlogy(counts, counts).sum(1)


@pytest.mark.parametrize("kernel", COUNTS)
def test_uniform_levels_and_counts_have_the_worked_values(kernel):
    levels = uniform_levels(SIMILARITY, 4)
    torch.testing.assert_close(levels, torch.tensor([[0.125, 0.375, 0.625, 0.875]], dtype=torch.float64))
    counts = count(encode(SIMILARITY, levels, kernel=kernel))
    torch.testing.assert_close(counts, torch.tensor([COUNTS[kernel]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_denoised_counts_have_the_worked_values():
    counts = torch.tensor([COUNTS["released"]], dtype=torch.float64)
    clipped = torch.tensor([[0.316066, 0.240517, 0.215439, 0.227978]], dtype=torch.float64)
    torch.testing.assert_close(clip_counts(counts, 0.9), clipped, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", COUNTS)
def test_similarity_and_encoding_agree_with_loops(kernel):
    features = torch.randn(2, 5, 7, dtype=torch.float64)
    similarity = mean_similarity(features)
    levels = uniform_levels(similarity, 3)
    encoding, quantised = encode(similarity, levels, kernel=kernel), quantise(similarity, levels, kernel=kernel)
    for r in range(2):
        mean = features[r].mean(1)
        s = [float(features[r, :, i] @ mean / features[r, :, i].norm() / mean.norm()) for i in range(7)]
        low, high = min(s), max(s)
        spacing = (high - low) / 3
        for i in range(7):
            assert similarity[r, i].item() == pytest.approx(s[i], rel=1e-12)
            expected = []
            for n in range(3):
                distance = abs(low + (n + 0.5) * spacing - s[i])
                inside = 1 - distance / spacing if kernel == "triangle" else 1 - distance
                expected.append(inside if distance < spacing else 0.0)
            assert encoding[r, i].tolist() == pytest.approx(expected, abs=1e-12)
            if low + spacing / 2 < s[i] < high - spacing / 2:  # beyond, similarities are clamped
                total = sum(expected) if kernel == "triangle" else 1
                assert quantised[r, i].tolist() == pytest.approx([e / total for e in expected], abs=1e-12)


def test_levels_of_another_region():
    levels = torch.tensor([[0.2, 0.4, 0.7]], dtype=torch.float64)
    similarity = torch.tensor([[-1.0, 0.2, 0.3, 0.6, 0.7, 0.9]], dtype=torch.float64)
    encoding = quantise(similarity, levels)
    # Windows of 0.2, 0.3 and 0.3: what lies at the first level is seen by the second one too.
    halfway = [0.5 / (0.5 + 2 / 3), (2 / 3) / (0.5 + 2 / 3), 0]
    expected = [[0.75, 0.25, 0], [0.75, 0.25, 0], halfway, [0, 1 / 3, 2 / 3], [0, 0, 1], [0, 0, 1]]
    torch.testing.assert_close(encoding, torch.tensor([expected], dtype=torch.float64))
    wide = widen_levels(levels, similarity)
    torch.testing.assert_close(wide, torch.tensor([[-1.0, 0.2, 0.4, 0.7, 0.9]], dtype=torch.float64))
    torch.testing.assert_close(quantise(similarity, wide)[0, [0, -1]].argmax(1), torch.tensor([0, 4]))
    torch.testing.assert_close(widen_levels(levels, levels)[:, [0, -1]], levels[:, [0, -1]])


def test_similarity_of_projected_features_is_had_without_projecting():
    features, weight = torch.randn(2, 4, 9, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(mean_similarity(features, weight), mean_similarity(weight @ features))


def test_heuristic_levels_agree_with_a_worked_example():
    # Cells of 1/8; the two that hold 0.7 and 0.8 are dense, with 0.875 of the counts: three levels of four.
    similarity = torch.tensor([[0.0, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8, 0.8, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[3.0, 5 + 1 / 3, 6.0, 6 + 2 / 3]], dtype=torch.float64) / 8
    torch.testing.assert_close(heuristic_levels(similarity, 4), expected)


def test_gradcheck():
    features = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)

    def counts(features, kernel):
        similarity = mean_similarity(features)
        return clip_counts(count(encode(similarity, uniform_levels(similarity, 4), kernel=kernel)), 0.8)

    def heuristic(similarity):
        return count(quantise(similarity, heuristic_levels(similarity, 4)))

    def shared(similarity, other):
        levels = widen_levels(uniform_levels(other, 4), other)
        return clip_counts(count(quantise(similarity, levels)), 0.5, like=count(quantise(other, levels)))

    for kernel in COUNTS:
        assert torch.autograd.gradcheck(partial(counts, kernel=kernel), features)
    similarity = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(heuristic, similarity)
    assert torch.autograd.gradcheck(partial(shared, other=torch.rand(2, 9, dtype=torch.float64)), similarity)


@pytest.mark.parametrize("kernel", COUNTS)
def test_only_the_triangle_is_continuous(kernel):
    levels = torch.tensor([[0.2, 0.4, 0.8]], dtype=torch.float64)
    similarity = torch.linspace(0, 1, 1001, dtype=torch.float64)[None]
    largest = quantise(similarity, levels, kernel=kernel).diff(dim=1).abs().max()
    assert largest < 0.01 if kernel == "triangle" else largest > 0.5


@pytest.mark.parametrize("num_levels", [2, 4, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_no_position_is_lost_and_counts_are_shares(kind, num_levels):
    similarity = skewed(kind)
    for levels in (uniform_levels(similarity, num_levels), heuristic_levels(similarity, num_levels)):
        assert levels.shape == (len(similarity), num_levels)
        assert (levels.diff(dim=1) >= 0).all()
        assert (levels >= similarity.amin(1, keepdim=True)).all()
        assert (levels <= similarity.amax(1, keepdim=True)).all()
        encoding = encode(similarity, levels)
        assert (encoding.amax(2) > 0).all()
        assert (encoding >= 0).all()
        encoding = quantise(similarity, levels)
        torch.testing.assert_close(encoding.sum(2), torch.ones_like(similarity))
        torch.testing.assert_close(count(encoding).sum(1), torch.ones(len(similarity), dtype=torch.float64))


@pytest.mark.parametrize("num_levels", [4, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_heuristic_levels_flatten_the_counts(kind, num_levels):
    similarity = skewed(kind)
    plain = entropy(count(quantise(similarity, uniform_levels(similarity, num_levels))))
    flattened = entropy(count(quantise(similarity, heuristic_levels(similarity, num_levels))))
    assert (flattened >= plain - 1e-12).all()
    if kind in ("normal", "two peaks"):
        assert (flattened - plain).mean() > 0.05


def test_an_interior_position_belongs_to_two_uniform_levels():
    similarity = torch.linspace(0, 1, 101, dtype=torch.float64)[None]
    encoding = encode(similarity, uniform_levels(similarity, 5))
    inside = (similarity[0] > 0.105) & (similarity[0] < 0.895)
    assert ((encoding[0] > 0).sum(1)[inside] >= 2).all()


def test_denoising_keeps_the_sum_and_flattens():
    counts = torch.rand(30, 8).softmax(1).pow(3)
    clipped = clip_counts(counts, 0.5)
    torch.testing.assert_close(clipped.sum(1), counts.sum(1))
    assert (clipped.std(1) <= counts.std(1)).all()
    torch.testing.assert_close(clip_counts(counts, 1.0), counts)
    torch.testing.assert_close(clip_counts(counts, 0.0), counts.mean(1, keepdim=True).expand_as(counts))


def test_one_regions_denoising_serves_another():
    counts, like = torch.rand(2, 30, 8, dtype=torch.float64).softmax(2).pow(3)
    like[0, 3] = 0
    clipped = clip_counts(counts, 0.5, like=like)
    torch.testing.assert_close(clipped.sum(1), counts.sum(1))
    torch.testing.assert_close(clip_counts(like, 0.5, like=like), clip_counts(like, 0.5))
    # What does not reach the other's threshold is not cut, however large it is here.
    assert ((clipped - counts)[like < 0.5 * like.amax(1, keepdim=True)] > 0).all()
    torch.testing.assert_close(clip_counts(counts, 1.0, like=like), counts)


@pytest.mark.parametrize("make_levels", [uniform_levels, heuristic_levels])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_regions_are_finite_and_equally_counted(make_levels, value):
    features = torch.full((2, 3, 9), value, requires_grad=True)
    similarity = mean_similarity(features)
    counts = count(encode(similarity, make_levels(similarity, 4)))
    torch.testing.assert_close(counts, torch.full((2, 4), 0.25))
    counts.square().sum().backward()
    assert features.grad.isfinite().all()


def test_a_zero_vector_in_a_region_has_no_slope():
    features = torch.randn(1, 3, 5)
    features[:, :, 0] = 0
    features.requires_grad_()
    similarity = mean_similarity(features)
    assert similarity[0, 0] == 0
    similarity.sum().backward()
    assert features.grad.abs().max() < 100


def test_half_precision_is_upcast_under_autocast():
    features = torch.randn(2, 8, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        similarity = mean_similarity(features)
        levels = heuristic_levels(similarity, 4)
        assert similarity.dtype == levels.dtype == encode(similarity, levels).dtype == torch.float32
    torch.testing.assert_close(similarity, mean_similarity(features.float()))


def test_errors():
    with pytest.raises(ValueError, match=r"expected \(R,A,P\)"):
        mean_similarity(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"weight: expected \(B,3\)"):
        mean_similarity(torch.zeros(2, 3, 4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"expected a non-empty \(R,P\)"):
        uniform_levels(torch.zeros(2, 3, 4), 4)
    with pytest.raises(ValueError, match="two levels at least"):
        uniform_levels(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match=r"levels: expected \(2,N\)"):
        encode(torch.zeros(2, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="density: expected 0 to 1"):
        heuristic_levels(torch.zeros(2, 3), 4, density=1.5)
    with pytest.raises(ValueError, match=r"counts: expected \(R,N\)"):
        clip_counts(torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match="ratio: expected 0 to 1"):
        clip_counts(torch.zeros(2, 3), 2.0)
    with pytest.raises(ValueError, match=r"like: expected \(2, 3\)"):
        clip_counts(torch.zeros(2, 3), 0.5, like=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected 'triangle' or 'released', got 'square'"):
        encode(torch.zeros(2, 3), torch.zeros(2, 4), kernel="square")
