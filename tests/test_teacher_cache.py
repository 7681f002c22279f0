"""A cached teacher: the same numbers as a living one, filled once however often it is interrupted, never mistaken."""

import errno
import json
import math
import multiprocessing
import os
import pickle
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from faults import assert_same_run, at_step, config, interrupt, read_metrics
from processes import in_processes, plain_config, uneven_folder
from segdistill import distill
from segdistill.data.sampler import train_loader, view_loader
from segdistill.data.sets.synthetic import Synthetic
from segdistill.data.transforms import TrainTransform
from segdistill.engine import tap_store, teacher_cache, training
from segdistill.engine.config import load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.faults import TrainingStopped
from segdistill.engine.forecast import forecast
from segdistill.engine.loop import distill as run_distill
from segdistill.engine.tap_store import TapStore
from segdistill.engine.teacher import observe
from segdistill.methods import build_method, list_methods
from segdistill.models import build_model
from segdistill.taps import GIVEN, Tapped

METHODS = [name for name in list_methods() if name != "none"]
STILL = {"scale": [1, 1], "flip": False}
"""Augmentation that changes nothing, so that a run with a cache sees what one without sees."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    distill(config(student={"name": "deeplabv3_resnet18_quarter"}, train={"steps": 1, "eval_every": 0}), out=folder)
    return str(folder)


@pytest.fixture
def cached(teacher, tmp_path):
    """The configuration of a run with a cache."""

    def make(method="kd", cache="cache", views=2, data=None, train=None, **section):
        section = {"checkpoint": teacher, "cache": str(tmp_path / cache), "cache_views": views, **section}
        return config(teacher=section, method=method, data=data or {}, train=train or {})

    return make


def terms(folder):
    """The loss terms of each step."""
    kept = [{k: v for k, v in record.items() if k == "ce" or "_" in k} for record in read_metrics(folder)]
    drop = ("val_", "images_per_s", "data_wait", "memory_mb", "grad_norm", "gradient_", "cosine_", "analysis_")
    return [{k: v for k, v in record.items() if not k.startswith(drop)} for record in kept if "ce" in record]


def make_store(folder, precision="float32", topk=None, shapes=None, counts=(3, 2), views=2):
    shapes = {"features": [4, 3, 2], "logits": [7, 3, 2]} if shapes is None else shapes
    store = TapStore(folder, shapes, counts, views, precision, topk)
    folder.mkdir(parents=True, exist_ok=True)
    store.create()
    return store


def make_taps(count, shapes, scale=5.0):
    return {name: scale * torch.randn(count, *shape) for name, shape in shapes.items()}


# The numbers


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_every_method_has_the_same_terms(name, precision, tmp_path):
    torch.manual_seed(1)
    teacher = Tapped(build_model("pspnet_resnet18_half", num_classes=5).requires_grad_(False)).eval()
    distiller = Distiller(Tapped(build_model("pspnet_resnet18_quarter", num_classes=5)), build_method(name))
    images = torch.rand(2, 3, 64, 64)
    target = torch.randint(0, 5, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    distiller.adapt(teacher, images, classes=5)
    names = distiller.method.teacher_taps()
    alive = observe(teacher, images, names)
    shapes = {key: tuple(alive[key].shape[1:]) for key in names - set(GIVEN)}
    store = make_store(tmp_path, precision, shapes=shapes, counts=(2,), views=1)
    store.write(range(2), alive)
    stored = observe(teacher, images, names, store.read([(0, 0, 0), (0, 1, 0)]))
    critic = distiller.method.make_critic()
    before = {k: v.clone() for k, v in distiller.state_dict().items()}
    found = []
    for seen in (alive, stored):
        distiller.load_state_dict(before)
        distiller.train()
        torch.manual_seed(2)
        values, student, taught = distiller(images, target, seen, 0.5, critic)
        detached = {k: v.detach() for k, v in student.items()}
        critics = {} if critic is None else distiller.method.critic_loss(critic, detached, taught)
        found.append({k: float(v.detach()) for k, v in (values | critics).items()})
    assert found[0].keys() == found[1].keys()
    for term, value in found[0].items():
        assert found[1][term] == pytest.approx(value, rel=1e-2, abs=1e-6), term


def test_what_is_written_is_read(tmp_path):
    store = make_store(tmp_path)
    taps = make_taps(10, store.shapes)
    store.write(range(0, 4), {name: tap[:4] for name, tap in taps.items()})
    assert store.count() == 4
    assert not store.holds(range(3, 5))
    store.write(range(4, 10), {name: tap[4:] for name, tap in taps.items()})
    addresses = store.addresses(range(10))
    assert addresses[:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert addresses[6:8] == [(1, 0, 0), (1, 0, 1)]
    order = [7, 2, 9]
    other = pickle.loads(pickle.dumps(store))  # as a process that loads images gets it
    read = other.read([addresses[i] for i in order])
    assert read.keys() == taps.keys()
    assert all(torch.equal(read[name], taps[name][order]) for name in taps)
    other.reads = {"logits"}
    assert torch.equal(other.read([addresses[4]])["logits"], taps["logits"][4:5])
    assert other.read([addresses[4]]).keys() == {"logits"}


@pytest.mark.parametrize(("precision", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_rounding(tmp_path, precision, error):
    store = make_store(tmp_path, precision)
    taps = make_taps(1, store.shapes)
    store.write(range(1), taps)
    for name, tap in store.read([(0, 0, 0)]).items():
        torch.testing.assert_close(tap.float(), taps[name], rtol=error, atol=1e-7)
    half = {name: tap.bfloat16() for name, tap in taps.items()}  # what a teacher in bf16 gives loses nothing
    store.write(range(1), half)
    assert all(torch.equal(tap.float(), half[name].float()) for name, tap in store.read([(0, 0, 0)]).items())


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_the_largest_logits_and_the_mass_of_the_rest(tmp_path, precision):
    store = make_store(tmp_path, precision, topk=3, shapes={"logits": [150, 3, 2]})
    logits = 5 * torch.randn(1, 150, 3, 2)
    store.write(range(1), {"logits": logits})
    read = store.read([(0, 0, 0)])["logits"]
    whose = logits.topk(3, dim=1).indices
    torch.testing.assert_close(read.gather(1, whose), logits.gather(1, whose), rtol=2**-8, atol=0)
    one, other = (t.softmax(1).scatter(1, whose, 0.0).sum(1) for t in (logits, read))
    torch.testing.assert_close(one, other, rtol=0.1, atol=1e-2)
    assert store.bytes * 150 == 7 * make_store(tmp_path / "b", precision, shapes={"logits": [150, 3, 2]}).bytes


# Views


def make_loader(views, steps=9, **more):
    data = Synthetic("train", images=6, size=(32, 48))
    transform = TrainTransform(crop=(16, 16))
    return data, transform, train_loader(data, transform, batch_size=2, steps=steps, seed=4, views=views, **more)


def test_views_come_again():
    met = {}
    recall = lambda addresses: {"address": torch.tensor(addresses)}  # noqa: E731
    data, transform, loader = make_loader(2, recall=recall)
    for step, (images, targets, known) in enumerate(loader):
        for image, target, address in zip(images, targets, known["address"].tolist(), strict=True):
            assert address[2] == step // 3 % 2
            met.setdefault(tuple(address), []).append((image, target))
    assert sorted(map(len, met.values())) == [1] * 6 + [2] * 6  # epochs 0, 1 and 2
    for image, target in (zip(*seen, strict=True) for seen in met.values()):
        assert all(torch.equal(image[0], other) for other in image)
        assert all(torch.equal(target[0], other) for other in target)
    assert not torch.equal(met[0, 0, 0][0][0], met[0, 0, 1][0][0])
    groups = [sorted(met)[:5], sorted(met)[5:]]
    batches = view_loader([data], transform, groups)
    for group, (images, _) in zip(groups, batches, strict=True):
        assert all(torch.equal(image, met[address][0][0]) for image, address in zip(images, group, strict=True))


def test_without_views_augmentation_is_another_one_each_time():
    _, _, loader = make_loader(None, steps=18)
    images = [image for batch in loader for image in batch[0]]
    assert len({image.numpy().tobytes() for image in images}) == 36


def test_recall_needs_views():
    with pytest.raises(ValueError, match="recall needs views"):
        make_loader(None, recall=lambda _: {})


# Runs


def test_a_run_with_a_cache_is_one_without(cached, teacher, tmp_path, capsys):
    method = ["kd", {"name": "cwd", "features_weight": 1.0}, "mimic"]
    distill(config(teacher={"checkpoint": teacher}, method=method, data=STILL), out=tmp_path / "alive")
    capsys.readouterr()
    distill(cached(method, data=STILL), out=tmp_path / "first")
    said = capsys.readouterr().err
    assert "8 images × 2 views of features 128×2×2, logits 11×2×2 in float16: 0.0 MB" in said
    assert "0 of 16 views are there" in said
    assert said.index("0 of 16 views are there") < said.index("16 of 16 views") < said.index("step 1/4")
    distill(cached(method, data=STILL | {"workers": 2}), out=tmp_path / "second")
    assert "16 of 16 views are there" in capsys.readouterr().err
    assert_same_run(tmp_path / "first", tmp_path / "second")
    for one, other in zip(terms(tmp_path / "alive"), terms(tmp_path / "first"), strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=1e-2)


def test_the_teacher_rests_once_the_cache_is_full(cached, tmp_path, monkeypatch):
    calls, usual = [], training.fill

    def then(run, store):
        usual(run, store)
        run.teacher.network.register_forward_hook(lambda *_: calls.append("run"))

    monkeypatch.setattr(training, "fill", then)
    distill(cached("mimic"), out=tmp_path / "run")
    assert calls == []


def test_what_another_method_left_is_enough(cached, tmp_path):
    distill(cached(["kd", "mimic"]), out=tmp_path / "both")
    distill(cached("kd"), out=tmp_path / "one")
    distill(cached("kd", cache="own"), out=tmp_path / "other")
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_methods_share_what_each_of_them_reads(cached, tmp_path, monkeypatch, capsys):
    """Taps that are not there yet are added beside those that are; nothing is computed or kept twice."""
    for method in ("kd", "mimic", "skd", ["kd", "mimic"]):
        name = "+".join([method] if isinstance(method, str) else method)
        distill(cached(method), out=tmp_path / name)
        distill(cached(method, cache=f"{name} own"), out=tmp_path / f"{name} alone")
        assert_same_run(tmp_path / name, tmp_path / f"{name} alone")
    parts = sorted(
        path.parent.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("cache.json")
    )
    assert parts == [".", "features"]
    told = capsys.readouterr().err
    assert told.count(f"teacher.cache {tmp_path}/cache: 0 of 16") == told.count("cache/features: 0 of 16") == 1
    facts = json.loads((tmp_path / "cache/features/cache.json").read_text(encoding="utf-8"))
    assert list(facts["taps"]) == ["features"]
    with pytest.raises(ValueError, match=r"was filled with teacher.cache_views=2, not 3"):
        distill(cached("mimic", views=3), out=tmp_path / "more views")


MORE = {"accumulate": 2, "ema": 0.9, "steps": 6}


def test_resumed_to_the_bit(cached, tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"more/{i}.png"
        )
    data = {"unlabelled": {"root": str(tmp_path / "more"), "batch_size": 4}}
    made = cached("skd", data=data, train=MORE)
    distill(made, out=tmp_path / "whole")
    with at_step(monkeypatch, 4, interrupt), pytest.raises(KeyboardInterrupt):
        distill(made, out=tmp_path / "cut")
    distill(made, out=tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    store = json.loads((tmp_path / "cache/cache.json").read_text(encoding="utf-8"))
    assert "unlabelled images" in store
    assert (tmp_path / "cache/done.bin").read_bytes() == b"\1" * (8 + 3) * 2


def test_mapped_classes(teacher, cached, tmp_path):
    names = [f"class {i}" for i in range(11)]
    mapped = {"classes": names, "class_map": {names[i]: i // 2 for i in range(11)}}
    alive = config(teacher={"checkpoint": teacher, **mapped}, method="kd", data=STILL)
    distill(alive, out=tmp_path / "alive")
    distill(cached("kd", data=STILL, **mapped), out=tmp_path / "cached")
    facts = json.loads((tmp_path / "cache/cache.json").read_text(encoding="utf-8"))
    assert facts["taps"]["logits"]["shape"] == [6, 2, 2]  # as they are compared
    for one, other in zip(terms(tmp_path / "alive"), terms(tmp_path / "cached"), strict=True):
        assert one == pytest.approx(other, rel=1e-2)


def test_a_dry_run_fills_nothing(cached, tmp_path):
    full = forecast(cached("mimic", views=500))
    assert not (tmp_path / "cache").exists()
    assert full["disk"] - forecast(cached("mimic", views=1))["disk"] == 499 * 8 * 2 * 128 * 2 * 2


@pytest.mark.parametrize("kept", ["float16", "bfloat16", "float32"])
def test_a_teacher_that_runs_in_bf16(cached, tmp_path, kept):
    """What is filled is what it gave, whatever it is kept as, top-k included."""
    for topk in (None, 3):
        given = cached(
            cache=f"{kept}{topk}", train={"precision": "bf16", "steps": 2}, cache_precision=kept, cache_topk=topk
        )
        assert distill(given, out=tmp_path / f"{kept}{topk}_run")["steps"] == 2


def test_a_method_that_reads_nothing(cached, tmp_path, capsys):
    distill(cached({"name": "kd", "weight": 0.0}), out=tmp_path / "a")
    distill(cached({"name": "fakd", "weight": 0.0}), out=tmp_path / "b")
    assert "nothing is kept, as the methods read nothing" in capsys.readouterr().err
    distill(cached("none"), out=tmp_path / "c")


def _two(root, out):
    made = plain_config(root, ["kd", "mimic"])
    made["teacher"] = {**made["teacher"], "cache": out + "/cache", "cache_views": 2}
    student, teacher = _plain(4), _plain(8)
    run_distill(made, student=student, teacher=teacher, out=out + "/run")


def _plain(width):
    from processes import Plain

    return Plain(width, seed=width)


def test_two_processes(tmp_path):
    root = uneven_folder(tmp_path / "data")
    assert in_processes(_two, root, str(tmp_path / "two")) == [0, 0]
    _two(root, str(tmp_path / "one"))
    for one, other in zip(terms(tmp_path / "one/run"), terms(tmp_path / "two/run"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    a, b = (np.fromfile(tmp_path / name / "cache/taps.bin", np.float16).astype(float) for name in ("one", "two"))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)
    assert (tmp_path / "two/cache/done.bin").read_bytes() == b"\1" * 16


# Interruptions


def after_writes(monkeypatch, count, act):
    """Do something when so many groups are written; the list grows with each."""
    usual, writes = TapStore.write, []

    def write(self, entries, taps):
        if len(writes) == count:
            act()
        writes.append(entries)
        usual(self, entries, taps)

    monkeypatch.setattr(TapStore, "write", write)
    return writes


def test_filling_goes_on_where_it_was_interrupted(cached, tmp_path, monkeypatch, capsys):
    distill(cached(cache="whole"), out=tmp_path / "whole_run")
    with monkeypatch.context() as patch:
        after_writes(patch, 3, interrupt_now)
        with pytest.raises(KeyboardInterrupt):
            distill(cached(), out=tmp_path / "run")
    with monkeypatch.context() as patch:
        writes = after_writes(patch, -1, interrupt_now)
        distill(cached(), out=tmp_path / "run", resume="auto")
    assert len(writes) == 1
    assert "12 of 16 views are there" in capsys.readouterr().err
    assert (tmp_path / "cache/taps.bin").read_bytes() == (tmp_path / "whole/taps.bin").read_bytes()
    assert_same_run(tmp_path / "run", tmp_path / "whole_run")


def interrupt_now():
    raise KeyboardInterrupt


def _killed(made, out):
    monkeypatch = pytest.MonkeyPatch()
    after_writes(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run_distill(made, out=out)


@pytest.mark.requires(hasattr(signal, "SIGKILL"), "signals of Unix")
def test_filling_goes_on_after_a_kill(cached, tmp_path, capsys):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segdistill.engine.loop", "segdistill.texture", "pytest"])
    process = context.Process(target=_killed, args=(cached(), str(tmp_path / "run")))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    distill(cached(), out=tmp_path / "run", resume="auto")
    assert "8 of 16 views are there" in capsys.readouterr().err
    distill(cached(cache="whole"), out=tmp_path / "whole_run")
    assert (tmp_path / "cache/taps.bin").read_bytes() == (tmp_path / "whole/taps.bin").read_bytes()
    assert_same_run(tmp_path / "run", tmp_path / "whole_run")


def test_a_run_that_is_asked_to_stop_stops_filling(cached, tmp_path, monkeypatch):
    after_writes(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingStopped, match=r"stopped with 8 of 16 views in .*cache; the same command goes on"):
        distill(cached(), out=tmp_path / "run")


def test_another_run_fills_too(cached, tmp_path, monkeypatch):
    usual = TapStore.holds
    calls = []

    def holds(self, entries):
        calls.append(entries)
        return usual(self, entries) or len(calls) > 4  # looked at once; meanwhile another run has written

    with monkeypatch.context() as patch:
        patch.setattr(TapStore, "holds", holds)
        writes = after_writes(patch, -1, interrupt_now)
        with pytest.raises(ValueError, match="lacks views that it had"):
            distill(cached(), out=tmp_path / "run")
    assert writes == []


# What it was filled with


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"crop": [16, 16]}}, r"was filled with data.crop.*=.*32.*, not .*16"),
        ({"data": {"flip": False}}, "was filled with data.flip=True, not False"),
        ({"data": {"images": 6}}, "was filled with data.images=8, not 6"),
        ({"train": {"precision": "bf16"}}, "was filled with train.precision=fp32, not bf16"),
        ({"views": 3}, "was filled with teacher.cache_views=2, not 3"),
        ({"cache_precision": "bfloat16"}, "was filled with teacher.cache_precision=float16, not bfloat16"),
        ({"cache_topk": 4}, "was filled with teacher.cache_topk=null, not 4"),
        ({"class_map": {0: 1, 1: 0}}, "was filled with teacher.class_map=null, not|teacher.class_map.0=null, not 1"),
    ],
)
def test_what_changed_is_said(full, cached, changes, line, tmp_path):
    made = cached(**{"method": "kd", **changes})
    made["teacher"]["cache"] = str(full)
    with pytest.raises(ValueError, match=line) as refused:
        distill(made, out=tmp_path / "run")
    assert str(refused.value).endswith("delete that folder to fill it anew, or name another one as teacher.cache")
    assert "\n" not in str(refused.value)


def test_runs_of_every_seed_share_a_cache(full, cached, tmp_path, capsys):
    made = cached(method="kd", train={"seed": 1})
    made["teacher"]["cache"] = str(full)
    distill(made, out=tmp_path / "run")
    assert re.search(r": (\d+) of \1 views are there", " ".join(capsys.readouterr().err.split()))


def test_another_layer():
    taps = [{"features": {"path": path, "shape": [4, 2, 2]}} for path in ("a", "b")]
    line = "was filled with tap features of 4×2×2 at a, not 4×2×2 at b; delete"
    with pytest.raises(ValueError, match=line):
        teacher_cache._check_same("folder", {"taps": taps[0]}, {"taps": taps[1]})


@pytest.fixture(scope="module")
def full(tmp_path_factory, teacher):
    """A folder that is filled."""
    folder = tmp_path_factory.mktemp("full")
    made = config(teacher={"checkpoint": teacher, "cache": str(folder / "cache"), "cache_views": 2}, method="kd")
    distill(made, out=folder / "run")
    return folder / "cache"


def test_another_teacher_and_other_images(full, cached, teacher, tmp_path, monkeypatch):
    other = tmp_path / "other"
    student = {"name": "deeplabv3_resnet18_quarter"}
    distill(config(student=student, train={"steps": 1, "seed": 5, "eval_every": 0}), out=other)
    with pytest.raises(ValueError, match="was filled with other weights of the teacher than these"):
        distill(cached(checkpoint=str(other), cache=str(full)), out=tmp_path / "a")
    with monkeypatch.context() as patch:
        usual = Synthetic.__getitem__
        patch.setattr(Synthetic, "__getitem__", lambda self, i: (255 - usual(self, i)[0], usual(self, i)[1]))
        with pytest.raises(ValueError, match="was filled with other images than these"):
            distill(cached(cache=str(full)), out=tmp_path / "b")
    moved = shutil.copytree(teacher, tmp_path / "moved")  # the same teacher elsewhere, and another batch
    distill(cached(checkpoint=str(moved), cache=str(full), data={"batch_size": 2}), out=tmp_path / "c")


def test_a_run_goes_on_with_the_cache_elsewhere_but_not_without(full, cached, teacher, tmp_path, monkeypatch):
    with at_step(monkeypatch, 2, interrupt, "save"), pytest.raises(KeyboardInterrupt):
        distill(cached(cache=str(full)), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"was started with teacher\.cache=True, not False"):
        distill(config(teacher={"checkpoint": teacher}, method="kd"), out=tmp_path / "run", resume=True)
    moved = shutil.copytree(full, tmp_path / "moved")
    distill(cached(cache=str(moved)), out=tmp_path / "run", resume=True)


# Errors


def test_a_full_disk_is_said_before_anything_is_computed(cached, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tap_store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 100))
        with pytest.raises(ValueError, match=r"cache needs 0.0 MB, 0.0 MB are free there; make room"):
            distill(cached(), out=tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tap_store.os, "posix_fallocate", full, raising=False)
        with pytest.raises(ValueError, match=r"cannot write .*taps.bin: No space left on device; make room there"):
            distill(cached(), out=tmp_path / "run")
    assert not (tmp_path / "cache/taps.bin").exists()
    distill(cached(), out=tmp_path / "run")


def test_files_that_were_damaged(cached, tmp_path, full, monkeypatch):
    folder = shutil.copytree(full, tmp_path / "cache")
    data = (folder / "taps.bin").read_bytes()
    (folder / "taps.bin").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"taps.bin has {len(data) - 1} bytes, expected {len(data)}; delete"):
        distill(cached(), out=tmp_path / "run")
    (folder / "taps.bin").unlink()
    with pytest.raises(ValueError, match=r"taps.bin is missing, expected \d+"):
        distill(cached(), out=tmp_path / "run")
    (folder / "cache.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cache.json is not a JSON object"):
        distill(cached(), out=tmp_path / "run")


def test_a_folder_that_cannot_be_written_to(cached, full, tmp_path, monkeypatch):
    folder = shutil.copytree(full, tmp_path / "cache")
    monkeypatch.setattr(TapStore, "writable", False)
    distill(cached(), out=tmp_path / "run")
    (folder / "done.bin").write_bytes(b"\0" * 16)
    with pytest.raises(ValueError, match="lacks views and cannot be written to"):
        distill(cached(), out=tmp_path / "other")
    with pytest.raises(ValueError, match="is the folder of the run itself; name another one"):
        distill(cached(cache="same"), out=tmp_path / "same")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file is where the folder should be"):
        distill(cached(cache="file/cache"), out=tmp_path / "third")


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (1e5, "tap logits has values beyond what float16 holds; set teacher.cache_precision=bfloat16"),
        (math.nan, "tap logits has values that are not finite"),
    ],
)
def test_values_that_cannot_be_kept(tmp_path, value, line):
    store = make_store(tmp_path, "float16")
    taps = make_taps(1, store.shapes)
    taps["logits"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=line):
        store.write(range(1), taps)
    assert store.count() == 0


def test_images_of_several_sizes(tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(ValueError, match=r"tap features is 4×5×2 of one image and 4×3×2 of another; set data.crop"):
        store.write(range(1), make_taps(1, {"features": (4, 5, 2), "logits": (7, 5, 2)}))


class Noisy(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.taps = {"logits": "network.classifier"}

    def forward(self, images):
        return self.network(nn.functional.dropout(images, 0.5, training=True))


def test_a_teacher_that_is_never_the_same(cached, tmp_path):
    noisy = Noisy(build_model("pspnet_resnet18_quarter", num_classes=11))
    with pytest.raises(ValueError, match="the teacher's tap logits is another one each time it sees an image"):
        distill(cached(), teacher=noisy, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"student": {"cache": "a"}}, "student: a student that learns cannot be cached"),
        ({"teacher": {"checkpoint": "a", "cache_views": 2}}, "cache_views: of a cached teacher; set cache: FOLDER"),
        ({"teacher": {"checkpoint": "a", "cache": "b", "cache_views": 0}}, "teacher.cache_views"),
        ({"teacher": {"checkpoint": "a", "cache": "b", "cache_precision": "int8"}}, "teacher.cache_precision"),
    ],
)
def test_keys(section, line):
    with pytest.raises(ValueError, match=line):
        load_config(config(**section))


def test_another_checkpoint_keeps_the_cache():
    made = load_config(config(teacher={"name": "pspnet_resnet18", "cache": "a"}), ["teacher.checkpoint=b"])
    assert (made.teacher.name, made.teacher.checkpoint, made.teacher.cache) == (None, "b", "a")


def test_too_many_logits(tmp_path):
    with pytest.raises(ValueError, match=r"cache_topk=3 keeps 7 numbers a pixel, and there are 7 classes; leave"):
        make_store(tmp_path, topk=3)


def test_a_cache_that_vanishes(tmp_path):
    store = make_store(tmp_path)
    with pytest.raises(ValueError, match="lacks views that it had; run the same command again"):
        store.read([(0, 0, 0)])
    assert teacher_cache.cached_taps(load_config(config()), {"logits"}) == set()
