"""Predictions under the names and numbers that a benchmark wants, held against the benchmark's own script."""

import importlib
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from conftest import REPOSITORY, needs_package
from segdistill import Protocol, make_card, predict
from segdistill.data.files import read_image
from segdistill.deploy.outputs import BAND, CITYSCAPES_LABEL_IDS, CityscapesLabels, Pictures
from segdistill.engine.protocol import infer_ids
from segdistill.metrics import confusion_matrix, scores

CLASSES = list(CITYSCAPES_LABEL_IDS)
FRAMES = ("frankfurt_000000_000294", "frankfurt_000001_002512", "munster_000000_000019")
RNG = np.random.default_rng(0)


class Coloured(nn.Module):
    """Gives a class by the red of a pixel, in the order of its card's classes."""

    def __init__(self, classes=CLASSES, count=None):
        super().__init__()
        self.count = count or len(classes)
        self.card = make_card(self, classes, [(5, 6, 7)] * len(classes))

    def forward(self, images):
        ids = (images[:, 0] * 255 / 10).round().long().clamp(0, self.count - 1)
        return nn.functional.one_hot(ids, self.count).permute(0, 3, 1, 2).float()


def seen(path):
    return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "leftImg8bit/val"
    for frame in FRAMES:
        path = folder / frame.split("_")[0] / f"{frame}_leftImg8bit.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((10 * RNG.integers(0, 19, (24, 32, 3))).astype(np.uint8)).save(path)
    return folder


def labels(out):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(out, "label_ids").rglob("*.png"))}


