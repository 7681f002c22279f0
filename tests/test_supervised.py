"""What is learned from labels: values against sums in float64, gradients, parts of a batch, whole runs."""

import copy
import json
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F

from faults import assert_same_run, at_step, config, interrupt, read_metrics
from processes import CLASSES, Gradients, Plain, in_processes, plain_config, uneven_folder
from segdistill import distill
from segdistill.data import SegmentationDataset, build_dataset
from segdistill.engine.class_weights import balanced, count_labels
from segdistill.engine.config import dump_config, load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.faults import TrainingStopped
from segdistill.engine.forecast import forecast
from segdistill.losses import soft_jaccard
from segdistill.methods import build_method
from segdistill.supervised import Supervised, cross_entropy, hard_labels, label_jaccard, mass
from segdistill.taps import Tapped

WEIGHTS = torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)


def batch(dtype=torch.float64, size=(5, 6)):
    """Logits and labels of three images; the second has no labels."""
    logits = 2 * torch.randn(3, 3, *size, dtype=dtype)
    target = torch.randint(0, 3, (3, *size))
    target[0, 0], target[1] = 255, 255
    return logits, target


def naive_cross_entropy(logits, target, weights):
    above = below = 0.0
    for n, i, j in (target != 255).nonzero().tolist():
        c, z = target[n, i, j], logits[n, :, i, j]
        above += weights[c].item() * (math.log(sum(math.exp(v) for v in z.tolist())) - z[c].item())
        below += weights[c].item()
    return above / below


def naive_hard(logits, target, threshold, min_kept):
    """OpenMMLab's rule, pixel by pixel."""
    places = (target != 255).nonzero().tolist()
    probability = {(n, i, j): logits[n, :, i, j].softmax(0)[target[n, i, j]].item() for n, i, j in places}
    images = len({n for n, _, _ in probability})
    order = sorted(probability.values())
    place = min_kept * images
    limit = max(order[place], threshold) if place < len(order) else math.inf
    return {place for place, p in probability.items() if p < limit}


def naive_jaccard(logits, target):
    x = logits.softmax(1)
    losses = []
    for c in range(3):
        known = target != 255
        a, b = x[:, c][known], (target[known] == c).double()
        if b.any():
            both, one = a.sum() + b.sum(), (a - b).abs().sum()
            losses.append(1 - (both - one) / (both + one))
    return torch.stack(losses).mean().item()


# Parity


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_the_weighted_mean(weights):
    logits, target = batch()
    expected = naive_cross_entropy(logits, target, torch.ones(3) if weights is None else weights)
    found = cross_entropy(logits, target, class_weights=weights)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert found.item() == pytest.approx(F.cross_entropy(logits, target, weights, ignore_index=255).item(), rel=1e-12)
    single = None if weights is None else weights.float()
    assert cross_entropy(logits.float(), target, class_weights=single).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 0), (0.7, 0), (0.05, 7), (0.7, 3), (1.0, 0), (0.01, 29)])
def test_hard_pixels_are_those_of_the_rule(threshold, min_kept):
    logits, target = batch()
    kept = hard_labels(logits, target, threshold=threshold, min_kept=min_kept)
    places = {tuple(place) for place in (kept != 255).nonzero().tolist()}
    assert places == naive_hard(logits, target, threshold, min_kept)
    assert torch.equal(kept[kept != 255], target[kept != 255])
    if threshold < 0.1 and min_kept < 29:
        assert len(places) == 2 * min_kept  # an image, of the two that have labels


def test_jaccard_is_the_mean_over_classes_of_the_whole_batch():
    logits, target = batch()
    target[target == 1] = 255  # a class that is nowhere
    expected = naive_jaccard(logits, target)
    assert label_jaccard(logits, target).item() == pytest.approx(expected, rel=1e-12)
    assert soft_jaccard(logits.softmax(1), target).item() == pytest.approx(expected, rel=1e-12)
    assert label_jaccard(logits.float(), target).item() == pytest.approx(expected, rel=1e-5)


