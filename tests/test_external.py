"""Networks of other libraries and the user's own: what they give, how they pair, how they are saved and refused."""

import json
import math
import re
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import nn

from conftest import REPOSITORY
from faults import read_metrics
from segdistill import Tapped, build_model, distill, load_student
from segdistill.data import build_dataset
from segdistill.data.sets.camvid import PALETTE
from segdistill.deploy.predict import predict
from segdistill.engine.build import build_network, tap
from segdistill.engine.config import load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.student import make_card, read_card, save_student
from segdistill.engine.teacher import build_class_map, build_teacher
from segdistill.methods import build_method
from segdistill.models.external import external_names
from segdistill.models.external.hf import clean
from segdistill.models.external.wrapper import External
from segdistill.models.proposal import propose_taps
from segdistill.taps import ClassMap

SEGFORMER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16,
             "num_attention_heads": [1, 1, 1, 1]}  # fmt: skip
CONVNEXT = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
            "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
UPERNET = {"backbone_config": CONVNEXT, "hidden_size": 16}
SWIN = {"model_type": "swin", "depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 1, 1], "window_size": 4,
        "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip
MASK2FORMER = {"backbone_config": SWIN, "num_queries": 8, "feature_size": 32, "mask_feature_size": 32,
               "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
               "encoder_feedforward_dim": 16, "dim_feedforward": 16}  # fmt: skip
DPT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
       "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}  # fmt: skip
NAME = "pspnet_resnet18_quarter"
SMALL = {"decoder_channels": [16, 16, 8, 8, 8]}
METHODS = [
    "kd",
    {"name": "cwd", "features_weight": 50.0},
    "skd",
    {"name": "sstkd", "regions": 4, "region_size": 4, "num_levels": 8, "holistic_weight": 0.0},  # skd has a critic
]


class TokenSegmenter(nn.Module):
    """A plain vision transformer of timm's with a linear head: tokens, a class token in front."""

    def __init__(self, classes=11):
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", depth=4, embed_dim=24, num_heads=2, num_classes=0, dynamic_img_size=True
        )
        self.head = nn.Conv2d(24, classes, 1)

    def forward(self, images):
        tokens = self.vit.forward_features(2 * images - 1)[:, 1:]
        size = (images.shape[2] // 16, images.shape[3] // 16)
        return (self.head(tokens.transpose(1, 2).unflatten(2, size)), tokens)


class Plain(nn.Module):
    """A network of the user's own that says nothing about itself."""

    def __init__(self, num_classes=11, width=8):
        super().__init__()

        def stage(a, b):
            return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))

        self.stem, self.one, self.two = stage(3, width), stage(width, width), stage(width, 2 * width)
        self.head = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, images):
        return {"out": self.head(self.two(self.one(self.stem(images))))}


def make_model(num_classes, width=8):
    return Plain(num_classes, width)


PAIRS = [
    ({"name": "hf:segformer-b2", "config": SEGFORMER}, {"name": "pspnet_resnet18_quarter"}),
    ({"name": "smp:Unet:resnet18", "arguments": SMALL}, {"name": "espnet", "q": 2}),
    (TokenSegmenter, {"name": "pspnet_resnet18_quarter", "aux": True}),
    ({"name": "deeplabv3_resnet18_quarter"}, {"name": "hf:nvidia/mit-b0", "config": SEGFORMER}),
    ({"name": "hf:upernet-convnext-tiny", "config": UPERNET}, Plain),
    ({"name": "fcn_resnet18_quarter"}, {"name": "torchvision:lraspp_mobilenet_v3_large"}),
    ({"name": "hf:mask2former-swin-tiny", "config": MASK2FORMER}, {"name": "smp:Linknet:resnet18"}),
    ({"name": "hf:dpt-large", "config": DPT}, {"name": "espnet_c", "q": 2}),
    ({"name": "smp:DPT:tu-vit_tiny_patch16_224", "arguments": {"decoder_fusion_channels": 16}},
     {"name": "deeplabv3_resnet18_quarter"}),
    ({"name": "torchvision:deeplabv3_resnet50"}, {"name": "smp:FPN:resnet18"}),
    ({"name": "hrnet_w18_small"}, {"name": "torchvision:deeplabv3_mobilenet_v3_large", "aux": True}),
    ({"name": "smp:UPerNet:resnet18"}, {"name": "python:test_external:make_model", "width": 12}),
]  # fmt: skip
SLOW = {5, 6, 8, 9, 10, 11}


