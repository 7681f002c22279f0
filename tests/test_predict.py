"""Prediction from files to files: what is taken, what is written, what is said."""

import errno
import inspect
import json
import os
import re
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from conftest import write_image
from patches import write_onnx
from segdistill import build_model
from segdistill.deploy.outputs import CITYSCAPES_LABEL_IDS
from segdistill.deploy.predict import find_images, iterate_predictions, predict
from segdistill.deploy.video import VideoReader, VideoWriter
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.runtime import Predictor

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    network = build_model("pspnet_resnet18_quarter", num_classes=2)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(path, network, make_card(network, ["a", "b"], [(255, 0, 0), (0, 0, 255)]))
    return path


@pytest.fixture(scope="module")
def network(student):
    return load_student(student)


def picture(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (8, 9, 3), dtype=np.uint8)).save(path)


def written(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def taken(*paths, out=None):
    return [name.as_posix() for _, name in find_images(paths, out)]


# What is taken.


def test_hidden_and_foreign_files_are_passed_over(tmp_path):
    picture(tmp_path / "a.png", tmp_path / ".ipynb_checkpoints/a.png", tmp_path / "__MACOSX/a.png")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    assert taken(tmp_path) == ["a.png"]
    assert taken(*tmp_path.glob("[!.]*.*")) == ["a.png"]
    assert taken(tmp_path / "Thumbs.db", tmp_path / "._a.png", tmp_path / "a.png") == ["a.png"]
    with pytest.raises(ValueError, match="no images: give image files, or folders of them"):
        taken(tmp_path / "Thumbs.db")


def test_a_second_run_leaves_its_own_results_out(tmp_path, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png", tmp_path / "d/b.png")
    first = predict(network, ["."], "predictions")
    before = written(tmp_path)
    assert [path.name for path, _ in predict(network, ["."], "predictions")] == [path.name for path, _ in first]
    assert written(tmp_path) == before
    assert [path.name for path, _ in predict(network, ["."], tmp_path / "predictions")] == ["a.png", "b.png"]
    (tmp_path / "link").symlink_to("predictions")
    assert taken(".", out="predictions") == ["a.png", "d/b.png"]
    for path in ("predictions/blend", "predictions/ids/a.png"):
        with pytest.raises(ValueError, match=f"{path}: this is where results are written to; set another folder"):
            predict(network, [path], "predictions")


def test_results_may_lie_among_the_images(tmp_path, network):
    picture(tmp_path / "a.png")
    for _ in range(2):
        assert len(predict(network, [tmp_path], tmp_path)) == 1
    assert written(tmp_path) == ["a.png", "blend/a.png", "colour/a.png", "ids/a.png"]


def test_one_file_twice_is_one_image(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert taken(tmp_path, tmp_path / "a.png", tmp_path / "a.png") == ["a.png", "b.png"]


def test_results_of_one_name_are_refused_before_any_work(tmp_path, network):
    picture(tmp_path / "x/a.png", tmp_path / "y/a.jpg")
    with pytest.raises(ValueError, match=r"x/a\.png and .*y/a\.jpg would both be written to a\.png; rename one"):
        iterate_predictions(network, [tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "a.png").symlink_to("/gone.png")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"a\.png: a link to /gone\.png, which is not there"):
            taken(path)


# What is written.


def test_everything_is_checked_at_the_call_and_written_when_asked_for(tmp_path, network):
    picture(tmp_path / "in/a.png", tmp_path / "in/b.png")
    with pytest.raises(ValueError, match="no image or folder"):
        iterate_predictions(network, [tmp_path / "gone"], tmp_path / "out")
    told = []
    found = iterate_predictions(network, [tmp_path / "in"], tmp_path / "out", progress=lambda *at: told.append(at))
    assert written(tmp_path / "out") == []
    path, ids = next(found)
    assert path.name == "a.png"
    assert ids.shape == (8, 9)
    assert written(tmp_path / "out") == ["blend/a.png", "colour/a.png", "ids/a.png"]
    assert told == [(1, 2)]
    assert len(list(found)) == 1
    assert told == [(1, 2), (2, 2)]


def test_both_functions_take_the_same():
    assert inspect.signature(predict).parameters == inspect.signature(iterate_predictions).parameters


def test_the_network_stays_in_its_mode(tmp_path, network):
    picture(tmp_path / "a.png")
    network.train()
    next(iterate_predictions(network, [tmp_path / "a.png"], tmp_path / "out"))
    assert network.training
    network.eval()


def test_an_image_that_cannot_be_read_leaves_the_others(tmp_path, network):
    picture(tmp_path / "in/a.png", tmp_path / "in/c.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.png: not a readable image \(an empty file"):
        predict(network, [tmp_path / "in"], tmp_path / "out")
    assert written(tmp_path / "out") == ["blend/a.png", "colour/a.png", "ids/a.png"]


def test_an_image_that_vanishes_meanwhile(tmp_path, network):
    picture(tmp_path / "in/a.png", tmp_path / "in/b.png")
    found = iterate_predictions(network, [tmp_path / "in"], tmp_path / "out")
    next(found)
    (tmp_path / "in/b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png: no such file any more"):
        next(found)


def test_a_place_where_nothing_can_be_written(tmp_path, network, monkeypatch):
    picture(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write results into .*file \(.*\); set another folder with --out"):
        predict(network, [tmp_path / "a.png"], tmp_path / "file")

    def refuse(*args, **how):  # the superuser may write anywhere, so it is played
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("segdistill.deploy.predict.tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot write results into .*out \(Permission denied\)"):
        iterate_predictions(network, [tmp_path / "a.png"], tmp_path / "out")


def test_a_full_disk_leaves_no_half_a_file(tmp_path, network, monkeypatch):
    picture(tmp_path / "a.png", tmp_path / "b.png")
    save = Image.Image.save
    count = []

    def full(self, path, *args, **how):
        count.append(path)
        if len(count) == 5:
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, path, *args, **how)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match=r"cannot write .*colour/b\.png: No space left on device; make room"):
        predict(network, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out")
    assert written(tmp_path / "out") == ["blend/a.png", "colour/a.png", "ids/a.png", "ids/b.png"]


def test_an_earlier_result_stays_whole_until_the_new_one_is(tmp_path, network, monkeypatch):
    picture(tmp_path / "a.png")
    predict(network, [tmp_path / "a.png"], tmp_path / "out")
    before = (tmp_path / "out/ids/a.png").read_bytes()

    def full(self, path, *args, **how):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ValueError, match="No space left"):
        predict(network, [tmp_path / "a.png"], tmp_path / "out")
    assert (tmp_path / "out/ids/a.png").read_bytes() == before


def test_a_palette_of_too_few_colours(tmp_path, network):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="the network has 2 classes, the palette 1 colours"):
        predict(network, [tmp_path / "a.png"], tmp_path / "out", palette=[(1, 2, 3)])


# How values are read.


def test_16_bits_are_read_as_in_training(tmp_path, network):
    values = RNG.integers(0, 256, (8, 9), dtype=np.uint16)
    Image.fromarray(values * 256 + 77).save(tmp_path / "deep.png")
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "flat.png")
    (_, deep), (_, flat) = predict(network, [tmp_path / "deep.png", tmp_path / "flat.png"], tmp_path / "out")
    assert deep.equal(flat)
    blends = [np.array(Image.open(tmp_path / f"out/blend/{name}.png")) for name in ("deep", "flat")]
    np.testing.assert_array_equal(*blends)


