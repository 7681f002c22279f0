"""Every configuration of the package runs: two steps and its evaluation, on its data set in miniature."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

import published_layouts
import trees
from conftest import needs_package
from segdistill import build_model, compare, distill
from segdistill.data import build_dataset
from segdistill.engine.config import load_config
from segdistill.engine.evaluate import evaluate_run
from segdistill.engine.run_folder import CONFIG, STUDENT, SUMMARY
from segdistill.engine.shipped import CONFIGS, list_configs
from segdistill.engine.student import make_card, read_card, save_student

SETS = ("ade20k", "camvid", "cityscapes", "coco_stuff", "pascal_context", "voc2012")
COMPARISONS = [name for name in list_configs() if "/compare" in name]
RELEASED = [name for name in list_configs() if "/mmseg_" in name or name.endswith("_released")]
TRAINED = [name for name in list_configs() if name not in (*COMPARISONS, *RELEASED)]
SIZES = [
    "data.crop=[48,48]", "data.batch_size=2", "data.workers=0", "train.steps=2", "train.eval_every=0",
    "train.save_every=0", "train.log_every=1", "train.gradient_samples=0", "train.warmup=0", "train.precision=fp32",
    "train.device=cpu", "train.threads=1",
]  # fmt: skip
"""What a run on a small machine changes: how large and how long, not what is computed."""


SIZES_OF_METHODS = {
    "cirkd": ["method.pixel_memory=64", "method.region_memory=16"],
    "sstkd": ["method.regions=8", "method.region_size=8"],
}


SIZE = (48, 96)


def camvid(folder, images=2, size=SIZE):
    """SegNet's CamVid, with the eleven classes and void."""
    for split in ("train", "val", "test"):
        for index in range(images):
            name = f"{('0001TP', 'Seq05VD')[index % 2]}_{index:06d}.png"
            trees.picture(folder / split / name, size, index)
            trees.mask(folder / f"{split}annot" / name, trees.stripes((11, 0, 1, 3, 8, 10), size, index))
    return folder


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The variable that names each data set's root → a tree of it."""
    folder = tmp_path_factory.mktemp("data")
    made = {
        "ade20k": trees.ade20k(folder / "ade20k", size=SIZE),
        "camvid": camvid(folder / "camvid"),
        "cityscapes": trees.cityscapes(folder / "cityscapes", size=SIZE),
        "coco_stuff": trees.coco_stuff(folder / "coco_stuff", size=SIZE),
        "pascal_context": trees.pascal_context(folder / "pascal_context", size=SIZE),
        "voc2012": trees.voc2012(folder / "voc2012", size=SIZE, aug=True),
    }
    return {f"SEGDISTILL_{name.upper()}": str(root) for name, root in made.items()}


