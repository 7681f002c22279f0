"""A teacher of several networks, or of several views of an image: the mean of what they say, wherever a teacher is."""

import copy
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from faults import assert_same_run, at_step, config, interrupt, read_metrics
from segdistill import distill
from segdistill.comparison.work import evaluate_teacher
from segdistill.deploy.model_card import _recipe
from segdistill.engine.config import load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.forecast import forecast
from segdistill.engine.protocol import PLAIN, Protocol
from segdistill.engine.settings import settings_digest
from segdistill.engine.teacher import build_teacher, observe, teacher_digest
from segdistill.engine.teacher_views import Ensemble, join, members, share_classes, title
from segdistill.methods import build_method, list_methods
from segdistill.models import build_model
from segdistill.models.stats import model_stats
from segdistill.taps import ClassMap, Tapped

FLIPPED = Protocol(flip=True, scales=(0.75, 1.0))


class Tiny(nn.Module):
    """A convolution of some stride and a classifier; counts how often it runs."""

    def __init__(self, stride, classes, align_corners=False):
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, stride, 1)
        self.classifier = nn.Conv2d(6, classes, 1)
        self.align_corners = align_corners
        self.taps = {"features": "body", "logits": "classifier"}
        self.classifier_path = "classifier"
        self.runs = 0

    def forward(self, images):
        self.runs += 1
        logits = 9 * self.classifier(torch.sin(9 * self.body(images)))
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=self.align_corners)


def tiny(stride, classes=5, class_map=None, **options):
    return Tapped(Tiny(stride, classes, **options).double(), class_map=class_map).eval()


def naive(networks, views, images, tap="logits"):
    """Log of the mean probability, network by network and view by view."""
    plain = networks[0](images)[tap]
    means = []
    for network, (scales, flips) in zip(networks, views, strict=True):
        probabilities = []
        for scale in scales:
            size = [int(side * scale + 0.5) for side in images.shape[-2:]]
            seen = F.interpolate(images, size, mode="bilinear", align_corners=False) if scale != 1 else images
            for flip in flips:
                logits = network(seen.flip(3) if flip else seen)[tap]
                logits = logits.flip(3) if flip else logits
                aligned = network.network.align_corners
                if logits.shape[-2:] != plain.shape[-2:]:
                    logits = F.interpolate(logits, plain.shape[-2:], mode="bilinear", align_corners=aligned)
                probabilities.append(logits.exp() / logits.exp().sum(1, keepdim=True))
        means.append(sum(probabilities) / len(probabilities))
    return (sum(means) / len(means)).log()


# The numbers


@pytest.mark.parametrize("tap", ["logits", "output"])
def test_the_mean_is_that_of_its_definition(tap):
    networks = [tiny(2), tiny(4, 7, ClassMap([[0, 5], [1], [2, 6], [3], [4]], 7), align_corners=True), tiny(1)]
    views = [FLIPPED, Protocol(scales=(0.5,)), PLAIN]
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    found = Ensemble(networks, views)(images, {tap})
    expected = naive(networks, [((0.75, 1.0), (0, 1)), ((0.5,), (0,)), ((1.0,), (0,))], images, tap)
    torch.testing.assert_close(found[tap], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[tap].exp().sum(1), torch.ones_like(found[tap][:, 0]))


def test_no_probability_is_too_small_for_its_logarithm():
    networks = [tiny(1).float() for _ in range(2)]
    for network in networks:
        nn.init.zeros_(network.network.classifier.weight)
        network.network.classifier.bias.data = torch.tensor([0.0, 200, 0, 0, 0])  # exp(-200) is 0 in float32
    found = Ensemble(networks, [PLAIN, PLAIN])(torch.rand(1, 3, 8, 8))["logits"]
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-200.0, 0, -200, -200, -200]))


def test_in_half_precision_it_is_averaged_in_single():
    networks = [tiny(1).float(), tiny(2).float()]
    images = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        taps = Ensemble(networks, [PLAIN, FLIPPED])(images)
    assert taps["logits"].dtype == taps["output"].dtype == torch.float32
    assert taps["features"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in list_methods() if name != "none"])
