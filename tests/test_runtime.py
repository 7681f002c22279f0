"""The student where it works: the same classes as the network gives, without torch."""

import shutil
import subprocess
import sys
import venv

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from PIL import Image

from conftest import REPOSITORY
from patches import CLASSES, COLOURS, Patches, expected_logits, write_onnx
from segdistill.data.files import image_pixels, read_image
from segdistill.data.transforms import EvalTransform
from segdistill.engine.protocol import Protocol, infer
from segdistill.runtime import METADATA, Predictor, _resize


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("outputs", [("ids",), ("logits",), ("ids", "logits")])
def test_classes_are_the_network_s(tmp_path, pixels, kind, outputs):
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", kind=kind, outputs=outputs))
    expected = expected_logits(pixels)
    prediction = predictor(pixels)
    assert prediction.ids.dtype == np.uint8
    np.testing.assert_array_equal(prediction.ids, expected.argmax(0).numpy())
    if "logits" in outputs:
        np.testing.assert_allclose(prediction.logits, expected.numpy(), atol=2e-6)
        np.testing.assert_array_equal(predictor(pixels, logits=True).logits, prediction.logits)
    else:
        assert prediction.logits is None


def as_in_training(pixels, size):
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    resized, _ = EvalTransform(size=size)(image, torch.zeros(pixels.shape[:2], dtype=torch.uint8))
    return (resized * 255).round().permute(1, 2, 0).byte().numpy()


@pytest.mark.parametrize("seed", range(30))
def test_resizing_is_that_of_training_to_the_last_bit(seed):
    generator = np.random.default_rng(seed)
    height, width, tall, wide = generator.integers(1, 150, 4)
    pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
    found, expected = _resize(pixels, (tall, wide)), as_in_training(pixels, (int(tall), int(wide)))
    # Processors without these instructions resize in floats.
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert np.abs(found.astype(int) - expected).max() <= (0 if exact else 1)


def test_sizes_of_the_images_own(tmp_path):
    pixels = np.random.default_rng(6).integers(0, 256, (50, 41, 3), np.uint8)
    protocol = Protocol(short_side=24, long_side=28)
    expected = infer(Patches(), torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, protocol)[0]
    facts = {"short_side": 24, "long_side": 28}
    prediction = Predictor(write_onnx(tmp_path / "a.onnx", None, kind="float32", protocol=facts))(pixels, logits=True)
    np.testing.assert_allclose(prediction.logits, expected.numpy(), atol=1e-5)
    rounded = Predictor(write_onnx(tmp_path / "b.onnx", None, protocol=facts))(pixels)
    assert (rounded.ids == prediction.ids).mean() > 0.98  # a file of bytes sees rounded values
    with pytest.raises(ValueError, match="takes images of 24×32 alone, but the student was validated at sizes"):
        Predictor(write_onnx(tmp_path / "c.onnx", protocol=facts))


@pytest.mark.parametrize("size", [None, (24, 32)])
def test_images_are_resized_as_in_the_run_and_results_back(tmp_path, size):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 41, 3), np.uint8)
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", size, eval_size=[24, 32]))
    seen = as_in_training(pixels, (24, 32))
    expected = F.interpolate(expected_logits(seen)[None], (50, 41), mode="bilinear")[0]  # as `predict` does
    prediction = predictor(pixels, logits=True)
    np.testing.assert_array_equal(prediction.ids, expected.argmax(0).numpy())
    np.testing.assert_allclose(prediction.logits, expected.numpy(), atol=2e-6)
    np.testing.assert_array_equal(predictor(pixels).ids, prediction.ids)


def test_another_fixed_size_than_the_run_s_is_the_one_that_the_file_takes(tmp_path, pixels):
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", (24, 32), eval_size=[12, 16]))
    np.testing.assert_array_equal(predictor(pixels).ids, expected_logits(pixels).argmax(0).numpy())


