import pytest
import torch
import torch.nn.functional as F

from conftest import check_golden
from segdistill.functional import unit_vectors
from segdistill.methods import build_method, skd
from segdistill.methods.kd import pixel_kl
from segdistill.methods.skd import pairwise_similarity

TARGET = torch.zeros(2, 32, 32, dtype=torch.long)


def literal(student, teacher):
    """The n×n form, as it is written in the paper."""
    s, t = F.normalize(student.flatten(2), dim=1), F.normalize(teacher.flatten(2), dim=1)
    return (s.mT @ s - t.mT @ t).square().mean()


def make_taps(channels):
    return {
        "logits": torch.randn(2, 3, 9, 10),
        "features": torch.randn(2, channels, 9, 10),
        "image": torch.rand(2, 3, 36, 40),
    }


def test_agrees_with_the_released_code(golden):
    student = golden["fs"].clone().requires_grad_()
    check_golden(golden, "pairwise_max2", pairwise_similarity(student, golden["ft"], pool=2), student)
    check_golden(
        golden, "pairwise_half_map", pairwise_similarity(golden["fs33"], golden["ft33"], pool=8), golden["fs33"]
    )


@pytest.mark.parametrize("size", [(2, 2), (4, 5)])
def test_gradcheck(size, monkeypatch):
    monkeypatch.setattr(skd, "BLOCK", 7)
    student, teacher = torch.randn(2, 2, *size, dtype=torch.float64), torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: pairwise_similarity(s, teacher, pool=None), student.requires_grad_())


@pytest.mark.parametrize("channels", [(3, 5), (5, 3), (4, 4), (1, 1)])
def test_both_ways_to_compute_agree(channels, monkeypatch):
    """The same map, once with channels that favour the pairs, padded with zeros, once without."""
    monkeypatch.setattr(skd, "BLOCK", 16)
    student, teacher = (torch.randn(2, c, 6, 9, dtype=torch.float64, requires_grad=True) for c in channels)
    through_channels = pairwise_similarity(student, teacher, pool=None)
    padded = [F.pad(x, (0, 0, 0, 0, 0, 120)) for x in (student, teacher)]
    assert 54 * (padded[0].shape[1] + padded[1].shape[1]) < padded[0].shape[1] ** 2  # this one takes the other way
    written_out = pairwise_similarity(*padded, pool=None)
    torch.testing.assert_close(through_channels, written_out, rtol=1e-12, atol=0)
    torch.testing.assert_close(through_channels, literal(student, teacher), rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (through_channels, written_out)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [(4, 4), (24, 24)])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_near_equality_keeps_its_relative_accuracy(size, scale):
    teacher = scale * torch.randn(2, 32, *size).relu()
    student = (teacher + 1e-4 * torch.randn_like(teacher)).requires_grad_()
    loss = pairwise_similarity(student, teacher, pool=None)
    exact = student.detach().double().requires_grad_()
    expected = literal(exact, teacher.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, expected_gradient = torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, exact)[0]
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize("noise", [0.02, 0.04, 0.3])  # about where float32 is no longer enough, and above
def test_float32_follows_float64(noise):
    teacher = torch.randn(2, 16, 24, 24)
    student = (teacher + noise * torch.randn_like(teacher)).requires_grad_()
    exact = student.detach().double().requires_grad_()
    loss, expected = pairwise_similarity(student, teacher, pool=None), literal(exact, teacher.double())
    assert loss.item() == pytest.approx(expected.item(), rel=2e-4)
    gradient, expected_gradient = torch.autograd.grad(loss, student)[0], torch.autograd.grad(expected, exact)[0]
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_near_equality_up_to_a_rotation_of_the_channels():
    teacher = torch.randn(2, 16, 12, 12)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    student = torch.einsum("ab,nbhw->nahw", rotation, teacher.double()) + 1e-4 * torch.randn(2, 16, 12, 12)
    student = student.float()
    exact = literal(student.double(), teacher.double())
    assert pairwise_similarity(student, teacher, pool=None).item() == pytest.approx(exact.item(), rel=1e-3)