def test_every_method_learns_from_it(name):
    torch.manual_seed(1)
    taught = [Tapped(build_model("pspnet_resnet18_half", num_classes=5).requires_grad_(False)).eval() for _ in range(2)]
    teacher = Ensemble(taught, [PLAIN, Protocol(flip=True)])
    distiller = Distiller(Tapped(build_model("pspnet_resnet18_quarter", num_classes=5)), build_method(name))
    images = torch.rand(2, 3, 64, 64)
    distiller.adapt(teacher, images, classes=5)
    seen = observe(teacher, images, distiller.method.teacher_taps())
    target = torch.randint(0, 5, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    terms, *_ = distiller(images, target, seen, 0.5, distiller.method.make_critic())
    torch.stack(list(terms.values())).sum().backward()
    assert all(bool(value.isfinite()) for value in terms.values())


# What is seen


def test_all_other_taps_are_those_of_the_first_network():
    networks = [tiny(2), tiny(1)]
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    taps, first = Ensemble(networks, [FLIPPED, PLAIN])(images), networks[0](images)
    assert taps.keys() == first.keys()
    for name in ("features", "weight", "image"):
        assert torch.equal(taps[name], first[name])
    assert not torch.equal(taps["logits"], first["logits"])


@pytest.mark.parametrize(
    ("views", "names", "runs"),
    [
        ([FLIPPED, PLAIN], {"logits", "features"}, [4, 1]),  # the plain view is one of the four
        ([Protocol(scales=(0.5,)), PLAIN], {"logits"}, [2, 1]),  # it gives the size alone
        ([FLIPPED, FLIPPED], {"features"}, [1, 0]),
        ([FLIPPED, FLIPPED], None, [4, 4]),
    ],
)
def test_nothing_runs_in_vain(views, names, runs):
    networks = [tiny(2), tiny(1)]
    taps = Ensemble(networks, views)(torch.rand(1, 3, 8, 8, dtype=torch.float64), names)
    assert [network.network.runs for network in networks] == runs
    if names == {"features"}:
        assert taps.keys() == {"image", "features", "weight"}


def test_a_mirrored_image_has_mirrored_logits():
    images = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    teacher = Ensemble([tiny(1)], [Protocol(flip=True)])
    torch.testing.assert_close(teacher(images.flip(3))["logits"], teacher(images)["logits"].flip(3))


def test_one_network_in_its_plain_view_is_itself():
    network = tiny(2)
    assert join([network], [PLAIN]) is network
    assert members(network) == [network]
    assert title(network) == "Tiny"
    teacher = join([network, tiny(1)], [FLIPPED, PLAIN])
    assert title(teacher) == "Tiny (4 views) + Tiny"
    assert teacher.looks == 5


def test_all_networks_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    networks = [Tapped(build_model("pspnet_resnet18_quarter", num_classes=5)) for _ in range(2)]
    Ensemble(networks, [PLAIN, PLAIN]).compile_between_taps()
    own = [set(map(id, network.modules())) for network in networks]
    assert all(any(id(module) in modules for module in compiled) for modules in own)


def test_classes_that_all_know_are_compared():
    one, other = ClassMap([[3], [], [1, 2], [0]], 4), ClassMap([[0], [1], [2], []], 3)
    first, second, whole = share_classes([one, other, None], 4)
    assert (first.known, second.known, whole.known) == ([0, 2],) * 3
    assert (first.sources, second.sources, whole.sources) == ([[3], [1, 2]], [[0], [2]], [[0], [2]])
    assert (first.count, second.count, whole.count) == (4, 3, 4)
    assert not whole.complete
    full = ClassMap([[1], [0]])
    assert share_classes([full, None], 2) == [full, None]
    assert share_classes([one], 4) == [one]
    with pytest.raises(ValueError, match="1 of the data's classes is known to all networks of the list, needs 2"):
        share_classes([ClassMap([[0], [1], [], []]), ClassMap([[0], [], [1], []])], 4)


# Runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two teachers' runs."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, network in (("a", "deeplabv3_resnet18_quarter"), ("b", "pspnet_resnet18_half")):
        distill(config(student={"name": network}, train={"steps": 1, "eval_every": 0}), out=folder / name)
    return folder


@pytest.fixture
def taught(runs):
    """The configuration of a run with both of them."""

    def make(method="kd", first=None, second=None, **changes):
        entries = [
            {"checkpoint": str(runs / "a"), "views": {"flip": True, "scales": [0.75, 1.0]}, **(first or {})},
            {"checkpoint": str(runs / "b"), **(second or {})},
        ]
        return config(teacher=entries, method=method, **changes)

    return make


def test_a_run_with_two_teachers_resumes_to_the_bit(taught, tmp_path, monkeypatch):
    distill(taught(["kd", "mimic"]), out=tmp_path / "whole")
    with at_step(monkeypatch, 3, interrupt), pytest.raises(KeyboardInterrupt):
        distill(taught(["kd", "mimic"]), out=tmp_path / "run")
    distill(taught(["kd", "mimic"]), out=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    loaded = load_config(tmp_path / "run")
    assert json.loads((tmp_path / "run/env.json").read_text())["teacher"] == teacher_digest(loaded)
    assert [section.views is not None for section in loaded.teachers] == [True, False]


@pytest.mark.parametrize(("method", "told"), [("mimic", True), ("kd", False), (["mimic", "kd"], False)])
def test_teachers_that_teach_nothing_are_told(taught, tmp_path, capfd, method, told):
    distill(taught(method), ["train.steps=1"], out=tmp_path / "run")
    line = (
        "teacher: the methods read features alone, which are those of the first network, of the image as it is; leave"
    )
    assert (line in capfd.readouterr().err) == told


def test_a_run_goes_on_with_no_other_teachers(taught, runs, tmp_path):
    distill(taught(), out=tmp_path / "run")
    moved = str(shutil.copytree(runs / "b", tmp_path / "moved"))
    distill(taught(second={"checkpoint": moved}), out=tmp_path / "run", resume=True)
    another = "was taught by another teacher than the one that is there now"
    for teacher, line in (
        (taught()["teacher"][::-1], another),
        (taught()["teacher"][:1], another),
        (taught(second={"checkpoint": str(runs / "a")})["teacher"], another),
        (taught(second={"views": {"flip": True}})["teacher"], r"started with teacher\.1\.views\.flip=None, not True"),
        (taught(first={"views": {"scales": [1.0]}})["teacher"], r"teacher\.0\.views\.flip=True, not False"),
    ):
        with pytest.raises(ValueError, match=line):
            distill({**taught(), "teacher": teacher}, out=tmp_path / "run", resume=True)


def test_where_teachers_are_tells_no_run_from_another(taught, runs, tmp_path):
    moved = str(shutil.copytree(runs / "b", tmp_path / "moved"))
    here, there, other = (
        settings_digest(load_config(taught(second=second)), "teacher.")
        for second in ({}, {"checkpoint": moved}, {"checkpoint": str(runs / "a")})
    )
    assert here == there
    assert here != other


def test_views_of_a_network_of_ones_own(taught, tmp_path):
    own = build_model("pspnet_resnet18_quarter", num_classes=11)
    settings = config(teacher={"name": "pspnet_resnet18_quarter", "views": {"flip": True}}, method="kd")
    distill(settings, teacher=own, out=tmp_path / "run")
    teacher = build_teacher(load_config(settings), ["c"] * 11, own)
    assert isinstance(teacher, Ensemble)
    assert teacher.views == [Protocol(flip=True)]
    with pytest.raises(ValueError, match="teacher is a list of 2; a network of your own stands for a single one"):
        distill(taught(), teacher=own, out=tmp_path / "two")


def test_other_classes_are_mapped_before_the_mean(runs, taught, tmp_path):
    names = json.loads((runs / "a/summary.json").read_text())["iou"]
    swapped = {number: number ^ 1 if number < 10 else number for number in range(len(names))}
    settings = load_config(taught(first={"class_map": {k: v for k, v in swapped.items() if v != 3}, "views": None}))
    teacher = build_teacher(settings, list(names))
    images = torch.rand(1, 3, 32, 32)
    one, other = (member.network(images).detach() for member in members(teacher))
    keep = [number for number in range(11) if number != 3]
    expected = (one[:, [swapped[number] for number in keep]].softmax(1) + other[:, keep].softmax(1)).div(2).log()
    assert teacher.class_map.known == keep
    torch.testing.assert_close(teacher(images)["output"].detach(), expected)
    distill(settings, out=tmp_path / "run")


def test_a_cache_of_two_teachers(taught, runs, tmp_path):
    still = {"scale": [1, 1], "flip": False}
    cache = {"cache": str(tmp_path / "cache"), "cache_precision": "float32"}
    distill(taught(["kd", "mimic"], data=still), out=tmp_path / "alive")
    distill(taught(["kd", "mimic"], cache, data=still), out=tmp_path / "first")
    records = [[r for r in read_metrics(tmp_path / name) if "ce" in r] for name in ("alive", "first")]
    for one, other in zip(*records, strict=True):
        terms = [key for key in one if key.startswith(("kd_", "mimic_"))]
        assert len(terms) == 2
        assert [one[key] for key in terms] == pytest.approx([other[key] for key in terms], rel=1e-4)
    distill(taught("kd", cache, {"checkpoint": str(shutil.copytree(runs / "b", tmp_path / "moved"))}, data=still),
            out=tmp_path / "third")  # fmt: skip
    for changes, line in (
        ({"second": {"checkpoint": str(runs / "a")}}, "filled with other weights of the teacher than these"),
        ({"second": {"views": {"flip": True}}}, r"filled with teacher\.1\.views\.flip=null, not True"),
        ({"first": {"views": {"flip": True}}}, r"filled with teacher\.0\.views\.scales=\[0\.75, 1\.0\], not \[1\.0\]"),
        ({"second": {"class_map": {0: 1, 1: 0}}}, r"filled with teacher\.1\.class_map"),
    ):
        changes = {**changes, "first": {**cache, **changes.get("first", {})}}
        with pytest.raises(ValueError, match=line) as refused:
            distill(taught("kd", **changes, data=still), out=tmp_path / "other")
        assert "\n" not in str(refused.value)


def test_what_is_kept_is_what_the_teachers_say_of_the_images_that_come(taught, tmp_path, monkeypatch):
    """With all that says which images come, and how: labels per batch, micro-batches, mixed images, several views."""
    section = {"cache": str(tmp_path / "cache"), "cache_precision": "float32", "cache_views": 2}
    augment = {"colour": 0.5, "cutmix": 0.7, "classmix": 0.7}
    data = {"augment": augment, "labelled": 3, "labelled_per_batch": 2}
    made = taught(["kd", "mimic", "jml"], section, data=data, train={"steps": 6, "accumulate": 2})
    met = []

    def compare(teacher, images, names, stored=None):
        kept = observe(teacher, images, names, stored)
        if stored is not None:
            alive = observe(teacher, images, names)
            met.append({name: (kept[name] - alive[name]).abs().max() / alive[name].abs().max() for name in names})
        return kept

    monkeypatch.setattr("segdistill.engine.loop.observe", compare)
    distill(made, out=tmp_path / "whole")
    assert len(met) == 12
    assert all(set(each) == {"logits", "features"} and max(each.values()) < 1e-4 for each in met)
    with at_step(monkeypatch, 3, interrupt), pytest.raises(KeyboardInterrupt):  # in the middle of an epoch
        distill(made, out=tmp_path / "run")
    distill(made, out=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_dry_run_says_what_is_averaged(taught):
    rows = {row["tap"]: row for row in forecast(taught(["kd", "mimic"]))["taps"]}
    assert rows["logits"]["teacher"] == "classifier, mean of 5"
    assert rows["features"]["teacher"] == "classifier:input"
    assert rows["logits"]["student"] == "classifier"


def test_it_is_evaluated_as_the_student_sees_it(taught, tmp_path):
    settings = load_config(taught(student={"name": "pspnet_resnet18_quarter"}))
    found = evaluate_teacher(settings, "val")
    assert found["network"] == "deeplabv3_resnet18_quarter (4 views) + pspnet_resnet18_half"
    assert found["looks"] == 5
    teacher = build_teacher(settings, list(found["iou"]))
    sizes = [model_stats(member.network) for member in members(teacher)]
    assert found["params"] == sum(size["params"] for size in sizes)
    assert found["flops"] > 3 * sizes[0]["flops"] + sizes[1]["flops"]

    class Mean(nn.Module):
        def forward(self, images):
            return teacher(images)["output"]

    from segdistill.engine.build import build_split

    expected = evaluate(Mean(), build_split(settings.data, "val"), batch_size=8)
    assert found["miou"] == pytest.approx(expected["miou"], rel=1e-6)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(taught(student={"name": "pspnet_resnet18_quarter"})))
    assert evaluate_run(tmp_path / "config.yaml")["miou"] == pytest.approx(expected["miou"], rel=1e-6)


def test_the_recipe_of_a_card_names_all_of_them():
    entries = [{"name": "pspnet_resnet101", "weights": "/x/y.pth"}, {"name": "espnet", "views": {"flip": True}}]
    text = _recipe({"method": [{"name": "kd"}], "teacher": entries}, {})
    assert text.index("pspnet_resnet101") < text.index("espnet") < text.index("flip: true")
    assert "/x/y.pth" not in text


# The command line and mistakes


def read(teacher=None, *overrides):
    base = {"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18_quarter"}, "method": "kd"}
    given = {} if teacher is None else {"teacher": copy.deepcopy(teacher)}
    return load_config({**base, **given}, overrides)


A, B = {"checkpoint": "a"}, {"checkpoint": "b"}


@pytest.mark.parametrize(
    ("teacher", "overrides", "checkpoints"),
    [
        ([A], [], ["a"]),
        ([A, B], [], ["a", "b"]),
        (None, ["teacher.0.checkpoint=a", "teacher.1.checkpoint=b"], ["a", "b"]),
        (A, ["teacher.1.checkpoint=b"], ["a", "b"]),
        (A, ["teacher.0.checkpoint=b"], ["b"]),
        ([A, B], ["teacher.1.checkpoint=c"], ["a", "c"]),
        ([A, B], ["teacher.1={checkpoint: d}"], ["a", "d"]),
        (A, ["teacher=[{checkpoint: x}, {checkpoint: y}]"], ["x", "y"]),
        ([A, B], ["teacher=null"], []),
    ],
)
def test_overrides(teacher, overrides, checkpoints):
    found = read(teacher, *overrides)
    assert [section.checkpoint for section in found.teachers] == checkpoints
    assert isinstance(found.teacher, list) == (len(checkpoints) > 1)
    assert load_config(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))) == found


