"""An optimiser whose state is shared out among processes computes, and saves, what one with all of it does."""

import os

import pytest
import torch

from processes import Plain, in_processes, plain_config, uneven_folder
from segdistill import distill
from segdistill.engine import loop
from segdistill.engine.sharding import Shards, share_out

HOW = {
    "sgd": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "ema": 0.5, "clip": 1.0, "accumulate": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return uneven_folder(tmp_path_factory.mktemp("uneven") / "data", size=32)


def train(root, out, how, method="mimic", *, stop=None, **changes):
    """A run, or its first steps."""
    config = plain_config(root, method, **{**HOW[how], "steps": 4, "save_every": 1, **changes})
    config["data"]["crop"] = [32, 32]
    with pytest.MonkeyPatch.context() as patch:
        made = []

        def training(*args, **kwargs):
            made.append(plain(*args, **kwargs))
            save, run = made[0].save, made[0].run

            def save_and_stop():
                save()
                if made[0].done == stop:
                    run.stopped.append(15)

            made[0].save = save_and_stop
            return made[0]

        plain = loop.Training
        patch.setattr(loop, "Training", training)
        try:
            distill(config, student=Plain(), teacher=Plain(12, seed=5), out=out, resume="auto")
        except loop.TrainingStopped as error:
            assert f"stopped after step {stop + 1}" in str(error)  # noqa: PT017
    return made[0]


def in_two(root, folder):
    for how in HOW:
        for shard in ("none", "optimizer"):
            made = train(root, folder / f"{how} {shard}", how, shard=shard)
            if made.shards is not None:
                facts = made.shards.state_bytes(), made.shards.owners
                torch.save(facts, folder / f"{how} {os.environ['RANK']}.pt")
        train(root, folder / f"{how} begun", how, shard="optimizer", stop=1)
        train(root, folder / f"{how} resumed", how, shard="optimizer", stop=1)
        train(root, folder / f"{how} resumed", how, shard="optimizer")
        train(root, folder / f"{how} changed", how, shard="optimizer", stop=1)
        train(root, folder / f"{how} changed", how, shard="none")


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert in_processes(in_two, root, folder) == [0, 0]
    return folder


def tensors(tree, path=""):
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {name: value for key, item in items for name, value in tensors(item, f"{path}/{key}").items()}


def checkpoint(run):
    return tensors(torch.load(run / "checkpoint.pt"))


@pytest.mark.parametrize("how", HOW)
def test_checkpoints_are_the_same_bit_by_bit(folder, how):
    whole = checkpoint(folder / f"{how} none")
    for name in ("optimizer", "resumed", "changed"):
        found = checkpoint(folder / f"{how} {name}")
        assert list(found) == list(whole), name
        assert all(torch.equal(found[key], value) for key, value in whole.items()), name


@pytest.mark.parametrize("how", HOW)
def test_each_process_keeps_its_part(folder, how):
    (first, owners), (second, others) = (torch.load(folder / f"{how} {rank}.pt") for rank in (0, 1))
    assert owners == others
    assert set(owners) == {0, 1}
    state = {k: v for k, v in checkpoint(folder / f"{how} none").items() if k.startswith("/optimizer/state")}
    assert first + second == sum(value.numel() * value.element_size() for value in state.values())
    assert max(first, second) < 0.7 * (first + second)  # there are few parameters, of unequal sizes


@pytest.mark.parametrize("how", HOW)
def test_one_process_goes_on_with_what_two_began(root, folder, how, capsys):
    made = train(root, folder / f"{how} begun", how, shard="optimizer")
    assert made.done == 4
    assert made.shards is None
    assert "train.shard=optimizer has no effect in a single process" in capsys.readouterr().err
    whole, found = checkpoint(folder / f"{how} none"), checkpoint(folder / f"{how} begun")
    for key, value in whole.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-6)


def test_parts_are_about_equal():
    sizes = [int(1.5**i) for i in range(30)]
    owners = share_out(sizes, 4)
    held = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(4)]
    assert max(held) == max(sizes)  # one parameter is not cut up
    assert share_out([1, 1, 1], 2) == [0, 1, 0]


def unused_and_values(folder):
    rank = int(os.environ["RANK"])
    weights = [torch.nn.Parameter(torch.full((size,), 2.0)) for size in (5, 3, 2)]
    optimizer = torch.optim.SGD(weights, lr=0.1)  # no momentum: a state of None, or none at all
    shards = Shards(optimizer)
    for weight in weights[:2]:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.save(([w.tolist() for w in weights], shards.whole()), folder / f"{rank}.pt")


def test_parameters_without_gradient_and_states_without_tensors(tmp_path):
    assert in_processes(unused_and_values, tmp_path) == [0, 0]
    (first, whole), (second, nothing) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert nothing is None
    assert first == second
    assert first[2] == [2.0] * 2
    assert first[0] == pytest.approx([1.9] * 5)
    assert whole["param_groups"][0]["params"] == [0, 1, 2]
