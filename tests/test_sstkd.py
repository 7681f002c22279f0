import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from conftest import REPOSITORY
from segdistill import Tapped
from segdistill.adapters import projection
from segdistill.data import build_dataset
from segdistill.engine.config import load_config
from segdistill.methods import build_method, sstkd
from segdistill.methods._level_graph import LevelGraph, own_counts, shared_counts
from segdistill.methods._stages import UnitChannels, both_stages
from segdistill.methods.sstkd import statistical_texture, structural_texture
from segdistill.models import build_model
from segdistill.texture import (
    clip_counts,
    contourlet,
    count,
    crop_regions,
    encode,
    heuristic_levels,
    mean_similarity,
    sample_regions,
)

ABLATION = {
    "response": {"structural_weight": 0.0, "statistical_weight": 0.0, "holistic_weight": 0.0},
    "structural": {"statistical_weight": 0.0, "holistic_weight": 0.0},
    "global": {
        "structural_weight": 0.0,
        "holistic_weight": 0.0,
        "sampler": False,
        "heuristic": False,
        "denoise": False,
    },
    "sampler": {"structural_weight": 0.0, "holistic_weight": 0.0, "heuristic": False, "denoise": False},
    "heuristic": {"structural_weight": 0.0, "holistic_weight": 0.0, "denoise": False},
    "denoise": {"structural_weight": 0.0, "holistic_weight": 0.0},
    "both": {"holistic_weight": 0.0},
    "one scale": {"statistical_weight": 0.0, "holistic_weight": 0.0, "levels": [4]},
    "three scales": {"statistical_weight": 0.0, "holistic_weight": 0.0, "levels": [4, 3, 2]},
    "frozen graph": {"holistic_weight": 0.0, "graph": "frozen"},
    "trained graph": {"holistic_weight": 0.0, "graph": "trained"},
    "counts": {"holistic_weight": 0.0, "knowledge": "counts"},
    "own levels": {"holistic_weight": 0.0, "knowledge": "levels"},
    "sorted": {"holistic_weight": 0.0, "knowledge": "sorted"},
    "released kernel": {"holistic_weight": 0.0, "kernel": "released"},
}


FORMS = {
    "cumulative": {},
    "without denoising": {"clip": None},
    "uniform levels": {"heuristic": False},
    "counts": {"knowledge": "counts"},
    "own levels": {"knowledge": "levels"},
    "sorted": {"knowledge": "sorted"},
    "released kernel": {"kernel": "released"},
    "graph": {"graph": "frozen"},
}
"""The statistical term in all its forms."""