def label(part):
    return part["name"] if isinstance(part, dict) else part.__name__


def build(part):
    return build_model(**part, num_classes=11) if isinstance(part, dict) else part()


@pytest.mark.parametrize(
    ("teacher", "student"),
    [pytest.param(*pair, marks=[pytest.mark.slow] * (i in SLOW)) for i, pair in enumerate(PAIRS)],
    ids=[f"{label(t)}->{label(s)}" for t, s in PAIRS],
)
def test_any_network_teaches_any_other(teacher, student, tmp_path):
    config = {
        "data": {"name": "synthetic", "size": [48, 64], "images": 4, "crop": [48, 64], "batch_size": 2, "workers": 0,
                 "eval_batch_size": 2},
        "student": student if isinstance(student, dict) else {},
        "method": METHODS,
        "train": {"steps": 3, "precision": "fp32", "log_every": 1, "lr": 1e-3, "threads": 1},
    }  # fmt: skip
    own = None if isinstance(student, dict) else student()
    if isinstance(teacher, dict):
        torch.save(build(teacher).state_dict(), tmp_path / "teacher.pth")
        config["teacher"] = {**teacher, "weights": str(tmp_path / "teacher.pth")}
        summary = distill(config, student=own, out=tmp_path / "run")
    else:
        summary = distill(config, student=own, teacher=teacher(), out=tmp_path / "run")
    steps = read_metrics(tmp_path / "run")
    terms = {key: value for key, value in steps[-1].items() if key.startswith(("kd_", "cwd_", "skd_", "sstkd_"))}
    wanted = {"kd_logits", "cwd_features", "skd_pair", "skd_pixel", "sstkd_structural", "sstkd_statistical"}
    assert wanted <= set(next(s for s in steps if "kd_logits" in s))
    assert all(math.isfinite(value) for value in terms.values())
    assert summary["steps"] == 3
    again = load_student(tmp_path / "run", own if own is not None else None, allow_code=True)
    assert again(torch.rand(1, 3, 50, 70)).shape == (1, 11, 50, 70) if own is None else True


EXAMPLES = [
    ("smp:FPN:resnet18", {}),
    ("torchvision:lraspp_mobilenet_v3_large", {}),
    ("hf:segformer-b0", {"config": SEGFORMER}),
    ("hf:upernet-convnext-tiny", {"config": UPERNET}),
    ("hf:mask2former-swin-tiny", {"config": MASK2FORMER}),
    ("hf:dpt-large", {"config": DPT}),
    ("smp:PAN:resnet18", {}),
]


@pytest.mark.parametrize(("name", "options"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_any_size_and_the_same_again_from_its_file(name, options, tmp_path):
    network = build_model(name, num_classes=4, **options).eval()
    images = torch.rand(2, 3, 75, 53)
    with torch.no_grad():
        logits = network(images)
        taps = Tapped(network, network.taps, network.classifier_path)(images)
    assert logits.shape == (2, 4, 75, 53)
    assert {"low1", "low2", "features", "logits"} <= set(taps)
    card = make_card(network, list("abcd"), [(0, 0, 0)] * 4)
    json.dumps(card)
    save_student(tmp_path / "s.safetensors", network, card)
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "s.safetensors")(images), logits)


def test_proposed_taps_are_at_their_strides():
    network = build_model("hf:segformer-b0", num_classes=4, config=SEGFORMER).eval()
    taps = tap(network)(torch.rand(1, 3, 64, 96))
    assert taps["low1"].shape == (1, 8, 16, 24)
    assert taps["low2"].shape == (1, 16, 8, 12)
    classified = nn.functional.conv2d(
        taps["features"], taps["weight"][..., None, None], network.network.decode_head.classifier.bias
    )
    torch.testing.assert_close(classified, taps["logits"])
    proposed, classifier = propose_taps(build_model("deeplabv3_resnet18_quarter", num_classes=4))
    assert proposed["low1"].endswith(("layer1", "low1"))
    assert proposed["low2"].endswith(("layer2", "low2"))  # dilated: layer3 and layer4 have stride 8, too
    assert (proposed["logits"], proposed["features"]) == ("classifier", "classifier:input")
    assert classifier == "classifier"