def test_a_range_is_given_or_known_from_training(tmp_path, student, segdistill):
    values = RNG.random((8, 9), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    Image.fromarray(np.rint(values * 255).astype(np.uint8)).save(tmp_path / "b.png")
    picture_, out = tmp_path / "f.tif", tmp_path / "out"
    status, _, err = segdistill("predict", student, picture_, "--out", out)
    assert status == 2
    assert "f.tif: an image of floats" in err
    assert "--image-range" in err
    assert err.count("\n") == 1
    assert segdistill("predict", student, picture_, "--out", out, "--image-range", 0, 1)[0] == 0
    assert segdistill("predict", student, tmp_path / "b.png", "--out", out)[0] == 0
    blends = [np.array(Image.open(out / f"blend/{name}.png")).tolist() for name in ("f", "b")]
    assert blends[0] == blends[1]
    network = load_student(student)
    card = make_card(network, ["a", "b"], [(255, 0, 0), (0, 0, 255)], image_range=(0.0, 1.0))
    save_student(tmp_path / "s.safetensors", network, card)
    assert segdistill("predict", tmp_path / "s.safetensors", picture_, "--out", tmp_path / "known")[0] == 0
    assert np.array(Image.open(tmp_path / "known/blend/f.png")).tolist() == blends[0]
    status, _, err = segdistill("predict", student, picture_, "--out", out, "--image-range", 1, 1)
    assert status == 2
    assert "image_range: expected the darkest and the brightest value" in err


def test_training_writes_the_range_into_the_card(tmp_path, capsys):
    from segdistill import distill
    from segdistill.engine.evaluate import evaluate_run
    from segdistill.engine.student import read_card

    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for index in range(4):
        mask = RNG.integers(0, 2, (32, 32), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / f"masks/{index}.png")
        Image.fromarray(mask.astype(np.float32) * 3000).save(tmp_path / f"images/{index}.tif")
    data = {"name": "folder", "root": str(tmp_path), "classes": ["a", "b"], "val_fraction": 0.5, "workers": 0,
            "batch_size": 2, "image_range": [0, 3000]}  # fmt: skip
    config = {"data": data, "student": {"name": "pspnet_resnet18_quarter"}, "train": {"steps": 1, "precision": "fp32"}}
    distill(config, out=tmp_path / "run")
    assert read_card(tmp_path / "run")["image_range"] == [0, 3000]
    json.dumps(read_card(tmp_path / "run"))
    ((_, ids),) = predict(tmp_path / "run", [tmp_path / "images/0.tif"], tmp_path / "out")
    assert ids.shape == (32, 32)
    learning = {**config, "teacher": {"checkpoint": str(tmp_path / "run")}, "method": "kd"}
    evaluate_run(tmp_path / "run")
    distill(learning, out=tmp_path / "same")
    assert "was trained with" not in capsys.readouterr().err
    evaluate_run(tmp_path / "run", overrides=["data.image_range=[0, 6000]"])
    line = "run was trained with data.image_range [0.0, 3000.0], these images are read with [0.0, 6000.0]; set data."
    assert line in capsys.readouterr().err
    distill({**learning, "data": {**data, "image_range": [0, 6000]}}, out=tmp_path / "other")
    assert "the teacher was trained with data.image_range [0.0, 3000.0], these" in capsys.readouterr().err


def test_large_images_have_a_way_round(tmp_path, student, segdistill, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    status, _, err = segdistill("predict", student, tmp_path / "a.png", "--out", tmp_path / "out")
    assert status == 2
    assert "a.png: 9×8 = 72 pixels, more than 20; " in err
    assert "--max-pixels" in err
    options = ["--out", tmp_path / "out", "--max-pixels", 72]
    assert segdistill("predict", student, tmp_path / "a.png", *options)[0] == 0


# What is said.


def test_few_images_need_no_counting(tmp_path, student, segdistill):
    picture(tmp_path / "[a].png")
    status, out, err = segdistill("predict", student, tmp_path / "[a].png", "--out", tmp_path / "[out]")
    assert status == 0
    assert err == ""
    assert "[out]/ids" in "".join(out.split())


def clip(path, count=6, size=(24, 32)):
    """A video of noise, a frame each fifth of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path) as video:
        for index in range(count):
            video.write(np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8), Fraction(index, 5))
    return path


def test_every_frame_of_a_video_is_segmented(tmp_path, segdistill):
    file, video = write_onnx(tmp_path / "a.onnx"), clip(tmp_path / "in/street.mp4")
    code, out, err = segdistill("predict", file, tmp_path / "in", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.startswith("6 images → ")
    assert re.search(r"\([\d.e+]+ a second\)$", " ".join(out.split()))
    assert written(tmp_path / "out") == ["blend/street.mp4", "colour/street.mp4"]
    predictor = Predictor(file)
    for (frame, time), (colour, shown) in zip(
        VideoReader(video), VideoReader(tmp_path / "out/colour/street.mp4"), strict=True
    ):
        assert time == shown
        expected = np.asarray(predictor(frame).colour()).astype(int)
        assert np.abs(expected - colour).mean() < 25  # H.264 halves the colours' resolution


def test_frames_are_written_one_by_one_if_wanted(tmp_path):
    file, video = write_onnx(tmp_path / "a.onnx"), clip(tmp_path / "street.mp4")
    told = []
    found = predict(file, [video], tmp_path / "out", frames=True, progress=lambda *given: told.append(given))
    assert told == [(done, 6) for done in range(1, 7)]
    assert [path for path, _ in found] == [video] * 6
    for number, ((frame, _), (_, ids)) in enumerate(zip(VideoReader(video), found, strict=True), 1):
        np.testing.assert_array_equal(ids.numpy(), Predictor(file)(frame).ids)
        with Image.open(tmp_path / f"out/ids/street/{number:06}.png") as written:
            np.testing.assert_array_equal(np.asarray(written), ids.numpy())
        assert (tmp_path / f"out/blend/street/{number:06}.png").is_file()


def test_a_video_that_is_left_half_way_is_not_there(tmp_path):
    predictions = iterate_predictions(
        write_onnx(tmp_path / "a.onnx"), [clip(tmp_path / "street.mp4")], tmp_path / "out"
    )
    next(predictions)
    predictions.close()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_patterns_are_spelled_out(tmp_path):
    for name in ("a/one.png", "a/b/two.png", "three.png"):
        write_image(tmp_path / name, np.zeros((4, 4, 3)))
    (tmp_path / "odd[1].png").write_bytes((tmp_path / "three.png").read_bytes())
    assert taken(*[tmp_path / "**/*o*.png"]) == ["two.png", "one.png", "odd[1].png"]
    assert taken(*[tmp_path / "odd[1].png"]) == ["odd[1].png"]  # a file is no pattern
    with pytest.raises(ValueError, match=r"no image or folder fits the pattern .*/x\*\.png"):
        taken(*[tmp_path / "x*.png"])


def test_a_server_of_images_wants_no_video(tmp_path):
    whole = [*CITYSCAPES_LABEL_IDS]
    file = write_onnx(tmp_path / "a.onnx", classes=whole, palette=[[0, 0, 0]] * len(whole))
    video = clip(tmp_path / "berlin_000000_000019.mp4")
    with pytest.raises(ValueError, match="a video, of which --format cityscapes makes nothing"):
        predict(file, [video], tmp_path / "out", format="cityscapes")