def test_neither_rotated_channels_nor_lengths_matter():
    student, teacher = (torch.randn(2, 6, 8, 8, dtype=torch.float64) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    moved = torch.einsum("ab,nbhw->nahw", rotation, student) * torch.rand(2, 1, 8, 8).add(0.5)
    torch.testing.assert_close(
        pairwise_similarity(moved, teacher, pool=None), pairwise_similarity(student, teacher, pool=None)
    )
    assert pairwise_similarity(moved, student, pool=None).item() < 1e-14


@pytest.mark.parametrize("pool_type", ["max", "avg"])
def test_windows(pool_type):
    student, teacher = torch.randn(2, 4, 5, 7), torch.randn(2, 6, 5, 7)
    reduce = F.adaptive_max_pool2d if pool_type == "max" else F.adaptive_avg_pool2d
    whole = pairwise_similarity(student, teacher, pool=(5, 4), pool_type=pool_type)
    parts = [torch.cat([reduce(x[..., :4], 1), reduce(x[..., 4:], 1)], 3) for x in (student, teacher)]
    torch.testing.assert_close(whole, pairwise_similarity(*parts, pool=None))
    assert pairwise_similarity(student, teacher, pool=9, pool_type=pool_type).item() < 1e-12  # one node is like itself
    same = [pairwise_similarity(student, teacher, pool=pool, pool_type=pool_type) for pool in (1, None)]
    torch.testing.assert_close(*same)


def test_memory_layout_does_not_matter():
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    last = [x.to(memory_format=torch.channels_last).requires_grad_() for x in (student, teacher)]
    loss = pairwise_similarity(*last, pool=None)
    loss.backward()
    assert last[1].grad is None
    torch.testing.assert_close(loss, pairwise_similarity(student, teacher, pool=None))


def test_errors():
    with pytest.raises(ValueError, match="at least 1"):
        pairwise_similarity(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), pool=0)
    with pytest.raises(ValueError, match="pool_type: expected"):
        pairwise_similarity(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4), pool_type="mean")
    with pytest.raises(ValueError, match="fraction below 1"):
        build_method({"name": "skd", "pool": 1.5})


def test_unit_vectors_without_a_direction_are_zero_and_get_no_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit_vectors(x)[:, 0].sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[16.0 / 125, -12.0 / 125], [0.0, 0.0]]))


def test_terms_are_the_papers_with_its_weights():
    student, teacher = make_taps(4), make_taps(6)
    terms = build_method("skd")(student, teacher, TARGET, 0.0)
    torch.testing.assert_close(terms["skd_pixel"], 10 * pixel_kl(student["logits"], teacher["logits"]))
    pair = pairwise_similarity(student["features"], teacher["features"], pool=2, pool_type="avg")
    torch.testing.assert_close(terms["skd_pair"], 10 * pair)


def test_released_preset_and_its_conversion():
    """The released pixel loss sums over 8 images what ours averages; its nodes are half the map, rounded down."""
    student, teacher = make_taps(4), make_taps(6)
    terms = build_method({"name": "skd", "preset": "released"})(student, teacher, TARGET, 0.0)
    torch.testing.assert_close(terms["skd_pixel"], 10 * 8 * pixel_kl(student["logits"], teacher["logits"]))
    pair = pairwise_similarity(student["features"], teacher["features"], pool=(4, 5), pool_type="max")
    torch.testing.assert_close(terms["skd_pair"], 0.5 * pair)
    mixed = build_method({"name": "skd", "preset": "released", "pair_weight": 2.0, "pool": [4, 5]})
    torch.testing.assert_close(mixed(student, teacher, TARGET, 0.0)["skd_pair"], 2 * pair)


def test_zero_weights_read_nothing():
    assert build_method("skd").teacher_taps() >= {"logits", "features"}
    assert build_method({"name": "skd", "pair_weight": 0}).teacher_taps() == {"logits", "image"}
    assert build_method({"name": "skd", "holistic_weight": 0}).student_taps() == {"logits", "features"}
    only_pairs = build_method({"name": "skd", "pixel_weight": 0, "holistic_weight": 0})
    assert only_pairs.student_taps() == {"features"}
    assert only_pairs.make_critic() is None
    nothing = build_method({"name": "skd", "pixel_weight": 0, "pair_weight": 0, "holistic_weight": 0})
    assert nothing.student_taps() == nothing.teacher_taps() == set()
    assert nothing({}, {}, TARGET, 0.0) == {}


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_student_climbs_the_critics_score(preset):
    student, teacher = make_taps(4), make_taps(6)
    method = build_method({"name": "skd", "preset": preset})
    method.adapt(student, teacher)
    critic = method.make_critic().requires_grad_(False)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    logits = student["logits"].requires_grad_()
    loss = method.adversarial_loss(critic, student, teacher)["skd_holistic"]
    own = critic["skd"]
    score = own(own.maps(logits), student["image"] if preset == "paper" else None).mean()
    torch.testing.assert_close(loss, -0.1 * score)
    loss.backward()
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())
    for name, value in critic.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_critics_options():
    student, teacher = make_taps(4), make_taps(6)
    paper = build_method("skd")
    paper.adapt(student, teacher)
    critic = paper.make_critic()["skd"]
    assert (critic.sees, critic.image_channels) == ("probabilities", 3)
    optimizer = paper.make_critic_optimizer(paper.make_critic())
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 4e-4
    released = build_method({"name": "skd", "preset": "released", "critic_lr": 1e-3, "penalty_weight": 0.0})
    released.adapt(student, teacher)
    critic = released.make_critic()
    assert (critic["skd"].sees, critic["skd"].image_channels) == ("logits", 0)
    optimizer = released.make_critic_optimizer(critic)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    del student["image"]  # it is not read
    terms = released.critic_loss(critic, student, teacher)
    assert set(terms) == {"skd_wasserstein", "skd_penalty"}
    assert terms["skd_penalty"] == 0
