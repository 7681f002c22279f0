import pytest
import torch

from conftest import REPOSITORY
from segdistill.data.subsets import Subset
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.engine.teacher import build_trained
from segdistill.models import build_model
from segdistill.models.checkpoints import load_weights
from segdistill.models.families.espnet import ESP, Down, cropped
from segdistill.taps import Tapped


def test_hierarchical_sums():
    module = ESP(10, 10).eval()
    x = torch.rand(1, 10, 9, 7)
    reduced = module.c1(x)
    d1, d2, d4, d8, d16 = (module.get_submodule(f"d{d}")(reduced) for d in (1, 2, 4, 8, 16))
    expected = torch.cat([d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16], 1)
    torch.testing.assert_close(module(x), module.bn(x + expected))


def test_the_convolution_without_dilation_takes_the_remainder():
    module = Down(19, 64)
    assert [module.get_submodule(f"d{d}").conv.out_channels for d in (1, 2, 4, 8, 16)] == [16, 12, 12, 12, 12]
    assert module(torch.rand(2, 19, 9, 8)).shape == (2, 64, 5, 4)


def test_no_residual_where_channels_differ():
    assert not ESP(22, 11).residual
    assert ESP(22, 11)(torch.rand(2, 22, 4, 4)).shape == (2, 11, 4, 4)


def test_layers_are_named_and_ordered_as_in_the_released_checkpoints():
    names = [name for name in build_model("espnet", num_classes=11).state_dict() if "num_batches" not in name]
    assert names[:2] == ["encoder.level1.bn.weight", "encoder.level1.bn.bias"]
    heads = list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("encoder.")))
    assert heads == ["level1", "b1", "level2_0", "level2", "b2", "level3_0", "level3", "b3", "classifier"]
    assert {"encoder.level2_0.c1.conv.weight", "encoder.level2.0.d16.conv.weight", "encoder.level2.0.bn.act.weight",
            "encoder.classifier.conv.weight", "level3_C.conv.weight", "br.weight", "conv.act.weight", "up_l3.0.weight",
            "combine_l2_l3.0.bn.weight", "combine_l2_l3.1.d1.conv.weight", "up_l2.1.act.weight",
            "classifier.weight"} <= set(names)  # fmt: skip


def test_depth():
    shallow, deep = (sum(p.numel() for p in build_model("espnet_c", num_classes=19, q=q).parameters()) for q in (3, 8))
    assert deep - shallow == 5 * sum(p.numel() for p in ESP(128, 128).parameters())
    with pytest.raises(ValueError, match="at least one ESP module each, got 0 and 8"):
        build_model("espnet", num_classes=19, p=0)


@pytest.mark.parametrize("name", ["espnet", "espnet_c"])
def test_few_classes(name):
    network = build_model(name, num_classes=2)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 2, 32, 32)


def test_odd_sizes_keep_the_upper_left_corner():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(cropped(x, torch.zeros(1, 1, 3, 2)), x[..., :3, :2])
    taps = Tapped(build_model("espnet", num_classes=3).eval())(torch.rand(1, 3, 37, 51))
    assert torch.equal(taps["logits"], taps["output"])


def test_no_backbone_and_no_auxiliary_head():
    with pytest.raises(ValueError, match="no model 'espnet_resnet18'; did you mean"):
        build_model("espnet_resnet18", num_classes=3)
    with pytest.raises(ValueError, match="no option 'aux'"):
        build_model("espnet", num_classes=3, aux=True)


CONFIG = REPOSITORY / "configs/camvid/espnet_released.yaml"
CITYSCAPES = ((72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307))
CAMVID = ((110.2165, 108.3578, 104.9640), (72.0564, 72.6232, 69.8368))


@pytest.mark.parametrize(("classes", "numbers", "said"), [(20, CITYSCAPES, "Cityscapes"), (12, CAMVID, "CamVid")])
@pytest.mark.parametrize("name", ["espnet", "espnet_c"])
def test_images_are_normalised_as_in_the_authors_file(name, classes, numbers, said, tmp_path):
    network = build_model(name, num_classes=classes)
    state = {k.removeprefix("encoder.") if name == "espnet_c" else k: v for k, v in network.state_dict().items()}
    torch.save(state, tmp_path / "theirs.pth")
    lines = []
    loaded = load_weights(name, tmp_path / "theirs.pth", say=lines.append)
    assert said in lines[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in numbers)
    images = torch.rand(1, 3, 8, 8)
    expected = (255 * images[:, [2, 1, 0]] - mean) / std / 255
    torch.testing.assert_close(loaded.normalise(images), expected)
    save_student(tmp_path / "s.safetensors", loaded, make_card(loaded, ["c"] * classes, [(0, 0, 0)] * classes))
    torch.testing.assert_close(load_student(tmp_path / "s.safetensors").normalise(images), expected)


@pytest.mark.slow
def test_the_released_camvid_network_is_evaluated_as_it_is(released, camvid, capsys):
    given = [f"student.weights={released}", f"data.root={camvid}"]
    result = evaluate_run(CONFIG, overrides=given, split="test")
    assert "CamVid" in capsys.readouterr().out
    assert result["images"] == 233
    assert result["miou"] == pytest.approx(0.573, abs=0.001)
    assert result["pixel_accuracy"] == pytest.approx(0.877, abs=0.001)


def test_the_released_camvid_network_on_every_sixteenth_image(released, camvid):
    config = load_config(CONFIG, [f"student.weights={released}", f"data.root={camvid}"])
    dataset = build_split(config.data, "test")
    dataset = Subset(dataset, range(0, len(dataset), 16))
    result = evaluate(build_trained(config, dataset.classes), dataset)
    assert result["images"] == 15
    assert result["miou"] == pytest.approx(0.552, abs=0.001)  # 0.162 with the normalisation of the Cityscapes file