def through_windows(pixels, window):
    """Windows as OpenMMLab defines them, one after the other over the whole image."""
    height, width = pixels.shape[:2]
    (tall, wide), (down, right) = window, (round(window[0] * 2 / 3), round(window[1] * 2 / 3))
    sums, count = torch.zeros(len(CLASSES), height, width), torch.zeros(height, width)
    for row in range(max(height - tall + down - 1, 0) // down + 1):
        for column in range(max(width - wide + right - 1, 0) // right + 1):
            top, left = min(row * down, height - tall), min(column * right, width - wide)
            part = (slice(top, top + tall), slice(left, left + wide))
            sums[:, *part] += expected_logits(pixels[part])
            count[part] += 1
    return sums / count


@pytest.mark.parametrize("size", [(24, 32), (61, 75), (24, 90), (100, 32), (25, 33)])
@pytest.mark.parametrize("free", [False, True])
def test_a_large_image_is_seen_through_windows(tmp_path, size, free):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    file = write_onnx(tmp_path / "a.onnx", None if free else (24, 32))
    predictor = Predictor(file, window=(24, 32)) if free else Predictor(file)
    expected = through_windows(pixels, (24, 32))
    prediction = predictor(pixels, logits=True)
    np.testing.assert_allclose(prediction.logits, expected.numpy(), atol=5e-6)
    np.testing.assert_array_equal(prediction.ids, expected.argmax(0).numpy())
    np.testing.assert_array_equal(predictor(pixels).ids, prediction.ids)


def test_an_image_smaller_than_the_window_is_filled_up_at_its_border(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (20, 10, 3), np.uint8)
    filled = np.pad(pixels, ((0, 4), (0, 22), (0, 0)), mode="edge")
    prediction = Predictor(write_onnx(tmp_path / "a.onnx"))(pixels)
    np.testing.assert_array_equal(prediction.ids, expected_logits(filled).argmax(0).numpy()[:20, :10])


def test_windows_of_a_file_without_logits_vote(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (61, 75, 3), np.uint8)
    full = Predictor(write_onnx(tmp_path / "a.onnx"))(pixels).ids
    votes = Predictor(write_onnx(tmp_path / "b.onnx", outputs=("ids",)))(pixels).ids
    assert votes.shape == full.shape
    assert (votes == full).mean() > 0.5  # five classes: chance is 0.2


def test_several_images_at_a_time(tmp_path):
    generator = np.random.default_rng(4)
    images = [generator.integers(0, 256, (*size, 3), np.uint8) for size in [(24, 32)] * 3 + [(28, 36)] * 2]
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", None))
    taken = []
    run = predictor.run
    predictor.run = lambda stack: (taken.append(len(stack)), run(stack))[1]
    found = list(predictor.stream(images, batch_size=2))
    assert taken == [2, 1, 2]
    for image, prediction in zip(images, found, strict=True):
        np.testing.assert_array_equal(prediction.ids, expected_logits(image).argmax(0).numpy())


def test_an_image_is_read_as_in_training(tmp_path):
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", None))
    generator = np.random.default_rng(5)
    rgb, deep = generator.integers(0, 256, (9, 7, 3), np.uint8), generator.integers(0, 65536, (9, 7), np.uint16)
    turned = Image.fromarray(rgb)
    turned.getexif()[0x0112] = 6
    images = {
        "rgb.png": Image.fromarray(rgb),
        "grey.png": Image.fromarray(rgb[..., 0]),
        "alpha.png": Image.fromarray(np.dstack([rgb, rgb[..., 0]])),
        "palette.png": Image.fromarray(rgb).quantize(16),
        "deep.png": Image.fromarray(deep),
        "turned.jpg": turned,
    }
    for name, image in images.items():
        image.save(tmp_path / name, **({"exif": turned.getexif(), "quality": 100} if name == "turned.jpg" else {}))
        expected = read_image(tmp_path / name)
        np.testing.assert_array_equal(predictor.read(tmp_path / name), expected, name)
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(predictor.read(opened), expected, name)
    assert read_image(tmp_path / "turned.jpg").shape == (7, 9, 3)
    np.testing.assert_array_equal(predictor.read(rgb), rgb)
    np.testing.assert_array_equal(predictor.read(np.dstack([rgb, rgb[..., 0]])), rgb)
    np.testing.assert_array_equal(predictor.read(deep), read_image(tmp_path / "deep.png"))


def test_the_values_of_black_and_white_come_from_the_file(tmp_path):
    deep = np.random.default_rng(5).integers(0, 4096, (9, 7), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", None, image_range=[0, 4095]))
    expected = read_image(tmp_path / "deep.png", image_range=(0, 4095))
    np.testing.assert_array_equal(predictor.read(tmp_path / "deep.png"), expected)
    np.testing.assert_array_equal(predictor.read(deep), expected)


def test_logits_on_demand_are_of_the_same_pixels(tmp_path):
    deep = np.random.default_rng(5).integers(0, 4096, (9, 7), np.uint16)
    predictor = Predictor(write_onnx(tmp_path / "a.onnx", None, image_range=[0, 4095]))
    np.testing.assert_array_equal(predictor(deep).logits, predictor(deep, logits=True).logits)


def test_the_image_of_a_caller_stays_as_it_is():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    image_pixels(image)
    assert image.info["transparency"] == 0


def test_what_a_prediction_shows(tmp_path, pixels):
    prediction = Predictor(write_onnx(tmp_path / "a.onnx"))(pixels)
    colours = np.array(COLOURS, np.uint8)[prediction.ids]
    np.testing.assert_array_equal(np.asarray(prediction.colour()), colours)
    half = (np.float32(0.5) * pixels + np.float32(0.5) * colours).round().astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(prediction.blend()), half)
    shares = prediction.shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert len(shares) == len(CLASSES)
    assert shares["sky"] == (prediction.ids == 2).mean()


def bad_file(tmp_path, kind):
    file = tmp_path / "student.onnx"
    if kind == "missing":
        return file
    if kind == "empty":
        file.touch()
        return file
    write_onnx(file, **({"schema": 2} if kind == "newer" else {}))
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:-400])
    if kind in ("foreign", "no json"):
        model = onnx.load(file)
        del model.metadata_props[:]
        if kind == "no json":
            helper.set_model_props(model, {METADATA: "{"})
        onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no file at .*student.onnx; `segdistill export RUN --out student.onnx` writes one"),
        ("empty", "an empty file, of 0 bytes"),
        ("cut short", "not a readable ONNX file, or damaged"),
        ("foreign", "was not written by `segdistill export`"),
        ("no json", "its metadata cannot be read"),
        ("newer", "metadata of version 2, this segdistill reads 1"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        Predictor(bad_file(tmp_path, kind))
    assert "\n" not in str(caught.value)


def test_images_that_are_none_are_refused_in_one_line(tmp_path, pixels):
    predictor = Predictor(write_onnx(tmp_path / "a.onnx"))
    (tmp_path / "empty.png").touch()
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    for image, message in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "empty.png", "an empty file"),
        (tmp_path / "cut.jpg", "not a readable image"),
        (tmp_path / "bomb.png", "20000×20000 = 400000000 pixels, more than"),
        (np.zeros((4, 4, 3)), r"an array \(4, 4, 3\) of float64; expected \(H,W,3\) uint8 RGB"),
        (np.zeros((0, 4, 3), np.uint8), "an array"),
    ]:
        with pytest.raises(ValueError, match=message):
            predictor(image)


