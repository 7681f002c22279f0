"""Checkpoints from elsewhere, held against references that compute with the sources' own names."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
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
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.student import make_card, read_card, save_student
from segdistill.models.checkpoints import convert, find_source, load_weights
from segdistill.models.external.wrapper import External
from segdistill.models.forms import SOURCES
from segdistill.models.weights import state_dicts
from segdistill.models.weights.files import read_tensors
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
    # The last resize, too, is the source's.
    aligned = source in ("skd", "cirkd")
    assert network.align_corners == aligned
    assert torch.equal(taps["output"], F.interpolate(taps["logits"], (57, 73), mode="bilinear", align_corners=aligned))
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


@pytest.mark.parametrize("name", ["pspnet_resnet18_deepstem", "smp:Unet:resnet18"])
def test_a_student_of_our_own_keeps_how_it_sees_images(name, tmp_path):
    facts = {"normalisation": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "range": 255, "bgr": True},
             "align_corners": True}  # fmt: skip
    facts |= {} if ":" in name else {"source": "skd"}
    network = build_model(name, num_classes=3, **facts).eval()
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    images = torch.rand(1, 3, 57, 73)
    for loaded in (
        load_student(tmp_path / "s.safetensors"),
        load_weights(name, tmp_path / "s.safetensors", num_classes=3, say=pytest.fail).eval(),
        build_network(NetworkConfig(name=name, weights=str(tmp_path / "s.safetensors")), 3, "teacher").eval(),
    ):
        assert torch.equal(loaded(images), network(images))
        assert loaded.align_corners
    own = {**facts["normalisation"], "bgr": False}
    given = load_weights(name, tmp_path / "s.safetensors", num_classes=3, normalisation=own, align_corners=False)
    assert not given.normalise.bgr
    assert not given.align_corners


def test_data_parallel_and_wrapped_state_dicts(tmp_path):
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    torch.save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
    loaded = load_weights("pspnet_resnet18_quarter", tmp_path / "w.pth")
    torch.testing.assert_close(loaded.classifier.weight, network.classifier.weight)


NAME = "pspnet_resnet18_quarter"


def two_weights(path, **saved):
    """A file of a network's weights and their average, as named; the classifiers' biases are 1 and 2."""
    state = build_model(NAME, num_classes=3).state_dict()
    both = {
        "raw": state | {"classifier.bias": torch.ones(3)},
        "ema": state | {"classifier.bias": torch.full((3,), 2.0)},
    }
    both |= {"module": {f"module.{k}": v for k, v in both["raw"].items()} | {"steps": torch.tensor(9)}}
    torch.save({key: {"state_dict": both[which[7:]]} if which[:7] == "nested:" else both[which]
                for key, which in saved.items()}, path)  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"state_dict": "raw", "state_dict_ema": "ema"}, "state_dict taken, the trained weights"),  # timm
        ({"model": "raw", "model_ema": "ema"}, "model taken, the trained weights"),  # torchvision's references
        ({"model": "nested:raw", "ema": "nested:ema"}, "model taken, the trained weights"),
        ({"ema_state_dict": "ema", "model_state_dict": "raw"}, "model_state_dict taken, the trained weights"),
        # mmengine swaps the two when it saves: the average stands where it will be loaded from.
        ({"state_dict": "ema", "ema_state_dict": "module"}, "state_dict taken, the running average"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_which_of_two_weights_is_taken_is_said_and_chosen(saved, said, tmp_path):
    path = two_weights(tmp_path / "w.pth", **saved)
    lines = []
    default = load_weights(NAME, path, say=lines.append).classifier.bias[0].item()
    assert default == (1 if "trained" in said else 2)
    assert len(lines) == 1
    assert said in lines[0]
    assert "weights_key: " in lines[0]
    assert load_weights(NAME, path, weights_key="ema", say=lines.append).classifier.bias[0] == 2
    assert "the running average" in lines[1]
    for key, which in saved.items():
        if key != "ema":
            loaded = load_weights(NAME, path, weights_key=key, say=lines.append)
            assert loaded.classifier.bias[0] == (2 if "ema" in which else 1)


def test_a_key_of_the_configuration_chooses_the_weights(tmp_path, capsys):
    path = two_weights(tmp_path / "w.pth", generator="raw", state_dict_ema="ema")
    for key, bias in (("generator", 1), ("ema", 2), (None, 2)):
        section = NetworkConfig(name=NAME, weights=str(path), weights_key=key)
        assert build_network(section, 3, "teacher").classifier.bias[0] == bias
    assert "state_dict_ema taken, the running average" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no 'generatr'; did you mean generator"):
        load_weights(NAME, path, weights_key="generatr")
    two_weights(path, net="raw", other="raw")
    assert load_weights(NAME, path, say=pytest.fail).classifier.bias[0] == 1
    with pytest.raises(ValueError, match=r"holds no running average \(state_dict_ema, .*weights_key may be net, other"):
        load_weights(NAME, path, weights_key="ema")
    with pytest.raises(ValueError, match="weights_key chooses among the weights of a file; give weights"):
        NetworkConfig(name=NAME, weights_key="ema")


PREFIXES = ["module.", "model.", "net.", "network.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", [NAME, "smp:Unet:resnet18"])
def test_what_training_code_puts_before_names_is_taken_off(prefix, name, tmp_path):
    network = build_model(name, num_classes=3)
    inner = network.network if ":" in name else network
    torch.save({"state_dict": {f"{prefix}{k}": v for k, v in inner.state_dict().items()}}, tmp_path / "w.pth")
    loaded = load_weights(name, tmp_path / "w.pth", num_classes=3)
    for (key, tensor), expected in zip(loaded.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), key


def test_averaged_and_compiled_networks_of_torch_are_unwrapped(tmp_path):
    network = build_model(NAME, num_classes=3)
    compiled = torch.compile(build_model(NAME, num_classes=3))
    compiled.backbone = torch.compile(compiled.backbone)
    for number, wrapped in enumerate((AveragedModel(network), nn.DataParallel(network), compiled)):
        torch.save(wrapped.state_dict(), tmp_path / f"{number}.pth")
        loaded = load_weights(NAME, tmp_path / f"{number}.pth")
        bias = next(v for k, v in wrapped.state_dict().items() if k.endswith("decoder.fuse.0.weight"))
        assert torch.equal(loaded.decoder.fuse[0].weight, bias)
    assert doctest.testmod(state_dicts).failed == 0


class Wrapping(nn.Module):
    """A network whose own names start with what others put before names."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 3, 1)))

    def forward(self, images):
        return next(self.children())(images)


