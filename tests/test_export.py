"""Exported files: that they compute what the student computes, on any size where they say so, or are not written."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm.layers.padding
import torch
import torch.nn.functional as F
from torch import nn

from conftest import needs_package
from faults import config
from segdistill import build_model, distill, export_student, load_student
from segdistill.deploy import child, formats, graph
from segdistill.deploy import export as module
from segdistill.deploy.graph import Interface, as_float, deployed, to_onnx
from segdistill.deploy.locate import first_difference
from segdistill.deploy.metadata import make_metadata
from segdistill.deploy.portable import cell_averages, portable, same_padding
from segdistill.deploy.quantize import Quantizer, search
from segdistill.deploy.verify import Check, other_sizes, verify
from segdistill.engine.student import make_card, save_student
from segdistill.taps import has_size

CLASSES = ["road", "sky", "car", "tree", "sign"]
PALETTE = [(128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35), (220, 220, 0)]
SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
             "num_attention_heads": [1, 1, 1, 1]}  # fmt: skip
STUDENTS = {
    "pspnet_resnet18": {"head_width": 32},
    "deeplabv3plus_tf_efficientnet_lite0": {"head_width": 32},
    "espnet": {"q": 2},
    "smp:Unet:resnet18": {"arguments": {"decoder_channels": [16, 16, 8, 8, 8]}},
    "hf:nvidia/mit-b0": {"config": SEGFORMER},
}
EXTRAS = {"smp": ("segmentation_models_pytorch", "smp"), "hf": ("transformers", "hf")}
SLOW = ("deeplabv3plus_tf_efficientnet_lite0", "hf:nvidia/mit-b0")
SMALL = "pspnet_resnet18_quarter"


def runtime():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs_package(package, "export")


@pytest.fixture(autouse=True)
def _runtime():
    runtime()


def save(path, name=SMALL, *, classes=CLASSES, **options):
    """A student's file with random weights, of which batch norm has seen something."""
    network = build_model(name, num_classes=len(CLASSES), **options)
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(2, 3, 64, 96))
    save_student(path, network, make_card(network.eval(), classes, PALETTE, size=[64, 96], data="mine"))
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save(tmp_path_factory.mktemp("student") / "student.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the built-in data that learned something."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    data = {"size": [64, 64], "crop": [64, 64], "images": 32}
    distill(config(data=data, train={"steps": 60, "eval_every": 60, "lr": 0.05}), out=folder)
    return folder


@pytest.fixture(scope="module")
def in_float(trained, tmp_path_factory):
    """The same as a file in float32."""
    runtime()
    path = tmp_path_factory.mktemp("files") / "float.onnx"
    export_student(trained, path, images=1, timeout=None)
    return path


@pytest.fixture
def segdistill(segdistill):
    return partial(segdistill, "export")


def run(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"image": images.numpy()})), strict=True))


def read(path):
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