def test_options_that_do_not_fit_are_refused(tmp_path, pixels):
    fixed = write_onnx(tmp_path / "a.onnx", outputs=("ids",))
    with pytest.raises(ValueError, match=r"window 8×8: .* takes 24×32 and nothing else"):
        Predictor(fixed, window=(8, 8))
    with pytest.raises(ValueError, match=r"window 0×8: .* takes windows of at least 1×1"):
        Predictor(write_onnx(tmp_path / "b.onnx", None), window=(0, 8))
    with pytest.raises(ValueError, match="ONNX Runtime has no NoneProvider here; there is"):
        Predictor(fixed, providers=["NoneProvider"])
    with pytest.raises(ValueError, match="gives class numbers alone; export with --output both"):
        Predictor(fixed)(pixels, logits=True)


ALONE = """
import importlib.metadata, sys
allowed = {"segdistill", "numpy", "PIL", "onnxruntime", *sys.stdlib_module_names}
for name in ("flatbuffers", "google", "packaging", "sympy", "mpmath", "coloredlogs", "humanfriendly"):
    allowed.add(name)  # what ONNX Runtime asks for
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nothing())
from segdistill.runtime import Predictor
prediction = Predictor(sys.argv[1])(sys.argv[2])
print(prediction.ids.tobytes().hex())
import segdistill
try:
    segdistill.load_student
except AttributeError as error:
    print(error)
"""


def test_numpy_pillow_and_onnx_runtime_are_enough(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = write_onnx(tmp_path / "a.onnx")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(file), str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    ids, line = done.stdout.splitlines()
    assert bytes.fromhex(ids) == Predictor(file)(pixels).ids.tobytes()
    assert line == "segdistill has no load_student here: lazy-loader is missing; `pip install segdistill`"


@pytest.mark.slow
def test_an_environment_without_torch(tmp_path, pixels):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    source = tmp_path / "source"  # a build leaves folders beside what it builds
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [python, "-m", "pip", "install", "-q"]
    for what in (["numpy", "pillow", "onnxruntime"], ["--no-deps", source]):
        subprocess.run([*pip, *what], check=True)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    file = write_onnx(tmp_path / "a.onnx")
    shown = "print(Predictor(sys.argv[1])(sys.argv[2]).ids.tobytes().hex())"
    command = [python, "-I", "-c", f"import sys; from segdistill.runtime import Predictor; {shown}"]
    done = subprocess.run([*command, file, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout) == Predictor(file)(pixels).ids.tobytes()
    assert subprocess.run([python, "-I", "-c", "import torch"], capture_output=True, check=False).returncode == 1
