"""Two processes with half of the batch each compute what one computes with all of it, for every method."""

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from processes import Gradients, Plain, in_processes, plain_config, uneven_folder
from segdistill import distill, list_methods
from segdistill.engine import loop, training
from segdistill.methods._critic import Critic

STEPS = 2
SMALL = {
    "sstkd": {"regions": 4, "region_size": 8, "num_levels": 8},
    "cirkd": {"pixel_memory": 40, "region_memory": 8, "pixel_contrast": 20, "region_contrast": 10},
}
"""Options that make a method quick, and its memory too small for all that is drawn."""
CASES = {name: {"name": name, **SMALL.get(name, {})} for name in list_methods()}
CASES |= {
    "skd, released": {"name": "skd", "preset": "released"},
    "sstkd, trained graph": {"name": "sstkd", "graph": "trained", **SMALL["sstkd"]},
    "fakd on pixels": {"name": "fakd", "base": "kd", "full": True},
    "i2ckd, random negatives": {"name": "i2ckd", "negatives": "random", "normalize": True},
    "jml, all pixels": {"name": "jml", "labelled_only": False},
    "local, distances": {"name": "local", "kind": "l2"},
    "several": ["skd", "fakd", {"name": "cirkd", **SMALL["cirkd"]}],
}
MORE = ["road", "roof", "sky", "tree", "car", "lamp"]
"""What the teacher knows in some runs: some of the data's classes, and others."""
HOW = {
    "still": {"train": {"lr": 1e-12, "steps": STEPS, "eval_every": 1}},
    "moving": {
        "train": {"lr": 0.01, "steps": STEPS, "accumulate": 2, "ema": 0.5, "clip": 5.0, "eval_every": 1},
        "teacher": {"classes": MORE, "class_map": "names"},
        "data": {"unlabelled": {"batch_size": 4}, "batch_size": 8, "labelled": 6, "labelled_per_batch": 4},
    },
}
"""With weights that stay as they are, each step's gradient can be compared; moving ones show that all is updated."""


class Exact(Plain):
    """In float64, so that what differs is no rounding."""

    def forward(self, x):
        return super().forward(x.double())


@pytest.fixture(autouse=True)
def exact():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    (folder / "more").mkdir()
    for i in range(5):
        Image.effect_noise((32, 32), 10 * i + 20).convert("RGB").save(folder / f"more/{i}.png")
    uneven_folder(folder / "data", size=32)
    return folder


def run(root, case, how, out):
    config = plain_config(str(root / "data"), CASES[case])
    for section, changes in HOW[how].items():
        config[section] = config[section] | changes
    config["train"] |= {"sync_batchnorm": True, "gradient_samples": 0}
    config["data"] |= {"crop": [32, 32]}
    if "unlabelled" in config["data"]:
        config["data"]["unlabelled"] = {"root": str(root / "more"), **config["data"]["unlabelled"]}
    wide = len(config["teacher"].get("classes", [])) or 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Critic.__init__.__kwdefaults__, "width", 8)  # else it takes most of the time
        made = []
        patch.setattr(loop, "Training", lambda *a, **k: made.append(training.Training(*a, **k)) or made[0])
        with Gradients() as gradients:
            distill(config, student=Exact(norm=True), teacher=Exact(12, wide, seed=5, norm=True), out=out)
    each = len(gradients) // STEPS
    whose = {"student": gradients[::each], "critic": gradients[1::each] if each == 2 else []}
    state = {name: part.state_dict() for name, part in made[0].parts.items() if part is not None}
    return whose, state


def run_all(root, folder):
    torch.set_default_dtype(torch.float64)
    for case in CASES:
        for how in HOW:
            found = run(root, case, how, folder / case / how)
            torch.save(found, folder / f"{case} {how} {os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def in_two(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert in_processes(run_all, root, folder) == [0, 0]
    return folder


def tensors(tree, path=""):
    if isinstance(tree, torch.Tensor):
        yield path, tree
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from tensors(value, f"{path}/{key}")


def apart(a, b):
    """Largest difference of two tensors, as a share of the largest number in them."""
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if b.numel() else 0.0


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_whole_batch(root, in_two, tmp_path, case):
    whole, _ = run(root, case, "still", tmp_path)
    found = [torch.load(in_two / f"{case} still {rank}.pt")[0] for rank in (0, 1)]
    for whose, steps in whole.items():
        for step, expected in enumerate(steps):
            for own in found:
                error = (own[whose][step] - expected).norm() / expected.norm()
                assert error < 1e-6, (whose, step, float(error))


@pytest.mark.parametrize("case", CASES)
def test_runs_end_alike(root, in_two, tmp_path, case):
    """Weights, statistics, memory, critic, average, optimisers; the saved student; the record."""
    _, whole = run(root, case, "moving", tmp_path)
    first, second = (torch.load(in_two / f"{case} moving {rank}.pt")[1] for rank in (0, 1))
    assert dict(tensors(first)).keys() == dict(tensors(whole)).keys()
    for (name, expected), (_, a), (_, b) in zip(*map(tensors, (whole, first, second)), strict=True):
        assert torch.equal(a, b), name
        assert apart(a, expected) < 1e-5, name
    alone, both = (load_file(folder / "student.safetensors") for folder in (tmp_path, in_two / case / "moving"))
    for name, expected in alone.items():
        assert apart(both[name], expected) < 1e-5, name
    for expected, found in zip(metrics(tmp_path), metrics(in_two / case / "moving"), strict=True):
        for name in expected.keys() - {"images_per_s", "data_wait", "memory_mb", "seconds"}:
            if isinstance(expected[name], float) and not name.startswith("analysis_"):
                assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