# What the file computes.


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        pytest.param(name, dynamic, marks=[pytest.mark.slow] * (dynamic and name in SLOW))
        for name in STUDENTS
        for dynamic in (False, True)
    ],
)
def test_a_file_computes_what_its_student_computes(name, dynamic, tmp_path):
    library = name.partition(":")[0]
    if library in EXTRAS:
        needs_package(*EXTRAS[library])
    path, out = save(tmp_path / "student.safetensors", name, **STUDENTS[name]), tmp_path / "student.onnx"
    metadata = export_student(path, out, dynamic=dynamic, timeout=None)
    network = load_student(path)
    shapes = [(1, 64, 96)] if not dynamic else [(1, 64, 96), (2, 75, 107), (3, 33, 130)]
    for count, height, width in shapes:
        images = torch.rand(count, 3, height, width)
        found = run(out, images)
        with torch.no_grad():
            logits = network(images)
        assert found["logits"].shape == logits.shape
        assert found["logits"].dtype == torch.float32
        assert (found["logits"] - logits).abs().max() <= 1e-4 * logits.abs().max()
        assert found["ids"].dtype == torch.uint8
        assert (found["ids"] == logits.argmax(1)).float().mean() > 0.999
    assert metadata["dynamic"] is dynamic
    assert metadata["input"]["size"] == (None if dynamic else [64, 96])
    assert metadata["multiple"] == getattr(network, "multiple", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.onnx", "student.safetensors"]


def test_bytes_go_in_and_class_numbers_come_out(student, tmp_path):
    out = tmp_path / "student.onnx"
    metadata = export_student(student, out, input="uint8", output="ids", timeout=None)
    images = torch.randint(256, (1, 3, 64, 96)).to(torch.uint8)
    found = run(out, images)
    with torch.no_grad():
        expected = load_student(student)(images.float() / 255).argmax(1)
    assert list(found) == ["ids"]
    assert (found["ids"] == expected).all()
    assert metadata["input"] == {
        "name": "image", "dtype": "uint8", "layout": "NCHW", "range": [0, 255], "colour": "RGB", "size": [64, 96],
    }  # fmt: skip
    assert list(metadata["outputs"]) == ["ids"]


def test_logits_alone_are_checked_too(student, tmp_path):
    metadata = export_student(student, tmp_path / "a.onnx", output="logits", size=(32, 64), timeout=None)
    assert list(run(tmp_path / "a.onnx", torch.rand(1, 3, 32, 64))) == ["logits"]
    assert metadata["verification"]["argmax_agreement"] > 0.999
    assert metadata["verification"]["batches"] == [[1, 32, 64]]


def test_the_file_says_what_it_is(student, tmp_path):
    metadata = export_student(student, tmp_path / "a.onnx", timeout=None)
    written = read(tmp_path / "a.onnx")
    assert json.loads(written["segdistill"]) == json.loads(json.dumps(metadata))
    assert written["names"] == str(dict(enumerate(CLASSES)))
    assert set(written) == {"segdistill", "names", "description"}
    assert set(metadata) == {
        "schema", "classes", "palette", "ignore_index", "input", "outputs", "dynamic", "multiple", "align_corners",
        "normalisation", "image_range", "eval_size", "protocol", "opset", "precision", "source", "verification",
    }  # fmt: skip
    assert metadata["schema"] == 1
    assert metadata["classes"] == CLASSES
    assert metadata["palette"] == [list(colour) for colour in PALETTE]
    assert metadata["eval_size"] == [64, 96]
    assert metadata["source"]["model"] == SMALL
    assert len(metadata["source"]["sha256"]) == 64
    found = metadata["verification"]
    assert found["images"].startswith("random images: ")
    assert found["miou"] is None
    assert 0 < found["max_difference"] < 1e-4
    assert str(Path(graph.__file__).parent).encode() not in (tmp_path / "a.onnx").read_bytes(), "paths of this machine"


def test_a_run_is_checked_on_its_validation_images(trained, segdistill, tmp_path):
    status, out, err = segdistill(trained, "--out", tmp_path / "new" / "a.onnx", "--dynamic", "--images", 3)
    assert (status, err) == (0, "")
    assert "val of synthetic" in out
    found = json.loads(read(tmp_path / "new" / "a.onnx")["segdistill"])["verification"]
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    assert found["miou"]["student"] == pytest.approx(found["miou"]["file"], abs=1e-3)
    assert found["miou"]["student"] == pytest.approx(summary["miou"], abs=0.2)
    assert found["batches"] == [[1, 64, 64], [1, 65, 67], [3, 64, 96], [1, 84, 108], [3, 64, 64]]
    assert "any size → ids, logits" in out


# Its parts.


@pytest.mark.parametrize("cells", [1, 6, (1, 2), (2, 2), (3, 3), (4, 7), (None, 2)])
def test_averages_over_cells_are_adaptive_pooling(cells):
    for height, width in ((13, 17), (6, 6), (5, 24), (1, 2)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(cell_averages(x, cells), F.adaptive_avg_pool2d(x, cells), atol=1e-6, rtol=1e-6)


def test_whatever_averages_over_cells_is_exported_for_any_size():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(3)
            self.hidden = [nn.AdaptiveAvgPool2d(3)]  # no submodule, as in transformers

        def forward(self, x):
            area = F.interpolate(x, size=(3, 3), mode="area")  # as in smp
            return torch.cat([self.pool(x), self.hidden[0](x), F.adaptive_avg_pool2d(x, 3), area], 1)

    network = Pools()
    run = formats.open_onnx(to_onnx(network, Interface((40, 56), dynamic=True, output="logits")), 1)
    for shape in ((1, 3, 40, 56), (3, 3, 33, 47)):
        images = torch.rand(shape)
        torch.testing.assert_close(torch.from_numpy(run(images.numpy())["logits"]), network(images))


def test_padding_in_whole_numbers_is_timms():
    original = timm.layers.padding.get_same_padding
    cases = [(x, k, s, d) for x in range(1, 40) for k in (1, 2, 3, 5, 7) for s in (1, 2, 3, 4) for d in (1, 2)]
    assert [same_padding(*case) for case in cases] == [original(*case) for case in cases]


def test_a_network_is_not_changed_by_its_export(student):
    network, pooling = load_student(student), F.adaptive_avg_pool2d
    copied = deployed(network, Interface((32, 64)))
    assert all(a is not b for a, b in zip(network.parameters(), copied.parameters(), strict=True))
    with portable():
        assert F.adaptive_avg_pool2d is cell_averages
        assert timm.layers.padding.get_same_padding is same_padding
    assert F.adaptive_avg_pool2d is pooling


def test_a_size_is_compared_with_numbers():
    assert has_size(torch.zeros(1, 1, 2, 3), (2, 3))
    assert not has_size(torch.zeros(1, 1, 2, 3), (3, 2))


def test_sizes_that_are_checked_are_odd_whole_and_neither():
    for size in ((96, 128), (64, 64), (50, 44), (375, 1242), (32, 32)):
        odd, whole, uneven = other_sizes(size)
        assert all(side % 2 for side in odd)
        assert not any(side % 32 for side in whole)
        assert all(side % 32 for side in uneven)
        assert len({size, odd, whole, uneven}) == 4


# What is refused.


def test_a_file_that_computes_something_else_is_not_written(student, segdistill, tmp_path, monkeypatch):
    monkeypatch.setattr("segdistill.deploy.portable.cell_averages", lambda x, cells: 1.5 * cell_averages(x, cells))
    with pytest.raises(ValueError, match=r"decoder\.branches\.0\.0 \(AdaptiveAvgPool2d\)") as caught:
        export_student(student, tmp_path / "a.onnx", timeout=None)
    assert "--tolerance 0.0001" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_that_cannot_be_kept(student, segdistill, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"an earlier one")
    status, _, err = segdistill(student, "--out", tmp_path / "a.onnx", "--tolerance", "1e-12")
    assert status == 2
    assert "more than --tolerance 1e-12; the difference begins at " in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_bytes() == b"an earlier one"


def test_an_exporter_that_does_not_end_is_stopped(student, segdistill, tmp_path):
    status, _, err = segdistill(student, "--out", tmp_path / "a.onnx", "--dynamic", "--timeout", 1)
    assert status == 2
    assert "was not exported within 1 s" in err
    assert "--timeout SECONDS waits longer, and a fixed size" in err
    assert list(tmp_path.iterdir()) == []


def test_a_child_process_says_what_is_wrong(student, tmp_path, monkeypatch):
    trace = partial(
        child.trace_in_child, student, Interface((32, 32)), "onnx", tmp_path / "graph", 60, allow_code=False
    )
    ended = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: ended)
    for code, told, line in (
        (child.MISTAKE, b"noise\nwhat is wrong\n\n", "^what is wrong$"),
        (-9, b"", "was ended by SIGKILL, as where memory runs out"),
        (1, b"Traceback\nTypeError: x\n", "cannot be exported: TypeError: x"),
    ):
        ended.returncode, ended.stderr = code, told
        with pytest.raises(ValueError, match=line):
            trace()


def test_a_child_process_that_meets_a_mistake(tmp_path):
    request = {"model": str(tmp_path), "format": "onnx", "target": "x", "interface": {"size": [32, 32]}}
    ended = subprocess.run(
        [sys.executable, "-m", child.__name__, json.dumps(request)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == child.MISTAKE
    assert ended.stderr.startswith("no student at ")


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x  # depends on the values: no graph


def test_what_the_exporter_cannot_do_is_one_line(student, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="GuardOnDataDependentSymNode") as caught:
        to_onnx(Undecided(), Interface((32, 32)))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(graph, "as_logits", lambda found: Undecided()(found))
    with pytest.raises(ValueError, match=f"{student} cannot be exported: "):
        export_student(student, tmp_path / "a.onnx", timeout=None)


def test_a_file_that_cannot_run_on_another_size_is_refused(student):
    def fixed(image):
        if image.shape[-2:] != (32, 32):
            raise RuntimeError("Got 64\nexpected 32")
        return {}

    batches = [(torch.zeros(1, 3, 64, 32, dtype=torch.uint8), None)]
    with pytest.raises(ValueError, match=r"cannot run on images of 1×64×32 \(Got 64 expected 32\)"):
        verify(load_student(student), fixed, Interface((32, 32), dynamic=True), batches, CLASSES)


def test_outputs_of_another_shape_or_kind_are_infinitely_far():
    images, logits = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.randn(1, 5, 4, 4)
    own = logits.argmax(1)
    for found, chosen in (
        ({"logits": np.zeros((1, 5, 2, 2), np.float32)}, own),
        ({"logits": np.full((1, 5, 4, 4), np.nan, np.float32)}, own),
        ({}, torch.zeros(1, 2, 2, dtype=torch.long)),
        ({}, torch.full((1, 4, 4), 5)),
    ):
        check = Check(CLASSES)
        check.add(images, logits, logits, found, chosen)
        assert not check.difference <= 1e9
        assert check.worst is images
    check = Check(CLASSES)
    check.add(images, logits, logits, {}, own)
    assert (check.difference, check.agreement, check.miou, check.drop) == (0, 1, None, None)


def test_classes_have_to_be_those_of_the_card_and_of_the_data(trained, tmp_path):
    path = save(tmp_path / "student.safetensors", classes=CLASSES[:3])
    with pytest.raises(ValueError, match="the student gives 5 classes, its card names 3"):
        export_student(path, tmp_path / "a.onnx", timeout=None)
    with pytest.raises(ValueError, match=r"has 3 classes \(road, sky, car\), the data "):
        export_student(path, tmp_path / "a.onnx", config=trained, timeout=None)
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"int8": True, "fp16": True}, "a file has one precision"),
        ({"format": "tflite"}, "format: expected onnx, openvino, executorch, got 'tflite'"),
        ({"images": 0}, "expected at least 1, got 0 and 64"),
        ({"size": (16, 64)}, "size: expected at least 32×32, got 16×64"),
        ({"format": "executorch", "dynamic": True}, "give size instead of dynamic"),
        ({"format": "executorch", "int8": True}, "int8 is for onnx and openvino"),
        ({"format": "openvino", "fp16": True}, "leave fp16 out"),
        ({"int8": True}, r"int8 needs images of the kind that it is for; give --config \(random images: "),
    ],
)
def test_options_that_do_not_fit(student, tmp_path, options, line):
    with pytest.raises(ValueError, match=line):
        export_student(student, tmp_path / "a.onnx", timeout=None, **options)


