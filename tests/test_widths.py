"""Narrower and shallower networks."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segdistill.engine.config import load_config
from segdistill.engine.student import load_student, make_card, read_card, save_student
from segdistill.models import build_model, load_weights
from segdistill.models.backbone import Backbone
from segdistill.models.scaling import backbone_maker, scaled, shortened
from segdistill.taps import Tapped


def made(name, **options):
    with torch.device("meta"):
        return build_model(name, num_classes=5, **options)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_channels_are_rounded_as_mobilenet_rounds_them():
    for channels in (16, 18, 24, 48, 64, 320):
        for width in (0.1, 0.25, 0.35, 0.5, 0.75, 1.4, 2):
            assert scaled(channels, width) == timm.layers.make_divisible(channels * width, 8, 8)
        assert scaled(channels, 1) == channels


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("mobilenetv2_100", "mobilenetv2_050"),
        ("mobilenetv2_100", "mobilenetv2_075"),
        ("mobilenetv3_small_100", "mobilenetv3_small_050"),
        ("mnasnet_100", "mnasnet_050"),
    ],
)
def test_a_scaled_network_is_the_one_that_timm_has_of_that_width(name, half):
    width = int(half[-3:]) / 100
    with torch.device("meta"):
        mine = backbone_maker(name, {}, width)(features_only=True)
        theirs = timm.create_model(half, features_only=True)
    assert shapes(mine) == shapes(theirs)


def test_depth_is_timms_too():
    with torch.device("meta"):  # EfficientNet-B1 is B0 with more blocks
        mine = backbone_maker("efficientnet_b0", {}, 1.0, 1.1)(features_only=True)
        assert shapes(mine) == shapes(timm.create_model("efficientnet_b1", features_only=True))
        mine = backbone_maker("resnet34", {}, 1.0, 0.5)(features_only=True)
    assert [len(getattr(mine, f"layer{i}")) for i in (1, 2, 3, 4)] == [2, 2, 3, 2]
    assert [shortened(count, 0.5) for count in (1, 2, 3, 6)] == [1, 1, 2, 3]


def test_width_one_changes_nothing_and_the_old_names_are_widths():
    for name in ("pspnet_resnet18", "deeplabv3plus_mobilenetv2", "espnet", "hrnet_w18_small"):
        assert shapes(made(name)) == shapes(made(name, width=1.0, depth=1.0))
    for alias, width in (("half", 0.5), ("quarter", 0.25)):
        with torch.device("meta"):
            assert shapes(Backbone(f"resnet18_{alias}")) == shapes(Backbone("resnet18", width=width))
            theirs = timm.create_model("resnet18", channels=[int(c * width) for c in (64, 128, 256, 512)])
        mine = {k.removeprefix("body."): v for k, v in shapes(Backbone(f"resnet18_{alias}")).items()}
        assert mine.items() <= shapes(theirs).items()
    assert shapes(made("fcn_resnet18_half", width=0.5)) == shapes(made("fcn_resnet18_quarter"))


EVERY = [
    "pspnet_resnet18",
    "pspnet_mobilenetv2_plus",
    "deeplabv3_resnet18_deepstem",
    "deeplabv3_convnext_atto",
    "deeplabv3plus_mobilenetv2",
    "deeplabv3plus_efficientnet_b1",
    "fcn_regnetx_016",
    "isanet_tf_efficientnet_lite0",
    "lightnet_mobilenetv2_plus",
    "hrnet_w18_small",
    "espnet",
    "espnet_c",
]


@pytest.mark.parametrize("name", EVERY)
def test_every_family_is_smaller_by_about_the_square_heads_and_all(name):
    options = {"aux": True} if name.split("_")[0] in ("pspnet", "deeplabv3", "fcn") else {}
    whole, half = made(name, **options), made(name, **options, width=0.5)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (whole, half)]
    assert 0.2 < sizes[1] / sizes[0] < 0.42
    if "espnet" not in name:
        assert 0.2 < ratio(whole.decoder, half.decoder) < 0.35
    if options:
        assert 0.2 < ratio(whole.aux, half.aux) < 0.35
    for network in (half, made(name, width=0.25), made(name, depth=0.5), made(name, width=1.5, depth=2)):
        taps = Tapped(network.eval())(torch.empty(1, 3, 64, 96, device="meta"))
        assert taps["output"].shape == (1, 5, 64, 96)
    assert sum(p.numel() for p in made(name, depth=0.5).parameters()) < sizes[0]


def ratio(whole, part):
    return sum(p.numel() for p in part.parameters()) / sum(p.numel() for p in whole.parameters())


def test_the_heads_channels_are_multiplied_whether_given_or_not():
    assert made("pspnet_resnet18", width=0.75).classifier.in_channels == 96
    assert made("pspnet_resnet18", width=0.5, head_width=64).classifier.in_channels == 32
    assert made("deeplabv3_resnet50", width=0.25).classifier.in_channels == 64  # a quarter of 256
    assert made("deeplabv3plus_resnet18", width=0.5).classifier.in_channels == 128
    assert made("isanet_resnet18", width=0.5).decoder.attention.far.key[0][0].out_channels == 128
    assert made("pspnet_resnet18", aux=True, aux_width=64, width=0.5).aux[0][0].out_channels == 32


def test_a_student_keeps_its_width_and_depth(tmp_path):
    network = build_model("pspnet_resnet18", num_classes=3, width=0.25, depth=0.5).eval()
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    loaded = load_student(tmp_path / "s.safetensors")
    assert (loaded.spec["width"], loaded.spec["depth"]) == (0.25, 0.5)
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(loaded(image), network(image))
    loaded = load_weights("pspnet_resnet18", tmp_path / "s.safetensors", width=0.25, depth=0.5)
    assert torch.equal(loaded.eval()(image), network(image))


def test_files_in_which_width_was_the_heads_channels_still_load(tmp_path):
    network = build_model("fcn_resnet18_quarter", num_classes=3, head_width=24).eval()
    save_student(tmp_path / "new.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    card = read_card(tmp_path / "new.safetensors")
    spec = {k: v for k, v in card["network"].items() if k not in ("width", "depth", "head_width")}
    old = {**card, "format": 1, "network": {**spec, "width": 24}}
    save_file(load_file(tmp_path / "new.safetensors"), tmp_path / "old.safetensors", {"segdistill": json.dumps(old)})
    with safe_open(tmp_path / "old.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["segdistill"])["format"] == 1
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(load_student(tmp_path / "old.safetensors")(image), network(image))


def test_a_file_of_that_very_network_is_taken_and_any_other_refused(tmp_path):
    half = Backbone("resnet18", width=0.5)
    whole = timm.create_model("resnet18", channels=(32, 64, 128, 256))
    torch.save(whole.state_dict(), tmp_path / "half.pth")
    loaded = Backbone("resnet18", width=0.5, pretrained=str(tmp_path / "half.pth"))
    assert torch.equal(loaded.body.conv1.weight, whole.conv1.weight)
    assert shapes(loaded) == shapes(half)
    with pytest.raises(ValueError, match=r"half.pth: layer1.0.bn1.bias is \(32,\), expected \(48,\)"):
        Backbone("resnet18", width=0.75, pretrained=str(tmp_path / "half.pth"))


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("pspnet_resnet18", {"width": 0}, "width: expected a multiplier above 0 and at most 8, got 0"),
        ("pspnet_resnet18", {"width": 64}, "width: .*got 64; channels of the head are head_width: 64"),
        ("espnet", {"depth": -1}, "depth: expected a multiplier above 0 and at most 8, got -1"),
        ("hrnet_w18_small", {"width": 9}, "width: expected a multiplier"),
        ("pspnet_resnet18", {"width": "wide"}, "width: .*number"),
        ("pspnet_resnet18", {"width": 0.5, "pretrained": True}, "nobody publishes weights of resnet18 with width 0.5"),
        ("pspnet_resnet18_half", {"pretrained": True}, "nobody publishes weights of resnet18 with width 0.5 and depth"),
        ("hrnet_w18_small", {"width": 0.5, "pretrained": "x.pth"}, "fit width 1 and depth 1 only"),
        ("fcn_hrnet_w18", {"width": 0.5}, "cannot scale a HighResolutionNet; width and depth are for ResNets, Eff"),
        ("fcn_mobilenetv4_conv_small", {"depth": 0.5}, "cannot change its depth; width alone can be set"),
        ("fcn_regnety_008", {"depth": 0.2}, "cannot be built with output_stride=8, width=1, depth=0.2: timm does not"),
        ("torchvision:fcn_resnet50", {"width": 0.5}, "torchvision has no option 'width'"),
        ("smp:Unet:resnet18", {"width": 0.5}, "smp has no option 'width'"),
        ("hf:segformer-b0", {"depth": 0.5}, "hf has no option 'depth'"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, line):
    with pytest.raises(ValueError, match=line) as error:
        build_model(name, num_classes=5, **options)
    assert "\n" not in str(error.value)


def test_a_configuration_takes_them():
    config = load_config({"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18", "width": 0.5}})
    assert (config.student.options["width"], config.student.options["depth"]) == (0.5, 1.0)
    with pytest.raises(ValueError, match="widht"):
        load_config({"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18", "widht": 0.5}})
