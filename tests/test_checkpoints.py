"""Checkpoints from elsewhere, held against references that compute with the sources' own names."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from conftest import Malicious
from published_layouts import (
    CLASSES,
    cirkd_deeplab,
    cirkd_pspnet,
    hrnet_names,
    imagenet,
    isanet_names,
    mobilenetv2_plus_names,
    openmmlab_deeplab,
    openmmlab_fcn,
    openmmlab_pspnet,
    skd_pspnet,
)
from segdistill import build_model, load_student
from segdistill.engine.build import build_network
from segdistill.engine.config import NetworkConfig
from segdistill.engine.student import make_card, save_student
from segdistill.models.checkpoints import convert, find_source, load_weights
from segdistill.models.forms import SOURCES
from segdistill.taps import Tapped

REFERENCES = [
    ("openmmlab", "pspnet_resnet18_v1c", openmmlab_pspnet),
    ("openmmlab", "deeplabv3_resnet18_v1c", lambda: openmmlab_deeplab(plus=False)),
    ("openmmlab", "deeplabv3plus_resnet18_v1c", lambda: openmmlab_deeplab(plus=True)),
    ("openmmlab", "fcn_resnet18_v1c", openmmlab_fcn),
    ("skd", "pspnet_resnet18_deepstem", skd_pspnet),
    ("cirkd", "deeplabv3_resnet18_deepstem", cirkd_deeplab),
    ("cirkd", "pspnet_resnet18_deepstem", cirkd_pspnet),
]


@pytest.mark.parametrize(("source", "name", "make"), REFERENCES, ids=[f"{s}-{n}" for s, n, _ in REFERENCES])
def test_a_published_network_computes_what_it_did_there(source, name, make, tmp_path):
    state, run = make()
    torch.save({"meta": {"epoch": 3}, "state_dict": dict(state)}, tmp_path / "theirs.pth")
    lines = []
    network = load_weights(name, tmp_path / "theirs.pth", aux=True, say=lines.append).eval()
    images = torch.rand(1, 3, 57, 73)  # odd sizes tell how borders are treated
    with torch.no_grad():
        taps = Tapped(network)(images)
        torch.testing.assert_close(taps["logits"], run(images), rtol=1e-3, atol=1e-3 * run(images).abs().max().item())
    assert taps["output"].shape == (1, CLASSES, 57, 73)
    assert find_source(state) == source
    assert len(lines) == 1
    assert SOURCES[source].what.split(",")[0] in lines[0]
    # The auxiliary head came along, and the student's file makes the same network again.
    aux = next(k for k in state if k.startswith(("auxiliary_head.conv_seg", "dsn.3", "auxlayer.block.4")))
    torch.testing.assert_close(network.aux[2].weight, state[aux])
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abcdefg"), [(0, 0, 0)] * 7))
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "s.safetensors")(images), taps["output"])


def test_the_auxiliary_bias_of_skd_is_kept():
    state, _ = skd_pspnet()
    converted = convert(state, "skd", "pspnet")
    x = torch.rand(1, 256, 6, 7)
    theirs = state.bn("dsn.1", state.apply("dsn.0", x), True)
    head = nn.Sequential(nn.Conv2d(256, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)).eval()
    head.load_state_dict({k.removeprefix("aux.0."): v for k, v in converted.items() if k.startswith("aux.0.")})
    torch.testing.assert_close(head(x), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["deeplabv3_resnet50", "torchvision:deeplabv3_resnet50"])
def test_torchvision(target, tmp_path):
    theirs = get_model("deeplabv3_resnet50", weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    network = load_weights(target, tmp_path / "w.pth", num_classes=CLASSES, aux=True, say=str).eval()
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        expected = theirs.eval()(imagenet(images))["out"]
        torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)
    aux = network.aux[4 if ":" in target else 2]
    torch.testing.assert_close(aux.weight, theirs.aux_classifier[4].weight)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("deeplabv3plus_mobilenetv2", mobilenetv2_plus_names),
        ("isanet_resnet18_v1c", isanet_names),
        ("hrnet_w18_small", hrnet_names),
    ],
)
def test_every_published_name_finds_its_place(name, make, tmp_path):
    state = make()
    torch.save({"state_dict": dict(state)}, tmp_path / "w.pth")
    network = load_weights(name, tmp_path / "w.pth", say=str).eval()
    tensors = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    assert len(tensors) == len([k for k in state if not k.endswith("num_batches_tracked")])
    assert network(torch.rand(1, 3, 64, 64)).isfinite().all()
    if "mobilenet" in name:  # the strided stages are dilated from their first block on
        depthwise = network.backbone.body.blocks[5][0].conv_dw
        assert depthwise.dilation == depthwise.padding == (4, 4)


def test_espnet_of_its_authors(tmp_path):
    network = build_model("espnet", num_classes=20)
    state = network.state_dict()
    for name in ("encoder.level1.conv.weight", "encoder.level2_0.d16.conv.weight", "encoder.level3.7.bn.act.weight",
                 "level3_C.conv.weight", "br.running_mean", "conv.bn.bias", "up_l3.0.weight", "up_l2.1.bn.weight",
                 "combine_l2_l3.1.c1.conv.weight", "classifier.weight"):  # fmt: skip
        assert name in state
    torch.save(state, tmp_path / "espnet.pth")
    loaded = load_weights("espnet", tmp_path / "espnet.pth", say=str)
    images = torch.rand(1, 3, 8, 8)
    mean = torch.tensor([72.3923111, 82.90893555, 73.15840149]).view(3, 1, 1)
    std = torch.tensor([45.3192215, 46.15289307, 44.91483307]).view(3, 1, 1)
    torch.testing.assert_close(loaded.normalise(images), (255 * images[:, [2, 1, 0]] - mean) / std / 255)
    alone = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    torch.save(alone, tmp_path / "c.pth")
    torch.testing.assert_close(
        load_weights("espnet_c", tmp_path / "c.pth", say=str).encoder.level1.conv.weight,
        state["encoder.level1.conv.weight"],
    )


def test_a_student_of_our_own_is_no_foreign_one(tmp_path):
    network = build_model("espnet", num_classes=3)
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    lines = []
    loaded = load_weights("espnet", tmp_path / "s.safetensors", say=lines.append)
    assert not lines
    assert loaded.mean == network.mean


def test_data_parallel_and_wrapped_state_dicts(tmp_path):
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    loaded = load_weights("pspnet_resnet18_quarter", tmp_path / "w.pth")
    torch.testing.assert_close(loaded.classifier.weight, network.classifier.weight)


def test_the_width_is_told_by_the_file_and_the_classes_too(tmp_path):
    network = build_model("deeplabv3_resnet18_quarter", num_classes=3, width=24)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights("deeplabv3_resnet18_quarter", tmp_path / "w.safetensors")
    assert loaded.spec["width"] == 24
    assert loaded.num_classes == 3


def test_backbones_of_imagenet_under_other_names_and_without_counters(tmp_path):
    import timm

    theirs = timm.create_model("resnet18", stem_type="deep", stem_width=64).state_dict()
    stem = {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv1.3": "conv2",
        "conv1.4": "bn2",
        "conv1.6": "conv3",
        "bn1": "bn3",
    }
    named = {}
    for name, tensor in theirs.items():  # as SKD's and CIRKD's files of ImageNet weights name them
        module, _, kind = name.rpartition(".")
        if kind != "num_batches_tracked":
            named[f"{stem.get(module, module)}.{kind}"] = tensor
    torch.save(named, tmp_path / "resnet18-imagenet.pth")
    path = str(tmp_path / "resnet18-imagenet.pth")
    body = build_model("pspnet_resnet18_deepstem", num_classes=3, pretrained=path).backbone.body
    for name in ("conv1.0.weight", "conv1.6.weight", "bn1.running_mean", "layer4.1.bn2.weight"):
        torch.testing.assert_close(body.state_dict()[name], theirs[name])
    old = {k: v for k, v in timm.create_model("resnet18").state_dict().items() if "num_batches" not in k}
    torch.save(old, tmp_path / "old.pth")
    body = build_model("pspnet_resnet18", num_classes=3, pretrained=str(tmp_path / "old.pth")).backbone.body
    torch.testing.assert_close(body.state_dict()["layer1.0.conv1.weight"], old["layer1.0.conv1.weight"])


def test_mistakes_are_one_line(tmp_path, capsys):
    state, _ = openmmlab_pspnet()
    del state["decode_head.bottleneck.conv.weight"]
    state["decode_head.bottleneckk.conv.weight"] = torch.zeros(1)
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"lacks 1 tensors: decoder.fuse.0.weight.*has 1 tensors: decode_head"):
        load_weights("pspnet_resnet18_v1c", tmp_path / "w.pth", say=str)
    good, _ = openmmlab_pspnet()
    torch.save(dict(good), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"backbone.body.conv1.weight.*closest: backbone.body.conv1.[036].weight"):
        load_weights("pspnet_resnet18", tmp_path / "w.pth", say=str)
    with pytest.raises(ValueError, match="has 7 classes, not 3"):
        load_weights("pspnet_resnet18_v1c", tmp_path / "w.pth", num_classes=3, say=str)
    with pytest.raises(ValueError, match="teacher: pspnet_resnet18_v1c has 7 classes, the data 3; say which is which"):
        build_network(NetworkConfig(name="pspnet_resnet18_v1c", weights=str(tmp_path / "w.pth")), 3, "teacher")
    with pytest.raises(ValueError, match="no source 'openmlab'; did you mean openmmlab"):
        load_weights("pspnet_resnet18_v1c", tmp_path / "w.pth", source="openmlab")
    with pytest.raises(ValueError, match="source skd is known for pspnet, not fcn"):
        load_weights("fcn_resnet18", tmp_path / "w.pth", source="skd")
    torch.save({"state_dict": dict(good), "optimizer": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"not a file of tensors only and is not loaded; docs/models\.md says"):
        load_weights("pspnet_resnet18_v1c", tmp_path / "bad.pth")
    assert "must never run" not in capsys.readouterr().out
