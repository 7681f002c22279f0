import pytest
import torch
from torch import nn

from segdistill.methods._critic import (
    Critic,
    SelfAttention,
    critic_optimizer,
    critic_terms,
    gradient_penalty,
    holistic_loss,
)


def small_critic(**options):
    return Critic(3, width=8, **options)


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4)])
def test_penalty_of_a_linear_critic(shape):
    slope = torch.randn(shape, dtype=torch.float64)
    real, fake = torch.randn(5, *shape, dtype=torch.float64), torch.randn(5, *shape, dtype=torch.float64)
    penalty = gradient_penalty(lambda x: (x * slope).flatten(1).sum(1), real, fake, weight=10.0)
    assert penalty.item() == pytest.approx(10 * (slope.norm().item() - 1) ** 2, rel=1e-10)


def test_penalty_is_taken_on_one_blend_per_image():
    """D(x) = |x|²/2 has the slope x̂; with real = 0 and fake = (1, …, 1) that shows the share of the blend."""
    seen = []

    def critic(x):
        seen.append(x)
        return x.flatten(1).square().sum(1) / 2

    fake = torch.ones(6, 2, 2)
    penalty = gradient_penalty(critic, torch.zeros(6, 2, 2), fake, weight=1.0)
    shares = seen[0].flatten(1)
    assert torch.equal(shares, shares[:, :1].expand(6, 4))
    assert len(shares[:, 0].unique()) == 6
    assert shares.min() >= 0
    assert shares.max() <= 1
    torch.testing.assert_close(penalty, (2 * shares[:, 0] - 1).square().mean())


def test_penalty_gradcheck():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 1), nn.Flatten(0)).double()
    real, fake = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def penalty(weight):
        torch.manual_seed(1)
        return gradient_penalty(
            lambda x: torch.func.functional_call(network, {"1.weight": weight}, (x,)), real, fake, weight=10.0
        )

    assert torch.autograd.gradcheck(penalty, network[1].weight.detach().clone().requires_grad_())


def test_penalty_of_a_flat_critic_is_finite():
    """The root in the norm has no slope at 0; a constant inside keeps the critic's gradient finite."""
    scale = torch.zeros((), requires_grad=True)
    penalty = gradient_penalty(lambda x: scale * x.sum(1), torch.randn(3, 4), torch.randn(3, 4))
    penalty.backward()
    assert penalty.item() == pytest.approx(10, rel=1e-4)
    assert scale.grad.isfinite()


def test_penalty_refuses_to_broadcast():
    with pytest.raises(ValueError, match="need equal shapes"):
        gradient_penalty(lambda x: x.sum(1), torch.zeros(2, 3), torch.zeros(1, 3))


@pytest.mark.parametrize("size", [(4, 5), (12, 15), (45, 45), (65, 65), (3, 70)])
@pytest.mark.parametrize("options", [{}, {"image_channels": 0, "sees": "logits"}])
def test_any_map_size_trains_every_layer(size, options):
    critic = small_critic(**options)
    terms = critic_terms(critic, torch.randn(2, 3, *size), torch.randn(2, 3, *size), torch.rand(2, 3, 30, 40))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    for name, parameter in critic.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_at_65_pixels_it_is_the_released_network():
    """Sizes as in the released code: 65 → 32, 16, 8, 4 → 1; nothing is padded there."""
    critic = Critic(3)
    sizes = []
    for layer in critic.layers:
        layer.register_forward_hook(lambda _layer, _args, output: sizes.append(tuple(output.shape[1:])))
    critic(torch.rand(1, 3, 65, 65), torch.rand(1, 3, 65, 65))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_convolutions_have_spectral_norm_one():
    critic = small_critic().eval()
    for layer in critic.layers:
        singular = torch.linalg.svdvals(layer.weight.flatten(1))
        assert singular[0].item() == pytest.approx(1.0, abs=0.15)  # as far as the power iterations have come


def test_attention_starts_as_the_identity():
    attention, x = SelfAttention(16), torch.randn(2, 16, 3, 4)
    assert torch.equal(attention(x), x)
    nn.init.ones_(attention.gamma)
    q, k, v = (layer(x)[0].flatten(1) for layer in (attention.query, attention.key, attention.value))
    first = (q[:, 0] @ k).softmax(0)  # how much position 0 takes from each
    torch.testing.assert_close(attention(x)[0, :, 0, 0], x[0, :, 0, 0] + v @ first)


def test_the_image_counts_unless_it_is_left_out():
    critic, maps = small_critic(), torch.rand(2, 3, 12, 12)
    assert not torch.equal(critic(maps, torch.rand(2, 3, 48, 48)), critic(maps, torch.rand(2, 3, 48, 48)))
    with pytest.raises(ValueError, match="image_channels=0"):
        critic(maps)
    alone = small_critic(image_channels=0).eval()
    assert torch.equal(alone(maps), alone(maps, torch.rand(2, 3, 48, 48)))


def test_what_the_critic_sees():
    logits = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(small_critic().maps(logits).sum(1), torch.ones(2, 8, 8))
    raw = small_critic(image_channels=0, sees="logits").eval()
    torch.testing.assert_close(raw(raw.maps(logits)), raw(raw.maps(5 * logits + 2)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sees", ["probabilities", "logits"])
def test_the_students_step_leaves_the_critic_alone(sees):
    critic = small_critic(sees=sees).requires_grad_(False)
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    student = torch.randn(2, 3, 12, 12, requires_grad=True)
    holistic_loss(critic, student, torch.rand(2, 3, 24, 24)).backward()
    assert student.grad.abs().sum() > 0
    for name, value in critic.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_critics_step_does_not_reach_the_networks():
    student, teacher = torch.randn(2, 3, 12, 12, requires_grad=True), torch.randn(2, 3, 12, 12, requires_grad=True)
    sum(critic_terms(small_critic(), student, teacher, torch.rand(2, 3, 24, 24)).values()).backward()
    assert student.grad is None
    assert teacher.grad is None


def test_float32_under_autocast():
    critic, image = small_critic(), torch.rand(2, 3, 24, 24)
    student, teacher = torch.randn(2, 3, 12, 12).bfloat16(), torch.randn(2, 3, 12, 12).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = critic_terms(critic, student, teacher, image)
        loss = holistic_loss(critic, student, image)
    assert {value.dtype for value in (*terms.values(), loss)} == {torch.float32}
    torch.testing.assert_close(loss, holistic_loss(critic, student.float(), image))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_it_learns_to_tell_two_kinds_of_maps_apart(kind):
    """Confident maps for the teacher, flat ones for the student: after some steps the scores are in that order."""
    critic = small_critic()
    optimizer = critic_optimizer(critic, kind, lr=2e-3)
    for _ in range(40):
        student, teacher = 0.1 * torch.randn(4, 3, 16, 16), 5 * torch.randn(4, 3, 16, 16)
        optimizer.zero_grad()
        terms = critic_terms(critic, student, teacher, torch.rand(4, 3, 16, 16))
        sum(terms.values()).backward()
        optimizer.step()
    assert terms["wasserstein"] < -0.01
    image = torch.rand(4, 3, 16, 16)
    student, teacher = 0.1 * torch.randn(4, 3, 16, 16), 5 * torch.randn(4, 3, 16, 16)
    assert holistic_loss(critic, student, image) > holistic_loss(critic, teacher, image)
