"""What tests of interrupted runs share: tiny runs, and whether two of them came to the same."""

import json
import signal
from contextlib import contextmanager

import torch
from safetensors.torch import load_file

from segdistill.engine import training

DATA = {
    "name": "synthetic", "size": [32, 32], "images": 8, "crop": [32, 32], "batch_size": 4, "workers": 0,
    "eval_batch_size": 8,
}  # fmt: skip
STUDENT = {"name": "pspnet_resnet18_quarter", "output_stride": 16}
TRAIN = {
    "steps": 4, "precision": "fp32", "log_every": 1, "save_every": 0, "eval_every": 2, "threads": 1,
    "gradient_samples": 0, "device": "cpu",
}  # fmt: skip
SUMMARY = {
    "student": "s", "method": ["none"], "miou": 0.5, "macc": 0.5, "pixel_accuracy": 0.5, "best_step": 1, "steps": 1,
    "seconds": 1.0,
}  # fmt: skip
"""What a run returns."""
SPEED = {"images_per_s", "data_wait", "memory_mb"}


def config(**changes):
    base = {"data": dict(DATA), "student": dict(STUDENT), "train": dict(TRAIN)}
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


def read_metrics(folder):
    """The records of a run folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def flat(tree, path=""):
    """Everything in a checkpoint by its path."""
    if isinstance(tree, dict):
        return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{path}/{name}").items()}
    if isinstance(tree, list | tuple):
        return flat(dict(enumerate(tree)), path)
    return {path: tree}


def assert_same_run(one, other):
    """Hold two runs against each other: checkpoint, student and record are the same to the bit, times aside."""
    states = [flat(torch.load(folder / "checkpoint.pt", weights_only=True)) for folder in (one, other)]
    for state in states:
        del state["/sha256"], state["/facts/seconds"]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key], key
    a, b = (load_file(folder / "student.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    for x, y in zip(read_metrics(one), read_metrics(other), strict=True):
        assert {k: v for k, v in x.items() if k not in SPEED} == {k: v for k, v in y.items() if k not in SPEED}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@contextmanager
def at_step(monkeypatch, step, act, after="record"):
    """Do something in a run when so many of its steps are recorded, or saved (`after="save"`)."""
    usual = getattr(training.Training, after)

    def then(self, *arguments):
        usual(self, *arguments)
        if self.done == step:
            act(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, after, then)
        yield


@contextmanager
def heard(number):
    """Let a signal have its usual effect, also where the tests run under nohup, which ignores it."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def interrupt(_run):
    raise KeyboardInterrupt