def wrapping(inner):
    return Wrapping(inner)


@pytest.mark.parametrize("inner", ["module", "model", "network"])
@pytest.mark.parametrize("before", ["", "module.", "network."])
def test_names_that_are_the_networks_own_stay(inner, before, tmp_path):
    network = Wrapping(inner)
    torch.save({f"{before}{k}": v for k, v in network.state_dict().items()}, tmp_path / "w.pth")
    loaded = load_weights("python:test_checkpoints:wrapping", tmp_path / "w.pth", num_classes=3, inner=inner)
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], tensor)
    save_student(tmp_path / "s.safetensors", loaded, make_card(loaded, list("abc"), [(0, 0, 0)] * 3))
    again = load_student(tmp_path / "s.safetensors", External(Wrapping(inner)))
    assert torch.equal(next(again.parameters()), next(network.parameters()))


def test_backbone_weights_are_unwrapped_as_well(tmp_path):
    import timm

    theirs = timm.create_model("resnet18").state_dict()
    wrapped = {f"module.{k}": v for k, v in theirs.items()}
    torch.save({"state_dict": wrapped, "state_dict_ema": theirs}, tmp_path / "w.pth")
    for name in ("pspnet_resnet18", "smp:Unet:resnet18"):
        encoder = {k: v for k, v in theirs.items() if not k.startswith("fc.")}
        torch.save({"state_dict": {f"module.{k}": v for k, v in encoder.items()}}, tmp_path / "w.pth")
        network = build_model(name, num_classes=3, pretrained=str(tmp_path / "w.pth"))
        inner = network.backbone.body if "pspnet" in name else network.network.encoder
        assert torch.equal(inner.state_dict()["layer4.1.bn2.weight"], theirs["layer4.1.bn2.weight"])


