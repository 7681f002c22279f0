import json
import math

import pytest
import torch

from faults import config, read_metrics
from segdistill import distill, load_config
from segdistill.engine import loop
from segdistill.engine.forecast import Enough, Notes, cold_and_steady, forecast, time_steps
from test_compare import TINY
from test_loop import Plain

BASE = {key: value for key, value in TINY.items() if key in ("data", "student", "train")}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    distill(
        {**BASE, "student": {"name": "deeplabv3_resnet18_quarter"}, "train": {**BASE["train"], "steps": 1}}, out=folder
    )
    return str(folder)


@pytest.fixture
def result(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = [{"name": "cwd", "features_weight": 2.0}, "skd"]
    source = {**BASE, "method": method, "teacher": {"checkpoint": teacher}, "data": {**BASE["data"], "workers": 1}}
    source["data"] |= {"size": [64, 64], "crop": [64, 64]}
    found = forecast(source, ["train.steps=1000", "train.eval_every=300"])
    assert list(tmp_path.iterdir()) == []  # nothing is written
    return found


def test_what_it_says(result):
    assert result["steps"] == 1000
    assert result["validations"] == 5  # four, and the last one in float32
    validation = 4 * result["seconds_per_image"]
    warm = 1000 * result["seconds_per_step"] + 5 * validation
    assert result["seconds"] == pytest.approx(result["cold_seconds"] + warm)
    assert result["peak_memory"] > 1e8
    assert json.loads(json.dumps(result)) == result
    taps = {row["tap"]: row for row in result["taps"]}
    assert taps["features"]["student"] == "classifier:input"
    assert taps["features"]["student_shape"][1:] == [4, 4]
    assert taps["features"]["teacher_shape"][1:] == [8, 8]
    assert taps["logits"]["teacher_shape"] == [11, 8, 8]
    terms = result["terms"]
    assert {"ce", "cwd_logits", "cwd_features", "skd_pixel", "skd_pair", "skd_holistic"} == set(terms)
    for key in ("share", "gradient_share"):
        assert math.fsum(term[key] for term in terms.values()) == pytest.approx(1)
    assert all(term["gradient"] > 0 for term in terms.values())


def test_disk_and_first_terms_are_those_of_the_run(tmp_path):
    found = forecast(BASE, ["train.lr=1e-12"], student=Plain())
    assert list(found["terms"]) == ["ce"]
    assert found["taps"] == []
    out = tmp_path / "run"
    distill(BASE, ["train.lr=1e-12"], student=Plain(), out=out)
    files = 2 * (out / "checkpoint.pt").stat().st_size + (out / "student.safetensors").stat().st_size
    assert found["disk"] < files < found["disk"] + 40_000  # names and numbers beside the tensors
    losses = [record.get("loss") for record in read_metrics(out)]
    assert found["terms"]["ce"]["value"] == pytest.approx(losses[2], abs=1e-4)


def test_the_gradient_of_a_term_is_its_own():
    found = forecast(BASE, ["train.steps=1", "train.lr=1e-12", "train.weight_decay=0"], student=Plain())
    network, seen = Plain(), []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, images):
            seen.append(images)
            return self.inner(images)

    assert found["terms"]["ce"]["gradient_share"] == 1
    again = forecast(BASE, ["train.steps=1", "train.lr=1e-12", "train.weight_decay=0"], student=Spy())
    assert again["terms"]["ce"]["gradient"] == pytest.approx(found["terms"]["ce"]["gradient"], rel=1e-5)
    assert seen


def test_it_goes_on_for_the_time_that_is_asked_for(monkeypatch):
    counted = []
    monkeypatch.setattr("segdistill.engine.forecast.Notes._write", lambda self, step, numbers: counted.append(step))
    monkeypatch.setattr("segdistill.engine.forecast.settled", lambda times: True)
    forecast(BASE, ["train.steps=6"], steps=2)
    assert counted == [1, 2]
    counted.clear()
    forecast(BASE, ["train.steps=6"], steps=2, seconds=1000.0)
    assert counted == [1, 2, 3, 4, 5, 6]  # but not beyond the run's end


class HandClock:
    """Stands still unless it is set."""

    now = 0.0

    def monotonic(self):
        return self.now


