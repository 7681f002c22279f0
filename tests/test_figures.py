"""A step's numbers, read later where a device computes behind: none is waited for, and none that overflowed is kept.

There need not be such a device: a CPU is treated as one.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from faults import assert_same_run, config
from segdistill import distill, supervised
from segdistill.engine import figures, loop
from segdistill.engine.faults import TrainingStopped
from segdistill.engine.figures import Figures, Watch, step_if
from segdistill.engine.training import Training
from test_loop import Plain

LATE = {"log_every": 100, "eval_every": 0, "save_every": 2, "steps": 6}


@pytest.fixture
def behind(monkeypatch):
    monkeypatch.setattr(figures, "computes_behind", lambda _device: True)


@pytest.fixture
def runs(monkeypatch):
    """The runs that were made."""
    made = []

    class Noted(Training):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(loop, "Training", Noted)
    return made


@pytest.mark.parametrize("method", ["none", "skd"])
def test_a_run_is_the_same_whenever_its_numbers_are_read(tmp_path, monkeypatch, method):
    train = {"accumulate": 2, "clip": 0.5, "ema": 0.9, "log_every": 3, "save_every": 2, "eval_every": 0}
    how = {"student": Plain(), "teacher": Plain()} if method != "none" else {"student": Plain()}
    distill(config(method=method, train=train), out=tmp_path / "at once", **copy.deepcopy(how))
    monkeypatch.setattr(figures, "computes_behind", lambda _device: True)
    distill(config(method=method, train=train), out=tmp_path / "later", **how)
    assert_same_run(tmp_path / "at once", tmp_path / "later")


@pytest.mark.parametrize("kind", ["term", "gradient"])
@pytest.mark.parametrize("step", [2, 3])
def test_what_is_not_finite_is_named_with_its_step_and_never_kept(tmp_path, monkeypatch, behind, runs, kind, step):
    """Step 3 is saved, step 2 is read while step 3 is done."""
    calls = []
    usual = supervised.cross_entropy

    def diverge(logits, *arguments, **options):
        calls.append(1)
        loss = usual(logits, *arguments, **options)
        if len(calls) != step + 1:
            return loss
        # The square root has an infinite slope at 0, so that 0 times it is NaN in the gradient alone.
        return loss * float("nan") if kind == "term" else loss + (logits.sum() * 0).sqrt()

    monkeypatch.setattr(supervised, "cross_entropy", diverge)
    what = "term ce" if kind == "term" else "the student's gradient"
    line = rf"{what} is nan at step {step}; last good checkpoint: .*checkpoint.pt\. Go on"
    with pytest.raises(TrainingStopped, match=line):
        distill(config(train=LATE), student=Plain(), out=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["facts"]["step"] == 2
    assert len(calls) == 4
    assert all(value.isfinite().all() for value in runs[0].network.state_dict().values())
    assert all(s["momentum_buffer"].isfinite().all() for s in runs[0].optimizer.state.values())


class NoReading(TorchDispatchMode):
    """Refuses operations that hand a number from the device to the program."""

    READING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in self.READING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["none", ["kd", "cwd", "at"]], ids=str)
def test_a_step_waits_for_no_number(tmp_path, monkeypatch, behind, method, precision):
    sent, steps = [], []

    def quietly(holder, name, done):
        usual = getattr(holder, name)

        def watched(first, *arguments, **options):
            number = done(first, arguments)
            if number == 4:  # which is recorded, validated and saved
                return usual(first, *arguments, **options)
            steps.append((name, number))
            with NoReading(), monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", only_sent)
                return usual(first, *arguments, **options)

        monkeypatch.setattr(holder, name, watched)

    quietly(loop, "_learn", lambda training, _: training.done + 1)
    quietly(loop, "_update", lambda training, _: training.done + 1)
    quietly(Watch, "look", lambda _, arguments: arguments[0].step + 1)
    quietly(loop, "_keep", lambda training, _: training.done)
    send, tolist = Figures.send, torch.Tensor.tolist

    def note(self):
        send(self)
        sent.append(self.sent)

    def only_sent(self):
        number = next((place for place, tensor in enumerate(sent) if tensor is self), None)
        assert number is not None, "a number is read that was not sent"
        assert number == len(sent) - 2, "a number is read that may still be on its way"
        return tolist(self)

    monkeypatch.setattr(Figures, "send", note)
    # Without ema: how many steps are averaged is counted on the host, which the mode cannot tell from a device here.
    train = {"log_every": 100, "eval_every": 0, "precision": precision, "accumulate": 2, "clip": 1.0}
    how = {} if method == "none" else {"teacher": Plain()}
    distill(config(method=method, train=train), student=Plain(), out=tmp_path, **how)
    names = ("_learn", "_update", "look", "_keep")
    assert steps == [(name, step) for step in (1, 2, 3) for name in names]
    assert len(sent) == 4


def test_the_watch_over_waiting_sees_it():
    """The mode above does catch what it is to catch."""
    for read in (float, bool, int, lambda x: x.item(), lambda x: x.nonzero()):
        with NoReading(), pytest.raises(AssertionError, match="waits for the device"):
            read(torch.ones(()))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_under_a_condition(kind, fused):
    options = {"lr": 0.1, "weight_decay": 0.0, "fused": fused} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5))
    other = nn.Parameter(weight.detach().clone())
    optimizer, usual = kind([weight], **options), kind([other], **options)
    for _ in range(2):
        weight.grad = torch.randn(5)
        other.grad = weight.grad.clone()
        step_if(torch.tensor(True), optimizer)
        usual.step()
        assert torch.equal(weight, other)
    before = weight.detach().clone()
    weight.grad = torch.full((5,), float("nan"))
    step_if(torch.tensor(False), optimizer)
    assert weight.isfinite().all()
    assert torch.equal(weight, before) or not fused  # without, what was begun before rolls on
    assert all(v.isfinite().all() for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    assert not hasattr(optimizer, "found_inf")


def test_a_norm_that_a_loss_scaler_looks_after_stops_nothing(tmp_path, behind):
    run = SimpleNamespace(device=torch.device("cpu"), world=1, stopped=[], sum=lambda stop: stop)
    one = Figures([{"ce": torch.tensor(1.0)}, {"ce": torch.tensor(2.0)}], 4, run, tmp_path)
    one.add("the student's gradient", torch.tensor(float("inf")), fatal=False)
    assert one.finite
    one.send()
    assert (one.terms, one.norm) == ({"ce": 1.5}, float("inf"))
    one.add("the critic's gradient", torch.tensor(float("nan")))
    assert not one.finite
    one.send()
    with pytest.raises(TrainingStopped, match="the critic's gradient is nan at step 4"):
        one.read()


def test_processes_stop_together(tmp_path, behind):
    """One that was asked to is heard by all of them a step later, when they look at the same figures."""
    other = [0, 0, 1, 0]
    run = SimpleNamespace(device=torch.device("cpu"), world=2, stopped=[], any=None)
    run.sum = lambda stop: stop + other[watch.step]
    watch, heard = Watch(), []
    for step in range(4):
        watch.step = step
        one = Figures([{"ce": torch.tensor(1.0)}], step, run, tmp_path)
        one.add("the student's gradient", torch.tensor(2.0))
        watch.look(one, now=step == 1)
        heard.append(watch.stopping(run))
        assert (one.terms, one.norm) == ({"ce": 1.0}, 2.0)
    assert heard == [False, False, False, True]
