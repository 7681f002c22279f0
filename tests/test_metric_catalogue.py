"""Each metric of the catalogue against its definition written as loops, and against numbers worked by hand."""

import doctest
import importlib
import math
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from processes import in_processes
from segdistill import Protocol, build_dataset, evaluate, metrics
from segdistill.engine.runtime import runtime
from segdistill.metrics import (
    build_metric,
    class_iou,
    confusion_matrix,
    image_counts,
    list_metrics,
    metric_class,
    scores,
)
from segdistill.metrics._bands import near_another
from segdistill.metrics._components import components
from segdistill.metrics.boundary import band_width

NAMES = ["boundary", "trimap", "calibration", "agreement", "images", "sizes"]


def ids(*rows):
    return torch.tensor([[[int(c) if c != "." else 255 for c in row] for row in rows]])


def small_case(seed, classes=3, size=(7, 9), images=2, blocks=3):
    """Logits, labels with some ignored, and a teacher's classes; in blocks, so that there are insides and contours."""
    rng = np.random.default_rng(seed)

    def blocky():
        coarse = rng.integers(0, classes, (images, *(-(-side // blocks) for side in size)))
        return coarse.repeat(blocks, 1).repeat(blocks, 2)[:, : size[0], : size[1]]

    target, taught = blocky(), blocky()
    target[rng.random(target.shape) < 0.1] = 255
    logits = torch.from_numpy(rng.normal(size=(images, classes, *size))).float()
    logits += 2 * nn.functional.one_hot(torch.from_numpy(blocky()), classes).movedim(3, 1)
    return logits, torch.from_numpy(target), torch.from_numpy(taught)


def show(metric, logits, target, teacher):
    prediction = logits if metric.reads == "logits" else logits.argmax(1)
    metric.update(prediction, target, teacher=teacher if metric.needs_teacher else None)


def found(name, logits, target, teacher, classes=3):
    metric = build_metric(name, [f"c{i}" for i in range(classes)])
    show(metric, logits, target, teacher)
    return metric.compute()


def same(a, b, tolerance=1e-12):
    """Two results of `compute`, equal but for the order of sums in float64."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list):
        assert len(a) == len(b)
        return all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return a == (pytest.approx(b, rel=tolerance, abs=tolerance) if isinstance(b, float) else b)


# The definitions, as loops.


def naive_near(labels, reach, edge):
    height, width = labels.shape
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            rows, columns = range(y - reach, y + reach + 1), range(x - reach, x + reach + 1)
            outside = rows[0] < 0 or columns[0] < 0 or rows[-1] >= height or columns[-1] >= width
            near[y, x] = edge and outside
            for v in range(max(0, rows[0]), min(height, rows[-1] + 1)):
                for u in range(max(0, columns[0]), min(width, columns[-1] + 1)):
                    near[y, x] |= labels[v, u] != labels[y, x]
    return near


def naive_boundary(predicted, target, classes):
    inter, union = np.zeros(classes), np.zeros(classes)
    for p, t in zip(predicted, target, strict=True):
        p = np.where(t == 255, 255, p)
        d = max(1, round(0.02 * math.sqrt(t.shape[0] ** 2 + t.shape[1] ** 2)))
        for c in range(classes):
            bands = [naive_near((m == c).astype(int), d, edge=True) & (m == c) for m in (t, p)]
            inter[c] += (bands[0] & bands[1]).sum()
            union[c] += (bands[0] | bands[1]).sum()
    return [i / u if u else None for i, u in zip(inter, union, strict=True)]


def naive_trimap(predicted, target, classes, width):
    near = np.stack([naive_near(t, width, edge=False) for t in target]) & (target != 255)
    ious = []
    for c in range(classes):
        t, p = (target == c) & near, (predicted == c) & near
        ious += [(t & p).sum() / (t | p).sum()] if (t | p).any() else []
    right = (predicted == target)[near]
    return (np.mean(ious) if ious else None), (right.mean() if near.any() else None), near.sum()


def naive_calibration(logits, target):
    rows = []
    for n, y, x in np.argwhere(target != 255):
        z = logits[n, :, y, x].astype(np.float64)
        p = np.exp(z) / np.exp(z).sum()
        truth = np.eye(len(p))[target[n, y, x]]
        rows.append((p.max(), p.argmax() == target[n, y, x], -np.log(p[target[n, y, x]]), ((p - truth) ** 2).sum()))
    confidence, right, nll, brier = map(np.array, zip(*rows, strict=True))
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return {"ece": ece, "nll": nll.mean(), "brier": brier.mean(), "accuracy": right.mean()}


def naive_pieces(labels):
    """Connected components by flooding; sets of pixels."""
    left, pieces = set(np.ndindex(labels.shape)), []
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            around = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & left
            edge += [q for q in around if labels[q] == labels[y, x]]
            left -= {q for q in around if labels[q] == labels[y, x]}
        pieces.append(piece)
    return pieces


def naive_sizes(predicted, target, classes):
    right, truth, false, objects = np.zeros((4, 3, classes), int)
    for p, t in zip(predicted, target, strict=True):
        p = np.where(t == 255, 255, p)

        def size(piece, pixels=t.size):
            return 0 if len(piece) < 0.001 * pixels else 1 if len(piece) < 0.01 * pixels else 2

        for piece in naive_pieces(t):
            label = t[next(iter(piece))]
            if label != 255:
                objects[size(piece), label] += 1
                truth[size(piece), label] += len(piece)
                right[size(piece), label] += sum(p[q] == label for q in piece)
        for piece in naive_pieces(p):
            label = p[next(iter(piece))]
            if label != 255:
                false[size(piece), label] += sum(t[q] != label for q in piece)
    return right, truth, false, objects


# Parity.


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 12), st.booleans(), st.sampled_from([(1, 1), (5, 1), (1, 7), (6, 9)]))
def test_bands_are_those_of_the_loops(seed, reach, edge, size):
    labels = np.random.default_rng(seed).choice([0, 1, 1, 1, 255], (2, *size))
    expected = np.stack([naive_near(one, reach, edge) for one in labels])
    np.testing.assert_array_equal(near_another(torch.from_numpy(labels), reach, edge=edge).numpy(), expected)


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_boundary_iou_agrees_with_loops(seed):
    logits, target, teacher = small_case(seed)
    expected = naive_boundary(logits.argmax(1).numpy(), target.numpy(), 3)
    result = found("boundary", logits, target, teacher)
    assert list(result["iou"].values()) == [e if e is None else pytest.approx(e) for e in expected]
    assert result["miou"] == pytest.approx(np.mean([e for e in expected if e is not None]))


@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_trimaps_agree_with_loops(seed):
    logits, target, teacher = small_case(seed, size=(11, 10), blocks=5)
    result = found("trimap", logits, target, teacher)
    for i, width in enumerate(result["widths"]):
        miou, accuracy, pixels = naive_trimap(logits.argmax(1).numpy(), target.numpy(), 3, width)
        assert result["pixels"][i] == pixels
        assert result["miou"][i] == (miou if miou is None else pytest.approx(miou))
        assert result["accuracy"][i] == (accuracy if accuracy is None else pytest.approx(accuracy))
    assert result["miou_4"] == result["miou"][2]


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.floats(0.1, 20))
def test_calibration_agrees_with_loops(seed, sharpness):
    logits, target, teacher = small_case(seed)
    result = found("calibration", sharpness * logits, target, teacher)
    for name, value in naive_calibration((sharpness * logits).numpy(), target.numpy()).items():
        assert result[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert sum(result["bins"]["pixels"]) == int((target != 255).sum())


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_agreement_agrees_with_loops(seed):
    logits, target, teacher = small_case(seed)
    result = found("agreement", logits, target, teacher)
    seen = [(int(t), int(s), int(g)) for t, s, g in zip(target.flatten(), logits.argmax(1).flatten(), teacher.flatten(),
                                                        strict=True) if t != 255]  # fmt: skip

    def share(part, whole):
        return len(part) / len(whole) if whole else None

    for subset, values in (
        (seen, result),
        *(([p for p in seen if p[0] == c], result["classes"][f"c{c}"]) for c in (0, 1, 2)),
    ):
        right, wrong = [p for p in subset if p[2] == p[0]], [p for p in subset if p[2] != p[0]]
        assert values["agreement"] == share([p for p in subset if p[1] == p[2]], subset)
        assert values["teacher_accuracy"] == share(right, subset)
        assert values["kept"] == share([p for p in right if p[1] == p[0]], right)
        assert values["corrected"] == share([p for p in wrong if p[1] == p[0]], wrong)
        assert values["repeated"] == share([p for p in wrong if p[1] == p[2]], wrong)
        assert values["other"] == share([p for p in wrong if p[1] not in p[::2]], wrong)


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_image_means_agree_with_loops(seed):
    logits, target, teacher = small_case(seed, images=21, size=(4, 5), blocks=2)
    target[3] = 255
    result = found("images", logits, target, teacher)
    table = []
    for p, t in zip(logits.argmax(1).numpy(), target.numpy(), strict=True):
        here = [c for c in range(3) if (t == c).any()]
        iou = {c: ((t == c) & (p == c)).sum() / (((t == c) | (p == c)) & (t != 255)).sum() for c in here}
        table += [iou] if here else []
    means = sorted(np.mean(list(iou.values())) for iou in table)
    columns = [sorted(iou[c] for iou in table if c in iou) for c in range(3)]
    assert result["images"] == len(table) == 20
    assert result["miou_i"] == pytest.approx(np.mean(means))
    assert result["miou_i10"] == pytest.approx(np.mean(means[:2]))
    assert result["miou_c"] == pytest.approx(np.mean([np.mean(column) for column in columns]))
    assert result["miou_c10"] == pytest.approx(np.mean([np.mean(c[: max(1, len(c) // 10)]) for c in columns]))
    assert result["deciles"] == pytest.approx(np.quantile(means, np.linspace(0, 1, 11)))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (1, 9), (9, 1), (8, 11), (20, 20)]), st.integers(1, 4))
def test_components_are_those_of_flooding(seed, size, labels):
    labels = np.random.default_rng(seed).integers(0, labels, size)
    pieces, sizes = components(labels)
    found = {frozenset(map(tuple, np.argwhere(pieces == number))) for number in np.unique(pieces)}
    assert found == {frozenset(piece) for piece in naive_pieces(labels)}
    assert all(sizes[number] == (pieces == number).sum() for number in range(len(sizes)))


def test_components_follow_a_spiral():
    labels = np.zeros((41, 41), int)
    y, x, step = 20, 20, 1
    for turn in range(18):
        for _ in range(step):
            labels[y, x] = 1
            y, x = (
                (y, x + 1)
                if turn % 4 == 0
                else (y + 1, x)
                if turn % 4 == 1
                else (y, x - 1)
                if turn % 4 == 2
                else (y - 1, x)
            )
        step += 2 * (turn % 2)
    pieces, _ = components(labels)
    assert len(np.unique(pieces[labels == 1])) == 1


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, 15]))
def test_sizes_agree_with_loops_and_add_up_to_the_iou(seed, blocks):
    logits, target, _ = small_case(seed, size=(30, 40), images=1, blocks=blocks)
    metric = build_metric("sizes", ["a", "b", "c"])
    metric.update(logits.argmax(1), target)
    expected = naive_sizes(logits.argmax(1).numpy(), target.numpy(), 3)
    np.testing.assert_array_equal(metric.sums["counts"].numpy(), expected)
    right, truth, false, _ = metric.sums["counts"].sum(1)
    whole = class_iou(image_counts(logits.argmax(1), target, 3))
    torch.testing.assert_close(right / (truth + false), whole.float(), equal_nan=True)
    result = metric.compute()
    for c, name in enumerate("abc"):
        for s in range(3):
            r, t, f, n = (int(counts[s, c]) for counts in expected)
            entry = {key: values[s] for key, values in result["classes"][name].items()}
            assert entry == {"iou": r / (t + f) if t else None, "recall": r / t if t else None, "objects": n}


# Worked by hand.


def test_a_square_that_is_one_pixel_off_has_this_boundary_iou():
    truth, moved = torch.zeros(2, 1, 100, 100, dtype=torch.long).unbind()
    truth[:, 20:60, 20:60], moved[:, 20:60, 21:61] = 1, 1
    assert band_width((100, 100)) == 3  # 2 % of 141.4
    metric = build_metric("boundary", ["ground", "square"])
    metric.update(moved, truth)
    # Each ring: 40² − 34². What both have: 39·40 shared pixels, less 33·34 that both have inside, less what one has
    # inside and the other in its ring: a column of 34 on either side.
    ring, shared = 40**2 - 34**2, 39 * 40 - 33 * 34 - 2 * 34
    assert metric.compute()["iou"]["square"] == pytest.approx(shared / (2 * ring - shared))


def test_worked_trimap_calibration_and_sizes():
    truth, guess = ids("0000011111"), ids("0000001111")
    logits = 20 * nn.functional.one_hot(guess, 2).movedim(3, 1).float()
    trimap = found("trimap", logits, truth, None, 2)
    assert trimap["pixels"] == [2, 4, 8, 10, 10, 10]
    assert trimap["accuracy"] == pytest.approx([1 / 2, 3 / 4, 7 / 8, 9 / 10, 9 / 10, 9 / 10])
    assert trimap["miou"][:2] == pytest.approx([(1 / 2 + 0) / 2, (2 / 3 + 1 / 2) / 2])

    half = torch.tensor([math.log(0.7), math.log(0.3)]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    result = found("calibration", half, ids("0001"), None, 2)
    assert result["ece"] == pytest.approx(0.05)  # 75 % right at a confidence of 70 %
    assert result["nll"] == pytest.approx(-(3 * math.log(0.7) + math.log(0.3)) / 4)
    assert result["brier"] == pytest.approx((3 * 2 * 0.3**2 + 2 * 0.7**2) / 4)
    assert result["bins"]["pixels"][10] == 4  # (10/15, 11/15]
    assert result["bins"]["accuracy"][10] == 0.75

    big = torch.zeros(1, 100, 100, dtype=torch.long)
    big[:, 50, 50], big[:, :5, :10], big[:, 60:, 60:] = 1, 1, 1  # 1, 50 and 1600 of 10 000 pixels
    seen = big.clone()
    seen[:, 50, 50], seen[:, :5, :5], seen[:, 20:22, 20:23] = 0, 0, 1
    result = found("sizes", nn.functional.one_hot(seen, 2).movedim(3, 1).float(), big, None, 2)
    assert result["classes"]["c1"] == {
        "iou": [0.0, 25 / (50 + 0), 1.0],
        "recall": [0.0, 0.5, 1.0],
        "objects": [1, 1, 1],
    }  # the 6 false pixels are a small object of the prediction; 1/(1+6) would need the small one to be found


def test_worked_agreement_and_images():
    truth, student, teacher = ids("00001111."), ids("001100220"), ids("001000211")
    metric = build_metric("agreement", ["a", "b", "c"])
    metric.update(student, truth, teacher=teacher)
    result = metric.compute()
    assert result["teacher_accuracy"] == 4 / 8
    assert result["kept"] == 2 / 4
    assert (result["corrected"], result["repeated"], result["other"]) == (0.0, 1.0, 0.0)
    assert result["agreement"] == 6 / 8
    assert result["classes"]["c"] == dict.fromkeys(result["classes"]["c"])
    one, two = ids("0011", "0011"), ids("0001", "2011")
    images = found("images", nn.functional.one_hot(two, 3).movedim(3, 1).float(), one, None, 3)
    assert images["miou_i"] == pytest.approx((3 / 5 + 3 / 4) / 2)  # class c is not in the truth
    assert images["miou_i"] == images["miou_c"] == images["miou_i10"]


# Properties of all.


def test_the_folder_is_the_catalogue():
    assert list_metrics() == sorted(NAMES)
    for name in NAMES:
        cls = metric_class(name)
        assert cls.__doc__
        result = found(name, *small_case(0))
        assert cls.headlines
        assert all(key in result for key in cls.headlines)
    with pytest.raises(ValueError, match=r"no metric 'boundry'; did you mean boundary"):
        build_metric("boundry", ["a"])


def test_examples():
    for info in pkgutil.iter_modules(metrics.__path__):
        assert doctest.testmod(importlib.import_module(f"segdistill.metrics.{info.name}")).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_whole(name):
    logits, target, teacher = small_case(1, images=5)
    parts = [build_metric(name, ["a", "b", "c"]) for _ in range(3)]
    for metric, chosen in zip(parts, ([0], [1, 2, 3], [4]), strict=True):
        show(metric, logits[chosen], target[chosen], teacher[chosen])
    whole = build_metric(name, ["a", "b", "c"])
    for i in range(5):
        show(whole, logits[i : i + 1], target[i : i + 1], teacher[i : i + 1])
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert same(parts[0].compute(), whole.compute())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_tiny_images_and_absent_classes(name, size):
    logits, target, teacher = small_case(2, classes=2, size=size, images=1)
    logits = torch.cat([logits, torch.full((1, 2, *size), -1e4)], 1)
    target[0, 0, 0] = 0
    text = repr(found(name, logits, target, teacher, classes=4))
    assert "nan" not in text
    assert "inf" not in text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_labelled_is_none(name):
    logits, target, teacher = small_case(3)
    result = found(name, logits, torch.full_like(target, 255), teacher)
    assert all(result[key] is None for key in metric_class(name).headlines)
    untouched = build_metric(name, ["a", "b", "c"]).compute()
    assert all(untouched[key] is None for key in metric_class(name).headlines)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_change_nothing(name):
    logits, target, teacher = small_case(4)
    other = logits + 50 * (target == 255)[:, None] * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert found(name, logits, target, teacher) == found(name, other, target, 1 * teacher.where(target != 255, 0))


@pytest.mark.parametrize("name", ["boundary", "trimap", "images", "sizes"])
def test_a_perfect_prediction_is_perfect(name):
    _, target, teacher = small_case(5, size=(60, 60), blocks=1)
    logits = nn.functional.one_hot(target.where(target != 255, 0), 3).movedim(3, 1).float()
    result = found(name, logits, target, teacher)
    assert {result[key] for key in metric_class(name).headlines} <= {1.0, None}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_precision_are_computed_in_float32_at_least(dtype):
    logits, target, _ = small_case(6)
    own = found("calibration", logits.to(dtype), target, None)
    assert own == found("calibration", logits.to(dtype).to(torch.promote_types(dtype, torch.float32)), target, None)
    assert 0 < own["ece"] < 1
    with torch.autocast("cpu", torch.bfloat16):
        assert found("calibration", logits, target, None) == found("calibration", logits.clone(), target, None)


def test_certainty_does_not_overflow():
    logits = torch.tensor([3e4, -3e4]).view(1, 2, 1, 1)
    sure, wrong = (found("calibration", logits, ids(label), None, 2) for label in "01")
    assert (sure["nll"], sure["brier"], sure["ece"]) == (0.0, 0.0, 0.0)
    assert (wrong["nll"], wrong["brier"], wrong["ece"]) == (6e4, 2.0, 1.0)
    assert sure["bins"]["pixels"][-1] == 1


def test_mistakes():
    with pytest.raises(ValueError, match=r"expected logits \(N,3,H,W\), got \(1, 2, 4, 4\)"):
        build_metric("calibration", list("abc")).update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="expected the teacher's classes, got none"):
        build_metric("agreement", list("abc")).update(ids("0"), ids("0"))


# In an evaluation.


class Slope(nn.Module):
    """Logits that depend on the pixel's colours alone."""

    def __init__(self, classes, seed):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, 3, 1, 1, generator=torch.Generator().manual_seed(seed)) * 4)

    def forward(self, images):
        return self.layer(images)


@pytest.fixture(scope="module")
def dataset():
    return build_dataset("synthetic", "val", images=5, size=(40, 56))


VIEWS = {
    "plain": Protocol(),
    "merged": Protocol(scales=(0.5, 1.0), flip=True),
    "logits": Protocol(flip=True, merge="logits"),
    "windows": Protocol(window=(24, 24)),
}


@pytest.mark.parametrize("protocol", VIEWS.values(), ids=VIEWS)
def test_an_evaluation_gives_them_beside_what_it_gives_anyway(dataset, protocol):
    from segdistill import infer

    classes = len(dataset.classes)
    model, teacher = Slope(classes, 0), Slope(classes, 1).train()
    plain = evaluate(model, dataset, protocol=protocol)
    result = evaluate(model, dataset, protocol=protocol, metrics=NAMES, teacher=teacher)
    further = result.pop("metrics")
    assert result == plain
    assert teacher.training
    assert list(further) == NAMES
    own = {name: build_metric(name, dataset.classes) for name in NAMES}
    for image, target in (dataset[i] for i in range(len(dataset))):
        images, target = image[None].float() / 255, target[None].long()
        logits, guide = (infer(network, images, protocol) for network in (model, teacher))
        for metric in own.values():
            told = logits.log() if metric.reads == "logits" and protocol.gives_probabilities else logits
            show(metric, told, target, guide.argmax(1))
    assert all(same(further[name], metric.compute(), 1e-6) for name, metric in own.items())
    assert further["calibration"]["accuracy"] == pytest.approx(plain["pixel_accuracy"])
    assert further["agreement"]["teacher_accuracy"] == evaluate(teacher, dataset, protocol=protocol)["pixel_accuracy"]


@pytest.mark.parametrize("protocol", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("count", [10, 150])
def test_a_teacher_of_another_number_of_classes_is_refused_where_it_is_needed(dataset, count, protocol):
    model, teacher = Slope(len(dataset.classes), 0), Slope(count, 1)
    with pytest.raises(ValueError, match=rf"^the teacher has {count} classes, the data set 11 \(sky, "):
        evaluate(model, dataset, protocol=protocol, metrics=["sizes", "agreement"], teacher=teacher)
    assert evaluate(model, dataset, protocol=protocol, metrics=["sizes"], teacher=teacher)["metrics"].keys() == {
        "sizes"
    }


def test_large_images_are_seen_in_bands(dataset, monkeypatch):
    from segdistill.engine import protocol

    whole = evaluate(Slope(len(dataset.classes), 0), dataset, metrics=["calibration"])
    monkeypatch.setattr(protocol, "WHOLE", 1000)
    monkeypatch.setattr(protocol, "BAND", 56 * 7)
    monkeypatch.setattr(metrics.calibration, "BLOCK", 500)
    assert same(evaluate(Slope(len(dataset.classes), 0), dataset, metrics=["calibration"]), whole, 1e-6)


def test_without_metrics_nothing_looks_at_logits(dataset, monkeypatch):
    from segdistill.engine import evaluate as module

    calls = []
    real = module.infer_ids
    monkeypatch.setattr(module, "infer_ids", lambda *a, watch=None, **k: calls.append(watch) or real(*a, **k))
    assert "metrics" not in evaluate(Slope(len(dataset.classes), 0), dataset)
    assert calls == [None] * 5
    with pytest.raises(ValueError, match="agreement compares a student with its teacher; give one as teacher"):
        evaluate(Slope(len(dataset.classes), 0), dataset, metrics=["agreement"])


def count_share(folder):
    data = build_dataset("synthetic", "val", images=5, size=(40, 56))
    classes = len(data.classes)
    with runtime("cpu") as run:
        result = evaluate(Slope(classes, 0), data, run=run, metrics=NAMES, teacher=Slope(classes, 1))
    torch.save(result, folder / f"{run.rank}.pt")


def test_processes_bring_together_what_they_counted(tmp_path):
    assert in_processes(count_share, tmp_path) == [0, 0]
    data = build_dataset("synthetic", "val", images=5, size=(40, 56))
    classes = len(data.classes)
    alone = evaluate(Slope(classes, 0), data, metrics=NAMES, teacher=Slope(classes, 1))["metrics"]
    for rank in (0, 1):
        assert same(torch.load(tmp_path / f"{rank}.pt", weights_only=True)["metrics"], alone)


def test_three_processes_with_unequal_shares():
    logits, target, teacher = small_case(7, images=4)
    alone, shares = build_metric("images", list("abc")), [build_metric("images", list("abc")) for _ in range(3)]
    show(alone, logits, target, teacher)
    show(shares[0], logits[:1], target[:1], teacher[:1])
    show(shares[2], logits[1:], target[1:], teacher[1:])
    lengths = torch.tensor([1, 0, 3])
    rows = torch.cat([shares[0].rows, shares[2].rows])
    for rank, metric in enumerate(shares):
        calls = SimpleNamespace(count=0)

        def total(x, calls=calls, rank=rank):
            calls.count += 1
            if calls.count == 1:
                assert x[rank] == lengths[rank]
                return lengths
            return rows

        metric.share(total, rank, 3)
        assert metric.compute() == alone.compute()


def test_scores_are_as_before():
    counter = confusion_matrix(2)
    counter.update(ids("01"), ids("00"))
    assert scores(counter.confmat, ["a", "b"])["miou"] == 0.25