@pytest.fixture(scope="module")
def files(roots, tmp_path_factory):
    """(data set, kind) → a file as the recipes name it: `teacher`, of this package, or `openmmlab`, of a PSPNet."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        for name, root in roots.items():
            patch.setenv(name, root)
        found = {}
        for name in SETS:
            dataset = build_dataset(name, "val")
            network = build_model("pspnet_resnet18_quarter", num_classes=len(dataset.classes))
            found[name, "teacher"] = folder / f"{name}.safetensors"
            save_student(found[name, "teacher"], network, make_card(network, dataset.classes, dataset.palette))
            patch.setattr(published_layouts, "CLASSES", len(dataset.classes))
            found[name, "openmmlab"] = folder / f"{name}.pth"
            state = dict(published_layouts.openmmlab_pspnet()[0])
            torch.save(
                {"meta": {"CLASSES": dataset.classes, "epoch": 1}, "state_dict": state}, found[name, "openmmlab"]
            )
    found["camvid", "espnet"] = folder / "espnet.safetensors"
    save_file(build_model("espnet", num_classes=12).state_dict(), found["camvid", "espnet"])
    return found


@pytest.fixture(autouse=True)
def _environment(roots, monkeypatch, tmp_path):
    for name, root in roots.items():
        monkeypatch.setenv(name, root)
    monkeypatch.chdir(tmp_path)


def smaller(name, files):
    """The overrides that make a recipe small: sizes, R18 in the place of R101, the small files above."""
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    data = raw["data"]["name"]
    changes = list(SIZES) if name in TRAINED else ["data.workers=0"]
    if "size" in raw["data"]:
        changes.append("data.size=[48,48]")
    if "labelled_per_batch" in raw["data"]:
        changes.append("data.labelled_per_batch=1")
    if "unlabelled" in raw["data"]:
        changes.append("data.unlabelled.batch_size=1")
    if "pretrained" in raw["student"]:
        changes.append("student.pretrained=false")
    changes.append(f"student.name={raw['student']['name'].replace('resnet101', 'resnet18')}")
    if "weights" in raw["student"]:
        kind = "espnet" if raw["student"]["name"] == "espnet" else "openmmlab"
        changes.append(f"student.weights={files[data, kind]}")
    teacher = raw.get("teacher") or {}
    if "checkpoint" in teacher:
        changes.append(f"teacher.checkpoint={files[data, 'teacher']}")
    elif teacher:
        changes += ["teacher.name=pspnet_resnet18_v1c", f"teacher.weights={files[data, 'openmmlab']}"]
    changes += SIZES_OF_METHODS.get(load_config(name).method_names[0], [])
    protocol = load_config(name).eval
    if protocol.short_side is not None:
        changes += ["eval.short_side=48", "eval.long_side=96"]
    if protocol.window is not None:
        changes += ["eval.window=[32,48]", "eval.stride=[24,32]"]
    return changes


def is_twin(name):
    """Whether a recipe differs from one that is not slow in its schedule, its data or an option of SSTKD alone."""
    first = name in ("camvid/sstkd_full", "camvid/sstkd_statistical_graph")
    return name.endswith(("/cirkd_v2", "/sstkd_teacher")) or (name.startswith("camvid/sstkd_") and not first)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if is_twin(name) else []) for name in TRAINED]
)
def test_a_recipe_trains_and_is_evaluated_by_its_protocol(name, files, tmp_path):
    config = load_config(name, smaller(name, files))
    if (config.student.name or "").startswith("hf:"):
        needs_package("transformers", "hf")
    summary = distill(config, out=tmp_path / "run")
    assert summary["steps"] == 2
    assert 0 <= summary["miou"] <= 1
    assert summary["protocol"]["name"] == load_config(name).eval.protocol
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    terms = [record["loss"] for record in records if "loss" in record]
    assert terms
    assert torch.tensor(terms).isfinite().all()
    network = read_card(tmp_path / "run")["network"]
    assert network.get("source") == config.student.source  # so that it is deployed as it was trained


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_network_is_evaluated_by_its_protocol(name, files):
    result = evaluate_run(name, overrides=smaller(name, files), device="cpu")
    assert 0 <= result["miou"] <= 1
    assert result["protocol"]["name"] == load_config(name).eval.protocol


@pytest.mark.parametrize("name", [name for name in TRAINED if load_config(name).distils][::20])
def test_the_baseline_is_the_same_command_with_train(name, segdistill, files, tmp_path):
    code, _, err = segdistill("train", name, *smaller(name, files), "--out", tmp_path / "run")
    assert code == 0, err
    assert load_config(tmp_path / "run" / CONFIG).method_names == ["none"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_runs(name, tmp_path):
    small = [change for change in SIZES if not change.startswith("train.device")]
    compare(
        name,
        [*small, "data.size=[48,48]", "seeds=1", "teacher.config.train.steps=2",
         "teacher.config.student.pretrained=false"],
        out=tmp_path / "table",
    )  # fmt: skip
    assert list((tmp_path / "table").glob("*.md"))


def test_one_variable_and_one_command(segdistill, roots, files, tmp_path, monkeypatch):
    """As a user types it: what the recipe names lies in the working folder, and the data where the variable says."""
    for variable in roots:
        if variable != "SEGDISTILL_CITYSCAPES":
            monkeypatch.delenv(variable)
    names = published_layouts.Names()
    names.stem_deep("")
    names.stages("", 128)
    torch.save(dict(names), tmp_path / "resnet18-imagenet.pth")
    (tmp_path / "runs/cityscapes_skd_teacher").mkdir(parents=True)
    (tmp_path / "runs/cityscapes_skd_teacher" / STUDENT).write_bytes(files["cityscapes", "teacher"].read_bytes())
    run = tmp_path / "runs/sstkd"
    code, out, err = segdistill("distill", "cityscapes/sstkd", *SIZES, "--out", run)
    assert code == 0, err
    assert "mIoU" in out
    assert json.loads((run / SUMMARY).read_text())["method"] == ["sstkd"]
    card = read_card(run)["network"]
    assert (card["source"], card["normalisation"]["bgr"]) == ("skd", True)
    code, out, err = segdistill("eval", run)
    assert code == 0, err
    assert "protocol skd" in out
