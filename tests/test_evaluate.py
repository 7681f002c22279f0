import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segdistill import build_model, evaluate, predict
from segdistill.data import SegmentationDataset, build_dataset
from segdistill.engine.runtime import Runtime
from segdistill.engine.student import make_card, save_student
from segdistill.models.stats import model_stats


class Oracle(nn.Module):
    """Knows the masks of a data set by heart, but for one class."""

    def __init__(self, dataset, wrong=None):
        super().__init__()
        self.masks = [dataset[i][1].long() for i in range(len(dataset))]
        self.images = [dataset[i][0].float() / 255 for i in range(len(dataset))]
        self.classes, self.wrong = len(dataset.classes), wrong

    def forward(self, images):
        out = []
        for image in images:
            i = next(i for i, known in enumerate(self.images) if torch.allclose(known, image))
            mask = torch.where(self.masks[i] == 255, 0, self.masks[i])
            mask = torch.where(mask == self.wrong, 0, mask) if self.wrong is not None else mask
            out.append(nn.functional.one_hot(mask, self.classes).permute(2, 0, 1).float())
        return torch.stack(out)


class Only(SegmentationDataset):
    """One image of a data set."""

    def __init__(self, dataset, index):
        self.classes, self.palette, self.names = dataset.classes, dataset.palette, [dataset.names[index]]
        self.item = dataset[index]

    def __getitem__(self, index):
        return self.item


@pytest.fixture
def dataset():
    return build_dataset("synthetic", "val", images=3, size=(48, 64))


def test_a_perfect_model_is_perfect(dataset):
    result = evaluate(Oracle(dataset), dataset)
    assert result["miou"] == result["pixel_accuracy"] == 1.0
    assert result["images"] == 3
    assert evaluate(Oracle(dataset), dataset, batch_size=2, workers=1) == result


@pytest.mark.parametrize("how", [{}, {"batch_size": 2}, {"workers": 2}], ids=str)
def test_images_are_counted_one_by_one(dataset, how):
    model = Oracle(dataset, wrong=dataset.classes.index("road"))
    result = evaluate(model, dataset, per_image=True, **how)
    each = torch.tensor(result["per_image"])
    assert each.shape == (3, 3, len(dataset.classes))
    for i, counts in enumerate(each):
        alone = torch.tensor(evaluate(model, Only(dataset, i))["confusion"])
        assert torch.equal(counts, torch.stack([alone.diag(), alone.sum(1), alone.sum(0)]))
    assert "per_image" not in evaluate(model, dataset, **how)


def test_processes_count_their_own_images(dataset, monkeypatch):
    model = Oracle(dataset, wrong=dataset.classes.index("road"))
    whole = torch.tensor(evaluate(model, dataset, per_image=True)["per_image"])
    monkeypatch.setattr(Runtime, "sum", lambda self, tensor: tensor)  # what each process has before they are added
    runs = [Runtime(torch.device("cpu"), rank=rank, world=2) for rank in (0, 1)]
    shares = [torch.tensor(evaluate(model, dataset, per_image=True, run=run)["per_image"]) for run in runs]
    assert torch.equal(shares[0] + shares[1], whole)
    assert not shares[0][1].any()
    assert not shares[1][0].any()


def test_a_class_that_is_missed_costs_its_iou(dataset):
    road = dataset.classes.index("road")
    result = evaluate(Oracle(dataset, wrong=road), dataset)
    assert result["iou"]["road"] == 0.0
    assert result["accuracy"]["road"] == 0.0
    assert result["miou"] < 1.0


def test_the_model_keeps_its_mode(dataset):
    network = build_model("pspnet_resnet18_quarter", num_classes=11).train()
    network.backbone.eval()
    evaluate(network, dataset)
    assert network.training
    assert not network.backbone.training


def test_classes_must_agree(dataset):
    with pytest.raises(ValueError, match=r"the model has 5 classes, the data set 11 \(sky"):
        evaluate(build_model("pspnet_resnet18_quarter", num_classes=5), dataset)


def test_stats_count_without_the_auxiliary_head():
    alone = model_stats(build_model("pspnet_resnet18_quarter", num_classes=11))
    with_aux = model_stats(build_model("pspnet_resnet18_quarter", num_classes=11, aux=True))
    assert alone == with_aux
    assert alone["params"] == sum(
        p.numel() for p in build_model("pspnet_resnet18_quarter", num_classes=11).parameters()
    )
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert model_stats(conv, (8, 8))["flops"] == 2 * 3 * 4 * 9 * 64


@pytest.fixture
def student(tmp_path):
    network = build_model("pspnet_resnet18_quarter", num_classes=2)
    card = make_card(network, ["a", "b"], [(255, 0, 0), (0, 0, 255)])
    save_student(tmp_path / "student.safetensors", network, card)
    return tmp_path / "student.safetensors"


def test_predictions_are_ids_colours_and_blends(tmp_path, student):
    folder = tmp_path / "images/inner"
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(folder / "a.jpg")
    Image.new("L", (30, 20), 100).save(tmp_path / "images/grey.png")
    out = tmp_path / "out"
    results = dict(predict(student, [tmp_path / "images"], out))
    assert len(results) == 2
    ids = np.array(Image.open(out / "ids/inner/a.png"))
    assert ids.shape == (40, 56)
    assert set(np.unique(ids)) <= {0, 1}
    np.testing.assert_array_equal(ids, results[folder / "a.jpg"].numpy())
    colour = np.array(Image.open(out / "colour/inner/a.png"))
    np.testing.assert_array_equal(colour, np.array([(255, 0, 0), (0, 0, 255)])[ids])
    grey = np.array(Image.open(out / "blend/grey.png")).astype(int)
    expected = 0.5 * np.array(Image.open(out / "colour/grey.png")) + 50
    assert abs(grey - expected).max() <= 1


def test_predict_mistakes(tmp_path, student):
    with pytest.raises(ValueError, match="no image or folder at"):
        list(predict(student, [tmp_path / "missing"], tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        list(predict(student, [tmp_path / "empty"], tmp_path))
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match="not a readable image"):
        list(predict(student, [tmp_path / "bad.png"], tmp_path))
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "empty" / name)
    with pytest.raises(ValueError, match="would both be written"):
        list(predict(student, [tmp_path / "empty"], tmp_path))
    with pytest.raises(ValueError, match="needs a palette"):
        list(predict(build_model("pspnet_resnet18_quarter", num_classes=2), [tmp_path / "empty/x.png"], tmp_path))


def test_size_is_that_of_the_evaluation(dataset):
    network = build_model("pspnet_resnet18_quarter", num_classes=11)
    result = evaluate(network, dataset, size=(24, 32))
    assert sum(map(sum, result["confusion"])) <= 3 * 24 * 32