def test_bad_places_are_refused_before_any_work(student, segdistill, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_student", None)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for out, line in (
        ("a.pt", r"expected a name that ends in .onnx, as a.onnx"),
        ("folder.onnx", "a folder; name a file in it"),
        ("file/a.onnx", "a file is where the folder should be"),
    ):
        status, _, err = segdistill(student, "--out", tmp_path / out)
        assert status == 2
        assert line in err

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    status, _, err = segdistill(student, "--out", tmp_path / "a.onnx")
    assert status == 2
    assert "(Permission denied); name another place with --out" in err


def test_a_size_has_to_come_from_somewhere(tmp_path):
    network = build_model(SMALL, num_classes=5)
    save_student(tmp_path / "s.safetensors", network, make_card(network, CLASSES, PALETTE))
    with pytest.raises(ValueError, match="does not say how large its images are; give --size HEIGHT WIDTH"):
        export_student(tmp_path / "s.safetensors", tmp_path / "a.onnx", timeout=None)


def test_what_is_missing_is_one_line(student, segdistill, tmp_path, monkeypatch):
    status, _, err = segdistill(tmp_path, "--out", tmp_path / "a.onnx")
    assert status == 2
    assert "no student at" in err
    status, _, err = segdistill(student, "--out", tmp_path / "a.onnx", "--dynamic", "--size", 64, 64)
    assert status == 2
    assert "give one of them" in err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = segdistill(student, "--out", tmp_path / "a.onnx")
    assert status == 2
    assert "pip install 'segdistill[export]'" in err