def test_logits_come_to_the_resolution_of_the_labels():
    _, target = batch(size=(4, 4))
    small = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    for aligned in (False, True):
        large = F.interpolate(small, size=(4, 4), mode="bilinear", align_corners=aligned)
        for loss in (cross_entropy, label_jaccard):
            torch.testing.assert_close(loss(small, target, align_corners=aligned), loss(large, target))
        one, other = (
            hard_labels(small, target, min_kept=2, align_corners=aligned),
            hard_labels(large, target, min_kept=2),
        )
        assert torch.equal(one, other)


def test_balanced_is_scikit_learns():
    counts = torch.tensor([50, 0, 30, 20])
    # compute_class_weight("balanced", classes=[0, 2, 3], y=50 zeros, 30 twos and 20 threes)
    expected = [100 / (3 * 50), 0.0, 100 / (3 * 30), 100 / (3 * 20)]
    torch.testing.assert_close(balanced(counts), torch.tensor(expected))
    assert (balanced(counts) * counts).sum().item() == pytest.approx(100)
    there = counts > 0
    median = counts[there].median() / counts[there]  # the same but for its scale, which the loss does not see
    logits = torch.randn(1, 4, 3, 3)
    target = torch.tensor([0, 2, 3, 3, 2, 0, 0, 255, 0]).view(1, 3, 3)
    other = torch.zeros(4)
    other[there] = median
    one = cross_entropy(logits, target, class_weights=balanced(counts))
    torch.testing.assert_close(one, cross_entropy(logits, target, class_weights=other))


# Gradients


def test_gradients():
    logits, target = batch(size=(2, 3))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, target, class_weights=WEIGHTS), logits)
    assert torch.autograd.gradcheck(lambda x: label_jaccard(x, target), logits)
    loss = Supervised(ce=0.5, jaccard=2.0, ohem=0.6, ohem_min_kept=1)
    assert torch.autograd.gradcheck(lambda x: torch.stack(list(loss(x, target).values())).sum(), logits)


# Properties


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5]])
def test_the_mean_of_parts_is_the_loss_of_the_whole(weights):
    logits, target = batch()
    loss = Supervised(class_weights=weights).double()
    whole = loss(logits, target)["ce"]
    labelled = sum(loss.mass(part) for part in target.split(1)) / 3
    parts = [loss(x, y, labelled)["ce"] for x, y in zip(logits.split(1), target.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.5]])
def test_parts_without_labels_do_not_weaken_the_others(weights):
    """Where few images have labels, most micro-batches have none; the labels count as much as in one batch."""
    logits, target = batch()
    target[1:] = 255
    loss = Supervised(jaccard=1.0, ohem=0.5, ohem_min_kept=3, class_weights=weights).double()
    whole = loss(logits, target)
    labelled = sum(loss.mass(part) for part in target.split(1)) / 3
    parts = [loss(x, y, labelled) for x, y in zip(logits.split(1), target.split(1), strict=True)]
    for name, expected in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), expected)
        assert expected > 0


def test_images_without_labels_contribute_nothing():
    logits, target = batch()
    loss = Supervised(jaccard=1.0, ohem=0.5, ohem_min_kept=3, class_weights=[1.0, 2.0, 3.0]).double()
    whole = loss(logits, target)
    rest = loss(logits[[0, 2]], target[[0, 2]])
    assert whole.keys() == {"ce", "jaccard"}
    for name in whole:
        torch.testing.assert_close(whole[name], rest[name])
    nothing = logits.clone().requires_grad_()
    terms = loss(nothing, torch.full_like(target, 255))
    assert {name: term.item() for name, term in terms.items()} == {"ce": 0.0, "jaccard": 0.0}
    torch.stack(list(terms.values())).sum().backward()
    assert nothing.grad.abs().max() == 0