def make_taps(channels: int, size: tuple[int, int] = (12, 16)) -> dict[str, torch.Tensor]:
    h, w = size
    return {
        "low1": torch.randn(2, channels // 2, 2 * h, 2 * w).relu(),
        "low2": torch.randn(2, channels, h, w).relu(),
        "logits": torch.randn(2, 5, h, w),
        "image": torch.rand(2, 3, 8 * h, 8 * w),
    }


def make(size: tuple[int, int] = (12, 16), **options):
    few = {"regions": 8, "region_size": 8}  # enough to see what is computed, and quick
    method = build_method({"name": "sstkd", **few, **options}).methods["sstkd"]
    student, teacher = make_taps(4, size), make_taps(8, size)
    method.adapt(student, teacher)
    return method.train(), student, teacher


def test_structural_texture_agrees_with_a_loop_over_the_subbands_of_both_sides():
    student, teacher = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    own, other = contourlet(student), contourlet(teacher)
    pairs = [pair for scales in zip(own.bands, other.bands, strict=True) for pair in zip(*scales, strict=True)]
    expected = sum((a - b).square().mean() for a, b in pairs) / 24
    torch.testing.assert_close(structural_texture(student, teacher), expected)


@pytest.mark.parametrize("knowledge", ["cumulative", "counts"])
def test_statistical_texture_agrees_with_loops(knowledge):
    student, teacher = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    student[0] *= 0.2
    student[0, 0] += 3  # all of its similarities are higher than the teacher's
    expected, levels = [], 6
    for r in range(3):
        own, other = (mean_similarity(x[r : r + 1])[0].tolist() for x in (student, teacher))
        low, high = min(other), max(other)
        place = [low + (n + 0.5) * (high - low) / levels for n in range(levels)]
        place = [min(own + other), *place, max(own + other)]
        gaps = [0.0, *(b - a for a, b in itertools.pairwise(place)), 0.0]
        window = [max(gaps[n], gaps[n + 1]) for n in range(levels + 2)]
        shares = []
        for values in (own, other):
            total = [0.0] * (levels + 2)
            for value in values:
                row = [max(0.0, 1 - abs(a - value) / d) for a, d in zip(place, window, strict=True)]
                total = [t + e / sum(row) / len(values) for t, e in zip(total, row, strict=True)]
            shares.append(total)
        kept = [min(1.0, 0.5 * max(shares[1]) / c) if c else 1.0 for c in shares[1]]
        for total in shares:
            spread = sum((1 - k) * c for k, c in zip(kept, total, strict=True)) / len(total)
            total[:] = [k * c + spread for k, c in zip(kept, total, strict=True)]
        difference = torch.tensor(shares[0]) - torch.tensor(shares[1])
        difference = difference.cumsum(0) if knowledge == "cumulative" else difference
        expected.append(difference.square().sum().item())
    actual = statistical_texture(student, teacher, num_levels=levels, heuristic=False, knowledge=knowledge)
    assert actual.item() == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_knowledge_without_shared_levels():
    student, teacher = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    own, other = mean_similarity(student), mean_similarity(teacher)
    found = statistical_texture(student, teacher, knowledge="sorted")
    torch.testing.assert_close(found, (own.sort(1).values - other.sort(1).values).square().mean())
    sides = []
    for x in (own, other):
        levels = heuristic_levels(x, 8)
        encoding = encode(x.clamp(levels[:, :1], levels[:, -1:]), levels)
        sides.append(torch.stack([levels, clip_counts(count(encoding / encoding.sum(2, keepdim=True)), 0.5)]))
    found = statistical_texture(student, teacher, num_levels=8, knowledge="levels")
    torch.testing.assert_close(found, (sides[0] - sides[1]).square().mean())


def test_the_graph_agrees_with_loops():
    regions, channels, positions, levels = 2, 3, 5, 4
    graph = LevelGraph(channels, levels).double()
    features = torch.randn(regions, channels, positions, dtype=torch.float64)
    level, count = torch.rand(2, regions, levels, dtype=torch.float64)
    encoding = torch.rand(regions, positions, levels, dtype=torch.float64)
    knowledge = graph(features.mean(2), level, count, encoding)
    for r in range(regions):
        nodes = []
        for n in range(levels):
            hidden = (graph.second @ (graph.first @ torch.stack([level[r, n], count[r, n]])).relu()).relu()
            nodes.append(graph.merge @ torch.cat([hidden, graph.mean @ features[r].mean(1)]))
        reasoned = []
        for n in range(levels):
            scores = torch.stack([(graph.key @ nodes[n]) @ (graph.query @ other) for other in nodes]) / 128**0.5
            reasoned.append(sum(w * (graph.value @ other) for w, other in zip(scores.softmax(0), nodes, strict=True)))
        for p in range(positions):
            expected = sum(encoding[r, p, n] * reasoned[n] for n in range(levels))
            torch.testing.assert_close(knowledge[r, :, p], expected)


def test_a_weight_is_as_good_as_projected_features():
    student, teacher = torch.randn(3, 4, 9, dtype=torch.float64), torch.randn(3, 6, 9, dtype=torch.float64)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    options = {"num_levels": 4, "heuristic": False, "graph": LevelGraph(6, 4).double()}
    direct = statistical_texture(weight @ student, teacher, **options)
    implied = statistical_texture(student, teacher, weight=weight, **options)
    torch.testing.assert_close(implied, direct)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight) for loss in (implied, direct)))


def test_gradcheck():
    student, teacher = torch.randn(2, 1, 3, 4, 6, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: structural_texture(s, teacher, levels=(2,)), student)
    regions = student.detach().flatten(2)
    for options in FORMS.values():
        how = {"num_levels": 4, **options}
        how["graph"] = LevelGraph(3, 4).double() if "graph" in how else None
        counted = partial(statistical_texture, teacher=teacher.flatten(2), **how)
        assert torch.autograd.gradcheck(lambda s, f=counted: f(s.flatten(2)), student, fast_mode=True)
        assert statistical_texture(regions, regions, **how) == 0


def test_near_equality_keeps_its_relative_accuracy():
    teacher = torch.randn(1, 4, 16, 16)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = structural_texture(student.double(), teacher.double())
    assert structural_texture(student, teacher).item() == pytest.approx(exact.item(), rel=1e-3)
    exact = statistical_texture(student.double().flatten(2), teacher.double().flatten(2), heuristic=False)
    actual = statistical_texture(student.flatten(2), teacher.flatten(2), heuristic=False)
    assert actual.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("loss", [structural_texture, lambda s, t: statistical_texture(s.flatten(2), t.flatten(2))])