@pytest.mark.parametrize("given", [None, True, False])
def test_aligned_corners_come_with_the_source_and_with_the_students_file(given, tmp_path):
    network = build_model("pspnet_resnet18_deepstem", num_classes=3, source="cirkd", align_corners=given).eval()
    aligned = given is not False
    assert network.align_corners == network.decoder.align_corners == aligned
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    assert read_card(tmp_path / "s.safetensors")["network"].get("align_corners") == given
    again, images = load_student(tmp_path / "s.safetensors"), torch.rand(1, 3, 57, 73)
    with torch.no_grad():
        taps = Tapped(again)(images)
        assert torch.equal(taps["output"], network(images))
        expected = F.interpolate(taps["logits"], (57, 73), mode="bilinear", align_corners=aligned)
    assert torch.equal(taps["output"], expected)


def test_the_width_is_told_by_the_file_and_the_classes_too(tmp_path):
    network = build_model("deeplabv3_resnet18_quarter", num_classes=3, head_width=24)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights("deeplabv3_resnet18_quarter", tmp_path / "w.safetensors")
    assert loaded.spec["head_width"] == 24
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


STEM_OF_SKD = {
    "conv1.0": "conv1",
    "conv1.1": "bn1",
    "conv1.3": "conv2",
    "conv1.4": "bn2",
    "conv1.6": "conv3",
    "bn1": "bn3",
}
STEM_OF_OPENMMLAB = {**{f"conv1.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)}, "bn1": "stem.7"}


@pytest.mark.parametrize(
    ("backbone", "width", "stem"),
    [("resnet18_deepstem", 64, STEM_OF_SKD), ("resnet18_v1c", 32, STEM_OF_OPENMMLAB)],
)
@pytest.mark.parametrize("classifier", [True, False])
def test_stems_of_three_convolutions_are_taken_by_their_names(backbone, width, stem, classifier, tmp_path):
    """resnet18-imagenet.pth of SKD and CIRKD, resnet18_v1c-b5776b93.pth of OpenMMLab, in whatever order they are."""
    import timm

    theirs = timm.create_model("resnet18", stem_type="deep", stem_width=width).state_dict()
    for tensor in theirs.values():
        if tensor.is_floating_point():
            tensor.normal_()  # counts of batch norms are alike else
    named = {}
    for name in sorted(theirs, reverse=True):
        module, _, kind = name.rpartition(".")
        if classifier or not name.startswith("fc."):
            named[f"{stem.get(module, module)}.{kind}"] = theirs[name]
    torch.save(named, tmp_path / "w.pth")
    network = build_model(f"pspnet_{backbone}", num_classes=3, pretrained=str(tmp_path / "w.pth"))
    body = network.backbone.body.state_dict()
    assert all(torch.equal(body[name], theirs[name]) for name in body)


def test_a_network_with_weights_needs_no_first_start(tmp_path):
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    section = NetworkConfig(
        name="pspnet_resnet18_quarter", weights=str(tmp_path / "w.safetensors"), pretrained="not-here.pth"
    )
    loaded = build_network(section, 3, "teacher")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())


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
    with pytest.raises(ValueError, match=r"is not loaded; docs/models\.md says .*\(it holds a [\w.]+\)$"):
        load_weights("pspnet_resnet18_v1c", tmp_path / "bad.pth")
    assert "must never run" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, no state dict"):
        read_tensors(tmp_path / "list.pth")
    torch.save({"epoch": 3, "meta": {"loss": 0.5}}, tmp_path / "no.pth")
    with pytest.raises(ValueError, match="no state dict of tensors; weights_key may be meta"):
        read_tensors(tmp_path / "no.pth")
    with pytest.raises(ValueError, match=r"w\.pth is no run or student's file .*give a network's name:, and weights: "):
        build_network(NetworkConfig(checkpoint=str(tmp_path / "w.pth")), 3, "teacher")
    with pytest.raises(ValueError, match="source beside checkpoint: a checkpoint brings its own; leave source out"):
        NetworkConfig(checkpoint="runs/x", source="skd")
    with pytest.raises(ValueError, match="a source is where weights of our own families are from"):
        build_model("smp:Unet:resnet18", num_classes=3, source="skd")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="weights_key is for PyTorch files"):
        read_tensors(tmp_path / "w.safetensors", "ema")