class Slow(Plain):
    """A network that takes what a clock says: ten seconds for each of the first batches, then one; none in evaluation.

    Args:
        clock: is set.
        cold: batches that take ten seconds.
    """

    def __init__(self, clock, cold):
        super().__init__()
        self.clock, self.cold = clock, cold

    def forward(self, images):
        if self.training:
            self.clock.now += 10.0 if self.cold > 0 else 1.0
            self.cold -= 1
        return super().forward(images)


@pytest.fixture
def clock(monkeypatch):
    hand, validations = HandClock(), []

    def evaluate(network, data, **how):  # seven seconds for the first time, then two
        validations.append(len(data))
        hand.now += 7.0 if len(validations) == 1 else 2.0

    for module in ("clock", "forecast", "training"):
        monkeypatch.setattr(f"segdistill.engine.{module}.time", hand)
    monkeypatch.setattr("segdistill.engine.forecast.evaluate", evaluate)
    return hand


@pytest.mark.parametrize("cold", [0, 1, 3])
@pytest.mark.parametrize("steps", [4, 50])
def test_what_is_cold_costs_once(cold, steps, clock):
    found = forecast(BASE, [f"train.steps={steps}", "train.eval_every=0"], student=Slow(clock, cold))
    assert found["seconds_per_step"] == pytest.approx(1.0)
    assert found["cold_seconds"] == pytest.approx(9 * cold + 5)
    validation = found["seconds_per_image"] * 4
    assert found["seconds"] == pytest.approx(9 * cold + 5 + steps + found["validations"] * validation)
    assert validation == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([2.0], (0.0, 2.0)),
        ([9.0, 1.0], (8.0, 1.0)),
        ([9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0], (24.0, 1.0)),
        ([1.0] * 4, (0, 1)),
    ],
)
def test_cold_and_steady(times, expected):
    assert cold_and_steady(times) == pytest.approx(expected)
    assert cold_and_steady(times)[0] + len(times) * cold_and_steady(times)[1] == pytest.approx(sum(times))


def test_steps_are_timed_as_they_will_be_cached(teacher, tmp_path, monkeypatch):
    section = {"checkpoint": teacher, "cache": str(tmp_path / "cache")}
    made = config(teacher=section, method="kd", train={"steps": 4})
    stored = []
    forward = loop.forward
    monkeypatch.setattr(loop, "forward", lambda *a: stored.append(len(a) == 6) or forward(*a))
    assert time_steps(load_config(made), tmp_path / "run", steps=3, seconds=0.0) > 0
    assert len(stored) >= 3
    assert all(stored)  # the teacher does not run
    assert (tmp_path / "cache/cache.json").is_file()  # for the run itself
    assert not (tmp_path / "run").exists()
    made["teacher"] = {"checkpoint": teacher}
    stored.clear()
    time_steps(load_config(made), tmp_path / "run", steps=2, seconds=0.0)
    assert len(stored) >= 2
    assert not any(stored)


def test_filling_a_cache_is_no_time_of_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("segdistill.engine.forecast.time.monotonic", lambda: now[0])
    notes = Notes(1, 5.0, 9)
    now[0] = 100.0  # filled
    notes.step(1, {"images_per_s": 1.0})
    now[0] = 104.0
    notes.step(2, {"images_per_s": 1.0})
    now[0] = 105.0
    with pytest.raises(Enough):
        notes.step(3, {"images_per_s": 1.0})


def test_mistakes_are_those_of_the_run():
    with pytest.raises(ValueError, match="needs a teacher"):
        forecast({**BASE, "method": "kd"})
    with pytest.raises(ValueError, match=r"is (nan|inf) at step"):
        forecast(BASE, ["train.lr=1e38"])


@pytest.mark.slow
def test_compiled_networks_have_the_same_gradients(teacher, tmp_path):
    config = {**BASE, "method": "cwd", "teacher": {"checkpoint": teacher}}
    plain, compiled = (forecast(config, [f"train.compile={on}"], steps=1)["terms"] for on in ("false", "true"))
    assert compiled.keys() == plain.keys() >= {"ce", "cwd_logits"}
    for name, term in plain.items():
        assert compiled[name] == pytest.approx(term, rel=1e-3)
