import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from processes import in_processes
from segdistill.methods import build_method
from segdistill.methods.cwd import channel_kl
from segdistill.methods.fakd import ClassCovariance, augmented_channel_kl, augmented_pixel_kl, logit_variance
from segdistill.methods.kd import pixel_kl
from segdistill.models import build_model
from segdistill.taps import Tapped

C, A = 3, 4


def make_case(full=False, ignored=True):
    """A student's features, its classifier, its logits, a teacher, labels, covariances; float64."""
    features = torch.randn(2, A, 2, 3, dtype=torch.float64)
    weight, bias = torch.randn(C, A, dtype=torch.float64), torch.randn(C, dtype=torch.float64)
    logits = torch.einsum("ca,nahw->nchw", weight, features) + bias[:, None, None]
    teacher = 2 * torch.randn_like(logits)
    labels = torch.randint(0, C, (2, 2, 3))
    if ignored:
        labels[0, 0, 1] = 255
    root = torch.randn(C, A, A, dtype=torch.float64)
    covariance = root @ root.mT if full else torch.rand(C, A, dtype=torch.float64)
    return features, weight, bias, logits, teacher, labels, covariance


def matrices(covariance):
    return covariance if covariance.dim() == 3 else torch.diag_embed(covariance)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_channel_form_equals_the_literal_pairs(full, tau):
    _, weight, _, student, teacher, labels, covariance = make_case(full)
    student.requires_grad_()
    weight.requires_grad_()
    variance = logit_variance(labels, weight=weight, covariance=covariance, scale=0.7)
    literal_variance = torch.zeros_like(student)
    for n, y, x in np.ndindex(*labels.shape):
        if labels[n, y, x] != 255:
            sigma = 0.7 * matrices(covariance)[labels[n, y, x]]
            for c in range(C):
                literal_variance[n, c, y, x] = weight[c] @ sigma @ weight[c]
    torch.testing.assert_close(variance, literal_variance)
    loss = augmented_channel_kl(student, teacher, variance, temperature=tau)
    literal = naive.augmented_channel_kl(student, teacher, literal_variance, tau)
    torch.testing.assert_close(loss, literal)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (student, weight)), torch.autograd.grad(literal, (student, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("full", [False, True])
def test_pixel_form_equals_the_literal_pairs(full):
    _, weight, _, student, teacher, labels, covariance = make_case(full)
    student.requires_grad_()
    weight.requires_grad_()
    loss = augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance, scale=0.7)
    literal = naive.augmented_pixel_kl(student, teacher, labels, weight, covariance, 0.7)
    torch.testing.assert_close(loss, literal)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (student, weight)), torch.autograd.grad(literal, (student, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_pixel_form_with_more_pixels_of_a_class_than_a_block_holds():
    student, teacher = torch.randn(1, 3, 12, 25), torch.randn(1, 3, 12, 25)
    labels = torch.zeros(1, 12, 25, dtype=torch.long)
    labels[:, 11] = 2
    weight, covariance = torch.randn(3, 5), torch.rand(3, 5)

    def loss(x, t, y):
        return augmented_pixel_kl(x, t, y, weight=weight, covariance=covariance)

    parts = [loss(student[..., i : i + 1], teacher[..., i : i + 1], labels[..., i : i + 1]) for i in range(25)]
    torch.testing.assert_close(loss(student, teacher, labels), torch.stack(parts).mean())


@pytest.mark.parametrize("full", [False, True])
def test_gradcheck(full):
    _, weight, _, student, teacher, labels, covariance = make_case(full)
    student, teacher, labels = student[:1, :, :, :2], teacher[:1, :, :, :2], labels[:1, :, :2]

    def channel(s, w):
        variance = logit_variance(labels, weight=w, covariance=covariance, scale=0.5)
        return augmented_channel_kl(s, teacher, variance, temperature=2.0)

    def pixel(s, w):
        return augmented_pixel_kl(s, teacher, labels, weight=w, covariance=covariance, scale=0.2)

    inputs = (student.detach().requires_grad_(), weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(channel, inputs)
    assert torch.autograd.gradcheck(pixel, inputs)


def monte_carlo(plain, scale, draws=20000):
    """Mean of the plain loss over drawn features, and the arguments of the bound."""
    features, weight, bias, student, teacher, labels, covariance = make_case(ignored=False)
    features, student, teacher, labels = features[:1], student[:1], teacher[:1], labels[:1]
    deviation = (scale * covariance[labels]).sqrt().movedim(3, 1)
    drawn = features + deviation * torch.randn(draws, *features.shape[1:], dtype=torch.float64)
    logits = torch.einsum("ca,nahw->nchw", weight, drawn) + bias[:, None, None]
    return plain(logits, teacher.expand_as(logits)).item(), student, teacher, labels, weight, covariance


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0])
def test_channel_form_bounds_the_mean_over_drawn_features(scale):
    mean, student, teacher, labels, weight, covariance = monte_carlo(channel_kl, scale)
    variance = logit_variance(labels, weight=weight, covariance=covariance, scale=scale)
    bound = augmented_channel_kl(student, teacher, variance).item()
    assert bound >= mean
    if scale == 0.01:
        assert bound == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0])
