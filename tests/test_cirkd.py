from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conftest import check_golden
from processes import in_processes
from segdistill.methods import build_method, cirkd
from segdistill.methods._queues import ClassQueues, sort_groups
from segdistill.methods.cirkd import cross_image_similarity, relation_kl


@pytest.fixture(params=[40, 2**21])
def entries(request, monkeypatch):
    """A few rows at a time, and all rows at once."""
    monkeypatch.setattr(cirkd._RelationKL, "ENTRIES", request.param)


def make(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, channels, 2, 3, dtype=dtype)


def test_agrees_with_the_released_code(golden, monkeypatch):
    monkeypatch.setattr(cirkd._RelationKL, "ENTRIES", 10_000)  # 26 of the 384 rows at a time
    student = golden["fs"].clone().requires_grad_()
    loss = cross_image_similarity(student, golden["ft"], temperature=0.1)
    check_golden(golden, "cross_image_tau0.1", loss, student)


def test_agrees_with_loops(entries):
    student, teacher = make(3, torch.float64), make(5, torch.float64)
    expected = 0.0
    for i in range(2):
        for j in range(2):
            logs = []
            for features in (student, teacher):
                a, b = (F.normalize(features[n], dim=0).flatten(1) for n in (i, j))
                logs.append(F.log_softmax(a.T @ b / 0.5, dim=1))
            expected += float(F.kl_div(logs[0], logs[1], log_target=True, reduction="sum")) / (6 * 4)
    assert cross_image_similarity(student, teacher, temperature=0.5).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck(entries):
    student, teacher = make(3, torch.float64).requires_grad_(), make(2, torch.float64)
    assert torch.autograd.gradcheck(lambda s: cross_image_similarity(s, teacher, temperature=0.3), student)


