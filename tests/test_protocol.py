"""Protocols: worked cases of the benchmarks' own tools, naive versions, what is refused, and bounded memory."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segdistill import Protocol, build_dataset, build_model, evaluate, infer
from segdistill.engine import protocol as module
from segdistill.engine import rows
from segdistill.engine.config import dump_config, load_config
from segdistill.engine.eval_config import EvalConfig
from segdistill.engine.presets import MMSEG_SIDES, PRESETS, in_words, preset
from segdistill.engine.protocol import infer_ids, named_protocol, read_protocol
from segdistill.engine.rows import Given, Resized, Windows, starts
from segdistill.metrics import class_iou, confusion_matrix, image_counts, scores


class Network(nn.Module):
    """A convolution, whose zero padding makes windows differ from whole images, at a resolution of its own."""

    def __init__(self, classes=4, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 5, padding=2, stride=stride)

    def forward(self, images):
        return self.conv(images)


def images(height=11, width=14, count=2):
    return torch.rand(count, 3, height, width)


# The benchmarks' own tools.


def case(standard, name):
    arrays = np.load(standard / f"protocol_cases/{name}.npz")
    path = standard / f"protocol_cases/{name}.json"
    return {key: torch.from_numpy(arrays[key]) for key in arrays}, json.loads(path.read_text()) if path.exists() else {}


def cases(standard, pattern):
    found = sorted(path.stem for path in (standard / "protocol_cases").glob(pattern))
    assert found
    return found


def test_windows_are_those_of_mmsegmentation(standard):
    for name in cases(standard, "slide_*.npz"):
        arrays, _ = case(standard, name)
        network = Network()
        network.conv.weight.data, network.conv.bias.data = arrays["weight"], arrays["bias"]
        (height, width), (down, across) = arrays["crop"].tolist(), arrays["stride"].tolist()
        protocol = Protocol(window=(height, width), stride=(min(down, height), min(across, width)))
        full = arrays["image"].shape[-2:]
        windows = [
            [y, y + min(height, full[0]), x, x + min(width, full[1])]
            for y in starts(full[0], height, down)
            for x in starts(full[1], width, across)
        ]
        assert windows == arrays["windows"].tolist(), name
        logits = infer(network, arrays["image"], protocol)
        torch.testing.assert_close(logits, arrays["logits"], rtol=0, atol=1e-6)
        assert torch.equal(infer_ids(network, arrays["image"], protocol), arrays["prediction"])


def test_grids_are_those_of_mmsegmentation_and_skd(standard):
    def grid(height, width, crop, stride):
        tops, lefts = (starts(side, crop[i], stride[i]) for i, side in enumerate((height, width)))
        return [[y, min(y + crop[0], height), x, min(x + crop[1], width)] for y in tops for x in lefts]

    for entry in json.loads((standard / "protocol_cases/slide_grids.json").read_text())["cases"]:
        found = grid(*entry["image_hw"], entry["crop"], entry["stride"])
        assert (len(found), found[0], found[-1]) == (entry["n"], entry["first"], entry["last"])
        if entry["crop"] != [1024, 1024]:  # there 3/4 instead of 2/3
            assert list(Protocol(window=entry["crop"]).steps) == entry["stride"]
    for entry in json.loads((standard / "protocol_cases/slide_grids_skd.json").read_text())["cases"]:
        stride = -(-2 * entry["tile"][0] // 3)
        assert grid(*entry["image_hw"], entry["tile"], (stride, stride)) == entry["windows"]


def test_sizes_are_those_of_mmcv(standard):
    for entry in json.loads((standard / "protocol_cases/resize_keep_ratio.json").read_text())["cases"]:
        width, height = entry["image_wh"]
        if "scale" in entry:
            protocol = Protocol(long_side=max(entry["scale"]), short_side=min(entry["scale"]))
            found = protocol.view((height, width))
        else:
            found = Protocol().view((height, width), entry["scale_factor"])
        assert list(found[::-1]) == entry["result_wh"], entry


@pytest.mark.parametrize("aligned", [True, False])
def test_logits_are_resized_as_the_heads_do(standard, aligned):
    arrays, _ = case(standard, f"logit_resize_align_corners_{str(aligned).lower()}")
    size = tuple(arrays["out_hw"].tolist())
    shown = torch.zeros(1, 3, *size)
    network = Fixed({size: arrays["logits"]})
    protocol = Protocol(align_corners=aligned)
    torch.testing.assert_close(infer(network, shown, protocol), arrays["resized"], rtol=0, atol=1e-6)
    assert torch.equal(infer_ids(network, shown, protocol)[0], arrays["prediction"])


class Fixed(nn.Module):
    """Gives known logits by the size of the image, and by whether it is mirrored: its first column is then darker."""

    def __init__(self, logits, mirrored=None):
        super().__init__()
        self.logits, self.mirrored = logits, mirrored or logits

    def forward(self, images):
        known = self.mirrored if images[..., 0].mean() < images[..., -1].mean() else self.logits
        return known[tuple(images.shape[-2:])]


def test_views_are_merged_as_by_mmsegmentation(standard):
    arrays, told = case(standard, "tta_mmseg")
    scales = sorted({float(key.split("_")[1]) for key in arrays if key.startswith("logits_")})
    plain, mirrored = (
        {tuple(x.shape[-2:]): x for key, x in arrays.items() if key.startswith("logits_") and key.endswith(kind)}
        for kind in ("plain", "flip")
    )
    height, width = arrays["ori_hw"].tolist()
    shown = torch.linspace(1, 0, width).expand(1, 3, height, width)
    network = Fixed(plain, mirrored)
    protocol = Protocol(scales=scales, flip=True)
    found = infer(network, shown, protocol)
    torch.testing.assert_close(found[0].double(), arrays["probabilities"], rtol=0, atol=1e-6)
    assert torch.equal(infer_ids(network, shown, protocol)[0], arrays["prediction"])
    averaged = infer_ids(network, shown, Protocol(scales=scales, flip=True, merge="logits"))[0]
    assert torch.equal(averaged, arrays["prediction_if_logits_were_averaged"])
    assert int((averaged != arrays["prediction"]).sum()) == told["differing_pixels_if_logits_averaged"]


def test_scores_are_those_of_cityscapesscripts(standard):
    lookup, _ = case(standard, "cityscapes_lookup")
    lookup = lookup["label_id_to_train_id"]
    names = [f"class {i}" for i in range(19)]
    for name in cases(standard, "cityscapes_*.json"):
        arrays, told = case(standard, name)
        confusion = torch.zeros(19, 20, dtype=torch.long)
        counter = confusion_matrix(20)  # of 20: a prediction of an id that is not evaluated is a miss, and no class's
        counts = torch.zeros(3, 20, dtype=torch.long)
        for i in range(told["images"]):
            prediction, truth = (lookup[arrays[f"{kind}_label_ids_{i}"].long()] for kind in ("pred", "gt"))
            prediction = torch.where(prediction == 255, 19, prediction).long()
            counter.update(prediction, truth.long())
            counts += image_counts(prediction, truth.long(), 20)
        confusion = counter.confmat[:19]
        assert torch.equal(confusion, arrays["confusion_train_ids_19x20"])
        iou = class_iou(counts)[:19]
        expected = torch.tensor([np.nan if x is None else x for x in told["iou_by_train_id"]], dtype=torch.float64)
        torch.testing.assert_close(iou, expected, rtol=0, atol=1e-6, equal_nan=True)
        if confusion[:, 19].any():
            continue
        for absent, key in (("skip", "mean_iou_official"), ("zero", "mean_with_absent_as_zero_SKD_CIRKD")):
            result = scores(confusion[:, :19], names, absent)
            assert result["miou"] == (None if told[key] is None else pytest.approx(told[key], abs=1e-6))
            assert result["macc"] == pytest.approx(told["mean_accuracy_present"], abs=1e-6)
            assert result["pixel_accuracy"] == pytest.approx(told["pixel_accuracy_non_ignored"], abs=1e-6)


def test_means_are_those_of_mmsegmentation_skd_cirkd_and_the_kit_of_ade20k(standard):
    for name in cases(standard, "conventions_*.json"):
        arrays, told = case(standard, name)
        classes = told["num_classes"]
        counter = confusion_matrix(classes)
        for key in arrays:
            if key.startswith("pred_"):
                counter.update(arrays[key].long(), arrays[key.replace("pred", "gt")].long())
        assert torch.equal(counter.confmat, arrays["confusion"])
        names = [str(i) for i in range(classes)]
        skip, zero = (scores(counter.confmat, names, absent) for absent in ("skip", "zero"))
        assert list(skip["iou"].values()) == pytest.approx(told["iou"], abs=1e-6)
        assert skip["miou"] == pytest.approx(told["miou_mmseg_nanmean"], abs=1e-6)
        assert skip["macc"] == zero["macc"] == pytest.approx(told["macc_mmseg"], abs=1e-6)
        assert skip["pixel_accuracy"] == pytest.approx(told["aacc_mmseg"], abs=1e-6)
        for key in ("miou_skd", "miou_cirkd", "miou_ade_toolkit_all_classes_eps"):
            assert zero["miou"] == pytest.approx(told[key], abs=1e-6)


# Naive versions.


def naive_windows(network, image, window, stride):
    height, width = image.shape[-2:]
    total, count = 0, np.zeros((height, width))
    for top in range(-(-max(0, height - window[0]) // stride[0]) + 1):
        for left in range(-(-max(0, width - window[1]) // stride[1]) + 1):
            y2, x2 = min(top * stride[0] + window[0], height), min(left * stride[1] + window[1], width)
            y1, x1 = max(0, y2 - window[0]), max(0, x2 - window[1])
            logits = np.zeros((4, height, width))
            with torch.no_grad():
                seen = network(image[None, :, y1:y2, x1:x2])
                logits[:, y1:y2, x1:x2] = F.interpolate(seen, (y2 - y1, x2 - x1), mode="bilinear")[0].numpy()
            total = total + logits
            count[y1:y2, x1:x2] += 1
    assert count.min() > 0
    return total / count


@pytest.mark.parametrize("stride", [1, 2])
@given(st.integers(1, 23), st.integers(1, 23), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.data())
def test_windows_agree_with_the_naive_version(stride, height, width, window, data):
    steps = tuple(data.draw(st.integers(1, side)) for side in window)
    network, seen = Network(stride=stride), images(height, width)
    found = infer(network, seen, Protocol(window=window, stride=steps)).numpy()
    for image, logits in zip(seen, found, strict=True):
        np.testing.assert_allclose(logits, naive_windows(network, image, window, steps), atol=1e-5)


def naive_resize(x, size, aligned):
    """Bilinear, of (C,h,w), pixel by pixel."""
    out = np.zeros((x.shape[0], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            places = []
            for at, new, old in ((i, size[0], x.shape[1]), (j, size[1], x.shape[2])):
                where = at * (old - 1) / max(1, new - 1) if aligned else max(0, (at + 0.5) * old / new - 0.5)
                low = int(where)
                places.append((low, min(low + 1, old - 1), where - low))
            (a, b, u), (c, d, v) = places
            out[:, i, j] = (1 - u) * ((1 - v) * x[:, a, c] + v * x[:, a, d])
            out[:, i, j] += u * ((1 - v) * x[:, b, c] + v * x[:, b, d])
    return out


@pytest.mark.parametrize("aligned", [False, True])
@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(1, 5))
def test_rows_are_resized_as_the_whole_map(aligned, sizes, step):
    height, width, *size = sizes
    x = torch.rand(1, 2, height, width, dtype=torch.float64)
    expected = naive_resize(x[0].numpy(), size, aligned)
    bands = [Resized(Given(x), tuple(size), aligned).rows(i, min(i + step, size[0])) for i in range(0, size[0], step)]
    np.testing.assert_allclose(torch.cat(bands, -2)[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("merge", ["softmax", "logits"])
@pytest.mark.parametrize("window", [None, (7, 6)])
def test_views_agree_with_the_naive_version(merge, window):
    network, seen = Network(), images(count=1)
    protocol = Protocol(window=window, scales=(0.5, 1.5), flip=True, merge=merge, short_side=15, align_corners=True)
    total = np.zeros((4, 11, 14))
    for size in ((8, 10), (23, 29)):  # 15 × 0.5 and × 1.5, half up: 8 and 23; 14 × 8/11 and × 23/11
        assert size in {protocol.view((11, 14), scale) for scale in protocol.scales}
        image = naive_resize(seen[0].numpy(), size, aligned=False)
        for flip in (1, -1):
            shown = torch.from_numpy(image[:, :, ::flip].copy()).float()
            if window is None:
                logits = network(shown[None])[0].detach().numpy()
            else:
                logits = naive_windows(network, shown, window, protocol.steps)
            logits = naive_resize(logits[:, :, ::flip], (11, 14), aligned=True)
            if merge == "softmax":
                logits = np.exp(logits) / np.exp(logits).sum(0)
            total += logits / 4
    np.testing.assert_allclose(infer(network, seen, protocol)[0].numpy(), total, atol=1e-5)


# Properties.

PROTOCOLS = {
    "plain": Protocol(),
    "windows": Protocol(window=(7, 6)),
    "sides": Protocol(short_side=20, long_side=24),
    "views": Protocol(scales=(0.5, 1, 1.7), flip=True),
    "aligned views": Protocol(scales=(0.5, 1, 1.7), flip=True, merge="logits", align_corners=True),
    "all": Protocol(window=(9, 9), stride=(4, 9), short_side=17, scales=(0.6, 1.1), flip=True),
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("size", [None, (9, 31)])
def test_bands_change_nothing(name, size, monkeypatch):
    network, seen, protocol = Network(stride=2), images(), PROTOCOLS[name]
    whole = infer(network, seen, protocol, size=size)
    assert whole.shape == (2, 4, *(size or (11, 14)))
    assert torch.equal(infer_ids(network, seen, protocol, size=size).long(), whole.argmax(1))
    monkeypatch.setattr(module, "WHOLE", 1)
    for pixels in (1, 14 * 3, 14 * 8):
        monkeypatch.setattr(module, "BAND", pixels)
        found = infer(network, seen, protocol, size=size)
        torch.testing.assert_close(found, whole, rtol=0, atol=2e-6)
        assert torch.equal(infer_ids(network, seen, protocol, size=size).long(), found.argmax(1))


def test_windows_keep_the_rows_that_they_are_at(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 2)
    seen = torch.rand(1, 3, 200, 30)
    windows = Windows(Network(), Given(seen), (16, 16), (5, 16), False, torch.device("cpu"))
    whole = infer(windows.network, seen, Protocol(window=(16, 16), stride=(5, 16)))
    found = []
    for top in range(0, 200, 7):
        with torch.no_grad():
            found.append(windows.rows(top, min(200, top + 7)))
        assert sum(block.shape[-2] for block in windows.sums.values()) <= 7 + 16 + 2
    assert torch.equal(torch.cat(found, -2), whole)


def test_a_plain_protocol_is_the_network():
    network, seen = build_model("pspnet_resnet18_quarter", num_classes=3).train(), images(32, 48)
    found = infer(network, seen)
    assert network.training
    assert not found.requires_grad
    assert torch.equal(found, network.eval()(seen))
    half = (seen * 255).round().to(torch.uint8)
    assert torch.equal(infer(network, half), network(half.float() / 255))


@pytest.mark.parametrize("own", [False, True])
def test_a_network_says_how_its_logits_are_resized(own):
    network, seen = Network(stride=2), images()
    network.align_corners = own
    for asked in (None, False, True):
        expected = F.interpolate(
            network(seen), (11, 14), mode="bilinear", align_corners=own if asked is None else asked
        )
        assert torch.equal(infer(network, seen, Protocol(align_corners=asked)), expected)


def test_classes_are_told_before_anything_is_counted():
    told = []
    infer_ids(Network(classes=7), images(), check=told.append)
    assert told == [7]
    assert infer_ids(Network(classes=300), images()).dtype == torch.int64


def test_the_truth_is_not_resized():
    dataset = build_dataset("synthetic", "val", images=2, size=(32, 40))
    network = build_model("pspnet_resnet18_quarter", num_classes=11)
    plain = evaluate(network, dataset)
    pixels = sum(map(sum, plain["confusion"]))
    protocol = Protocol(short_side=48, flip=True, window=(40, 40), absent="zero")
    result = evaluate(network, dataset, protocol=protocol, per_image=True)
    assert sum(map(sum, result["confusion"])) == pixels
    assert result["confusion"] != plain["confusion"]
    assert result["protocol"]["window"] == [40, 40]
    assert result["protocol"]["stride"] == [27, 27]
    assert result["miou"] == pytest.approx(sum(iou or 0 for iou in result["iou"].values()) / 11)
    assert plain["size"] is None
    assert evaluate(network, dataset, size=(12, 16))["size"] == [12, 16]
    assert read_protocol(result["protocol"]) == Protocol(**{**asdict(protocol), "stride": (27, 27)})


# Configurations.

BASE = {"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18"}}


def test_defaults_are_those_of_the_protocol():
    assert EvalConfig().build() == Protocol()
    assert list(EvalConfig.model_fields)[1:] == list(asdict(Protocol()))
    assert load_config(BASE).eval.build() == Protocol()


def test_presets_follow_the_data():
    assert set(PRESETS) == set(EvalConfig.model_fields["protocol"].annotation.__args__[0].__args__)
    for name in MMSEG_SIDES:
        protocol = named_protocol("mmseg", name)
        assert (protocol.short_side, protocol.long_side) == MMSEG_SIDES[name]
    assert named_protocol("mmseg", "camvid") == Protocol()
    for name in ("cirkd", "skd"):
        assert named_protocol(name) == Protocol(merge="logits", align_corners=True, absent="zero")
    assert named_protocol("ade_kit") == Protocol(absent="zero")
    assert named_protocol("cityscapes") == Protocol()
    with pytest.raises(ValueError, match="protocol: expected one of mmseg, cirkd, skd, ade_kit, cityscapes, got 'x'"):
        preset("x", None)


def test_keys_change_a_preset_and_a_preset_puts_keys_back():
    config = load_config({**BASE, "eval": {"protocol": "cirkd", "absent": "skip", "flip": True}})
    assert config.eval.build() == Protocol(merge="logits", align_corners=True, flip=True)
    again = load_config(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again.eval.build() == config.eval.build()
    assert "align_corners: true" in dump_config(config)
    written = config.model_dump(mode="json")
    assert load_config(written, ["eval.protocol=ade_kit"]).eval.build() == Protocol(absent="zero")
    assert load_config(written, ["eval.scales=[0.5, 1]", "eval.protocol=ade_kit"]).eval.build() == Protocol(
        absent="zero", scales=(0.5, 1)
    )
    assert load_config(written, ["eval.flip=false"]).eval.describe()["name"] == "cirkd"


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"windows": [1, 1]}, "unknown key eval.windows; did you mean window?"),
        ({"window": [0, 4]}, r"eval.window: expected \(height, width\) in pixels, got \(0, 4\)"),
        ({"stride": [4, 4]}, r"eval.stride: \[4, 4\] without a window"),
        ({"window": [4, 4], "stride": [4, 5]}, r"eval.stride: \[4, 5\] is more than the window \[4, 4\]"),
        ({"short_side": 0}, "eval.short_side: expected pixels, got 0"),
        ({"scales": []}, "eval.scales: expected factors such as"),
        ({"scales": [0]}, "eval.scales: expected factors such as"),
        ({"merge": "max"}, "eval.merge: Input should be 'softmax' or 'logits'"),
        ({"protocol": "mmsge"}, "eval.protocol: Input should be 'mmseg'"),
    ],
)
def test_mistakes_in_the_section_are_one_line(section, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        load_config({**BASE, "eval": section})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"window": 3}, "window: expected"),
        ({"window": (3, 4.5)}, "window: expected"),
        ({"long_side": True}, "long_side: expected pixels, got True"),
        ({"scales": 1}, "scales: expected"),
        ({"merge": "mean"}, "merge: expected softmax or logits, got 'mean'"),
        ({"absent": None}, "absent: expected skip or zero, got None"),
    ],
)
def test_mistakes_in_a_protocol(values, line):
    with pytest.raises(ValueError, match=line):
        Protocol(**values)


def test_in_words():
    told = {**Protocol(window=(9, 9), short_side=3, scales=(0.5, 1), flip=True, merge="logits").as_dict(), "name": "x"}
    assert in_words(told) == (
        "protocol x: windows of 9×9 every 6×6, resized to short side 3, scales 0.5 1, flipped, mean of logits; "
        "absent classes are left out"
    )
    assert in_words(Protocol(flip=True).as_dict()).startswith("protocol: whole images, flipped, mean of probabilities;")