def test_a_plain_transformer_is_tapped_by_depth():
    network = TokenSegmenter().eval()
    proposed, _ = propose_taps(network)
    assert (proposed["low1"], proposed["low2"]) == ("vit.blocks.0", "vit.blocks.1")
    taps = tap(network)(torch.rand(1, 3, 64, 96))
    assert taps["low1"].shape == (1, 24, 4, 6)
    first = {}
    handle = network.vit.blocks[0].register_forward_hook(lambda m, a, out: first.update(tokens=out))
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 96)
    network(images)
    handle.remove()
    expected = first["tokens"][:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(tap(network)(images)["low1"], expected)


def test_the_section_of_the_configuration_adds_taps():
    section = NetworkConfig(name="hf:segformer-b0", taps={"low2": "network.segformer.stages.2"})
    network = build_model("hf:segformer-b0", num_classes=4, config=SEGFORMER).eval()
    taps = tap(network, section)(torch.rand(1, 3, 64, 96))
    assert taps["low2"].shape == (1, 24, 4, 6)
    assert taps["low1"].shape == (1, 8, 16, 24)
    with pytest.raises(
        ValueError, match=r"no submodule 'network.segformer.stage.2'; did you mean network.segformer.sta"
    ):
        tap(network, NetworkConfig(name="hf:segformer-b0", taps={"low2": "network.segformer.stage.2"}))


def test_a_missing_tap_says_what_to_write():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return self.head(images)

    with pytest.raises(ValueError, match=r"no tap 'low1': Flat has .*write taps: {low1: PATH} in its section"):
        tap(Flat())(torch.rand(1, 3, 8, 8), {"low1"})


def test_networks_normalise_as_they_were_trained():
    network = build_model("hf:dpt-large", num_classes=4, config=DPT)
    torch.testing.assert_close(network.normalise(torch.full((1, 3, 1, 1), 0.5)), torch.zeros(1, 3, 1, 1))
    options = {"mean": [104, 117, 123], "std": [1, 1, 1], "range": 255, "bgr": True}
    network = build_model("hf:segformer-b0", num_classes=4, config=SEGFORMER, normalisation=options)
    images = torch.rand(1, 3, 2, 2)
    expected = 255 * images[:, [2, 1, 0]] - torch.tensor([104.0, 117, 123]).view(3, 1, 1)
    torch.testing.assert_close(network.normalise(images), expected)
    assert network.mean == pytest.approx((123 / 255, 117 / 255, 104 / 255))
    rebuilt = build_model(**json.loads(json.dumps(network.spec)))
    torch.testing.assert_close(rebuilt.normalise(images), expected)
    ours = build_model("pspnet_resnet18_quarter", num_classes=4, normalisation=options)
    torch.testing.assert_close(ours.normalise(images), expected)
    with pytest.raises(ValueError, match=r"normalisation: expected a range and std above 0"):
        build_model("pspnet_resnet18_quarter", num_classes=4, normalisation={"std": [0, 1, 1]})
    with pytest.raises(ValueError, match=r"normalisation.men: Extra inputs"):
        build_model("pspnet_resnet18_quarter", num_classes=4, normalisation={"men": [0, 1, 1]})


def test_a_folder_of_transformers(tmp_path):
    import transformers

    torch.manual_seed(1)
    names = {0: "road", 1: "sky", 2: "car"}
    config = transformers.SegformerConfig(**SEGFORMER, id2label=names, label2id={v: k for k, v in names.items()})
    theirs = transformers.SegformerForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    entries = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.1, 0.2, 0.3],
               "image_std": [0.5, 0.6, 0.7], "do_flip_channel_order": False}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(entries))
    section = NetworkConfig(name=f"hf:{tmp_path}", weights="published", class_map="names")
    network = build_network(section, 2, "teacher").eval()
    assert network.classes == ["road", "sky", "car"]
    images = torch.rand(1, 3, 64, 64)
    normalised = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(tap(network)(images)["logits"], theirs(pixel_values=normalised)["logits"])
    assert build_class_map(section, network, ["sky", "tree", "road"]).sources == [[1], [0]]
    start = build_model(f"hf:{tmp_path}", num_classes=5, pretrained=True)
    torch.testing.assert_close(
        start.network.segformer.stages[0].layer_norm.weight, theirs.segformer.stages[0].layer_norm.weight
    )
    assert start(images).shape == (1, 5, 64, 64)
    blank = build_model(f"hf:{tmp_path}", num_classes=5)
    assert blank.spec["config"]["hidden_sizes"] == SEGFORMER["hidden_sizes"]
    # A student that began there sees images as it did, where the folder is gone.
    save_student(tmp_path / "s.safetensors", start, make_card(start, list("abcde"), [(0, 0, 0)] * 5))
    for file in tmp_path.glob("*.json"):
        file.unlink()
    again = load_student(tmp_path / "s.safetensors")
    torch.testing.assert_close(again.normalise(images), normalised)
    assert torch.equal(again(images), start.eval()(images))