def test_weights_of_terms():
    logits, target = batch()
    once = Supervised(jaccard=1.0)(logits, target)
    assert Supervised(ce=0, jaccard=0)(logits, target) == {}
    assert Supervised()(logits, target).keys() == {"ce"}
    assert Supervised(ce=0, jaccard=2.0)(logits, target).keys() == {"jaccard"}
    many = Supervised(ce=0.25, jaccard=0.75)(logits, target)
    assert many["ce"].item() == pytest.approx(0.25 * once["ce"].item())
    assert many["jaccard"].item() == pytest.approx(0.75 * once["jaccard"].item())


def test_half_precision_is_computed_in_float32():
    logits, target = batch(torch.float32)
    half = logits.bfloat16()
    loss = Supervised(jaccard=1.0, ohem=0.5, ohem_min_kept=3)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, target)
    expected = loss(half.float(), target)
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in expected)


def test_perfect_and_hopeless():
    target = torch.tensor([[[0, 1], [2, 255]]])
    logits = 60 * F.one_hot(target.where(target < 3, 0), 3).permute(0, 3, 1, 2).float()
    terms = Supervised(jaccard=1.0)(logits, target)
    assert all(term.item() == pytest.approx(0, abs=1e-6) for term in terms.values())
    assert (hard_labels(logits, target, min_kept=0) == 255).all()
    terms = Supervised(jaccard=1.0, ohem=0.7, ohem_min_kept=0)(-logits, target)
    assert terms["jaccard"].item() == 1  # nothing in common
    assert all(term.isfinite() for term in terms.values())


# The distiller


class WithAux(torch.nn.Module):
    """Two heads, tapped as output and aux."""

    def __init__(self):
        super().__init__()
        self.head, self.aux = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
        self.taps = {"logits": "head", "aux": "aux"}

    def forward(self, x):
        return {"out": self.head(x), "aux": self.aux(x)}


def test_the_auxiliary_head_has_the_same_loss():
    images, (_, target) = torch.rand(3, 3, 5, 6), batch()
    for options in ({"ce": 0.5, "jaccard": 2.0}, {"class_weights": [1.0, 2.0, 0.5], "ohem": 0.5, "ohem_min_kept": 3}):
        loss, network = Supervised(**options), WithAux()
        distiller = Distiller(Tapped(network, network.taps), build_method("none"), aux_weight=0.4, supervised=loss)
        terms, *_ = distiller(images, target, {})
        assert list(terms) == [*(("ce", "jaccard") if "jaccard" in options else ("ce",)), "aux"]
        own = loss(network.aux(images), target)
        assert terms["aux"].item() == pytest.approx(0.4 * sum(own.values()).item(), rel=1e-6)


class WithFeatures(torch.nn.Module):
    """A head on features."""

    def __init__(self):
        super().__init__()
        self.taps = {"features": "body", "logits": "head"}
        self.body, self.head = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.5]])
@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("jml", {"logits"}),
        ("bpkd", {"edge"}),
        ("i2ckd", {"prototypes"}),
        ("cirkd", {"memory_pixel", "memory_region"}),
        ("ifvd", {"variation"}),  # by its own formula
    ],
)
def test_parts_without_labels_do_not_weaken_a_methods_terms(method, terms, weights):
    torch.manual_seed(0)
    images, (_, target) = torch.rand(3, 3, 5, 6), batch()
    target[1:] = 255
    network, taught = WithFeatures(), WithFeatures()
    teacher = Tapped(taught, taught.taps)
    distiller = Distiller(
        Tapped(network, network.taps), build_method(method), supervised=Supervised(class_weights=weights)
    )
    distiller.adapt(teacher, images, classes=3)
    norms = [module for module in distiller.method.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    distiller.train()
    for norm in norms:  # which sees a part at a time
        norm.eval()
    fresh = copy.deepcopy(distiller)

    def learn(distiller, images, target, labelled):
        seen = teacher(images, distiller.method.teacher_taps())
        return distiller(images, target, {k: v.detach() for k, v in seen.items()}, 0.5, None, labelled)[0]

    whole = learn(distiller, images, target, distiller.supervised.mass(target))
    labelled = sum(fresh.supervised.mass(part) for part in target.split(1)) / 3
    parts = [learn(fresh, x, y, labelled) for x, y in zip(images.split(1), target.split(1), strict=True)]
    for term in terms:
        name = f"{method}_{term}"
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), whole[name])
        assert whole[name] > 0


