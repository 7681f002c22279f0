"""What methods show of a step: figures for the record that change nothing."""

import pytest
import torch
from safetensors.torch import load_file

from faults import read_metrics
from segdistill import distill, list_methods
from segdistill.methods import build_method
from segdistill.methods.i2ckd import I2CKD

DATA = {"name": "synthetic", "size": [32, 32], "images": 8, "crop": [32, 32], "batch_size": 4, "workers": 0}
TRAIN = {"steps": 4, "precision": "fp32", "log_every": 2, "threads": 1}


def taps(channels):
    torch.manual_seed(channels)
    features = torch.randn(2, channels, 6, 8)
    return {
        "image": torch.rand(2, 3, 48, 64),
        "low1": torch.randn(2, channels, 12, 16),
        "low2": torch.randn(2, channels, 6, 8),
        "features": features,
        "logits": torch.randn(2, 5, 6, 8),
        "weight": torch.randn(5, channels),
    }


def run_config(teacher, method, **train):
    return {
        "data": DATA,
        "student": {"name": "pspnet_resnet18_quarter", "output_stride": 16},
        "teacher": {"checkpoint": str(teacher)},
        "method": method,
        "train": {**TRAIN, **train},
    }


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis") / "teacher"
    config = {"data": DATA, "student": {"name": "deeplabv3_resnet18_quarter"}, "train": {**TRAIN, "steps": 1}}
    distill(config, out=folder)
    return folder


@pytest.mark.parametrize("name", list_methods())
def test_every_method_shows_numbers_and_changes_nothing(name):
    method = build_method(name)
    student, known = taps(8), taps(16)
    method.adapt(student, known)
    target = torch.randint(0, 5, (2, 48, 64))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        figures = method.analysis(student, known, target)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(key.startswith(f"{name}_") and isinstance(value, float) for key, value in figures.items())


def test_i2ckd_shows_the_distances_of_figure_1():
    method = I2CKD()
    student, known = taps(4), taps(4) | {"features": taps(4)["features"] + 3.0}
    method.adapt(student, known)
    target = torch.arange(2).repeat_interleave(4 * 48).reshape(1, 8, 48).expand(2, 8, 48)  # two classes
    figures = method.analysis(student, known, target)
    own, other, _ = method.prototypes(student, known, target)
    assert figures["within"] == pytest.approx(6.0, abs=1e-4)  # 3 in each of 4 channels
    between = torch.stack([(own[0] - other[1]).norm(), (own[1] - other[0]).norm()]).mean()
    assert figures["between"] == pytest.approx(float(between), abs=1e-4)
    assert I2CKD(prototype_weight=0.0).analysis({}, {}, target) == {}


def test_it_is_recorded_with_the_steps_and_leaves_the_student_as_it_was(tmp_path, teacher, monkeypatch):
    distill(run_config(teacher, "i2ckd"), out=tmp_path / "shown")
    records = read_metrics(tmp_path / "shown")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [2, 4]
    for record in steps:
        assert record["analysis_i2ckd_within"] > 0
        assert record["analysis_i2ckd_between"] > 0
        terms = [record[key] for key in ("ce", "i2ckd_prototypes", "i2ckd_logits")]
        assert record["loss"] == pytest.approx(sum(terms))
    monkeypatch.setattr(I2CKD, "analysis", lambda *_: {"within": float("nan")})
    distill(run_config(teacher, "i2ckd"), out=tmp_path / "silent")
    assert "NaN" not in (tmp_path / "silent/metrics.jsonl").read_text()
    shown, silent = (load_file(tmp_path / name / "student.safetensors") for name in ("shown", "silent"))
    assert all(torch.equal(shown[key], silent[key]) for key in shown)


def test_it_costs_nothing_on_other_steps(tmp_path, teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(I2CKD, "analysis", lambda *_: calls.append(1) or {})
    distill(run_config(teacher, "i2ckd", log_every=3, accumulate=2), out=tmp_path / "run")
    assert len(calls) == 2  # steps 3 and 4 (the last), not each of 8 micro-batches
