"""An ONNX file wherever a run is taken."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from faults import config
from patches import CLASSES, COLOURS, Patches, expected_logits, write_onnx
from segdistill import build_dataset, distill, evaluate, load_student
from segdistill.data.dataset import SegmentationDataset
from segdistill.engine.student import read_card
from segdistill.runtime import Predictor


class Noise(SegmentationDataset):
    classes, palette = CLASSES, [tuple(colour) for colour in COLOURS]

    def __init__(self, size):
        self.names, self.size = [f"{index}" for index in range(5)], size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return tuple(
            torch.randint(0, top, shape, generator=generator, dtype=torch.uint8)
            for top, shape in ((256, (3, *self.size)), (5, self.size))
        )


@pytest.mark.parametrize("size", [None, (24, 32)])
@pytest.mark.parametrize("outputs", [("ids", "logits"), ("logits",)])
def test_figures_are_the_network_s(tmp_path, size, outputs):
    file = write_onnx(tmp_path / "a.onnx", size, outputs=outputs)
    data = Noise((24, 32))
    expected, found = evaluate(Patches(), data, batch_size=2), evaluate(file, data, batch_size=2)
    assert found == expected


def test_class_numbers_alone_are_enough(tmp_path):
    file = write_onnx(tmp_path / "a.onnx", outputs=("ids",))
    assert evaluate(file, Noise((24, 32)))["confusion"] == evaluate(Patches(), Noise((24, 32)))["confusion"]


def test_a_smaller_image_is_filled_up(tmp_path):
    network = load_student(write_onnx(tmp_path / "a.onnx"))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    filled = np.pad(pixels, ((0, 4), (0, 22), (0, 0)), mode="edge")
    logits = network(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(logits[0], expected_logits(filled)[:, :20, :10], rtol=0, atol=2e-6)


def test_a_larger_image_is_refused_with_the_ways_out(tmp_path):
    network = load_student(write_onnx(tmp_path / "a.onnx"))
    with pytest.raises(
        ValueError, match=r"takes images of 24×32, these are 48×32; export with --dynamic or --size 48 32"
    ):
        network(torch.zeros(1, 3, 48, 32))


def test_its_card(tmp_path):
    file = write_onnx(tmp_path / "a.onnx", eval_size=[12, 16], image_range=[0, 4095])
    card = read_card(file)
    assert (card["classes"], card["palette"]) == (CLASSES, COLOURS)
    assert (card["size"], card["image_range"]) == ([12, 16], [0, 4095])


def test_predict_takes_it(tmp_path, segdistill):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    file = write_onnx(tmp_path / "a.onnx")
    code, _, err = segdistill("predict", file, tmp_path / "street.png", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out/ids/street.png") as ids:
        np.testing.assert_array_equal(np.asarray(ids), expected_logits(pixels).argmax(0).numpy())


def test_predict_looks_through_windows_where_the_file_takes_one_size(tmp_path, segdistill):
    pixels = np.random.default_rng(0).integers(0, 256, (61, 75, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    for name, facts in {"a": {}, "b": {"protocol": {"stride": [11, 9]}}}.items():
        file = write_onnx(tmp_path / f"{name}.onnx", **facts)
        assert segdistill("predict", file, tmp_path / "street.png", "--out", tmp_path / name)[0] == 0
        with Image.open(tmp_path / name / "ids/street.png") as ids:
            np.testing.assert_array_equal(np.asarray(ids), Predictor(file)(pixels).ids)


def test_eval_takes_it_with_the_data_of_its_run(whole, run, tmp_path, segdistill):
    card = read_card(whole)
    file = write_onnx(run / "student.onnx", None, classes=card["classes"], palette=card["palette"])
    code, _, err = segdistill("eval", file, "--json", tmp_path / "e.json")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["model"] == str(file)
    assert list(found["iou"]) == card["classes"]


@pytest.mark.parametrize("command", [("eval",), ("predict", "a.png")])
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, segdistill, command):
    file = tmp_path / "a.onnx"
    file.write_bytes(b"nothing")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    code, _, err = segdistill(command[0], file, *(tmp_path / name for name in command[1:]))
    assert code == 2
    assert err.startswith(f"segdistill: {file} is not a readable ONNX file, or damaged (")
    assert err.count("\n") == 1


def test_benchmark_times_it(tmp_path, segdistill):
    file = write_onnx(tmp_path / "a.onnx", (32, 64))
    code, out, err = segdistill("benchmark", file, "--size", 32, 64, "--repeats", 1, "--json", tmp_path / "b.json")
    assert (code, err) == (0, "")
    (row,) = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["rows"]
    assert (row["mode"], row["params"], row["flops"], row["peak_mib"]) == ("onnxruntime", None, None, None)
    assert row["ms"] > 0
    assert "onnxruntime" in out
    code, _, err = segdistill("benchmark", file)
    assert (code, err) == (2, f"segdistill: {file} takes images of 32×64 alone; give --size 32 64\n")
    code, _, err = segdistill("benchmark", file, "--teacher", "espnet", "--method", "kd", "--size", 32, 64)
    assert (code, err.count("\n")) == (2, 1)
    assert "needs networks whose maps can be read" in err


def test_an_exported_file_is_not_exported(tmp_path, segdistill):
    file = write_onnx(tmp_path / "a.onnx")
    code, _, err = segdistill("export", file, "--out", tmp_path / "b.onnx")
    assert (code, err) == (2, f"segdistill: {file} is an exported file already; give the run that it was made of\n")


def test_a_student_learns_from_its_logits(tmp_path):
    run = config(data={"images": 4}, train={"steps": 1, "eval_every": 0})
    classes = build_dataset("synthetic", "val", images=1).classes
    file = write_onnx(tmp_path / "a.onnx", None, classes=classes, palette=[[0, 0, 0]] * len(classes))
    distill({**run, "teacher": {"checkpoint": str(file)}, "method": "kd"}, out=tmp_path / "kd")
    assert (tmp_path / "kd/student.safetensors").is_file()
    with pytest.raises(ValueError, match="no tap 'features': OnnxNetwork has"):
        distill({**run, "teacher": {"checkpoint": str(file)}, "method": "mimic"}, out=tmp_path / "mimic")
