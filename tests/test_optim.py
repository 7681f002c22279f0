"""The optimiser: schedules, groups of parameters, epochs, each held against a naive statement of it."""

import math
import re
from itertools import pairwise

import pytest
import timm
import torch
import yaml
from timm.optim import param_groups_layer_decay
from torch import nn

from conftest import needs_package
from faults import assert_same_run, at_step, config, interrupt
from segdistill import distill
from segdistill.comparison.plan import load_plan
from segdistill.engine.config import dump_config, load_config
from segdistill.engine.epochs import in_steps
from segdistill.engine.groups import backbone_path, layer_factors, parameter_groups
from segdistill.engine.optim import build_optimizer, optimizer_options, schedule, set_kernels
from segdistill.engine.train_config import TrainConfig
from segdistill.models import build_model

BASE = {"data": {"name": "synthetic", "images": 10, "batch_size": 4}, "student": {"name": "pspnet_resnet18_quarter"}}


class Pair(nn.Module):
    """What is trained, as a distiller names it."""

    def __init__(self, network):
        super().__init__()
        self.student = nn.Module()
        self.student.network = network
        self.method = nn.ModuleDict({"cwd": nn.Conv2d(3, 4, 1)})


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.decoder = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Conv2d(4, 2, 1)


def settings(distiller, **train):
    """Parameter → (learning rate, weight decay) in the optimiser."""
    optimizer = build_optimizer(distiller, TrainConfig(**train))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: found[id(p)] for name, p in distiller.named_parameters() if p.requires_grad}


# Schedules


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, lambda t: 1e-3 + (0.1 - 1e-3) * (1 - t) ** 0.9),
        ({"schedule": "cosine"}, lambda t: 1e-3 + (0.1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * t))),
        ({"schedule": "step"}, lambda t: 0.1 if t < 0.6 else 0.01 if t < 0.8 else 0.001),
        ({"schedule": "step", "milestones": [0.07, 0.29, 0.57], "gamma": 0.5},
         lambda t: 0.1 * 0.5 ** ((t >= 0.07) + (t >= 0.29) + (t >= 0.57))),
        ({"schedule": "step", "gamma": 0.01}, lambda t: 0.1 if t < 0.6 else 0.001),  # no lower than min_lr
        ({"schedule": "constant", "min_lr": 0.0}, lambda t: 0.1),
    ],
)  # fmt: skip
def test_schedules(given, rate, warmup):
    train = TrainConfig(**{"steps": 100, "lr": 0.1, "min_lr": 1e-3, "warmup": warmup, **given})
    for step in range(100):
        warm = (step + 1) / warmup if step < warmup else 1
        assert train.lr * schedule(step, train) == pytest.approx(rate(step / 100) * warm, rel=1e-12)


def test_a_run_follows_its_schedule(tmp_path):
    train = {"schedule": "step", "milestones": [0.5], "lr_factors": {"backbone": 0.1}, "eval_every": 0}
    distill(config(train=train), out=tmp_path)
    lines = (yaml.safe_load(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    groups = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.001, 0.01])
    assert [group["lr"] for group in groups] == pytest.approx([0.0001, 0.001])


# Groups


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_options_there_is_one_group_as_torch_makes_it(name):
    distiller = Pair(Small())
    distiller.student.network.decoder.bias.requires_grad_(False)
    optimizer = build_optimizer(distiller, TrainConfig(optimizer=name))
    (group,) = optimizer.param_groups
    trained = [p for p in distiller.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in trained]
    if name == "sgd":
        usual = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=5e-4)
    else:
        usual = torch.optim.AdamW(trained, lr=0.01, weight_decay=5e-4)
    assert optimizer.state_dict() == usual.state_dict()


