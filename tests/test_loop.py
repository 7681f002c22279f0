"""Training as a whole: what is written, exact resumption, guards, several processes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import needs_package
from faults import assert_same_run, at_step, interrupt, read_metrics
from processes import in_processes
from segdistill import distill, list_methods, load_student
from segdistill.engine.loop import TrainingStopped
from segdistill.engine.student import read_card

DATA = {
    "name": "synthetic", "size": [32, 32], "images": 8, "crop": [32, 32], "batch_size": 4, "workers": 0,
    "eval_batch_size": 4,
}  # fmt: skip
STUDENT = {"name": "pspnet_resnet18_quarter", "output_stride": 16, "aux": True}
TRAIN = {"steps": 4, "precision": "fp32", "log_every": 1, "save_every": 2, "threads": 1}


def config(**changes):
    base = {"data": dict(DATA), "student": dict(STUDENT), "train": dict(TRAIN)}
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    distill(config(student={"name": "deeplabv3_resnet18_quarter"}, train={"steps": 2}), out=folder)
    return folder


def weights(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return state["distiller"] | {f"critic.{k}": v for k, v in state.get("critic", {}).items()}


class Plain(nn.Module):
    """A student of the user's own, without batch norm, so that a batch can be cut up."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 11, 1)

    def forward(self, x):
        return {"out": nn.functional.interpolate(self.head(self.body(x)), x.shape[-2:], mode="bilinear")}


def test_a_run_writes_its_folder(tmp_path, teacher):
    out = tmp_path / "run"
    summary = distill(config(teacher={"checkpoint": str(teacher)}, method=["kd", "cwd"]), out=out)
    names = {"config.yaml", "env.json", "metrics.jsonl", "checkpoint.pt", "student.safetensors", "summary.json"}
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == names
    assert summary == json.loads((out / "summary.json").read_text())
    assert {"miou", "macc", "pixel_accuracy", "iou", "params", "flops", "steps", "seconds"} <= summary.keys()
    lines = read_metrics(out)
    assert {"ce", "aux", "kd_logits", "cwd_logits", "lr", "grad_norm", "images_per_s", "data_wait"} <= lines[0].keys()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[-1]["val_miou"] == pytest.approx(summary["miou"], abs=1e-6)
    terms = [lines[0][key] for key in ("ce", "aux", "kd_logits", "cwd_logits")]
    assert lines[0]["loss"] == pytest.approx(sum(terms))


def test_the_students_file_needs_nothing_else(tmp_path, teacher):
    distill(config(teacher={"checkpoint": str(teacher)}, method="cwd"), out=tmp_path / "run")
    file = (tmp_path / "run/student.safetensors").rename(tmp_path / "moved.safetensors")
    network = load_student(file)
    assert not network.training
    assert network(torch.rand(1, 3, 40, 56)).shape == (1, 11, 40, 56)
    assert not any(key.startswith(("aux", "teacher", "method", "adapter")) for key in load_file(file))
    card = read_card(file)
    assert card["classes"] == network.card["classes"]
    assert {"network", "normalisation", "taps", "miou", "palette"} <= card.keys()