def test_an_override_leaves_the_views_and_the_file_as_they_are():
    entries = [A, {"name": "pspnet_resnet18", "weights": "w", "views": {"flip": True}}]
    found = read(entries, "teacher.1.checkpoint=c", "teacher.0.views.scales=[0.5, 1]")
    assert found.teachers[1].views.flip
    assert found.teachers[0].views.scales == [0.5, 1.0]
    assert (found.teachers[1].name, found.teachers[1].weights) == (None, None)
    given = {"teacher": [dict(A), dict(B)]}
    load_config({"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18_quarter"}, **given},
                ["teacher.1.views.flip=true"])  # fmt: skip
    assert given["teacher"] == [A, B]


@pytest.mark.parametrize(
    ("teacher", "overrides", "line"),
    [
        ([], [], r"teacher: expected a network, or a list of networks, got \[\]"),
        (A, ["teacher.2.checkpoint=b"], "teacher is a list of 1; teacher.2 is not there"),
        ([A, B], ["teacher.checkpoint=c"], "teacher is a list of 2; say which one, as teacher.0.checkpoint"),
        ([A, {**B, "cache": "x"}], [], "teacher.0.cache keeps the mean of all; leave teacher.1.cache out"),
        ([A, {"chekpoint": "b"}], [], "unknown key teacher.1.chekpoint; did you mean checkpoint"),
        ([A, {"name": "pspnet_resnet18", "axu": 1}], [], "unknown key teacher.1.axu; did you mean aux"),
        ([A, {"name": "pspnet_resnet18", "weights": 3}], [], "teacher.1.weights: .*string, got 3"),
        ([A, {**B, "align_corners": True}], [], "teacher.1: align_corners beside checkpoint"),
        ([A, "b"], [], "teacher.1: .*got 'b'"),
        ([A, {**B, "views": {"flip": 3}}], [], "teacher.1.views.flip: .*boolean"),
        (A, ["teacher.views.flipp=true"], "unknown key teacher.views.flipp; did you mean flip"),
        (A, ["teacher.views.scales=[0]"], r"teacher.views: scales: expected factors .*got \(0.0,\)"),
        (A, ["student.views.flip=true"], "student: .*views belong into teacher, or into eval"),
    ],
)
def test_mistakes_are_one_line(teacher, overrides, line):
    with pytest.raises(ValueError, match=line) as error:
        read(teacher, *overrides)
    assert "\n" not in str(error.value)


def test_what_teaches_nothing_is_named(taught, runs, tmp_path):
    untrained = taught(second={"checkpoint": None, "name": "pspnet_resnet18"})
    with pytest.raises(ValueError, match=r"teacher\.1: an untrained network .*set teacher\.1\.checkpoint or"):
        distill(untrained, out=tmp_path / "x")
    names = {f"class {number}": None for number in range(11)} | {0: 0, 1: 1}
    with pytest.raises(ValueError, match=r"teacher\.1\.class_map: the teacher\.1 has no class"):
        distill(taught(second={"class_map": names}), out=tmp_path / "x")
    with pytest.raises(ValueError, match=r"teacher\.1 gives 128 classes, teacher\.0 11"):
        distill(taught(second={"taps": {"logits": "decoder"}}), out=tmp_path / "x")
    with pytest.raises(ValueError, match=r"teacher\.1 gives 4 classes, teacher\.0 5; set class_map"):
        Ensemble([tiny(1), tiny(1, 4)], [PLAIN, PLAIN])(torch.rand(1, 3, 8, 8, dtype=torch.float64))