def test_options_reach_the_optimiser():
    sgd = build_optimizer(Pair(Small()), TrainConfig(nesterov=True, momentum=0.8))
    assert (sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (True, 0.8)
    assert build_optimizer(Pair(Small()), TrainConfig(optimizer="adamw", betas=(0.8, 0.99))).defaults["betas"] == (
        0.8,
        0.99,
    )


def test_rates_by_part():
    factors = {"backbone": 0.1, "head": 10, "method": 5, "classifier": 2, "decoder.b*": 3}
    for name, (rate, decay) in settings(Pair(Small()), lr_factors=factors).items():
        expected = 10
        if name.startswith("student.network.backbone."):
            expected = 0.1
        if name.startswith("method."):
            expected = 5
        if name.startswith("student.network.classifier."):
            expected = 2
        if name == "student.network.decoder.bias":
            expected = 3
        assert (rate, decay) == (pytest.approx(0.01 * expected), 5e-4), name


def test_without_weight_decay_of_norms_and_biases():
    for name, (rate, decay) in settings(Pair(Small()), norm_decay=False, weight_decay=0.1).items():
        spared = "bias" in name or name.endswith((".1.weight", "pos_embed"))  # the batch norm is backbone.1
        assert (rate, decay) == (0.01, 0.0 if spared else 0.1), name


def test_weight_decay_of_zero_keeps_the_groups():
    few, many = (build_optimizer(Pair(Small()), TrainConfig(norm_decay=False, weight_decay=w)) for w in (0.0, 0.1))
    assert [len(g["params"]) for g in few.param_groups] == [len(g["params"]) for g in many.param_groups]


def test_an_unknown_part_is_refused_with_those_that_there_are():
    line = (
        "train.lr_factors: no part 'bakbone' in Small; did you mean backbone?; there are backbone, head, decoder, "
        "classifier, method, and paths such as `segdistill layers` prints them"
    )
    with pytest.raises(ValueError, match=re.escape(line)):
        settings(Pair(Small()), lr_factors={"bakbone": 0.1})
    plain = Pair(nn.Sequential(nn.Conv2d(3, 2, 1)))
    with pytest.raises(ValueError, match=r"no part 'head' in Sequential.*; there are 0, method"):
        settings(plain, lr_factors={"head": 10})
    with pytest.raises(ValueError, match=r"train.layer_decay: Sequential has no backbone of several blocks"):
        settings(plain, layer_decay=0.7)
    plain.method = nn.Identity()  # a method without layers may be compared with others
    assert settings(plain, lr_factors={"method": 10}) == dict.fromkeys(
        ["student.network.0.weight", "student.network.0.bias"], (0.01, 5e-4)
    )


@pytest.mark.parametrize(
    ("name", "package", "backbone"),
    [
        ("pspnet_resnet18_quarter", None, "backbone"),
        ("espnet", None, "encoder"),
        ("torchvision:lraspp_mobilenet_v3_large", None, "network.backbone"),
        ("smp:Unet:resnet18", "segmentation_models_pytorch", "network.encoder"),
        ("hf:segformer-b0", "transformers", "network.segformer"),
    ],
)
def test_the_backbone_of_every_kind_of_network(name, package, backbone):
    if package:
        needs_package(package, {"transformers": "hf"}.get(package, "smp"))
    network = build_model(name, num_classes=3)
    assert backbone_path(network) == backbone
    rates = settings(Pair(network), lr_factors={"backbone": 0.1, "head": 10})
    for path, (rate, _) in rates.items():
        inside = path.startswith(f"student.network.{backbone}.")
        assert rate == pytest.approx(0.01 * (0.1 if inside else 1 if path.startswith("method") else 10)), path
    factors = layer_factors(network, 0.5)
    first, *_, last = [factors[name] for name, _ in network.named_parameters() if name in factors]
    assert min(factors.values()) == first < last <= 0.5
    assert len(set(factors.values())) > 4


def test_the_wrapper_of_a_network_needs_not_be_named():
    needs_package("segmentation_models_pytorch", "smp")
    pair = Pair(build_model("smp:Unet:resnet18", num_classes=3))
    names = ("decoder", "network.decoder")
    one, other = (settings(pair, lr_factors={name: 3}) for name in names)
    assert one == other
    assert {rate for rate, _ in one.values()} == {0.01, 0.01 * 3}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layers_are_those_of_timm(name):
    """From block to block the rate falls as timm has it; what lies before, between and behind blocks is aside."""
    network = nn.Module()
    network.backbone = timm.create_model(name)
    ours = layer_factors(network, 0.7)
    theirs = {}
    for group in param_groups_layer_decay(network.backbone, layer_decay=0.7):
        theirs |= {id(p): group["lr_scale"] for p in group["params"]}
    block = re.compile(r"(blocks\.\d+|layer\d\.\d+|stages\.\d\.blocks\.\d+|layers\.\d\.blocks\.\d+)\.")
    pairs = [(ours[f"backbone.{n}"], theirs[id(p)]) for n, p in network.backbone.named_parameters() if block.match(n)]
    assert len(pairs) > 50
    assert max(pairs)[0] == pytest.approx(0.7)
    if name.startswith(("vit", "resnet")):  # of stages, timm takes several blocks for one layer
        assert [a / pairs[0][0] for a, _ in pairs] == pytest.approx([b / pairs[0][1] for _, b in pairs])
    else:
        assert all((a1 <= a2) and (b1 <= b2) for (a1, b1), (a2, b2) in pairwise(pairs))
    assert ours[next(iter(ours))] == pytest.approx(0.7 ** (len({a for a, _ in pairs}) + 1))


def test_stages_are_opened_and_branches_are_not():
    network = nn.Module()
    block = lambda: nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)})  # noqa: E731
    side_by_side = nn.Module()
    side_by_side.branches = nn.ModuleList(nn.Sequential(block(), block()) for _ in range(2))
    stage = nn.Module()
    stage.blocks = nn.ModuleList(block() for _ in range(2))
    network.backbone = nn.Module()
    network.backbone.stem = nn.Conv2d(1, 1, 1)
    network.backbone.stages = nn.Sequential(stage, side_by_side)
    network.backbone.norm = nn.BatchNorm2d(1)
    factors = layer_factors(network, 0.5)
    assert factors["backbone.stem.weight"] == 0.5**4
    assert factors["backbone.stages.0.blocks.0.conv.weight"] == 0.5**3
    assert factors["backbone.stages.0.blocks.1.conv.weight"] == 0.5**2
    assert {factors[name] for name in factors if ".branches." in name} == {0.5}
    assert factors["backbone.norm.weight"] == 0.5


