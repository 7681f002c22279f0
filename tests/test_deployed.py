"""The whole way: a run, its file, and what the file says of images without torch."""

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import needs_package
from faults import config
from segdistill import build_model, distill, evaluate, export_student
from segdistill.deploy.predict import predict
from segdistill.deploy.serve.models import load_served
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import make_card, save_student
from segdistill.runtime import Predictor
from serving import ask, serving, unpacked
from test_export import EXTRAS, SLOW, STUDENTS

CLASSES = ["road", "sky", "car", "tree", "sign"]
PALETTE = [(128, 64, 128), (70, 130, 180), (0, 0, 142), (107, 142, 35), (220, 220, 0)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Soft noise of two sizes, as bytes, with alpha, turned, in 16 bits."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index, size in enumerate([(64, 96), (64, 96), (90, 131), (200, 311)]):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
        picture = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    return sorted(folder.iterdir())


def student(path, **facts):
    """A student's file that is balanced enough to find every class."""
    network = build_model("pspnet_resnet18_quarter", num_classes=len(CLASSES)).eval()
    save_student(path, network, make_card(network, CLASSES, PALETTE, **facts))
    return path


def agreement(run, file, images, out):
    predictor, same, count = Predictor(file), 0, 0
    for path, ids in predict(run, images, out):
        found = predictor(path).ids
        assert found.shape == tuple(ids.shape)
        same, count = same + int((found == ids.numpy()).sum()), count + found.size
    assert len(np.unique(found)) > 1
    return same / count


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({"size": [64, 96]}, {}),
        ({"size": [64, 96]}, {"dynamic": True, "input": "uint8"}),
        ({}, {"dynamic": True, "size": (64, 96)}),
        ({"protocol": {"window": [64, 96], "stride": [40, 50]}}, {"size": (64, 96)}),
        ({"protocol": {"short_side": 80, "long_side": 400}}, {"dynamic": True, "size": (64, 96)}),
    ],
    ids=["fixed", "dynamic", "whole", "windows", "short side"],
)
def test_a_file_sees_what_its_student_sees(images, facts, options, tmp_path):
    needs_package("onnxruntime", "export")
    run = student(tmp_path / "student.safetensors", **facts)
    export_student(run, tmp_path / "student.onnx", **options)
    assert agreement(run, tmp_path / "student.onnx", images, tmp_path / "out") >= 0.9999


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    distill(config(data={"size": [64, 96], "images": 4}, train={"steps": 1, "eval_every": 0}), out=folder)
    return folder


def go_all_the_way(run, photographs, tmp_path):
    """Export a run for any size, and let predict, the runtime, an evaluation and the server see the same."""
    file = tmp_path / "student.onnx"
    metadata = export_student(run, file, dynamic=True, images=2)
    assert metadata["verification"]["argmax_agreement"] >= 0.9999
    assert agreement(run, file, photographs, tmp_path / "out") >= 0.9999
    data = build_split(load_config(run).data, "val")
    found, expected = (evaluate(model, data, size=metadata["eval_size"]) for model in (file, run))
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-4)
    with serving(load_served("student", file, Runtime(torch.device("cpu")))) as port:
        status, _, told = ask(port, "/predict?format=rle", "POST", photographs[0].read_bytes())
    assert status == 200
    assert np.array_equal(unpacked(told), Predictor(file)(photographs[0]).ids)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in STUDENTS]
)
def test_from_training_to_the_server(name, teacher, images, tmp_path):
    for package in ("onnx", "onnxruntime", "starlette"):
        needs_package(package, "export,serve")
    if name.partition(":")[0] in EXTRAS:
        needs_package(*EXTRAS[name.partition(":")[0]])
    run = config(data={"size": [64, 96], "images": 4}, train={"steps": 2, "eval_every": 0}, method="kd")
    run |= {"student": {"name": name, **STUDENTS[name]}, "teacher": {"checkpoint": str(teacher)}}
    distill(run, out=tmp_path / "run")
    go_all_the_way(tmp_path / "run", images, tmp_path)


def test_from_training_to_the_server_on_camvid(camvid, tmp_path):
    data = {"name": "camvid", "root": str(camvid), "size": [96, 128], "crop": [96, 128], "batch_size": 2, "workers": 0}
    train = {"steps": 2, "precision": "fp32", "optimizer": "adamw", "lr": 1e-3}
    named = {"data": data, "student": {"name": "pspnet_resnet18_quarter"}, "train": train}
    distill({**named, "method": "none"}, out=tmp_path / "teacher")
    distill({**named, "method": "cwd", "teacher": {"checkpoint": str(tmp_path / "teacher")}}, out=tmp_path / "run")
    photographs = sorted((camvid / "test").iterdir())[:3]
    go_all_the_way(tmp_path / "run", photographs, tmp_path)
