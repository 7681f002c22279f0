"""What a step does, and when: recorded from runs of every method, alone and with all that may change a step."""

import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from processes import CLASSES, Plain, in_processes, plain_config, uneven_folder
from segdistill import distill, list_methods
from segdistill.engine import loop, training
from segdistill.functional import IGNORE, resize_labels
from segdistill.methods import Composite, fakd
from segdistill.methods._covariance import ClassCovariance
from segdistill.methods._queues import ClassQueues

STEPS = 4
MORE = ["road", "roof", "sky", "tree", "car", "lamp"]
"""What the teacher knows in some runs: some of the data's classes, and others."""
HOW = {
    "compiled": {"train": {"compile": True}},
    "synchronised": {"train": {"sync_batchnorm": True}},
    "plain": {},
    "accumulate": {"train": {"accumulate": 2, "clip": 5.0, "warmup": 2}},
    "unlabelled": {"data": {"unlabelled": {"batch_size": 2}}},
    "class_map": {"teacher": {"classes": MORE, "class_map": "names"}},
    "ema": {"train": {"ema": 0.5}},
}
IDLE = ("3.query.bias", "3.key.bias", "3.query.weight", "3.key.weight", "3.value.bias", "last.bias")
"""What a critic cannot learn: where to look in a map of one position, and what it adds to all scores alike."""
METHODS = [*list_methods(), ["skd", "fakd", "cirkd"]]
SMALL = {"sstkd": {"name": "sstkd", "regions": 4, "region_size": 8, "num_levels": 8}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "more").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 9, 90)).save(folder / f"more/{i}.png")
    uneven_folder(folder / "data")
    return folder


def settings(root, method, how):
    method = SMALL.get(str(method), method)
    config = plain_config(str(root / "data"), method, steps=STEPS, lr=0.01, weight_decay=0, eval_every=1, log_every=2)
    config["data"] |= {"batch_size": 4, "crop": [64, 64]}
    for section, changes in HOW[how].items():
        config[section] = config[section] | changes
    if how == "unlabelled":
        config["data"]["unlabelled"] = {"root": str(root / "more"), "batch_size": 2}
    return config


class Record:
    """A run with what happened in it: `events`, names and facts in their order."""

    def __init__(self, monkeypatch, config, out):
        self.events, self.out = [], out
        wide = len(MORE) if config["teacher"].get("classes") else len(CLASSES)
        teacher = Plain(12, wide, seed=5, norm=True)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}

        def keep(holder, name, note):
            original = getattr(holder, name)

            def noted(*args, **kwargs):
                found = original(*args, **kwargs)
                self.events.append((name, note(*args, **kwargs)))
                return found

            monkeypatch.setattr(holder, name, noted)

        def kept(*args, **kwargs):
            self.run = make(*args, **kwargs)
            self.first = {name: value.clone() for name, value in self.run.distiller.state_dict().items()}
            self.critic = {name: p.detach().clone() for name, p in named(self.run.critic)}
            return self.run

        make = training.Training
        keep(Composite, "forward", lambda _, student, teacher, target, progress: (student, teacher, target, progress))
        keep(Composite, "adversarial_loss", lambda _, critic, student, teacher: (student, teacher))
        keep(Composite, "critic_loss", lambda _, critic, student, teacher: (student, teacher))
        keep(ClassCovariance, "update", lambda *_: None)
        keep(ClassQueues, "push", lambda queues, *_: id(queues))
        keep(ClassQueues, "sample", lambda queues, *_: id(queues))
        keep(fakd, "logit_variance", lambda labels, *, covariance, **_: bool(covariance.any()))
        keep(training, "evaluate", lambda *_, **__: None)
        monkeypatch.setattr(loop, "Training", kept)
        handle = register_optimizer_step_pre_hook(
            lambda optimizer, *_: self.events.append(("step", self.rate(optimizer)))
        )
        try:
            self.summary = distill(config, student=Plain(norm=True), teacher=teacher, out=out)
        finally:
            handle.remove()
        assert teacher.training == (config["method"] == "none")  # where no teacher is asked for, none is touched
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())

    def rate(self, optimizer):
        whose = "student" if optimizer is self.run.optimizer else "critic"
        (group,) = optimizer.param_groups
        return whose, group["lr"] / group["initial_lr"]

    def named(self, *names):
        return [(name, fact) for name, fact in self.events if name in names]


def named(module):
    return [] if module is None else module.named_parameters()


def check_order(record):
    """Of each step: terms, the critic's on the same taps; then the student's step, then the critic's."""
    has_critic, cfg = record.run.critic is not None, record.run.cfg
    part = ["forward", "adversarial_loss", "critic_loss"] if has_critic else ["forward"]
    one = [*part * cfg.accumulate, "step", *(["step"] if has_critic else []), "evaluate"]
    order = [name for name, _ in record.named("forward", "adversarial_loss", "critic_loss", "step", "evaluate")]
    assert order == one * STEPS + ["evaluate"]  # the last one of the saved student
    for (_, (student, teacher, _, _)), (_, other), (_, critic) in zip(
        *(record.named(name) for name in ("forward", "adversarial_loss", "critic_loss")), strict=has_critic
    ):
        assert other[0] is student
        assert other[1] is critic[1] is teacher
        assert critic[0].keys() == student.keys()
        for name, tap in critic[0].items():
            assert tap.data_ptr() == student[name].data_ptr()
            assert not tap.requires_grad
        assert not any(tap.requires_grad for tap in teacher.values())
        assert student["logits"].requires_grad


