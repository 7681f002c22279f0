"""The table of what could be deployed."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from conftest import needs_package
from segdistill import cli
from segdistill.data import build_dataset
from segdistill.engine.evaluate import evaluate_run
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.measure.deployed import EAGER, benchmark_formats
from segdistill.measure.footprint import peak_rss, work
from segdistill.models import build_model
from segdistill.report import write_report
from segdistill.report.figures import Album
from segdistill.report.formats import draw_formats, stored_formats

DATA = {"name": "synthetic", "size": [32, 32], "images": 3}
CLASSES = list(build_dataset("synthetic", "val", images=1).classes)


def make_run(folder, width, classes=CLASSES, seed=0, images=3, protocol=None):
    torch.manual_seed(seed)
    folder.mkdir()
    network = build_model("fcn_resnet18", num_classes=len(classes), width=width, depth=0.5).eval()
    card = make_card(network, classes, [(0, 0, 0)] * len(classes), protocol=protocol)
    save_student(folder / "student.safetensors", network, card)
    config = {"data": {**DATA, "images": images}, "student": {"name": "fcn_resnet18"}, "eval": protocol or {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_onnx(path, *, outputs, dtype="float32", size=(32, 32), classes=CLASSES, metadata=True):
    """A file that gives class 0 or the blue values as class numbers: a 1×1 convolution and what belongs around it."""
    import onnx

    helper, types = onnx.helper, onnx.TensorProto
    kind = {"float32": types.FLOAT, "uint8": types.UINT8}[dtype]
    weight = np.zeros((len(classes), 3, 1, 1), np.float32)
    weight[1, 2] = 1.0
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=types.FLOAT),
        helper.make_node("Conv", ["real", "w"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["wide"], axis=1, keepdims=0),
        helper.make_node("Cast", ["wide"], ["ids"], to=types.UINT8),
    ]
    known = {
        "logits": helper.make_tensor_value_info("logits", types.FLOAT, [1, len(classes), *size]),
        "ids": helper.make_tensor_value_info("ids", types.UINT8, [1, *size]),
    }
    image = helper.make_tensor_value_info("image", kind, [1, 3, *size])
    graph = helper.make_graph(
        nodes, "g", [image], [known[name] for name in outputs], [onnx.numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        told = {
            "schema": 1,
            "classes": list(classes),
            "palette": [[0, 0, 0]] * len(classes),
            "align_corners": False,
            "input": {"name": "image", "size": list(size), "dtype": dtype},
        }
        helper.set_model_props(model, {"segdistill": json.dumps(told)})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def runtime():
    for name in ("onnx", "onnxruntime"):
        needs_package(name, "export")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, width, seed in (("teacher", 0.25, 1), ("baseline", 0.1, 2), ("student", 0.1, 3)):
        make_run(folder / name, width, seed=seed)
    write_onnx(folder / "student" / "a.onnx", outputs=["logits"])
    write_onnx(folder / "student" / "b.onnx", outputs=["ids"], dtype="uint8", size=(16, 16))
    return folder


@pytest.fixture(scope="module")
def result(runs):
    files = [write_onnx(runs / "elsewhere.onnx", outputs=["ids", "logits"]), runs / "student" / "a.onnx"]
    roles = {"baseline": runs / "baseline", "teacher": runs / "teacher"}
    return benchmark_formats(runs / "student", **roles, files=files, repeats=2, threads=1)


def test_every_file_is_a_row(result, runs):
    rows = [(row["role"], row["format"]) for row in result["rows"]]
    assert rows == [
        ("teacher", EAGER),
        ("baseline", EAGER),
        ("student", EAGER),
        ("student", "a.onnx"),
        ("student", "b.onnx"),
        ("student", "elsewhere.onnx"),
    ]
    for row in result["rows"]:
        assert 0 < row["ms"] <= row["ms_p95"]
        assert 0 <= row["miou"] <= 1
    assert result["rows"][2]["bytes"] == (runs / "student" / "student.safetensors").stat().st_size
    assert (result["images"], result["size"], result["threads"]) == (3, [32, 32], 1)


def test_the_miou_is_that_of_an_evaluation(tmp_path):
    run = make_run(tmp_path / "run", 0.1, images=1, protocol={"absent": "zero"})
    (row,) = benchmark_formats(run, repeats=1, threads=1)["rows"]
    zero, skip = (evaluate_run(run, overrides=[f"eval.absent={a}"], device="cpu")["miou"] for a in ("zero", "skip"))
    assert row["miou"] == zero < skip


def test_agreement_is_with_the_student_in_pytorch(result, runs):
    by_name = {(row["role"], row["format"]): row for row in result["rows"]}
    assert by_name["student", EAGER]["agreement"] == 1
    network, same, pixels = load_student(runs / "student"), 0, 0
    for image, _ in (build_dataset("synthetic", "val", images=3, size=[32, 32])[i] for i in range(3)):
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        theirs = (image[2] > 0).long()  # the class of the largest logit: 1 where there is any blue
        with torch.no_grad():
            same += int((network(image[None]).argmax(1)[0] == theirs).sum())
        pixels += theirs.numel()
    assert by_name["student", "a.onnx"]["agreement"] == pytest.approx(same / pixels, abs=1e-3)
    alike = by_name["student", "elsewhere.onnx"]
    assert alike["miou"] == by_name["student", "a.onnx"]["miou"]


def test_memory_is_that_of_a_process_with_this_file_alone(result, runs, tmp_path):
    memory = {row["format"]: row["peak_rss"] for row in result["rows"] if row["role"] == "student"}
    if None not in memory.values():
        assert 0 < memory["a.onnx"] < memory[EAGER]  # PyTorch is not loaded
    assert peak_rss(tmp_path / "none.onnx", (8, 8), 1) is None
    work(str(runs / "student" / "a.onnx"), (32, 32), 1)
    work(str(runs / "student"), (32, 32), torch.get_num_threads())
    file = str(runs / "student" / "b.onnx")
    code = f"import sys; from segdistill.measure.footprint import work; work({file!r}, (9, 9), 1)"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_without_data_or_with_other_classes_nothing_is_scored(runs, tmp_path):
    other = make_run(tmp_path / "other", 0.1, classes=["a", "b"])
    found = benchmark_formats(runs / "student", teacher=other, images=1, repeats=1)
    assert [row["miou"] is None for row in found["rows"]][:2] == [True, False]
    assert found["images"] == 1
    (other / "config.yaml").unlink()
    said = []
    found = benchmark_formats(other, repeats=1, size=(32, 48), say=said.append)
    assert (found["rows"][0]["miou"], found["images"]) == (None, 0)
    assert "no config.yaml" in said[0]
    (other / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "camvid", "root": "/nowhere"}, "student": {}}))
    benchmark_formats(other, repeats=1, size=(32, 48), say=said.append)
    assert said[1].startswith("nothing is scored: ")


def test_what_is_no_students_file_is_one_line(runs, tmp_path):
    with pytest.raises(ValueError, match="no student at"):
        benchmark_formats(runs / "baseline", files=[tmp_path / "x.onnx"])
    (tmp_path / "x.onnx").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a readable ONNX file, or damaged"):
        benchmark_formats(runs / "baseline", files=[tmp_path / "x.onnx"])
    write_onnx(tmp_path / "x.onnx", outputs=["ids"], metadata=False)
    with pytest.raises(ValueError, match="was not written by `segdistill export`"):
        benchmark_formats(runs / "baseline", files=[tmp_path / "x.onnx"])
    with pytest.raises(ValueError, match="repeats and threads of at least 1"):
        benchmark_formats(runs / "baseline", repeats=0)


def test_the_report_shows_them(result, runs, tmp_path):
    assert stored_formats(tmp_path) is None
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": []}))  # of `benchmark --json`
    assert stored_formats(tmp_path) is None
    (tmp_path / "benchmark.json").write_text(json.dumps(result))
    drawing = draw_formats(Album(tmp_path), stored_formats(tmp_path))
    for told in ("student, a.onnx", "teacher, PyTorch", "latency, ms (32×32, 1 thread)", "file, MB"):
        assert told in drawing.svg
    folder = tmp_path / "run"
    shutil.copytree(runs / "student", folder)
    scores = {"miou": 0.5, "macc": 0.5, "pixel_accuracy": 0.5, "iou": dict.fromkeys(CLASSES, 0.5)}
    (folder / "summary.json").write_text(
        json.dumps({**scores, "steps": 1, "student": "fcn_resnet18", "method": ["none"]})
    )
    (folder / "benchmark.json").write_text(json.dumps(result))
    page = write_report([folder], out=tmp_path / "report", images=0, say=lambda line: None)
    assert "mIoU by format" in page.read_text()


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["segdistill", "benchmark", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_writes_beside_the_run(runs, monkeypatch, capsys):
    assert call(monkeypatch, runs / "student", "--formats", "--repeats", 1, "--images", 1) == 0
    out = capsys.readouterr().out
    assert "b.onnx" in out
    assert "100.00" in out
    assert (runs / "student" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((runs / "student" / "benchmark.json").read_text())["rows"]) == 3
    assert call(monkeypatch, runs / "student", "--formats", "--onnx") == 2
    assert "leave out --method" in capsys.readouterr().err
    assert call(monkeypatch, runs / "student", "--images", 1) == 2
    assert "are of --formats" in capsys.readouterr().err