def test_a_package_that_cannot_be_loaded_names_both(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(formats, "import_module", broken)
    with pytest.raises(ValueError, match=r"cannot be loaded beside torch .*undefined symbol.*'segdistill\[openvino\]'"):
        formats.FORMATS["openvino"].check()


# Where the difference begins.


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.three(self.two(self.one(x)))


def test_the_first_module_that_differs_is_named():
    network, interface = Stack(), Interface((32, 32))
    images = torch.randint(256, (1, 3, 32, 32)).to(torch.uint8)

    def opened(change):
        def open_module(spoken, names):
            change(spoken.network)

            def run(image):
                with torch.no_grad():
                    return {n: v.numpy() for n, v in zip(names, spoken(torch.from_numpy(image)), strict=True)}

            return run

        return open_module

    assert first_difference(network, interface, images, 1e-6, opened(lambda n: None)) is None
    place = first_difference(network, interface, images, 1e-6, opened(lambda n: n.two.weight.data.mul_(2)))
    assert (place.path, place.kind) == ("two", "Conv2d")
    place = first_difference(
        network, interface, images, 1e-6, opened(lambda n: setattr(n, "one", nn.Conv2d(3, 4, 1, stride=2)))
    )
    assert (place.path, place.difference) == ("one", float("inf"))
    assert first_difference(network, interface, images, 1e-6, None) is None  # no explanation is no new mistake


# Smaller numbers.


def test_int8_keeps_the_mean_iou_and_is_smaller(trained, in_float, segdistill, tmp_path):
    status, out, err = segdistill(trained, "--out", tmp_path / "a.onnx", "--int8", "--calibrate", 8, "--images", 8)
    assert (status, err) == (0, "")
    metadata = json.loads(read(tmp_path / "a.onnx")["segdistill"])
    found = metadata["verification"]
    assert metadata["precision"] == "int8"
    assert 100 * (found["miou"]["student"] - found["miou"]["file"]) <= 0.5
    assert 1e-4 < found["max_difference"] < 0.5
    assert (tmp_path / "a.onnx").stat().st_size < 0.5 * in_float.stat().st_size
    assert metadata["quantisation"]["calibration"] == 8
    assert metadata["quantisation"]["layers"] > 20
    assert found["cpu"]["threads"] == 1
    assert found["cpu"]["ratio"] > 0
    assert "CPU time of an image, one thread" in out
    assert "calibrating on 8 images (train of synthetic)" in out
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        logits = load_student(trained)(images)
    assert (run(tmp_path / "a.onnx", images)["logits"] - logits).abs().max() < 0.5 * logits.abs().max()


class Scripted:
    """A quantiser of eight layers whose loss is known: layers 5 and 2 cost most."""

    def __init__(self, costs):
        self.layers = [f"layer{i}" for i in range(8)]
        self.costs = costs

    def build(self, *, keep=()):
        return frozenset(keep)

    def ranked(self, images, progress=None):
        return sorted(self.layers, key=lambda layer: -self.costs.get(layer, 0))

    def label(self, layer):
        return layer.upper()

    def measure(self, kept):
        return Lossy(sum(cost for layer, cost in self.costs.items() if layer not in kept))


class Lossy:
    def __init__(self, drop):
        self.drop = drop


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ({}, []),
        ({"layer5": 3.0}, ["LAYER5"]),
        ({"layer5": 3.0, "layer2": 2.0, "layer0": 1.0}, ["LAYER5", "LAYER2", "LAYER0"]),
    ],
)
def test_as_few_layers_as_needed_stay_in_float(costs, kept):
    quantizer = Scripted(costs)
    found = search(quantizer, quantizer.measure, [], 0.5, lambda line: None)
    assert found.kept == kept
    assert found.check.drop <= 0.5