def test_rates_of_parts_and_layers_multiply():
    network = build_model("pspnet_resnet18_quarter", num_classes=3)
    factors = layer_factors(network, 0.75)
    for name, (rate, _) in settings(Pair(network), layer_decay=0.75, lr_factors={"backbone": 2}).items():
        path = name.removeprefix("student.network.")
        assert rate == pytest.approx(0.01 * (2 * factors[path] if path in factors else 1))
    groups = parameter_groups(Pair(network), TrainConfig(layer_decay=0.75))
    assert sum(len(g["params"]) for g in groups) == sum(1 for _ in Pair(network).parameters())


@pytest.mark.parametrize(
    "train",
    [
        {"schedule": "cosine", "nesterov": True, "lr_factors": {"head": 10, "backbone": 0.5}, "warmup_epochs": 1},
        {"optimizer": "adamw", "betas": [0.8, 0.99], "layer_decay": 0.75, "norm_decay": False},
    ],
    ids=["sgd", "adamw"],
)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, monkeypatch, train):
    distill(config(train=train), out=tmp_path / "whole")
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(config(train=train), out=tmp_path / "parts")
    distill(config(train=train), out=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_may_go_on_under_another_schedule(tmp_path, monkeypatch):
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(config(), out=tmp_path)
    with pytest.raises(ValueError, match=r"started with train.lr_factors.*resume it unchanged$"):
        distill(config(train={"lr_factors": {"head": 2}}), out=tmp_path, resume=True, override=True)
    distill(config(train={"schedule": "constant", "nesterov": True}), out=tmp_path, resume=True, override=True)
    (group,) = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (group["lr"], group["nesterov"]) == (0.01, True)


def test_a_state_computes_as_its_new_device_wants():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.step()
    usual = torch.optim.AdamW([weight])
    options = optimizer_options(usual)
    usual.load_state_dict(optimizer.state_dict())
    assert usual.param_groups[0]["fused"]
    set_kernels(usual, options)
    assert not usual.param_groups[0]["fused"]
    usual.step()
    assert usual.state[weight]["step"] == 2


# Epochs


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 5), (4, 10), (0.1, 1), (2.5, 7)])
def test_epochs_are_steps_that_see_every_image(epochs, steps):
    assert (
        in_steps(load_config(BASE, [f"train.epochs={epochs}"]), 10).train.steps == steps == math.ceil(epochs * 10 / 4)
    )


def test_epochs_run_again_as_they_are():
    given = load_config(BASE, ["train.epochs=4", "train.warmup_epochs=2"])
    again = load_config(yaml.safe_load(dump_config(given)))
    assert again.train.epochs == 4
    train = in_steps(again).train  # counts the images itself
    assert (train.steps, train.epochs, train.warmup, train.warmup_epochs) == (10, None, 5, None)
    assert load_config(yaml.safe_load(dump_config(in_steps(again)))).train == train
    some = load_config(BASE, ["train.epochs=4", "data.labelled=2"])
    assert (
        in_steps(some).train.steps == 10
    )  # those without labels count, too: alone and distilled, it trains equally long
    usual = load_config(BASE)
    assert in_steps(usual, 10) is usual


def test_an_override_replaces_steps_by_epochs_and_back():
    written = yaml.safe_load(dump_config(load_config(BASE, ["train.warmup=3"])))
    epochs = load_config(written, ["train.epochs=2", "train.warmup_epochs=1"])
    assert (epochs.train.epochs, epochs.train.warmup_epochs, epochs.train.warmup) == (2, 1, 0)
    steps = load_config(yaml.safe_load(dump_config(epochs)), ["train.steps=7", "train.warmup=2"])
    assert (steps.train.steps, steps.train.epochs, steps.train.warmup) == (7, None, 2)


