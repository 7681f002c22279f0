"""Parts of a batch, one after the other or in several processes, are one step of the whole batch."""

import json
import os

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from processes import CLASSES, Gradients, Plain, in_processes, plain_config, uneven_folder
from segdistill import distill, evaluate, load_student, supervised
from segdistill.data import build_dataset
from segdistill.engine import loop, runtime, training
from segdistill.engine.sync_batchnorm import synchronise

METHODS = {name: name for name in ("none", "kd", "cwd", "skd", "fakd", "mimic", "at", "ifvd", "local", "i2ckd", "jml")}
METHODS["cirkd"] = {"name": "cirkd", "memory_pixel_weight": 0, "memory_region_weight": 0}
"""Those that draw nothing at random, but for a critic's first step."""
FIRST_STEP = {("parts", "skd"), ("processes", "skd"), ("parts", "fakd")}
"""Later, a critic has been trained by a penalty at random places, and a covariance has seen one part but not yet the
next."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return uneven_folder(tmp_path_factory.mktemp("uneven") / "data")


def gradients(root, method, out, **train):
    with Gradients() as seen:
        distill(plain_config(root, METHODS[method], **train), student=Plain(), teacher=Plain(12, seed=5), out=out)
    return seen[:: len(seen) // 3]  # every second one is the critic's


def keep_gradients(root, folder):
    for method in METHODS:
        found = gradients(root, method, folder / method)
        torch.save(found, folder / f"{method}_{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def in_two(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert in_processes(keep_gradients, root, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_parts_have_the_gradient_of_the_whole(root, in_two, tmp_path, method):
    whole = gradients(root, method, tmp_path / "whole")
    found = {
        "processes": torch.load(in_two / f"{method}_0.pt"),
        "parts": gradients(root, method, tmp_path / "parts", accumulate=2),
    }
    if method in ("i2ckd", "cirkd", "jml"):  # prototypes, pairs and overlaps are those of a micro-batch
        del found["parts"]
    for how, parts in found.items():
        for step in range(1 if (how, method) in FIRST_STEP else 3):
            assert (parts[step] - whole[step]).norm() < 1e-5 * whole[step].norm(), (how, step)
    for a, b in zip(torch.load(in_two / f"{method}_1.pt"), found["processes"], strict=True):
        torch.testing.assert_close(a, b)


def test_losses_of_the_record_are_those_of_all_processes(root, in_two, tmp_path):
    for method in ("none", "at"):
        gradients(root, method, tmp_path / method)
        records = ((where / method / "metrics.jsonl").read_text().splitlines() for where in (tmp_path, in_two))
        for alone, both in zip(*(map(json.loads, lines) for lines in records), strict=True):
            for name in {"loss", "ce", "at_attention", "grad_norm", "val_miou"} & alone.keys():
                assert both[name] == pytest.approx(alone[name], rel=1e-5), name


class Counting(DistributedDataParallel):
    """Counts how often gradients are averaged."""

    count = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_comm_hook(None, self.average)

    @staticmethod
    def average(_state, bucket):
        Counting.count += 1
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0] / torch.distributed.get_world_size())


def count_averages(root, folder):
    training.DistributedDataParallel = Counting
    found = gradients(root, "kd", folder / "four", accumulate=4)
    if os.environ["RANK"] == "0":
        torch.save((Counting.count, found), folder / "found.pt")


def test_gradients_are_averaged_once_in_a_step(root, tmp_path):
    assert in_processes(count_averages, root, tmp_path) == [0, 0]
    count, found = torch.load(tmp_path / "found.pt")
    assert count == 3  # one bucket in each step
    for a, b in zip(found, gradients(root, "kd", tmp_path / "whole"), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


HOW = {"own": {}, "average": {"ema": 0.5}, "synchronised": {"sync_batchnorm": True}, "parts": {"accumulate": 2}}


def with_batchnorm(root, out, **train):
    config = plain_config(root, "none", **{"steps": 4, "lr": 0.1, "eval_every": 1, **train})
    config["data"]["crop"] = [64, 64]
    return distill(config, student=Plain(norm=True), out=out)


def validate_in_two(root, folder):
    for name, train in HOW.items():
        with_batchnorm(root, folder / name, **train)


def test_what_is_validated_is_what_is_saved(root, tmp_path):
    assert in_processes(validate_in_two, root, tmp_path) == [0, 0]
    data = build_dataset("folder", "val", root=root, classes=CLASSES)
    for name in HOW:
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        best = max(record["val_miou"] for record in records if "val_miou" in record)
        saved = load_student(tmp_path / name, Plain(norm=True))
        assert evaluate(saved, data)["miou"] == pytest.approx(best, abs=1e-12), name
        assert json.loads((tmp_path / name / "summary.json").read_text())["miou"] == pytest.approx(best, abs=1e-12)
    with_batchnorm(root, tmp_path / "alone")
    alone = torch.load(tmp_path / "alone/checkpoint.pt")["distiller"]
    both = torch.load(tmp_path / "synchronised/checkpoint.pt")["distiller"]
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-6)


class Norms(nn.Sequential):
    """Both kinds of batch norm, in float64."""

    def __init__(self):
        from timm.layers import BatchNormAct2d

        torch.manual_seed(0)
        second = BatchNormAct2d(4, momentum=None)
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), second, nn.Conv2d(4, 1, 1))
        self.double()


IMAGES = torch.linspace(-1, 1, 5 * 3 * 64, dtype=torch.float64).sin().view(5, 3, 8, 8) * torch.arange(1, 6).view(
    5, 1, 1, 1
)


def synchronised(folder):
    rank = int(os.environ["RANK"])
    network = Norms()
    synchronise(network, torch.device("cpu"))
    images = IMAGES[:2] if rank == 0 else IMAGES[2:]  # unequal shares
    for _ in range(2):
        network(images).sum().backward()
    for parameter in network.parameters():
        torch.distributed.all_reduce(parameter.grad)
    state = network.state_dict() | {f"{name}.grad": p.grad for name, p in network.named_parameters()}
    torch.save((state, network.eval()(IMAGES)), folder / f"{rank}.pt")


def test_synchronised_batch_norm_is_that_of_the_whole_batch(tmp_path):
    assert in_processes(synchronised, tmp_path) == [0, 0]
    network = Norms()
    for _ in range(2):
        network(IMAGES).sum().backward()
    state = network.state_dict() | {f"{name}.grad": p.grad for name, p in network.named_parameters()}
    for rank in (0, 1):
        found, output = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(output, network.eval()(IMAGES))


def test_accelerators_have_torchs_own():
    network, plain = Norms(), Norms()
    synchronise(network, torch.device("cuda"))
    assert [isinstance(module, nn.SyncBatchNorm) for module in network] == [False, True, False, True, False]
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network.eval()(IMAGES), plain.eval()(IMAGES))  # with the activation behind the second one


def test_batch_norm_that_cannot_be_synchronised_is_named():
    class Other(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match=r"train.sync_batchnorm: 0 is a Other, which is not known; set false"):
        synchronise(nn.Sequential(Other(3)), torch.device("cpu"))


def evaluate_share(root, folder):
    data = build_dataset("folder", "val", root=root, classes=CLASSES)
    run = runtime.Runtime(torch.device("cpu"), rank=int(os.environ["RANK"]), world=2)
    torch.save(evaluate(Plain(), data, run=run, per_image=True), folder / f"{run.rank}.pt")


def test_every_image_is_counted_once(root, tmp_path):
    data = build_dataset("folder", "val", root=root, classes=CLASSES)
    assert len(data) == 3  # two for one process, one for the other
    assert in_processes(evaluate_share, root, tmp_path) == [0, 0]
    alone = evaluate(Plain(), data, per_image=True)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == alone


def end(root, folder, how):
    rank = int(os.environ["RANK"])
    calls = []

    def cross_entropy(logits, *_, **_how):
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            if how == "killed":
                os._exit(9)
            return logits.sum() * float("nan")
        return logits.mean()

    supervised.cross_entropy = cross_entropy
    try:
        distill(plain_config(root, "none", accumulate=2, steps=9), student=Plain(), out=folder / how)
    except (ConnectionError, loop.TrainingStopped) as error:
        (folder / f"{how}{rank}").write_text(str(error))
    if how == "killed":
        os._exit(0)  # there is no group to leave in good order


@pytest.mark.parametrize("how", ["killed", "not finite"])
def test_all_processes_end_when_one_does(root, tmp_path, how):
    codes = in_processes(end, root, tmp_path, how)
    assert codes == ([0, 9] if how == "killed" else [0, 0])
    first = (tmp_path / f"{how}0").read_text()
    if how == "killed":
        assert first.startswith("another one of the 2 processes of this run ended or cannot be reached")
    else:
        assert "the student's gradient is nan at step 1" in first
        assert "term ce is nan at step 1" in (tmp_path / f"{how}1").read_text()