def test_a_configuration_names_no_code():
    inner = {"_attn_implementation": "someone/kernels", "use_pretrained_backbone": True}
    entries = {"attn_implementation": "someone/kernels", "auto_map": {"AutoModel": "x.y"}, "depths": [1]}
    entries["backbone_config"] = inner
    assert clean(entries) == {"depths": [1], "backbone_config": {"use_pretrained_backbone": False}}


def test_masks_and_classes_add_up_to_scores():
    network = build_model("hf:mask2former-swin-tiny", num_classes=4, config=MASK2FORMER).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        logits = network.run(images)
        output = network.network(pixel_values=images)
    queries = output["class_queries_logits"].softmax(-1)[0, :, :-1]
    masks = output["masks_queries_logits"][0].sigmoid()
    scores = sum(q[:, None, None] * m for q, m in zip(queries, masks, strict=True))
    torch.testing.assert_close(logits[0].exp(), scores, rtol=1e-4, atol=1e-6)


def test_classes_are_mapped_by_the_sum_of_their_probabilities():
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    mapped = ClassMap([[2], [], [0, 3]])
    assert mapped.known == [0, 2]
    share = logits.softmax(1)
    expected = torch.stack([share[:, 2], share[:, 0] + share[:, 3]], 1) / (1 - share[:, [1]])
    torch.testing.assert_close(mapped.merge(logits).softmax(1), expected)
    target = torch.tensor([[[0, 1, 2, 255]]])
    assert mapped.relabel(target).tolist() == [[[0, 255, 1, 255]]]
    taps = {"logits": torch.zeros(1, 3, 2, 2), "weight": torch.zeros(3, 6), "low1": torch.zeros(1, 6, 2, 2)}
    assert [tuple(t.shape) for t in mapped.select(taps).values()] == [(1, 2, 2, 2), (2, 6), (1, 6, 2, 2)]
    with pytest.raises(ValueError, match="1 of 3 classes have a counterpart"):
        ClassMap([[0], [], []])
    with pytest.raises(ValueError, match="the teacher's class 0 goes to more than one"):
        ClassMap([[0], [0], [1]])


def test_class_maps_by_name_and_number():
    network = build_model("pspnet_resnet18_quarter", num_classes=4)

    def sources(**changes):
        return build_class_map(
            NetworkConfig(name="pspnet_resnet18_quarter", **changes), network, ["sky", "road"]
        ).sources

    assert sources(class_map={0: "road", "3": 0} if False else {0: "road", 3: 0, 1: None}) == [[3], [0]]
    names = ["wall", "road", "lane", "sky"]
    assert sources(classes=names, class_map={"sky": "sky", "road": "road", "lane": "road"}) == [[3], [1, 2]]
    assert sources(classes=names, class_map="names") == [[3], [1]]
    with pytest.raises(ValueError, match="the teacher has no class 'skye'; did you mean sky"):
        sources(classes=names, class_map={"skye": "sky"})
    with pytest.raises(ValueError, match="the data has no class 'rood'; did you mean road"):
        sources(classes=names, class_map={"road": "rood"})
    with pytest.raises(ValueError, match="its classes have numbers below 4 and no names"):
        sources(class_map={"sky": "sky"})
    with pytest.raises(ValueError, match=r"list them in teacher\.classes"):
        sources(class_map="names")


