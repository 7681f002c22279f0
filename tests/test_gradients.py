"""The gradients of single terms: parity, no influence on training, and what is recorded."""

import doctest

import pytest
import torch
from torch import nn

from faults import at_step
from faults import read_metrics as records
from segdistill.engine import gradients, training
from segdistill.engine.config import load_config
from segdistill.engine.gradients import term_gradients
from segdistill.engine.loop import TrainingStopped, distill

CONFIG = {
    "data": {"name": "synthetic", "size": [32, 32], "images": 6, "batch_size": 2, "workers": 0},
    "student": {"name": "deeplabv3plus_resnet18_quarter", "head_width": 16},
    "train": {"steps": 6, "lr": 0.01, "log_every": 1, "device": "cpu", "precision": "fp32", "threads": 1},
}


def test_docstring():
    assert doctest.testmod(gradients).failed == 0


def test_norms_and_cosines_are_those_of_separate_backward_passes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    extra = nn.Linear(3, 3).double()  # no parameter of the student

    def terms():
        out = network(torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4))
        return {
            "kd": 3 * extra(out).square().mean(),
            "ce": out.logsumexp(1).mean(),
            "late": network[2](out[:, :1].expand(5, 8)).sum(),
        }

    parameters = list(network.parameters())
    found = term_gradients(terms(), parameters)
    own = {}
    for name in found:
        network.zero_grad()
        terms()[name].backward()
        own[name] = torch.cat([p.grad.flatten() for p in parameters])
    assert list(found) == ["kd", "ce", "late"]
    for name, (norm, cosine) in found.items():
        assert norm == pytest.approx(own[name].norm().item(), rel=1e-5)
        expected = torch.cosine_similarity(own[name], own["ce"], dim=0).item()
        assert cosine is None if name == "ce" else cosine == pytest.approx(expected, abs=1e-5)
    network.zero_grad()
    term_gradients(terms(), parameters, scale=2.0**14)
    assert all(p.grad is None for p in network.parameters())
    scaled = term_gradients(terms(), parameters, scale=2.0**14)
    assert scaled["kd"][0] == pytest.approx(found["kd"][0], rel=1e-5)


def test_terms_without_a_gradient_have_no_direction():
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    terms = {"ce": weight.sum(), "flat": other.sum(), "constant": torch.tensor(1.0), "zero": weight.sum() * 0}
    found = term_gradients(terms, [weight])
    assert found["ce"] == (pytest.approx(2**0.5), None)
    assert [found[name] for name in ("flat", "constant", "zero")] == [(0.0, None)] * 3
    assert term_gradients({"kd": weight.sum()}, [weight]) == {"kd": (pytest.approx(2**0.5), None)}  # nothing to compare


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    changes = ["train.steps=1", "train.aux_weight=0"]
    distill(load_config(CONFIG, [*changes, "method=none"]), out=folder)
    return folder


def test_looking_at_gradients_changes_nothing(teacher, tmp_path):
    states = {}
    for samples in (0, 3):
        folder = tmp_path / str(samples)
        overrides = ["method=[cwd, skd]", f"teacher.checkpoint={teacher}", f"train.gradient_samples={samples}"]
        distill(load_config(CONFIG, overrides), out=folder)
        states[samples] = torch.load(folder / "checkpoint.pt", weights_only=True)
    for part in ("distiller", "critic"):
        assert states[0][part].keys() == states[3][part].keys()
        assert all(torch.equal(states[0][part][key], states[3][part][key]) for key in states[0][part])
    assert not any(key.startswith("gradient_") for record in records(tmp_path / "0") for key in record)
    steps = [record for record in records(tmp_path / "3") if "gradient_ce" in record]
    assert [record["step"] for record in steps] == [2, 4, 6]
    for record in steps:
        terms = {key.removeprefix("gradient_") for key in record if key.startswith("gradient_")}
        assert terms == {"ce", "cwd_logits", "skd_pixel", "skd_pair", "skd_holistic"}
        assert {key.removeprefix("cosine_") for key in record if key.startswith("cosine_")} == terms - {"ce"}
        assert all(-1.001 <= value <= 1.001 for key, value in record.items() if key.startswith("cosine_"))
        assert record["gradient_ce"] > 0


@pytest.mark.parametrize(("log_every", "expected"), [(1, [2, 4, 6]), (4, [4, 6]), (10, [6])])
def test_samples_fall_on_recorded_steps(teacher, tmp_path, log_every, expected):
    overrides = [
        "method=kd",
        f"teacher.checkpoint={teacher}",
        "train.gradient_samples=3",
        f"train.log_every={log_every}",
    ]
    distill(load_config(CONFIG, overrides), out=tmp_path / "run")
    assert [record["step"] for record in records(tmp_path / "run") if "gradient_ce" in record] == expected


def test_only_the_first_micro_batch_is_looked_at(teacher, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "term_gradients", lambda *_, **__: calls.append(1) or {})
    overrides = ["method=kd", f"teacher.checkpoint={teacher}", "train.gradient_samples=2", "train.accumulate=2"]
    overrides.append("data.batch_size=4")  # BatchNorm wants two images
    distill(load_config(CONFIG, overrides), out=tmp_path / "run")
    assert len(calls) == 2


def test_a_resumed_run_may_look_more_often(teacher, tmp_path, monkeypatch):
    overrides = ["method=kd", f"teacher.checkpoint={teacher}"]
    ask = lambda run: run.run.stopped.append(1)  # noqa: E731
    with at_step(monkeypatch, 1, ask), pytest.raises(TrainingStopped):
        distill(load_config(CONFIG, [*overrides, "train.gradient_samples=0"]), out=tmp_path / "run")
    config = load_config(CONFIG, [*overrides, "train.gradient_samples=6"])
    distill(config, out=tmp_path / "run", resume=True)
    found = {record["step"]: "gradient_ce" in record for record in records(tmp_path / "run") if "loss" in record}
    assert found == {1: False, **dict.fromkeys(range(2, 7), True)}


def test_a_single_term_is_not_looked_at(teacher):
    assert not any(key.startswith("gradient_") for record in records(teacher) for key in record)