def test_equal_and_constant_maps_are_finite(loss):
    for teacher in (torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8), torch.randn(1, 2, 8, 8)):
        student = teacher.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert student.grad.isfinite().all()


def test_half_precision_is_upcast_under_autocast():
    student, teacher = torch.randn(2, 1, 4, 8, 8).bfloat16()
    loss = partial(statistical_texture, graph=LevelGraph(4, 8), num_levels=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert structural_texture(student, teacher).dtype == torch.float32
        actual = loss(student.flatten(2), teacher.flatten(2))
    torch.testing.assert_close(actual, loss(student.float().flatten(2), teacher.float().flatten(2)))


def test_the_teacher_gets_no_gradient():
    teacher = torch.randn(1, 4, 8, 8, requires_grad=True)
    student = torch.randn(1, 4, 8, 8, requires_grad=True)
    loss = structural_texture(student, teacher) + statistical_texture(student.flatten(2), teacher.flatten(2))
    loss.backward()
    assert teacher.grad is None


def test_the_teacher_is_scaled_by_the_mean_over_all_batches():
    scale = UnitChannels(2)
    batches = [torch.randn(2, 2, 3, 4) * torch.tensor([5.0, 0.2]).view(2, 1, 1) for _ in range(3)]
    outputs = [scale(batch) for batch in batches]
    energy = torch.cat(batches).square().mean((0, 2, 3))
    torch.testing.assert_close(scale.energy, energy)
    energy = energy + 1e-4 * energy.mean()
    torch.testing.assert_close(outputs[-1], batches[-1] / energy.sqrt()[:, None, None])
    before = scale.energy.clone()
    torch.testing.assert_close(scale.eval()(batches[0]), batches[0] / energy.sqrt()[:, None, None])
    assert torch.equal(scale.energy, before)
    assert UnitChannels(2)(torch.zeros(1, 2, 3, 3)).isfinite().all()


def test_a_dead_channel_is_not_blown_up():
    x = torch.randn(1, 2, 8, 8)
    x[:, 1] *= 1e-6
    assert UnitChannels(2)(x)[:, 1].abs().max() < 1e-3


def test_both_stages_are_at_the_size_of_the_second():
    taps = {"low1": torch.rand(1, 2, 9, 13), "low2": torch.rand(1, 3, 5, 7)}
    joined = both_stages(taps)
    assert joined.shape == (1, 5, 5, 7)
    assert torch.equal(joined[:, 2:], taps["low2"])
    torch.testing.assert_close(
        joined[:, :2], F.interpolate(taps["low1"], size=(5, 7), mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize("row", ABLATION)
@pytest.mark.parametrize("size", [(12, 16), (5, 7)])
def test_each_row_of_the_ablation_runs_and_reaches_what_it_trains(row, size):
    method, student, teacher = make(size, **ABLATION[row])
    for tap in student.values():
        tap.requires_grad_()
    terms = method(student, teacher, torch.full((2, 8, 8), 255), 0.0)
    expected = {"response"}
    if method.structural_weight:
        expected.add("structural")
    if method.statistical_weight:
        expected |= {"statistical"} | ({"reconstruction"} if method.graph == "trained" else set())
    assert set(terms) == expected
    sum(terms.values()).backward()
    assert all(value.isfinite() and value > 0 for value in terms.values())
    assert {name for name, tap in student.items() if tap.grad is not None} == method.student_taps()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert method.make_critic() is None


def test_zero_weights_read_nothing():
    method = build_method({"name": "sstkd"})
    assert method.student_taps() == {"low1", "low2", "logits", "image"}
    nothing = {f"{term}_weight": 0.0 for term in ("structural", "statistical", "response", "holistic")}
    assert build_method({"name": "sstkd", **nothing}).teacher_taps() == set()
    assert build_method({"name": "sstkd", **nothing, "structural_weight": 1.0}).student_taps() == {"low1", "low2"}
    assert build_method({"name": "sstkd", **nothing, "holistic_weight": 1.0}).student_taps() == {"logits", "image"}


def test_frozen_layers_are_the_same_in_every_run_and_no_parameters():
    first, second = LevelGraph(6, 8), LevelGraph(6, 8)
    assert list(first.parameters()) == []
    for one, other in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_trained_graph_learns_from_the_teacher_alone():
    method, student, teacher = make(graph="trained", structural_weight=0.0, response_weight=0.0, holistic_weight=0.0)
    terms = method(student, teacher, torch.zeros(2, 8, 8, dtype=torch.long), 0.0)
    layers = list(method.reason.parameters())
    gradients = torch.autograd.grad(terms["statistical"], layers, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in gradients)
    gradients = torch.autograd.grad(terms["reconstruction"], [*layers, method.project.weight], allow_unused=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:-1])
    assert gradients[-1] is None


SLOW = {"marks": pytest.mark.slow}


@pytest.mark.parametrize("graph", ["none", pytest.param("frozen", **SLOW), pytest.param("trained", **SLOW)])
def test_neither_side_collapses(graph):
    options = {"graph": graph, "levels": (2,), "regions": 4, "region_size": 6, "num_levels": 8}
    options |= {"response_weight": 0.0, "holistic_weight": 0.0}
    method = build_method({"name": "sstkd", **options}).methods["sstkd"]
    method.adapt(*related_taps())
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    judged = related_taps(images=16)
    variances = []
    for step in range(201):
        if step % 100 == 0:
            variances.append(spread(method, *judged))
        terms = method(*related_taps(), torch.zeros(2, 8, 8, dtype=torch.long), 0.0)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    _, halfway, end = variances
    for own, other in (halfway, end):
        assert (other > 1e-3).all()
        assert (own > 0.2 * other).all()
    for before, after in zip(halfway, end, strict=True):
        assert (after > 0.7 * before).all()


def related_taps(images: int = 2):
    """Random features; the student's are the teacher's in another order, with noise: there is something to learn."""
    teacher = {"low1": torch.randn(images, 4, 16, 16).relu(), "low2": torch.randn(images, 8, 8, 8).relu()}
    return {name: tap.flip(1) + 0.2 * torch.randn_like(tap) for name, tap in teacher.items()}, teacher


@torch.no_grad()
def spread(method, student, teacher):
    """Variance over positions and images of each side's statistical and structural knowledge."""
    found = []
    how = {"num_levels": 8, "heuristic": True, "clip": 0.5, "kernel": "triangle"}
    for x in (method.project(both_stages(student)), method.scale.eval()(both_stages(teacher))):
        similarity = mean_similarity(x.flatten(2))
        if method.reason is None:
            knowledge = torch.stack(own_counts(similarity, **how), dim=1)
        else:
            shared = shared_counts(similarity, similarity, **how)
            knowledge = method.reason(x.mean((2, 3)), shared.levels, shared.counts[1], shared.encodings[1])
        found.append(torch.stack([knowledge.var((0, 2)).mean(), contourlet(x, (2,)).bands[0][0].var()]))
    method.train()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_all_of_its_gradient_comes_through_the_similarities(form, monkeypatch):
    weight = torch.randn(6, 4, requires_grad=True)
    student, teacher = torch.randn(3, 4, 25, requires_grad=True), torch.randn(3, 6, 25)
    seen = []

    def recorded(*arguments):
        seen.append(mean_similarity(*arguments))
        return seen[-1]

    monkeypatch.setattr(sstkd, "mean_similarity", recorded)
    options = dict(FORMS[form])
    options["graph"] = LevelGraph(6, 8) if "graph" in options else None
    loss = statistical_texture(student, teacher, weight=weight, num_levels=8, **options)
    direct = torch.autograd.grad(loss, (student, weight), retain_graph=True)
    (at_similarities,) = torch.autograd.grad(loss, seen[0], retain_graph=True)
    through = torch.autograd.grad(seen[0], (student, weight), at_similarities)
    assert direct[0].abs().max() > 0
    for one, other in zip(direct, through, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("knowledge", ["cumulative", "counts", "levels", "sorted"])
def test_neither_scale_nor_order_matters(knowledge):
    student, teacher = torch.randn(2, 3, 4, 30, dtype=torch.float64)
    loss = partial(statistical_texture, knowledge=knowledge)
    expected = loss(student, teacher)
    assert expected > 1e-4
    torch.testing.assert_close(loss(1000 * student, 0.01 * teacher), expected)
    torch.testing.assert_close(loss(student[:, :, torch.randperm(30)], teacher[:, :, torch.randperm(30)]), expected)


@pytest.fixture(scope="session")
def real_stages():
    """Both stages of streets: scaled ones of a briefly trained teacher, and those of three fresh students."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    small = [build_dataset("synthetic", "train", size=(64, 64), images=64)[i] for i in range(64)]
    images, target = torch.stack([x for x, _ in small]), torch.stack([y for _, y in small]).long()
    network = build_model("deeplabv3plus_resnet18_half", num_classes=11, head_width=32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(60):
        batch = torch.arange(8 * step, 8 * step + 8) % 64
        logits = F.interpolate(network(images[batch]), size=(64, 64), mode="bilinear")
        optimizer.zero_grad()
        F.cross_entropy(logits, target[batch], ignore_index=255).backward()
        optimizer.step()
    large = build_dataset("synthetic", "val", size=(96, 128), images=32)
    images = torch.stack([large[i][0] for i in range(32)])

    @torch.no_grad()
    def stages(network):
        return both_stages(Tapped(network)(images, ["low1", "low2"]))

    teacher = stages(network.eval())
    fresh = []
    for seed in range(3):
        torch.manual_seed(seed)
        fresh.append(stages(build_model("deeplabv3plus_resnet18_quarter", num_classes=11, head_width=32).train()))
    return UnitChannels(teacher.shape[1])(teacher), fresh


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_descent_on_the_statistical_term_alone_makes_the_distributions_alike(real_stages, seed):
    teacher, student = real_stages[0], real_stages[1][seed]
    torch.manual_seed(seed)
    first = torch.nn.Sequential(torch.nn.Conv2d(student.shape[1], 64, 1), torch.nn.ReLU())
    project = projection(64, teacher.shape[1])
    optimizer = torch.optim.Adam([*first.parameters(), *project.parameters()], lr=1e-3)

    def regions(images):
        boxes = sample_regions(teacher[images].mean(1), 8)
        own, other = (crop_regions(x, boxes).flatten(2) for x in (first(student[images]), teacher[images]))
        return own, other, project.weight.flatten(1)

    generator = torch.get_rng_state()

    def judged():
        torch.set_rng_state(generator)  # the same regions before and after
        return judge(*regions(torch.arange(24, 32)))

    before = judged()
    for _ in range(60):
        own, other, weight = regions(torch.randint(0, 24, (4,)))
        loss = statistical_texture(own, other, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = judged()
    assert after[0] <= 0.65 * before[0]
    assert after[1] <= 0.8 * before[1]


@torch.no_grad()
def judge(student, teacher, weight):
    """The term's own value, and the mean error of the similarities' 19 quantiles."""
    steps = torch.linspace(0.05, 0.95, 19)
    own, other = (torch.quantile(x, steps, dim=1) for x in (mean_similarity(student, weight), mean_similarity(teacher)))
    return statistical_texture(student, teacher, weight=weight).item(), (own - other).abs().mean().item()


def test_errors():
    with pytest.raises(ValueError, match="need equal shapes"):
        structural_texture(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="one to three numbers"):
        structural_texture(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), levels=(1,))
    with pytest.raises(ValueError, match=r"one shape \(R,A,P\)"):
        statistical_texture(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="graph"):
        build_method({"name": "sstkd", "graph": "learned"})
    with pytest.raises(ValueError, match="knowledge: expected one of cumulative, counts, levels, sorted, got 'count'"):
        statistical_texture(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), knowledge="count")
    with pytest.raises(ValueError, match="knowledge='sorted' and a graph"):
        build_method({"name": "sstkd", "graph": "frozen", "knowledge": "sorted"})


ROWS = {
    "structural": "response",
    "statistical_global": "response",
    "statistical_sampler": "statistical_global",
    "statistical_heuristic": "statistical_sampler",
    "statistical_denoise": "statistical_heuristic",
    "statistical_graph": "statistical_denoise",
    "statistical_own_levels": "statistical_denoise",
    "statistical_counts": "statistical_denoise",
    "both": "statistical_denoise",
    "full": "both",
}


@pytest.mark.parametrize(("row", "before"), ROWS.items())
def test_each_row_of_the_ablations_configurations_differs_by_one_option(row, before):
    own, other = (load_config(REPOSITORY / f"configs/camvid/sstkd_{name}.yaml") for name in (row, before))
    (own_options,), (other_options,) = own.method, other.method
    assert len([name for name in own_options if own_options[name] != other_options[name]]) == 1
    assert own.model_copy(update={"method": None}) == other.model_copy(update={"method": None})
    if row == "full":
        assert own_options == load_config({**own.model_dump(), "method": "sstkd"}).method[0]