def test_every_method_learns_from_a_teacher_of_other_classes(tmp_path):
    torch.save(build_model(NAME, num_classes=6).state_dict(), tmp_path / "w.pth")
    config = {
        "data": {"name": "synthetic", "size": [32, 32], "images": 4, "crop": [32, 32], "batch_size": 2, "workers": 0},
        "student": {"name": "pspnet_resnet18_quarter", "output_stride": 16},
        "teacher": {"name": "pspnet_resnet18_quarter", "weights": str(tmp_path / "w.pth"),
                    "class_map": {0: 0, 1: 3, 2: 3, 3: 5, 4: None, 5: 10}},
        "method": ["kd", "cwd", "ifvd", "i2ckd", "cirkd", "fakd", {"name": "skd", "pair_weight": 0.0}],
        "train": {"steps": 2, "precision": "fp32", "log_every": 1, "threads": 1},
    }  # fmt: skip
    distill(config, out=tmp_path / "run")
    terms = read_metrics(tmp_path / "run")[0]
    assert math.isfinite(terms["loss"])
    assert terms["kd_logits"] > 0
    again = build_class_map(
        load_config(tmp_path / "run").teacher, build_model(NAME, num_classes=6), list("abcdefghijk")
    )
    assert (again.known, again.sources) == ([0, 3, 5, 10], [[0], [1, 2], [3], [5]])
    assert load_student(tmp_path / "run").num_classes == 11
    with pytest.raises(ValueError, match="class_map belongs into teacher"):
        distill(config, ["student.class_map=names"], out=tmp_path / "other")


def test_a_function_of_ones_own_runs_only_if_it_is_asked_for(tmp_path, monkeypatch):
    name = "python:test_external:make_model"
    network = build_model(name, num_classes=3, width=6)
    assert network.network.head.in_channels == 12
    save_student(tmp_path / "s.safetensors", network, make_card(network, list("abc"), [(0, 0, 0)] * 3))
    assert read_card(tmp_path / "s.safetensors")["network"]["width"] == 6
    with pytest.raises(ValueError, match=r"names python:test_external:make_model, which would run code"):
        load_student(tmp_path / "s.safetensors")
    images = torch.rand(1, 3, 32, 32)
    expected = network.eval()(images)
    torch.testing.assert_close(load_student(tmp_path / "s.safetensors", allow_code=True)(images), expected)
    monkeypatch.setenv("SEGDISTILL_ALLOW_CODE", "1")
    torch.testing.assert_close(load_student(tmp_path / "s.safetensors")(images), expected)
    monkeypatch.delenv("SEGDISTILL_ALLOW_CODE")
    own = External(make_model(3, 6))
    torch.testing.assert_close(load_student(tmp_path / "s.safetensors", own)(images), expected)