@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "optimizer": "adamw", "accumulate": 2, "clip": 1.0, "warmup": 2}])
@pytest.mark.parametrize("method", ["none", "cwd", "skd"])
def test_resume_is_exact_to_the_bit(tmp_path, teacher, monkeypatch, method, extra):
    changes = config(teacher={"checkpoint": str(teacher)}, method=method, train={**extra, "eval_every": 2})
    distill(changes, out=tmp_path / "whole")
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(changes, out=tmp_path / "parts")
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0}\n{"step": 4, "lo')  # what a killed process may leave
    distill(changes, out=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("method", [*list_methods(), ["sstkd", "fakd"], ["i2ckd", "fakd"], ["skd", "sstkd"]], ids=str)
def test_every_method_trains_without_a_special_case(tmp_path, teacher, method):
    size = {"size": [64, 64], "crop": [64, 64]}
    changes = config(data=size, teacher={"checkpoint": str(teacher)}, method=method, train={"steps": 2})
    distill(changes, out=tmp_path / "run")
    assert all(v.isfinite().all() for v in load_file(tmp_path / "run/student.safetensors").values())


def test_workers_do_not_matter(tmp_path):
    for workers in (0, 2):
        distill(config(data={"workers": workers}, train={"steps": 2}), out=tmp_path / str(workers))
    a, b = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_accumulation_gives_the_same_step(tmp_path):
    for k in (1, 2):
        whole = config(data={"scale": [1, 1]}, train={"accumulate": k, "aux_weight": 0.0})
        distill(whole, student=Plain(), out=tmp_path / str(k))
    a, b = weights(tmp_path / "1"), weights(tmp_path / "2")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


def _train(out):
    distill(config(data={"scale": [1, 1]}), student=Plain(), out=out)


def test_two_processes_train_as_one(tmp_path):
    _train(tmp_path / "one")
    assert in_processes(_train, tmp_path / "two", joined=False) == [0, 0]
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two"))
    assert two["images"] == one["images"]
    assert two["miou"] == pytest.approx(one["miou"], abs=1e-3)


def test_own_networks_with_taps_by_path(tmp_path):
    taps = {"features": "head:input", "logits": "head"}
    changes = config(
        student={"taps": taps, "classifier": "head"},
        teacher={"taps": taps},
        method={"name": "cwd", "features_weight": 1.0},
    )
    distill(changes, student=Plain(), teacher=Plain(), out=tmp_path / "run")
    with pytest.raises(ValueError, match="network of your own; pass it"):
        load_student(tmp_path / "run")
    network = load_student(tmp_path / "run", Plain())
    assert network(torch.rand(1, 3, 32, 32))["out"].shape == (1, 11, 32, 32)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision(tmp_path, teacher, precision):
    changes = config(teacher={"checkpoint": str(teacher)}, method="kd", train={"precision": precision})
    assert distill(changes, out=tmp_path / "run")["miou"] is not None


def test_a_term_that_is_not_finite_is_named(tmp_path, teacher, monkeypatch):
    from segdistill.methods import kd

    calls = []

    def diverge(student, teacher, **options):
        calls.append(1)
        return student.sum() * (float("nan") if len(calls) > 3 else 0.0)

    monkeypatch.setattr(kd, "pixel_kl", diverge)
    out = tmp_path / "run"
    with pytest.raises(TrainingStopped, match=r"kd_logits is nan at step 3; last good checkpoint: .*checkpoint.pt"):
        distill(config(teacher={"checkpoint": str(teacher)}, method="kd"), out=out)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["facts"]["step"] == 2
    assert all(v.isfinite().all() for v in state["distiller"].values())


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(TrainingStopped, match=r"(term ce|the student's gradient) is (nan|inf) at step"):
        distill(config(train={"lr": 1e30}), out=tmp_path / "run")


@pytest.mark.parametrize("method", [["kd", "cwd", "skd"], ["ifvd", "cirkd", "fakd", "i2ckd"]], ids="+".join)
def test_unlabelled_images_join_the_batch(tmp_path, teacher, method):
    from PIL import Image

    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 9, 9)).save(tmp_path / f"more/{i}.png")
    unlabelled = {"root": str(tmp_path / "more"), "batch_size": 2}
    changes = config(data={"unlabelled": unlabelled}, teacher={"checkpoint": str(teacher)}, method=method)
    assert distill(changes, out=tmp_path / "run")["steps"] == 4
    distill(changes | {"data": DATA}, out=tmp_path / "labelled")
    with_them, without = weights(tmp_path / "run"), weights(tmp_path / "labelled")
    assert any(not torch.equal(with_them[name], without[name]) for name in without)


def test_tensorboard_is_optional(tmp_path):
    needs_package("tensorboard", "track")
    distill(config(train={"steps": 2, "tensorboard": True}), out=tmp_path / "run")
    assert any((tmp_path / "run/tensorboard").iterdir())


def test_mistakes_are_one_line(tmp_path, teacher):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"needs a teacher; set teacher.checkpoint"):
        distill(config(method="kd"), out=out)
    with pytest.raises(ValueError, match="an untrained network teaches nothing"):
        distill(config(method="kd", teacher={"name": "pspnet_resnet18"}), out=out)
    with pytest.raises(ValueError, match="no student at"):
        distill(config(method="kd", teacher={"checkpoint": str(tmp_path)}), out=out)
    with pytest.raises(ValueError, match=r"--override changes .* it needs --resume"):
        distill(config(), out=out, override=True)
    distill(config(train={"steps": 1}), out=out)
    with pytest.raises(ValueError, match="already holds a run; --resume goes on with it"):
        distill(config(), out=out)
    with pytest.raises(ValueError, match=r"started with train.lr=0.01, not 0.5"):
        distill(config(train={"steps": 1, "lr": 0.5}), out=out, resume=True)
    with pytest.raises(ValueError, match="device 'cuda:77' is not available"):
        distill(config(train={"device": "cuda:77"}), out=tmp_path / "other")


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = distill(config(train={"steps": 1}), out=tmp_path / "run")
    assert distill(config(train={"steps": 1}), out=tmp_path / "run", resume=True) == first


@pytest.mark.slow
def test_compiled_networks_train_alike(tmp_path, teacher):
    changes = config(teacher={"checkpoint": str(teacher)}, method={"name": "cwd", "features_weight": 1.0})
    distill(changes, out=tmp_path / "eager")
    changes["train"] |= {"compile": True, "gradient_samples": 2}
    distill(changes, out=tmp_path / "compiled")
    for a, b in zip(read_metrics(tmp_path / "eager"), read_metrics(tmp_path / "compiled"), strict=True):
        if "cwd_features" in a:
            assert b["cwd_features"] == pytest.approx(a["cwd_features"], rel=1e-2)
        assert not any(key.startswith("gradient_") for key in b)  # a second backward pass would spoil the first