def test_a_loss_that_no_layer_explains_is_refused():
    quantizer = Scripted({"elsewhere": 2.0})
    with pytest.raises(ValueError, match=r"2\.00 points of mIoU even with all layers in float, --max-drop 0\.5"):
        search(quantizer, quantizer.measure, [], 0.5, lambda line: None)


def test_int8_needs_labels():
    with pytest.raises(ValueError, match="needs validation images with labels"):
        search(Scripted({}), lambda graph: Lossy(None), [], 0.5, lambda line: None)


def test_layers_are_ranked_by_the_error_that_they_cause():
    torch.manual_seed(0)
    network = Stack()
    with torch.no_grad():
        network.two.weight[0] *= 1000  # whose range then hides what the other channels say
        network.three.weight[:, 0] /= 1000
    images = [torch.rand(1, 3, 32, 32).numpy() for _ in range(2)]
    quantizer = Quantizer(to_onnx(network, Interface((32, 32))), images)
    ranking = quantizer.ranked(images)
    assert sorted(ranking) == sorted(quantizer.layers)
    assert {quantizer.label(layer) for layer in ranking} == {"one", "two", "three"}
    assert quantizer.label(ranking[-1]) == "one", "only the others have to do with the wide range"


def test_half_precision_halves_the_file_and_takes_and_gives_floats(trained, in_float, tmp_path):
    metadata = export_student(trained, tmp_path / "half.onnx", fp16=True, images=4, timeout=None)
    assert metadata["precision"] == "fp16"
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * in_float.stat().st_size
    assert run(tmp_path / "half.onnx", torch.rand(1, 3, 64, 64))["logits"].dtype == torch.float32
    assert 1e-6 < metadata["verification"]["max_difference"] < 0.02
    with pytest.raises(ValueError, match="more than --tolerance 1e-06; the difference begins at"):
        export_student(trained, tmp_path / "b.onnx", fp16=True, images=2, tolerance=1e-6, timeout=None)
    with pytest.raises(ValueError, match=r"points of mIoU, more than --max-drop -50"):
        export_student(trained, tmp_path / "b.onnx", fp16=True, images=2, max_drop=-50, timeout=None)
    assert not (tmp_path / "b.onnx").exists()


