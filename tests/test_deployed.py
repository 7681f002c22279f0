"""The whole way: a run, its file, and what the file says of images without torch."""

import numpy as np
import pytest
from PIL import Image

from conftest import needs_package
from segdistill import build_model, export_student
from segdistill.deploy.predict import predict
from segdistill.engine.student import make_card, save_student
from segdistill.runtime import Predictor

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