def check_schedule(record):
    cfg = record.run.cfg
    rates = [fact for _, fact in record.named("step")]
    for whose in {whose for whose, _ in rates}:
        found = [rate for who, rate in rates if who == whose]
        warm = [min(1, (step + 1) / cfg.warmup) if cfg.warmup else 1 for step in range(STEPS)]
        assert found == pytest.approx([warm[step] * (1 - step / STEPS) ** 0.9 for step in range(STEPS)])
    progress = [fact[3] for _, fact in record.named("forward")]
    assert progress == [step / STEPS for step in range(STEPS) for _ in range(cfg.accumulate)]


def check_memory(record):
    """What a method remembers is written before it is read, once for each part of a batch, and never in evaluation."""
    parts = STEPS * record.run.cfg.accumulate
    names = record.run.config.method_names
    memory = [name for name, _ in record.named("update", "logit_variance")]
    assert memory == (["update", "logit_variance"] * parts if "fakd" in names else [])
    assert all(seen for _, seen in record.named("logit_variance")[1:])
    queues = record.named("push", "sample")
    assert len(queues) == (4 * parts if "cirkd" in names else 0)
    for (name, queue), place in zip(queues, range(len(queues)), strict=True):
        before = [other for other, whose in queues[:place] if whose == queue]
        assert before.count("push") - before.count("sample") == (name == "sample")
    for statistics in (m for m in record.run.method.modules() if isinstance(m, ClassCovariance)):
        counts = torch.zeros_like(statistics.count)
        for _, (student, _, target, _) in record.named("forward"):
            labels = resize_labels(target, student["features"].shape[-2:])
            counts += torch.bincount(labels[labels != IGNORE], minlength=len(counts))
        assert torch.equal(statistics.count, counts)


def check_weights(record):
    """All that is trained has moved, and nothing of the method is in the student's file."""
    run = record.run
    frozen = {name for name, p in run.distiller.named_parameters() if not p.requires_grad}
    for name, parameter in run.distiller.named_parameters():
        assert torch.equal(parameter, record.first[name]) == (name in frozen), name
    assert not any(name.startswith("student.") for name in frozen)
    for name, parameter in named(run.critic):
        assert parameter.requires_grad
        assert name.endswith(IDLE) or not torch.equal(parameter, record.critic[name]), name
    saved = load_file(record.out / "student.safetensors")
    assert saved.keys() == Plain(norm=True).state_dict().keys()
    if run.best_step == STEPS:
        assert all(torch.equal(saved[name], value) for name, value in run.deliverable.state_dict().items())


@pytest.mark.parametrize("how", list(HOW)[2:])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_steps(monkeypatch, root, tmp_path, method, how):
    record = Record(monkeypatch, settings(root, method, how), tmp_path / "run")
    for check in (check_order, check_schedule, check_memory, check_weights):
        check(record)
    if how == "unlabelled":
        for _, (_, _, target, _) in record.named("forward"):
            assert target.shape[0] == 6
            assert (target[4:] == IGNORE).all()
    if how == "class_map" and record.run.teacher is not None:
        for _, (student, teacher, target, _) in record.named("forward"):
            assert target[target != IGNORE].max() < 4
            for tap in (side.get("logits") for side in (student, teacher)):
                assert tap is None or tap.shape[1] == 4
    if how == "ema":
        weights, averages = (list(m.parameters()) for m in (record.run.network, record.run.average.module))
        assert not any(torch.equal(a, b) for a, b in zip(weights, averages, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_steps_of_compiled_networks(monkeypatch, root, tmp_path, method):
    record = Record(monkeypatch, settings(root, method, "compiled"), tmp_path / "run")
    for check in (check_order, check_schedule, check_memory, check_weights):
        check(record)


def train_in_two(root, folder, kinds):
    rank = os.environ["RANK"]
    for method in METHODS:
        for how in kinds:
            with pytest.MonkeyPatch.context() as patch:
                record = Record(patch, settings(root, method, how), folder / f"{method} {how}")
                for check in (check_order, check_schedule, check_weights):
                    check(record)
            state = {"distiller": record.run.distiller.state_dict()}
            state["critic"] = {} if record.run.critic is None else record.run.critic.state_dict()
            torch.save(state, folder / f"{method} {how} {rank}.pt")


OTHERS = ("plain", "unlabelled", "class_map", "ema", "synchronised")


@pytest.mark.parametrize("kinds", [("accumulate",), pytest.param(OTHERS, marks=pytest.mark.slow)], ids="+".join)
def test_steps_of_two_processes(root, tmp_path, kinds):
    """Both have the same student, layers, memory and critic; statistics of batch norm are of each one's own share."""
    assert in_processes(train_in_two, root, tmp_path, kinds) == [0, 0]
    files = sorted(tmp_path.glob("* 0.pt"))
    assert len(files) == len(kinds) * len(METHODS)
    for file in files:
        first, second = (torch.load(file.with_name(f"{file.stem[:-1]}{rank}.pt")) for rank in (0, 1))
        for part, state in first.items():
            for name, value in state.items():
                if not name.endswith(("running_mean", "running_var")):
                    assert torch.equal(value, second[part][name]), (file.stem, name)