def test_without_any_label_all_pixels_are_compared_alike():
    """Where no part has labels, nothing is divided by 0, and what needs no labels is as in one batch."""
    images, (_, target) = torch.rand(2, 3, 5, 6), batch()
    target = torch.full_like(target[:2], 255)
    network, taught = WithFeatures(), WithFeatures()
    teacher = Tapped(taught, taught.taps)
    method = build_method([{"name": "jml", "labelled_only": False}, "bpkd"])
    distiller = Distiller(Tapped(network, network.taps), method)
    distiller.adapt(teacher, images, classes=3)
    seen = {name: tap.detach() for name, tap in teacher(images, {"logits"}).items()}
    given = distiller(images, target, seen, 0.5, None, torch.tensor(0.0))[0]
    alone = distiller(images, target, seen)[0]
    assert alone["jml_logits"] > 0
    for name, term in alone.items():
        assert torch.equal(given[name], term), name


def test_from_the_teacher_alone():
    images, (_, target) = torch.rand(3, 3, 5, 6), batch()
    network, teacher = WithAux(), WithAux()
    none = Supervised(ce=0)
    distiller = Distiller(Tapped(network, network.taps), build_method("kd"), supervised=none)
    distiller.adapt(Tapped(teacher, teacher.taps), images, classes=3)
    terms, *_ = distiller(images, target, Tapped(teacher, teacher.taps)(images, {"logits"}))
    assert list(terms) == ["kd_logits"]  # no aux either
    for method in ("none", "mimic", {"name": "kd", "weight": 0.0}):
        distiller = Distiller(Tapped(network, network.taps), build_method(method), supervised=none)
        with pytest.raises(
            ValueError, match=r"supervised.ce and supervised.jaccard are 0, and the method reads no logi"
        ):
            distiller.adapt(Tapped(teacher, teacher.taps), images)


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    distill(config(student={"name": "deeplabv3_resnet18_quarter"}, train={"steps": 1, "eval_every": 0}), out=folder)
    return str(folder)


ALL = {"ce": 0.25, "jaccard": 0.75, "class_weights": "balanced", "ohem": 0.7, "ohem_min_kept": 200}


def test_a_run_with_everything_resumes_to_the_bit(tmp_path, teacher, monkeypatch, capsys):
    student = {"aux": True}
    made = config(student={"name": "pspnet_resnet18_quarter", "output_stride": 16, **student}, method="kd",
                  teacher={"checkpoint": teacher}, supervised=ALL, train={"accumulate": 2})  # fmt: skip
    distill(made, out=tmp_path / "whole")
    said = capsys.readouterr().err
    assert said.count("supervised.class_weights: counting the labels of 8 training images") == 1
    data = build_dataset("synthetic", "train", size=(32, 32), images=8)
    counts = sum(torch.bincount(data[i][1].flatten(), minlength=256)[:11] for i in range(8))
    weights = torch.load(tmp_path / "whole/checkpoint.pt")["distiller"]["supervised.class_weights"]
    torch.testing.assert_close(weights, balanced(counts))
    assert f"supervised.class_weights: {data.classes[0]} {weights[0]:.3g}, {data.classes[1]}" in said
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(made, out=tmp_path / "parts")
    capsys.readouterr()
    monkeypatch.setattr("segdistill.engine.class_weights.count_labels", None)
    distill(made, out=tmp_path / "parts", resume=True)  # what was counted is not counted again
    assert "counting" not in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    first = read_metrics(tmp_path / "whole")[0]
    assert {"ce", "jaccard", "aux", "kd_logits"} <= first.keys()
    assert first["loss"] == pytest.approx(sum(first[name] for name in ("ce", "jaccard", "aux", "kd_logits")), rel=1e-5)
    with pytest.raises(ValueError, match=r"was started with supervised.jaccard=0.75, not 0.5; resume it unchanged"):
        distill(made, ["supervised.jaccard=0.5"], out=tmp_path / "whole", resume=True)