def test_the_example_of_the_documentation():
    given = {
        "epochs": 4,
        "warmup_epochs": 1,
        "schedule": "step",
        "milestones": [0.5],
        "lr": 0.01,
        "lr_factors": {"head": 10},
    }
    train = in_steps(load_config({**BASE, "train": given}), 8).train
    assert (train.steps, train.warmup) == (8, 2)
    assert [0.01 * schedule(step, train) for step in range(8)] == pytest.approx([0.005, *[0.01] * 3, *[0.001] * 4])
    assert {rate for rate, _ in settings(Pair(Small()), **{**given, "lr_factors": {"head": 10}}).values()} == {
        0.01,
        0.1,
    }


def test_a_warm_up_that_never_ends_is_told(tmp_path, capsys):
    for warmup, told in ((3, True), (2, False)):
        distill(config(train={"steps": 2, "eval_every": 0, "warmup": warmup}), out=tmp_path / str(warmup))
        line = "train.warmup=3 is more than the 2 steps of the run, in which the learning rate never reaches train.lr"
        assert (line in capsys.readouterr().err) == told


def test_a_run_in_epochs_is_one_in_steps(tmp_path):
    changes = config()
    distill(changes, out=tmp_path / "steps")
    changes["train"]["epochs"] = 2  # of 8 images, 4 at a time
    del changes["train"]["steps"]
    first = distill(changes, out=tmp_path / "epochs")
    assert_same_run(tmp_path / "steps", tmp_path / "epochs")
    assert load_config(tmp_path / "epochs").train == load_config(tmp_path / "steps").train
    assert distill(changes, out=tmp_path / "epochs", resume=True) == first
    assert distill(tmp_path / "epochs", out=tmp_path / "epochs", resume=True) == first


def test_a_comparison_keeps_the_shares_of_a_schedule():
    train = {"steps": 100, "warmup": 10, "schedule": "step", "milestones": [0.5, 0.9]}
    run = load_plan({**BASE, "train": train}, ["methods=[none]", "seconds=60"]).runs[0].with_steps(300)
    assert (run.config.train.warmup, run.config.train.milestones) == (30, [0.5, 0.9])
    rates = [schedule(step, run.config.train) for step in (29, 149, 150, 269, 270)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"steps": 3, "epochs": 2}, "steps is 3 and epochs 2; give one of them"),
        ({"warmup": 3, "warmup_epochs": 2}, "warmup is 3 and warmup_epochs 2; give one of them"),
        ({"epochs": 0}, "train.epochs: Input should be greater than 0"),
        ({"schedule": "linear"}, "train.schedule: Input should be 'poly', 'cosine', 'step' or 'constant'"),
        (
            {"schedule": "constant", "min_lr": 1e-4},
            "min_lr: of schedule=poly or cosine or step alone, and schedule is constant",
        ),
        (
            {"schedule": "step", "milestones": [0.8, 0.6]},
            "milestones: expected rising shares such as [0.6, 0.8], got [0.8, 0.6]",
        ),
        ({"milestones": [60000]}, "train.milestones.0: Input should be less than 1, got 60000"),
        (
            {"nesterov": True, "optimizer": "adamw"},
            "nesterov: of optimizer=sgd alone, and optimizer is adamw; leave it",
        ),
        ({"nesterov": True, "momentum": 0}, "nesterov: of SGD with momentum, and momentum is 0; set it"),
        ({"betas": [0.9]}, "train.betas"),
        (
            {"momentum": 0.95, "optimizer": "adamw"},
            "momentum: of optimizer=sgd alone, and optimizer is adamw; leave it",
        ),
        ({"power": 1, "schedule": "cosine"}, "power: of schedule=poly alone, and schedule is cosine; leave it out"),
        ({"betas": [0.8, 0.9]}, "betas: of optimizer=adamw alone, and optimizer is sgd; leave it out"),
        ({"milestones": [0.5]}, "milestones: of schedule=step alone, and schedule is poly; leave it out"),
        ({"gamma": 0.5, "schedule": "cosine"}, "gamma: of schedule=step alone, and schedule is cosine; leave it out"),
        ({"betas": [0.9, 1.0]}, "train.betas.1: Input should be less than 1"),
        ({"lr_factors": {"head": -1}}, "train.lr_factors.head: Input should be greater than or equal to 0, got -1"),
        ({"lr_factors": 3}, "train.lr_factors"),
        ({"layer_decay": 1.5}, "train.layer_decay: Input should be less than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(train, line):
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        load_config({**BASE, "train": train})
    assert "\n" not in str(caught.value)