# Other formats.


def test_openvino_computes_the_same(trained, segdistill, tmp_path):
    needs_package("openvino", "openvino")
    import openvino

    status, out, err = segdistill(trained, "--out", tmp_path / "a.xml", "--format", "openvino", "--input", "uint8")
    assert (status, err) == (0, "")
    assert "checked in openvino" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    core = openvino.Core()
    model = core.read_model(tmp_path / "a.xml")
    metadata = json.loads(model.get_rt_info("segdistill").astype(str))
    assert metadata["verification"]["runtime"].startswith("openvino ")
    images = torch.randint(256, (1, 3, 64, 64)).to(torch.uint8)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled({"image": images.numpy()})[compiled.output("logits")]
    with torch.no_grad():
        expected = load_student(trained)(as_float(images))
    assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_executorch_computes_the_same_where_it_is_installed(student, segdistill, tmp_path):
    try:
        import executorch  # noqa: F401
    except ImportError:
        status, _, err = segdistill(student, "--out", tmp_path / "a.pte", "--format", "executorch")
        assert status == 2
        assert "pip install 'segdistill[executorch]'" in err
        return
    metadata = export_student(student, tmp_path / "a.pte", format="executorch", timeout=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pte", "a.pte.json"]
    assert json.loads((tmp_path / "a.pte.json").read_text(encoding="utf-8")) == json.loads(json.dumps(metadata))
    assert metadata["verification"]["max_difference"] < 1e-4


def test_metadata_of_a_network_of_ones_own_names_its_class():
    card = {"classes": ["a"], "palette": None, "network": None}
    metadata = make_metadata(Stack(), card, Interface((32, 32)), digest="0", precision="fp32")
    assert metadata["source"]["model"] == "Stack"
    assert (metadata["palette"], metadata["eval_size"]) == ([], None)