def test_a_weight_of_a_head_that_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    def stop(training):
        raise TrainingStopped("before the first step")

    monkeypatch.setattr("segdistill.engine.loop.train", stop)
    line = "train.aux_weight=1 has no effect: the student has no auxiliary head (tap aux)"
    for aux, weight, told in ((False, 1.0, True), (True, 1.0, False), (False, 0.4, False), (False, 0.0, False)):
        student = {"name": "pspnet_resnet18_quarter", "aux": aux}
        with pytest.raises(TrainingStopped, match="before the first"):
            distill(config(student=student, train={"aux_weight": weight}), out=tmp_path / f"{aux}{weight}")
        assert (line in capsys.readouterr().err) == told


def test_a_student_learns_from_the_teacher_alone(tmp_path, teacher):
    student = {"name": "pspnet_resnet18_quarter", "output_stride": 16, "aux": True}
    made = config(student=student, method="kd", teacher={"checkpoint": teacher}, supervised={"ce": 0},
                  train={"gradient_samples": 2})  # fmt: skip
    distill(made, out=tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert all("ce" not in record and "aux" not in record for record in records)
    assert all(record["loss"] == record["kd_logits"] for record in records)
    distill(made, ["train.lr=0.5"], out=tmp_path / "fast")
    one, other = (torch.load(tmp_path / name / "checkpoint.pt")["distiller"] for name in ("run", "fast"))
    weights = {name: torch.equal(one[name], other[name]) for name in one if name.endswith("weight")}
    assert all(same == (".aux." in name) for name, same in weights.items() if one[name].dim() == 4)
    assert any(".aux." in name for name in weights)


def test_a_forecast_counts_nothing(teacher, monkeypatch):
    monkeypatch.setattr("segdistill.engine.class_weights.count_labels", None)
    found = forecast(config(supervised={"class_weights": "balanced", "jaccard": 1.0}))
    assert list(found["terms"]) == ["ce", "jaccard"]
    assert found["terms"]["ce"]["value"] > 0


HOW = {
    "weights": {"class_weights": [0.5, 2.0, 1.0, 0.0, 4.0]},
    "balanced": {"class_weights": "balanced"},
    "jaccard": {"ce": 0.25, "jaccard": 0.75},
}


def gradients(root, how, out, **train):
    with Gradients() as seen:
        distill({**plain_config(root, "none", **train), "supervised": HOW[how]}, student=Plain(), out=out)
    return seen


def keep_gradients(root, folder):
    for how in HOW:
        torch.save(gradients(root, how, folder / how), folder / f"{how}_{os.environ['RANK']}.pt")


def test_parts_and_processes_have_the_gradient_of_the_whole(tmp_path):
    root = uneven_folder(tmp_path / "data")
    assert in_processes(keep_gradients, root, tmp_path) == [0, 0]
    for how in HOW:
        whole = gradients(root, how, tmp_path / f"whole_{how}")
        found = [torch.load(tmp_path / f"{how}_0.pt"), torch.load(tmp_path / f"{how}_1.pt")]
        if how != "jaccard":  # of which a micro-batch is compared
            found.append(gradients(root, how, tmp_path / f"parts_{how}", accumulate=2))
        for parts in found:
            assert len(parts) == len(whole) == 3
            for a, b in zip(parts, whole, strict=True):
                assert (a - b).norm() < 1e-5 * b.norm(), how
        terms = [
            json.loads((tmp_path / f / "metrics.jsonl").read_text().splitlines()[0]) for f in (f"whole_{how}", how)
        ]
        assert terms[0]["loss"] == pytest.approx(terms[1]["loss"], rel=1e-5)


def test_counting(tmp_path):
    data = build_dataset("folder", "train", root=uneven_folder(tmp_path / "data"), classes=CLASSES)
    expected = sum(torch.bincount(data[i][1].flatten(), minlength=256)[:5] for i in range(len(data)))
    for workers in (0, 2):
        assert torch.equal(count_labels(data, range(len(data)), workers), expected)


# Errors


class Torn(SegmentationDataset):
    classes, palette, names = ["a", "b"], [(0, 0, 0), (9, 9, 9)], ["0"]

    def __getitem__(self, index):
        raise ValueError("0.png is torn; replace it")


def test_errors(tmp_path):
    base = {"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18"}}
    for section, line in [
        ({"ce": -1}, "supervised.ce: "),
        ({"jacard": 1}, "unknown key supervised.jacard; did you mean jaccard"),
        ({"ohem": 0}, "supervised.ohem: "),
        ({"ohem": 1.5}, "supervised.ohem: "),
        ({"ohem_min_kept": -1}, "supervised.ohem_min_kept: "),
        (
            {"class_weights": "median"},
            "supervised.class_weights: expected balanced, or a number for each class, none be",
        ),
        ({"class_weights": [1, -1]}, r"none below 0 and not all 0, got \[1, -1\]"),
        ({"class_weights": [0, 0]}, "supervised.class_weights: expected balanced"),
        ({"class_weights": [1, float("nan")]}, "supervised.class_weights: expected balanced"),
        ({"class_weights": [True]}, "supervised.class_weights: expected balanced"),
        ({"class_weights": []}, "supervised.class_weights: expected balanced"),
        ({"ohem_min_kept": 500}, "supervised: ohem_min_kept: of hard pixels; set ohem beside it"),
        ({"ce": 0, "jaccard": 1, "ohem": 0.7}, "supervised: ohem: of the cross-entropy, whose weight, ce, is 0"),
        ({"ce": 0, "jaccard": 1, "class_weights": "balanced"}, "supervised: class_weights: of the cross-entropy"),
        ({"ce": 0}, "supervised.ce and supervised.jaccard are 0, and method is none: nothing would be learned"),
    ]:
        with pytest.raises(ValueError, match=line) as caught:
            load_config({**base, "supervised": section})
        assert "\n" not in str(caught.value)
    loaded = load_config({**base, "supervised": {"class_weights": [1, 2.5]}})
    assert load_config({**base, "supervised": {"class_weights": [1, 2.5]}}).supervised == loaded.supervised
    assert "class_weights:\n  - 1.0\n  - 2.5\n" in dump_config(loaded)
    with pytest.raises(
        ValueError, match=r"class_weights: 2 numbers for 11 classes \(sky, .*\); give one for each, or bal"
    ):
        distill(config(supervised={"class_weights": [1, 2]}), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"ohem_min_kept is 100000, but a training image has 1024 pixels.*take 204"):
        distill(config(supervised={"ohem": 0.7}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^0\.png is torn; replace it$"):
            count_labels(Torn(), [0], workers)


def test_no_labels_at_all_cannot_be_balanced(tmp_path, monkeypatch):
    empty = torch.zeros(11, dtype=torch.int64)
    monkeypatch.setattr("segdistill.engine.class_weights.count_labels", lambda *_: empty)
    with pytest.raises(
        ValueError, match=r"supervised.class_weights: no training image has a label that could be counted"
    ):
        distill(config(supervised={"class_weights": "balanced"}), out=tmp_path / "run")


def test_a_run_that_is_stopped_while_it_counts(tmp_path, monkeypatch):
    seen = []

    def count(_, indices, __):
        seen.extend(indices)
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.zeros(11, dtype=torch.int64)

    monkeypatch.setattr("segdistill.engine.class_weights.count_labels", count)
    monkeypatch.setattr("segdistill.engine.class_weights.PORTION", 3)
    with pytest.raises(TrainingStopped, match="stopped while labels were counted; the same command begins anew"):
        distill(config(supervised={"class_weights": "balanced"}), out=tmp_path / "run")
    assert seen == [0, 1, 2]


def test_mass():
    target = torch.tensor([[[0, 1, 255], [2, 2, 255]]])
    assert mass(target).item() == 4
    assert mass(target, torch.tensor([1.0, 0.5, 3.0])).item() == 7.5