def test_gradcheck_with_keys_of_their_own(entries):
    rows, keys = torch.randn(5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    rows_t, keys_t = torch.randn(5, 2, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(lambda r: relation_kl(r, keys, rows_t, keys_t, temperature=0.7), rows)
    inputs = (rows, keys.requires_grad_())
    assert torch.autograd.gradcheck(lambda r, k: relation_kl(r, k, rows_t, keys_t, temperature=0.7), inputs)


def test_near_equality_keeps_its_relative_accuracy():
    teacher = torch.randn(2, 11, 16, 16)
    student = teacher + 1e-4 * torch.randn_like(teacher)
    exact = cross_image_similarity(student.double(), teacher.double())
    assert cross_image_similarity(student, teacher).item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_maps_are_finite(value):
    student = torch.full((2, 3, 4, 4), value, requires_grad=True)
    loss = cross_image_similarity(student, torch.randn(2, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 10.0


def test_errors():
    with pytest.raises(ValueError, match="need equal counts"):
        relation_kl(torch.ones(2, 3), torch.ones(1, 4, 3), torch.ones(2, 5), torch.ones(1, 3, 5), temperature=1.0)


def test_the_newest_vectors_of_each_class_stay():
    queues = ClassQueues(num_classes=3, size=4, channels=1)
    expected: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for step, classes in enumerate(([0, 2, 0], [], [0, 0, 0, 2], [2] * 11, [0, 2])):
        vectors = [10.0 * step + i for i in range(len(classes))]
        queues.push(torch.tensor(vectors).view(-1, 1), torch.tensor(classes, dtype=torch.long))
        for c, value in zip(classes, vectors, strict=True):
            expected[c] = [*expected[c], value][-4:]
        for c in range(3):
            held = queues.vectors[c, : min(int(queues.written[c]), 4), 0]
            assert sorted(held.tolist()) == sorted(expected[c])


def test_only_filled_places_are_sampled_each_once():
    queues = ClassQueues(num_classes=3, size=50, channels=1)
    assert queues.sample(5).shape == (0, 1)
    queues.push(torch.arange(1.0, 33.0).view(-1, 1), torch.tensor([0] * 2 + [2] * 30))
    sample = queues.sample(5)[:, 0]
    assert len(sample) == len(sample.unique()) == 2 + 5
    assert {1.0, 2.0} <= set(sample.tolist())
    assert (sample > 0).all()
    seen = torch.cat([queues.sample(5)[2:, 0] for _ in range(60)]).unique()
    assert len(seen) == 30  # each of the 30 has a chance of 1/6 per draw


@pytest.mark.parametrize(("held", "count"), [(7, 5), (50, 7), (90, 7)])
def test_every_vector_has_the_same_chance(held, count):
    queues = ClassQueues(num_classes=1, size=50, channels=1)
    for value in range(held):
        queues.push(torch.full((1, 1), float(value)), torch.zeros(1, dtype=torch.long))
    drawn = torch.cat([queues.sample(count)[:, 0] for _ in range(3000)]).long()
    counts = torch.bincount(drawn)[max(0, held - 50) :]
    expected = 3000 * count / min(held, 50)
    assert len(counts) == min(held, 50)
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_groups_are_sorted_by_chance_within():
    groups = torch.tensor([3, 1, 3, 3, 1, 0, 3])
    order, counts = sort_groups(groups, 5, torch.tensor([0.9, 0.2, 0.1, 0.1, 0.1, 0.0, 0.3]))
    assert order.tolist() == [5, 4, 1, 2, 3, 6, 0]  # those of one number in their order
    assert counts.tolist() == [1, 2, 0, 4, 0]


def prepared(**options):
    """A method with its taps; features of the teacher tell class and image of each pixel."""
    labels = torch.randint(0, 3, (2, 8, 12))
    labels[1][labels[1] == 2] = 0
    labels[:, :2] = 255
    teacher = torch.cat([F.one_hot(labels % 255, 3), torch.tensor([1, -1]).view(2, 1, 1, 1).expand(2, 8, 12, 1)], 3)
    student = {"logits": torch.randn(2, 3, 8, 12), "features": torch.randn(2, 5, 8, 12, requires_grad=True)}
    taps = {"logits": torch.randn(2, 3, 8, 12), "features": teacher.permute(0, 3, 1, 2).float()}
    method = build_method({"name": "cirkd", **options})
    method.adapt(student, taps)
    return method, student, taps, labels


def test_the_memory_holds_pixels_and_regions_of_the_right_class():
    method, student, teacher, labels = prepared(pixel_memory=40, region_memory=5)
    method(student, teacher, labels, 0.0)
    queues = method.methods["cirkd"].queues
    present = torch.stack([(labels == c).flatten(1).sum(1) for c in range(3)])  # (C,N)
    assert queues["pixel"].written.tolist() == present.clamp(max=16).sum(1).tolist()
    assert queues["region"].written.tolist() == (present > 0).sum(1).tolist()
    for queue in queues.values():
        for c in range(3):
            held = queue.vectors[c, : queue.written[c]].float()
            torch.testing.assert_close(held.norm(dim=1), torch.ones(len(held)), atol=1e-3, rtol=0)
            assert (held[:, c] > 0.7).all()
            assert (held[:, :3].sum(1) - held[:, c]).abs().max() == 0
    method(student, teacher, labels, 0.0)
    assert queues["region"].written[0] == 4
    method.eval()
    method(student, teacher, labels, 0.0)
    assert queues["region"].written[0] == 4


def test_memory_terms_agree_with_the_formula_over_the_whole_memory():
    method, student, teacher, labels = prepared(pixel_memory=64, pixel_contrast=64 * 3, region_contrast=9000)
    terms = method(student, teacher, labels, 0.0)
    inner = method.methods["cirkd"]
    valid = (labels != 255).flatten()
    projected = inner.projector(student["features"])  # batch norm in training: the same batch, the same answer
    rows, rows_t = (
        F.normalize(f, dim=1).permute(0, 2, 3, 1).flatten(0, 2)[valid] for f in (projected, teacher["features"])
    )
    for kind in ("pixel", "region"):
        queue = inner.queues[kind]
        keys = torch.cat([queue.vectors[c, : queue.written[c]] for c in range(3)]).float()
        log_s, log_t = (F.log_softmax(r @ keys.T / 0.1, dim=1) for r in (rows, rows_t))
        expected = 0.1 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")
        torch.testing.assert_close(terms[f"cirkd_memory_{kind}"], expected)


def test_a_memory_goes_on_after_a_save_bit_by_bit():
    method, student, teacher, labels = prepared(pixel_memory=40, region_memory=5, pixel_contrast=30)
    method(student, teacher, labels, 0.0)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    random = torch.get_rng_state()
    expected = method(student, teacher, labels, 0.0)
    other, *_ = prepared(pixel_memory=40, region_memory=5, pixel_contrast=30)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    assert other(student, teacher, labels, 0.0) == expected
    for name, value in other.state_dict().items():
        assert torch.equal(value, method.state_dict()[name])


def test_without_labels_the_memory_stays_empty_and_the_projector_gets_a_gradient():
    method, student, teacher, labels = prepared()
    terms = method(student, teacher, torch.full_like(labels, 255), 0.0)
    assert terms["cirkd_memory_pixel"] == terms["cirkd_memory_region"] == 0
    assert terms["cirkd_mini_batch"] > 0
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in method.parameters())
    assert all(queue.written.sum() == 0 for queue in method.methods["cirkd"].queues.values())


def test_a_term_of_weight_zero_leaves_nothing_behind():
    method, student, teacher, labels = prepared(memory_pixel_weight=0.0, memory_region_weight=0.0)
    assert not list(method.parameters())
    assert not list(method.buffers())
    assert set(method(student, teacher, labels, 0.0)) == {"cirkd_pixel", "cirkd_mini_batch"}
    method, *_ = prepared(memory_pixel_weight=0.0)
    assert set(method.methods["cirkd"].queues) == {"region"}
    nothing = {"mini_batch_weight": 0.0, "memory_pixel_weight": 0.0, "memory_region_weight": 0.0}
    assert build_method({"name": "cirkd", **nothing}).teacher_taps() == {"logits"}
    assert build_method({"name": "cirkd", "pixel_weight": 0.0}).teacher_taps() == {"features"}


STEPS = [(3, 1), (0, 2), (0, 0), (9, 9)]
"""Vectors that each of two processes adds: unequal counts, none on one side, none at all, more than fit in."""


def values(step: int, rank: int) -> torch.Tensor:
    return 100 * step + 10 * rank + torch.arange(STEPS[step][rank])


def fill_queues(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    queues = ClassQueues(num_classes=3, size=4, channels=1)
    for step in range(len(STEPS)):
        queues.push(values(step, rank).float().view(-1, 1), values(step, rank) % 3)
    torch.save(queues.state_dict(), folder / f"{rank}.pt")


def test_two_processes_end_with_the_same_memory(tmp_path):
    assert in_processes(fill_queues, tmp_path) == [0, 0]
    alone = ClassQueues(num_classes=3, size=4, channels=1)
    for step in range(len(STEPS)):
        both = torch.cat([values(step, rank) for rank in range(2)])
        alone.push(both.float().view(-1, 1), both % 3)
    for rank in range(2):
        for key, value in torch.load(tmp_path / f"{rank}.pt").items():
            assert torch.equal(value, alone.state_dict()[key])