def test_the_working_folder_is_looked_into(tmp_path, monkeypatch):
    (tmp_path / "my_networks_of_today.py").write_text(
        "from test_external import Plain\ndef one():\n    return Plain(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_model("python:my_networks_of_today:one", num_classes=4)(torch.rand(1, 3, 16, 16)).shape[1] == 4
    sys.modules.pop("my_networks_of_today")
    assert str(tmp_path) not in sys.path


class Frozen(nn.Module):
    """A network that keeps its batch norm behind a pooling in eval mode."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
        self.head = nn.Conv2d(3, 11, 1)

    def train(self, mode=True):
        super().train(mode)
        self.pool.eval()
        return self

    def forward(self, images):
        return self.head(images + self.pool(images))


class Pooled(nn.Module):
    """Batch norms, one of them behind a pooling to 1×1 that runs in training only if it is asked for."""

    def __init__(self, num_classes, late=False, align_corners=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, num_classes, 1)
        self.late, self.align_corners = late, align_corners

    def forward(self, images):
        x = self.stem(images)
        return self.head(x + self.pool(x) if self.training or not self.late else x)


def pooled(num_classes, late=False, align_corners=False):
    return Pooled(num_classes, late, align_corners)


def wrong(num_classes, by=-2):
    return Plain(num_classes + by)


def one_step(**sections):
    data = {"name": "synthetic", "size": [32, 32], "images": 2, "crop": [32, 32], "batch_size": 2, "workers": 0}
    config = {"data": data, "student": {"name": NAME}, "train": {"steps": 1, "precision": "fp32", "threads": 1}}
    for name, values in sections.items():
        config[name] = {**config[name], **values} if name in ("data", "train") else values
    return config


@pytest.mark.parametrize("by", [-2, 3])
def test_other_numbers_of_classes_are_refused_before_the_first_step(by, tmp_path, monkeypatch):
    monkeypatch.setattr("segdistill.engine.loop.train", lambda _: pytest.fail("it began"))
    name = "python:test_external:wrong"
    with pytest.raises(ValueError, match=f"student: {name} gives {11 + by} classes.*, the data 11"):
        distill(one_step(student={"name": name, "by": by}), out=tmp_path / "run")
    with pytest.raises(ValueError, match=f"student: Plain gives {11 + by} classes.*, the data 11"):
        distill(one_step(), student=Plain(11 + by), out=tmp_path / "run")
    for method in ("kd", "cwd", "ifvd"):
        with pytest.raises(ValueError, match=f"teacher: {name} gives {11 + by} classes.*, the data 11"):
            distill(one_step(teacher={"name": name, "by": by}, method=method), out=tmp_path / "run")
        with pytest.raises(ValueError, match=f"teacher: Plain gives {11 + by} classes.*, the data 11"):
            distill(one_step(method=method), teacher=Plain(11 + by), out=tmp_path / "run")
    section = {"name": name, "by": by, "num_classes": 6, "class_map": {0: "road", 5: "sky"}}
    with pytest.raises(ValueError, match=f"class_map is of 6 classes, the network gives {6 + by}"):
        distill(one_step(teacher=section, method="kd"), out=tmp_path / "run")
    student = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 11, 1))
    student.taps = {"logits": "0"}
    with pytest.raises(ValueError, match="student: Sequential gives 12 classes at its tap logits, 0, the data 11"):
        distill(one_step(), student=student, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_auxiliary_head_of_other_classes_is_refused(tmp_path):
    student = nn.Sequential(nn.Conv2d(3, 9, 1), nn.Conv2d(9, 11, 1))
    student.taps = {"aux": "0"}
    with pytest.raises(
        ValueError, match=r"auxiliary head \(tap aux\) has 9 classes, its output 11; give it as many, or"
    ):
        distill(one_step(), student=student, out=tmp_path / "run")
    distill(one_step(train={"aux_weight": 0}), student=student, out=tmp_path / "other")


def test_a_batch_of_one_behind_a_pooling_is_one_line(tmp_path):
    line = "cannot train on one image at a time; raise data.batch_size, to 2 at least"
    out = tmp_path / "run"
    for student in ({"name": NAME}, {"name": "deeplabv3_resnet18_quarter"}, {"name": "python:test_external:pooled"}):
        for changes in ({"data": {"batch_size": 1}}, {"train": {"accumulate": 2}}):
            with pytest.raises(ValueError, match=line):
                distill(one_step(student=student, **changes), out=out)
            assert not out.exists()  # it was found before the run began
    with pytest.raises(ValueError, match=line) as caught:  # what the dry run cannot see
        distill(one_step(data={"batch_size": 1}), student=Pooled(11, late=True), out=out)
    assert "\n" not in str(caught.value)
    distill(one_step(data={"batch_size": 1}), student=Plain(11), out=tmp_path / "plain")  # which pools nothing
    distill(one_step(data={"batch_size": 1}), student=Frozen(), out=tmp_path / "frozen")


@pytest.mark.parametrize("aligned", [True, False])
def test_a_network_of_ones_own_says_how_its_logits_are_resized(aligned, tmp_path):
    own = Pooled(11, align_corners=aligned).eval()
    images, target = torch.rand(2, 3, 33, 50), torch.randint(0, 11, (2, 33, 50))
    expected = nn.functional.interpolate(own(images), (33, 50), mode="bilinear", align_corners=aligned)
    wrapped = build_model(
        "python:test_external:pooled", num_classes=11, **{"align_corners": aligned} if aligned else {}
    )
    wrapped.network.load_state_dict(own.state_dict())
    assert torch.equal(wrapped.eval()(images), expected)
    # In training, in evaluation and in prediction alike.
    distiller = Distiller(Tapped(own, {}), build_method("none"))
    terms, *_ = distiller(images, target, {})
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(expected, target))
    dataset = build_dataset("synthetic", "val", images=2, size=(33, 50))
    found = torch.zeros(11, 11, dtype=torch.long)
    for image, mask in (dataset[0], dataset[1]):
        logits = own(image[None].float() / 255)
        ids = nn.functional.interpolate(logits, (33, 50), mode="bilinear", align_corners=aligned).argmax(1)[0]
        known = mask != 255
        found += torch.bincount(11 * mask[known].long() + ids[known], minlength=121).view(11, 11)
    assert evaluate(own, dataset)["confusion"] == found.tolist()
    Image.fromarray(dataset[0][0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    ((_, ids),) = predict(own, [tmp_path / "a.png"], tmp_path / "out", palette=[(0, 0, 0)] * 11)
    logits = own(dataset[0][0][None].float() / 255)
    resized = nn.functional.interpolate(logits, (33, 50), mode="bilinear", align_corners=aligned)
    assert torch.equal(ids, resized.argmax(1)[0].to(torch.uint8))


def test_classes_in_another_order_are_refused(tmp_path):
    data = build_dataset("synthetic", "val", images=2, size=(32, 32))
    swapped = [data.classes[1], data.classes[0], *data.classes[2:]]
    network = build_model(NAME, num_classes=11)
    save_student(tmp_path / "student.safetensors", network, make_card(network, swapped, data.palette))
    teacher = {"checkpoint": str(tmp_path / "student.safetensors")}
    line = f"class 0 of the network is {swapped[0]}, which is class 1 of the data; class_map: names"
    with pytest.raises(ValueError, match=line):
        distill(one_step(teacher=teacher, method="kd"), out=tmp_path / "run")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(one_step()))
    with pytest.raises(ValueError, match=line):
        evaluate_run(tmp_path / "student.safetensors", config=tmp_path / "data.yaml")
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(one_step(student={**teacher, "class_map": "names"})))
    own = evaluate_run(tmp_path / "named.yaml")
    order = [1, 0, *range(2, 11)]

    class Ordered(nn.Module):
        def forward(self, images):
            return network.eval()(images)[:, order]

    expected = evaluate(Ordered(), build_dataset("synthetic", "val", images=2, size=(32, 32)))
    assert own["confusion"] == expected["confusion"]


def test_a_network_with_weights_is_evaluated_as_it_is(tmp_path, segdistill, monkeypatch):
    network = build_model(NAME, num_classes=13).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    names = build_dataset("synthetic", "val", images=2, size=(32, 32)).classes
    section = {"name": NAME, "weights": str(tmp_path / "w.pth"), "classes": ["x", *names, "y"], "class_map": "names"}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(one_step(student=section)))
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(one_step(teacher=section, method="kd")))

    class Cut(nn.Module):
        def forward(self, images):
            return network(images)[:, 1:12]

    expected = evaluate(Cut(), build_dataset("synthetic", "val", images=2, size=(32, 32)))
    assert evaluate_run(tmp_path / "both.yaml")["confusion"] == expected["confusion"]
    teacher = evaluate_run(tmp_path / "teacher.yaml")
    assert teacher["confusion"] == expected["confusion"]
    assert teacher["model"] == f"teacher of {tmp_path / 'teacher.yaml'}"
    monkeypatch.chdir(tmp_path)
    code, out, _ = segdistill("eval", "both.yaml")
    assert (code, "runs/both_eval_val.json" in out) == (0, True)
    assert json.loads((tmp_path / "runs/both_eval_val.json").read_text())["confusion"] == expected["confusion"]
    for change, line in (
        ({"class_map": None}, "student: .* has 13 classes, the data 11; say which is which: student.class_map"),
        (
            {"class_map": {0: names[0], 1: names[1]}},
            f"none of the network's classes is the data's {names[2]}; there is",
        ),
        (
            {"weights": None, "class_map": None, "classes": None},
            "nothing trained to evaluate; give a run, or student.na",
        ),
    ):
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(one_step(student={**section, **change})))
        with pytest.raises(ValueError, match=line):
            evaluate_run(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match=r"w.pth is no run or student's file .*weights: "):
        evaluate_run(tmp_path / "w.pth", config=tmp_path / "both.yaml")


def test_a_function_may_bring_its_own_weights():
    config = load_config({
        "data": {"name": "synthetic"},
        "student": {"name": "pspnet_resnet18_quarter"},
        "teacher": {"name": "python:test_external:make_model"},
        "method": "kd",
    })  # fmt: skip
    assert isinstance(build_teacher(config, list("abcdefghijk")).network, External)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smq:Unet:resnet18", {}, "smq is no library that is known; did you mean smp"),
        ("smp:", {}, "write for example smp:Unet:resnet18"),
        ("smp:Unte:resnet18", {}, "did you mean Unet"),
        ("smp:Unet", {}, "expected smp:DECODER:ENCODER"),
        ("smp:Unet:resnet19", {}, "cannot be built"),
        ("smp:Unet:resnet18", {"aux": True}, "no auxiliary head"),
        ("smp:Unet:resnet18", {"axu": True}, "smp has no option 'axu'; did you mean aux"),
        ("smp:Unet:resnet18", {"arguments": {"decoder_chanels": 1}}, "did you mean decoder_channels"),
        ("smp:Unet:resnet18", {"pretrained": "published"}, "no published network of that name"),
        ("torchvision:deeplabv3_resnet51", {}, "did you mean deeplabv3_resnet50"),
        ("torchvision:lraspp_mobilenet_v3_large", {"aux": True}, "no auxiliary head"),
        ("hf:segformer-b9", {}, "did you mean segformer-b"),
        ("hf:segformer-b0", {"config": {"model_type": "nonsense"}}, "knows no model_type 'nonsense'"),
        ("hf:segformer-b0", {"config": {"model_type": "vit"}}, "a vit, which does not segment"),
        ("python:nowhere:make", {}, "no module nowhere"),
        ("python:test_external:nothing", {}, "test_external has no function nothing"),
        ("python:test_external:make_model", {"depth": 3}, "got an unexpected keyword argument 'depth'"),
        ("python:json:dumps", {}, "missing a required argument"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, num_classes=4, **options)
    assert "\n" not in str(caught.value)


def test_without_a_network_there_is_one_line(monkeypatch):
    import huggingface_hub
    import segmentation_models_pytorch as smp
    import torchvision

    def offline(*_args, **_kwargs):
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    for name, options, message in [
        (
            "hf:nobody/no-such-network",
            {},
            r"cannot fetch hf:nobody/no-such-network \(.*for random weights",
        ),
        ("hf:nvidia/mit-b0", {"pretrained": True}, "cannot fetch hf:nvidia/mit-b0"),
        ("smp:Unet:resnet18", {"pretrained": True}, r"cannot fetch ImageNet weights of resnet18 \(Name or service"),
        ("torchvision:fcn_resnet50", {"pretrained": True}, "cannot fetch weights of fcn_resnet50"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            build_model(name, num_classes=4, **options)
        assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch):
    for name, package, extra in [
        ("smp:Unet:resnet18", "segmentation_models_pytorch", "smp"),
        ("hf:segformer-b0", "transformers", "hf"),
    ]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"pip install 'segdistill\[{extra}\]'"):
            build_model(name, num_classes=4)


def test_weights_of_an_encoder_from_a_file(tmp_path):
    theirs = build_model("smp:FPN:resnet18", num_classes=4).network.encoder
    torch.save(theirs.state_dict(), tmp_path / "encoder.pth")
    network = build_model("smp:Linknet:resnet18", num_classes=4, pretrained=str(tmp_path / "encoder.pth"))
    torch.testing.assert_close(network.network.encoder.conv1.weight, theirs.conv1.weight)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"lacks \d+ tensors"):
        build_model("smp:Linknet:resnet18", num_classes=4, pretrained=str(tmp_path / "encoder.pth"))


def test_the_list_gives_examples_of_each_library():
    names = external_names()
    assert set(names) == {"smp", "torchvision", "hf", "python"}
    assert "hf:nvidia/mit-b0" in names["hf"]
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model("hf:nvidia/mit-b0", num_classes=150).parameters()) == 3752694


def test_what_the_page_shows_works():
    page = (REPOSITORY / "docs/models.md").read_text().partition("## Your own network")[2]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/models.md", "exec"), {})
    configs = [load_config(yaml.safe_load(text)) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert len(configs) == 2
    for config in configs:
        assert set(config.teacher.class_map.values()) <= set(PALETTE)


def test_layers_are_shown_with_the_proposal(capsys):
    from rich.console import Console

    from segdistill.show import lists as show_lists

    console = Console(width=200)
    show_lists.layers(console, "smp:FPN:resnet18", (64, 128), depth=1)
    out = capsys.readouterr().out
    assert "network.encoder.layer2" in out  # deeper than asked for, but a tap
    assert "taps: {low1: network.encoder.layer1, low2: network.encoder.layer2, features: network.segm" in out
    assert "classifier: network.segmentation_head.0" in out
    show_lists.layers(console, "python:test_external:make_flat", (64, 128), depth=1)
    assert "no low1: write taps: {low1: PATH}" in capsys.readouterr().out


def make_flat(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, num_classes, 1))