def test_label_ids_are_written_under_the_images_names(frames, tmp_path):
    results = dict(predict(Coloured(), [frames], tmp_path / "out", format="cityscapes"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["label_ids"]
    found = labels(tmp_path / "out")
    assert list(found) == [f"{frame}_leftImg8bit.png" for frame in FRAMES]
    table = np.array(list(CITYSCAPES_LABEL_IDS.values()))
    for path, ids in results.items():
        assert found[path.name].dtype == np.uint8
        np.testing.assert_array_equal(found[path.name], table[ids.numpy()])


def test_the_names_of_the_classes_count_not_their_order(frames, tmp_path):
    turned = [name.replace(" ", "_").title() for name in reversed(CLASSES)]
    predict(Coloured(turned), [frames], tmp_path / "out", format="cityscapes")
    plain = seen(frames / f"munster/{FRAMES[2]}_leftImg8bit.png")
    numbers = (plain[0] * 255 / 10).round().long().numpy()
    expected = np.array([CITYSCAPES_LABEL_IDS[name] for name in reversed(CLASSES)])[numbers]
    np.testing.assert_array_equal(labels(tmp_path / "out")[f"{FRAMES[2]}_leftImg8bit.png"], expected)


def test_the_table_is_the_official_one(standard):
    known = np.load(standard / "protocol_cases/cityscapes_lookup.npz")
    assert list(CITYSCAPES_LABEL_IDS.values()) == known["train_id_to_label_id"].tolist()
    assert [known["label_id_to_train_id"][number] for number in CITYSCAPES_LABEL_IDS.values()] == list(range(19))
    official = json.loads((standard / "cityscapes_classes.json").read_text())
    assert official["names"] == CLASSES


def test_the_official_script_finds_what_evaluate_finds(frames, tmp_path, monkeypatch):
    needs_package("cityscapesscripts", "dev")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    script = official_script()
    network, counter = Coloured(), confusion_matrix(19)
    out = tmp_path / "out"
    pairs = []
    for path, ids in predict(network, [frames], out, format="cityscapes"):
        truth = np.where(RNG.random(ids.shape) < 0.6, ids.numpy(), RNG.integers(0, 14, ids.shape))
        truth[RNG.random(ids.shape) < 0.1] = 255
        numbers = np.where(truth == 255, 3, np.array(list(CITYSCAPES_LABEL_IDS.values()))[truth % 19])
        target = tmp_path / "gtFine/val" / path.parent.name / path.name.replace("leftImg8bit", "gtFine_labelIds")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.astype(np.uint8)).save(target)
        pairs.append(str(target))
        counter.update(ids.long()[None], torch.from_numpy(np.where(truth == 255, 255, truth % 19))[None])
    arguments = script.args
    arguments.evalInstLevelScore = False  # its np.in1d is gone from numpy 2.4
    arguments.quiet, arguments.JSONOutput = True, False
    arguments.predictionPath, arguments.predictionWalk = str(out / "label_ids"), None
    found = script.evaluateImgLists([script.getPrediction(arguments, path) for path in pairs], pairs, arguments)
    ours = scores(counter.confmat, CLASSES)
    assert found["averageScoreClasses"] == pytest.approx(ours["miou"], abs=1e-9)
    for name, iou in ours["iou"].items():
        assert found["classScores"][name] == (
            pytest.approx(iou, abs=1e-9) if iou is not None else pytest.approx(np.nan, nan_ok=True)
        )


def official_script() -> types.ModuleType:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

    return importlib.reload(evalPixelLevelSemanticLabeling)  # it keeps the arguments of its last call


# What is refused, before anything is written.


def test_other_classes_names_and_twins_are_refused(frames, tmp_path):
    def refused(line, network, *images):
        with pytest.raises(ValueError, match=line) as caught:
            predict(network, images, tmp_path / "out", format="cityscapes")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    needs = "--format cityscapes needs a model of the 19 classes of Cityscapes, this one has"
    refused(f"{needs} 11 classes such as 'lane'", Coloured([*CLASSES[:10], "lane"]), frames)
    refused(f"{needs} 18 classes$", Coloured(CLASSES[:18]), frames)
    refused(f"{needs} no class list", nn.Conv2d(3, 19, 1), frames)
    Image.new("RGB", (4, 4)).save(tmp_path / "street.png")
    refused(
        r"street\.png: expected a name of Cityscapes such as berlin_000000_000019", Coloured(), tmp_path / "street.png"
    )
    twin = tmp_path / f"{FRAMES[0]}.jpg"
    Image.new("RGB", (4, 4)).save(twin)
    refused("are one frame, of which Cityscapes wants one", Coloured(), frames, twin)
    with pytest.raises(ValueError, match="format: expected pictures or cityscapes, got 'zip'"):
        predict(Coloured(), [frames], tmp_path / "out", format="zip")


def test_a_network_that_gives_other_classes_than_its_card_says(frames, tmp_path):
    with pytest.raises(ValueError, match="the network gives 20 classes, its card 19"):
        predict(Coloured(count=20), [frames], tmp_path / "out", format="cityscapes")


def test_results_are_no_images(frames, tmp_path):
    for _ in range(2):
        assert len(predict(Coloured(), [frames], frames, format="cityscapes")) == 3
    with pytest.raises(ValueError, match="this is where results are written to"):
        predict(Coloured(), [frames / "label_ids"], frames)


# Pictures.


def test_a_blend_is_made_in_bands():
    side = int(BAND**0.5)
    ids, picture = (
        RNG.integers(0, 3, (3 * side // 2, side), np.uint8),
        RNG.integers(0, 256, (3 * side // 2, side, 3), np.uint8),
    )
    colours = RNG.integers(0, 256, (3, 3), np.uint8)
    drawn = dict(Pictures(colours, 0.3).draw(ids, picture))
    expected = np.float32(0.7) * picture + np.float32(0.3) * colours[ids]
    np.testing.assert_array_equal(drawn["blend"], expected.round().astype(np.uint8))
    assert list(drawn) == ["ids", "colour", "blend"]


def test_predictions_follow_the_protocol(frames, tmp_path):
    network = nn.Conv2d(3, 4, 5, padding=2)
    protocol = Protocol(window=(9, 9), flip=True, scales=(0.5, 1.0))
    results = predict(network, [frames], tmp_path / "a", palette=[(0, 0, 0)] * 4, protocol=protocol)
    network.card = {"palette": [(0, 0, 0)] * 4, "protocol": {"name": "mmseg", **protocol.as_dict(), "later": 1}}
    known = dict(predict(network, [frames], tmp_path / "b"))
    plain = dict(predict(network, [frames], tmp_path / "c", protocol=Protocol()))
    for path, ids in results:
        image = seen(path)[None]
        assert torch.equal(ids, infer_ids(network, image, protocol)[0])
        assert torch.equal(ids, known[path])
        assert torch.equal(plain[path], network(image).argmax(1)[0].to(torch.uint8))
    assert any(not torch.equal(plain[path], ids) for path, ids in results)


@pytest.mark.slow
def test_a_hundred_megapixels_stay_in_memory(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    measure = importlib.import_module("prediction_memory").measure
    assert measure(10_000, 512)["peak_gb"] < 3  # the logits alone would take 7.6


def test_the_classes_are_checked():
    CityscapesLabels(CLASSES).check([])
    with pytest.raises(ValueError, match="20 classes such as 'ego vehicle'"):
        CityscapesLabels([*CLASSES, "ego vehicle"])