def test_pixel_form_bounds_the_mean_over_drawn_features(scale):
    mean, student, teacher, labels, weight, covariance = monte_carlo(pixel_kl, scale)
    bound = augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance, scale=scale).item()
    assert bound >= mean
    if scale == 0.01:
        assert bound == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_without_augmentation_it_is_the_plain_loss(tau):
    student, teacher = torch.randn(2, C, 8, 8, requires_grad=True), torch.randn(2, C, 8, 8)
    labels = torch.randint(0, C, (2, 16, 16))
    weight, covariance = torch.randn(C, A), torch.rand(C, A)
    channel = augmented_channel_kl(student, teacher, torch.zeros_like(student), temperature=tau)
    pixel = augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance, scale=0.0)
    for ours, plain in ((channel, channel_kl(student, teacher, temperature=tau)), (pixel, pixel_kl(student, teacher))):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(x, student)[0] for x in (ours, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def test_equal_covariances_add_the_mean_variance():
    _, weight, _, student, teacher, labels, covariance = make_case(ignored=False)
    covariance = covariance[:1].expand(C, -1)
    variance = logit_variance(labels, weight=weight, covariance=covariance)
    for tau in (1.0, 3.0):
        added = augmented_channel_kl(student, teacher, variance, temperature=tau)
        added = added - channel_kl(student, teacher, temperature=tau)
        torch.testing.assert_close(added, (weight.square() * covariance).sum(1).mean())


def test_minimum_at_equality():
    teacher = torch.randn(2, C, 4, 4, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    labels, weight = torch.zeros(2, 4, 4, dtype=torch.long), torch.randn(C, A, dtype=torch.float64)
    losses = (
        lambda s: augmented_channel_kl(s, teacher, torch.zeros_like(s)),
        lambda s: augmented_pixel_kl(s, teacher, labels, weight=weight, covariance=torch.zeros_like(weight)),
    )
    for loss in losses:
        assert loss(student).item() == 0
        assert torch.autograd.grad(loss(student), student)[0].abs().max() < 1e-12
        assert loss(teacher + 0.1 * torch.randn_like(teacher)) > 0
        assert loss(-teacher) > loss(0.5 * teacher) > 0  # the printed sign has its minimum at −teacher


def test_near_equality_keeps_its_relative_accuracy():
    teacher = torch.randn(2, 11, 32, 32)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    labels, weight, covariance = torch.randint(0, 11, (2, 32, 32)), 1e-3 * torch.randn(11, 8), 1e-3 * torch.rand(11, 8)

    def losses(s, t, w, cov):
        variance = logit_variance(labels, weight=w, covariance=cov)
        return augmented_channel_kl(s, t, variance), augmented_pixel_kl(s, t, labels, weight=w, covariance=cov)

    exact = losses(student.double(), teacher.double(), weight.double(), covariance.double())
    for value, reference in zip(losses(student, teacher, weight, covariance), exact, strict=True):
        assert value.item() == pytest.approx(reference.item(), rel=1e-3)


def test_extreme_values_stay_finite():
    student = (1e3 * torch.randn(2, C, 4, 4)).requires_grad_()
    weight = (100 * torch.randn(C, A)).requires_grad_()
    labels = torch.randint(0, C, (2, 4, 4))
    teacher, covariance = torch.randn(2, C, 4, 4), 10 * torch.rand(C, A)
    variance = logit_variance(labels, weight=weight, covariance=covariance)
    pixel = augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance)
    total = augmented_channel_kl(student, teacher, variance) + pixel
    total.backward()
    assert total.isfinite()
    assert student.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_ignored_pixels_are_not_augmented():
    _, weight, _, student, teacher, labels, covariance = make_case()
    weight.requires_grad_()
    for label in (255, -1, C):
        nothing = torch.full_like(labels, label)
        assert logit_variance(nothing, weight=weight, covariance=covariance).abs().sum() == 0
        pixel = augmented_pixel_kl(student, teacher, nothing, weight=weight, covariance=covariance)
        torch.testing.assert_close(pixel, pixel_kl(student, teacher))
        assert torch.autograd.grad(pixel, weight)[0].abs().sum() == 0
    assert logit_variance(labels, weight=weight, covariance=covariance)[0, :, 0, 1].abs().sum() == 0
    zero = torch.zeros_like(labels)
    assert logit_variance(zero, weight=weight, covariance=covariance, ignore_index=0).abs().sum() == 0


def test_half_precision_and_detached_sides():
    student = torch.randn(2, C, 4, 4).bfloat16().requires_grad_()
    teacher, weight = (torch.randn(2, C, 4, 4).bfloat16().requires_grad_(), torch.randn(C, A).bfloat16())
    covariance = torch.rand(C, A, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, C, (2, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        variance = logit_variance(labels, weight=weight, covariance=covariance)
        losses = (
            augmented_channel_kl(student, teacher, variance),
            augmented_pixel_kl(student, teacher, labels, weight=weight, covariance=covariance),
        )
    assert {loss.dtype for loss in losses} == {torch.float32}
    sum(losses).backward()
    assert teacher.grad is None
    assert covariance.grad is None


def numpy_statistics(features, labels, full):
    """Biased covariance per class of all pixels at once; rows (P,A)."""
    count = np.array([(labels == c).sum() for c in range(C)])
    cov = np.zeros((C, features.shape[1], features.shape[1]))
    for c in np.flatnonzero(count):
        cov[c] = np.cov(features[labels == c], rowvar=False, bias=True)
    return count, cov if full else np.diagonal(cov, axis1=1, axis2=2)


def feed(statistics, rows, labels, cuts, width=3):
    """Give rows (P,A) to the statistics in batches that end at `cuts` (multiples of `width`), as maps of one line."""
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if stop > start:
            maps = rows[start:stop].view(-1, width, 1, rows.shape[1]).permute(0, 3, 2, 1)
            statistics.update(maps, labels[start:stop].view(-1, 1, width))


@settings(max_examples=20)
@given(
    cuts=st.lists(st.integers(0, 40), max_size=5),
    full=st.booleans(),
    mean=st.sampled_from([0.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_covariance_equals_numpys_whatever_the_batches(cuts, full, mean, dtype):
    generator = torch.Generator().manual_seed(len(cuts))
    labels = torch.randint(0, C + 1, (120,), generator=generator)
    labels[labels == C] = 255
    rows = mean * (labels[:, None] % 5) + torch.randn(120, A, generator=generator, dtype=torch.float64)
    rows = rows.to(dtype)
    statistics = ClassCovariance(C, A, full)
    feed(statistics, rows, labels, [3 * cut for cut in sorted(cuts)])
    count, covariance = numpy_statistics(rows.double().numpy(), labels.numpy(), full)
    np.testing.assert_array_equal(statistics.count.numpy(), count)
    np.testing.assert_allclose(statistics.covariance.numpy(), covariance, rtol=1e-6, atol=1e-6)


def test_covariance_over_many_pixels_in_single_precision():
    rows, labels = 5 + torch.randn(3000, A), torch.randint(0, C, (3000,))
    statistics = ClassCovariance(C, A, full=True)
    feed(statistics, rows, labels, [1500], width=500)
    _, covariance = numpy_statistics(rows.double().numpy(), labels.numpy(), full=True)
    np.testing.assert_allclose(statistics.covariance.numpy(), covariance, atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_covariance_goes_on_after_a_save(full):
    rows, labels = torch.randn(90, A), torch.randint(0, C, (90,))
    first, second = ClassCovariance(C, A, full), ClassCovariance(C, A, full)
    feed(first, rows[:30], labels[:30], [])
    second.load_state_dict(first.state_dict())
    feed(first, rows[30:], labels[30:], [])
    feed(second, rows[30:], labels[30:], [])
    _, covariance = numpy_statistics(rows.double().numpy(), labels.numpy(), full)
    np.testing.assert_allclose(second.covariance.numpy(), covariance, atol=1e-6)
    assert torch.equal(first.covariance, second.covariance)
    assert set(second.state_dict()) == {"count", "mean", "covariance"}
    assert second.count.dtype == torch.int64


def gather(folder, rows, labels):
    rank = dist.get_rank()
    for full in (False, True):
        statistics = ClassCovariance(C, A, full)
        for start in (0, 60):  # unequal shares, and class 0 in one process only
            share = slice(start, start + 36) if rank == 0 else slice(start + 36, start + 60)
            feed(statistics, rows[share], labels[share], [])
        torch.save(statistics.state_dict(), folder / f"{rank}_{full}.pt")


def test_covariance_over_two_processes(tmp_path):
    rows, labels = 100 + torch.randn(120, A), torch.randint(0, C, (120,))
    labels.view(2, 60)[:, 36:][labels.view(2, 60)[:, 36:] == 0] = 1
    assert in_processes(gather, tmp_path, rows, labels) == [0, 0]
    for full in (False, True):
        states = [torch.load(tmp_path / f"{rank}_{full}.pt") for rank in (0, 1)]
        count, covariance = numpy_statistics(rows.double().numpy(), labels.numpy(), full)
        for state in states:
            np.testing.assert_array_equal(state["count"].numpy(), count)
            np.testing.assert_allclose(state["covariance"].numpy(), covariance, atol=1e-6)
        assert torch.equal(states[0]["covariance"], states[1]["covariance"])


@pytest.mark.parametrize("full", [False, True])
def test_covariance_ignores_what_has_no_class(full):
    features, labels = torch.randn(2, A, 4, 4, requires_grad=True), torch.randint(0, C, (2, 8, 8))
    labels[:, :4] = 255
    labels[1, 4:6] = -1
    statistics, other = ClassCovariance(C, A, full), ClassCovariance(C, A, full)
    statistics.update(features, labels)
    changed = features.detach().clone()
    changed[:, :, :2] = torch.nan
    changed[1, :, 2] = 1e6
    other.update(changed, labels)
    for name, value in statistics.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    statistics.update(features, torch.full_like(labels, 255))
    for name, value in statistics.state_dict().items():
        assert torch.equal(before[name], value)
    assert not statistics.covariance.requires_grad


def make_taps():
    student = {"logits": torch.randn(2, C, 6, 8), "features": torch.randn(2, A, 6, 8), "weight": torch.randn(C, A)}
    return {k: x.requires_grad_() for k, x in student.items()}, {"logits": torch.randn(2, C, 6, 8)}


@pytest.mark.parametrize("base", ["cwd", "kd"])
def test_method_grows_from_the_plain_loss(base):
    method = build_method({"name": "fakd", "base": base, "temperature": 2.0, "weight": 3.0})
    student, teacher = make_taps()
    method.adapt(student, teacher)
    target = torch.randint(0, C, (2, 24, 32))
    values = [method(student, teacher, target, progress)["fakd_logits"] for progress in (0.0, 0.5, 1.0)]
    plain = {"cwd": channel_kl, "kd": pixel_kl}[base](student["logits"], teacher["logits"], temperature=2.0)
    torch.testing.assert_close(values[0], 3 * plain)
    assert values[0] < values[1] < values[2]
    gradients = torch.autograd.grad(values[1], (student["logits"], student["weight"]))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_method_temperature_of_the_pixel_base_divides_logits_and_their_spread():
    method = build_method({"name": "fakd", "base": "kd", "temperature": 2.0, "weight": 1.0})
    student, teacher = make_taps()
    method.adapt(student, teacher)
    target = torch.randint(0, C, (2, 6, 8))
    value = method(student, teacher, target, 1.0)["fakd_logits"]
    covariance = method.methods["fakd"].statistics.covariance
    deviation = covariance[target].sqrt().movedim(3, 1)
    spread = torch.einsum("ca,dnahw->dnchw", student["weight"].double(), deviation * torch.randn(500, 2, A, 6, 8))
    logits = (student["logits"] + spread).flatten(0, 1)
    mean = pixel_kl(logits, teacher["logits"].double().repeat(500, 1, 1, 1), temperature=2.0)
    assert value > mean


@pytest.mark.parametrize("noise", [False, True])
def test_covariance_is_that_before_the_dropout_unless_its_noise_is_wanted(noise):
    network = build_model("fcn_resnet18_quarter", num_classes=C)
    network.dropout.p = 0.5
    student, images = Tapped(network), torch.rand(4, 3, 64, 64)
    method = build_method({"name": "fakd", "dropout_noise": noise})
    taps = student(images, method.student_taps())
    assert ("undropped" in taps) != noise
    method.adapt(taps, {"logits": taps["logits"]})
    target = torch.randint(0, C, (4, 64, 64))
    method(taps, {"logits": taps["logits"].detach()}, target, 0.5)
    expected = ClassCovariance(C, network.classifier.in_channels)
    expected.update(taps["features" if noise else "undropped"], target)
    torch.testing.assert_close(method.methods["fakd"].statistics.covariance, expected.covariance)


def test_method_learns_the_covariance_in_training_only():
    method = build_method("fakd")
    student, teacher = make_taps()
    method.adapt(student, teacher)
    statistics = method.methods["fakd"].statistics
    target = torch.randint(0, C, (2, 6, 8))
    method.eval()(student, teacher, target, 0.5)
    assert statistics.count.sum() == 0
    method.train()(student, teacher, target, 0.5)
    assert statistics.count.sum() == target.numel()


def test_method_takes_features_of_another_size_than_the_logits():
    method = build_method("fakd")
    student, teacher = make_taps()
    student["features"] = torch.randn(2, A, 3, 4)
    method.adapt(student, teacher)
    term = method(student, teacher, torch.randint(0, C, (2, 24, 32)), 0.5)["fakd_logits"]
    assert term.isfinite()
    assert method.methods["fakd"].statistics.count.sum() == 2 * 3 * 4


def test_method_reads_what_it_needs():
    assert build_method("fakd").teacher_taps() == {"logits"}
    off = build_method({"name": "fakd", "weight": 0.0})
    assert off.student_taps() == off.teacher_taps() == set()
    student, teacher = make_taps()
    off.adapt(student, teacher)
    assert off(student, teacher, torch.zeros(2, 6, 8, dtype=torch.long), 0.5) == {}


def test_errors():
    method = build_method("fakd")
    student, teacher = make_taps()
    with pytest.raises(ValueError, match="classifier"):
        method.adapt({k: v for k, v in student.items() if k != "weight"}, teacher)
    with pytest.raises(ValueError, match="tap what enters"):
        method.adapt({**student, "features": torch.zeros(2, A + 1, 6, 8)}, teacher)
    with pytest.raises(ValueError, match="base"):
        build_method({"name": "fakd", "base": "at"})
    with pytest.raises(ValueError, match="need equal shapes"):
        augmented_channel_kl(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 1, 1))
    x, labels = torch.zeros(1, C, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="weight and covariance"):
        augmented_pixel_kl(x, x, labels, weight=torch.zeros(C, A), covariance=torch.zeros(C, A + 1))
    with pytest.raises(ValueError, match="weight: expected"):
        augmented_pixel_kl(x, x, labels, weight=torch.zeros(C + 1, A), covariance=torch.zeros(C + 1, A))
    with pytest.raises(ValueError, match="labels: expected"):
        augmented_pixel_kl(x, x, labels.float(), weight=torch.zeros(C, A), covariance=torch.zeros(C, A))
    with pytest.raises(ValueError, match="labels: expected"):
        logit_variance(labels[0], weight=torch.zeros(C, A), covariance=torch.zeros(C, A))
    with pytest.raises(ValueError, match="features: expected"):
        ClassCovariance(C, A).update(torch.zeros(1, A + 1, 2, 2), labels)


def test_strength_follows_half_a_cosine():
    method = build_method({"name": "fakd", "strength": 0.5}).methods["fakd"]
    student, teacher = make_taps()
    method.adapt(student, teacher)
    target = torch.randint(0, C, (2, 6, 8))
    term = method(student, teacher, target, 0.25)["logits"]
    scale = 0.5 * (1 - math.sqrt(0.5)) / 2
    variance = logit_variance(target, weight=student["weight"], covariance=method.statistics.covariance, scale=scale)
    torch.testing.assert_close(term, 5 * augmented_channel_kl(student["logits"], teacher["logits"], variance))
