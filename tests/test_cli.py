"""The commands as a user types them."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import PATIENCE, wait_until
from segdistill import cli

TINY = """
data: {name: synthetic, size: [32, 32], images: 4, crop: [32, 32], batch_size: 4, workers: 0}
student: {name: pspnet_resnet18_quarter, output_stride: 16}
train: {steps: 2, precision: fp32, log_every: 1}
"""


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    from segdistill import distill

    folder = tmp_path_factory.mktemp("cli") / "run"
    distill(yaml.safe_load(TINY), out=folder)
    return folder


def test_train_distil_evaluate_predict(tmp_path, segdistill):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    status, out, _ = segdistill("train", config, "--out", tmp_path / "teacher")
    assert (status, "val mIoU" in out) == (0, True)
    teacher = f"teacher.checkpoint={tmp_path / 'teacher'}"
    status, out, _ = segdistill(
        "distill", config, "method=cwd", teacher, "train.steps=1", "--out", tmp_path / "student"
    )
    assert (status, "cwd" in out) == (0, True)
    status, out, _ = segdistill("eval", tmp_path / "student", "--split", "test", "--json", tmp_path / "test.json")
    assert (status, "pixel accuracy" in out) == (0, True)
    assert json.loads((tmp_path / "test.json").read_text())["split"] == "test"
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    status, _, _ = segdistill("predict", tmp_path / "student", tmp_path / "a.png", "--out", tmp_path / "predictions")
    assert status == 0
    assert Image.open(tmp_path / "predictions/ids/a.png").size == (40, 30)
    status, _, _ = segdistill("train", tmp_path / "teacher", "--resume")
    assert status == 0


def test_a_protocol_from_the_command_line(tmp_path, segdistill, run_folder):
    run = shutil.copytree(run_folder, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"]["name"] is None
    assert summary["protocol"]["flip"] is False
    status, out, _ = segdistill("eval", run, "eval.flip=true", "--protocol", "skd", "--json", tmp_path / "skd.json")
    assert status == 0
    told = "protocol skd: whole images, flipped, mean of logits; absent classes count as 0"
    assert told in " ".join(out.split())
    found = json.loads((tmp_path / "skd.json").read_text())
    assert found["protocol"]["name"] == "skd"
    assert found["protocol"]["flip"] is found["protocol"]["align_corners"] is True
    assert found["size"] is None
    status, out, _ = segdistill("eval", run, "eval.window=[16, 16]")
    assert (status, (run / "eval_val.json").exists()) == (0, False)
    assert "not written: this protocol is not the run's own" in " ".join(out.split())
    status, out, _ = segdistill("eval", run, "data.only={val: '*0'}")
    assert (status, (run / "eval_val.json").exists()) == (0, False)
    assert "not written: these data are not the run's own" in " ".join(out.split())
    status, _, err = segdistill("eval", run, "--protocol", "mmsge")
    assert status == 2
    assert err.startswith("segdistill: eval.protocol: ")
    assert err.count("\n") == 1


def test_predictions_follow_the_runs_protocol(tmp_path, segdistill, monkeypatch):
    from segdistill import Protocol
    from segdistill.deploy import predict

    seen, real = [], predict.infer_ids
    monkeypatch.setattr(predict, "infer_ids", lambda *given, **how: seen.append(given[2]) or real(*given, **how))
    changed = {**yaml.safe_load(TINY), "eval": {"window": [24, 24], "protocol": "cirkd"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(changed))
    run = tmp_path / "run"
    assert segdistill("train", tmp_path / "tiny.yaml", "--out", run)[0] == 0
    protocol = json.loads((run / "summary.json").read_text())["protocol"]
    assert (protocol["name"], protocol["window"], protocol["absent"]) == ("cirkd", [24, 24], "zero")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "a.png")

    cirkd = {"merge": "logits", "align_corners": True, "absent": "zero"}
    for arguments, protocol in {
        (): Protocol(window=(24, 24), stride=(16, 16), **cirkd),
        ("--window", "20", "30"): Protocol(window=(20, 30), **cirkd),
        ("--protocol", "skd", "--window", "24", "24"): Protocol(window=(24, 24), **cirkd),
        ("--protocol", "mmseg"): Protocol(),
    }.items():
        assert segdistill("predict", run, tmp_path / "a.png", "--out", tmp_path / "out", *arguments)[0] == 0
        assert seen.pop() == protocol
        assert Image.open(tmp_path / "out/ids/a.png").size == (70, 50)
    status, _, err = segdistill("predict", run, tmp_path / "a.png", "--format", "cityscapes")
    assert status == 2
    assert "--format cityscapes needs a model of the 19 classes of Cityscapes, this one has 11 classes" in err
    assert "window: expected" in segdistill("predict", run, tmp_path / "a.png", "--window", "0", "3")[2]


def test_figures_on_other_data_are_not_taken_for_the_run_s(tmp_path, segdistill, run_folder):
    run, kept = shutil.copytree(run_folder, tmp_path / "run"), tmp_path / "run/eval_test.json"
    assert segdistill("eval", run, "data.workers=0", "data.eval_batch_size=2", "--split", "test")[0] == 0
    own = kept.read_text()
    other = yaml.safe_load(TINY)
    other["data"]["size"] = [48, 48]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    for changes in (["data.size=[48, 48]"], ["data.difficulty=0.5"], ["--config", tmp_path / "other.yaml"]):
        status, out, _ = segdistill("eval", run, *changes, "--split", "test")
        assert status == 0
        assert "pixel accuracy" in out
        assert "these data are not the run's own" in " ".join(out.split())
        assert kept.read_text() == own
    segdistill("eval", run, "data.size=[48, 48]", "--split", "test", "--json", tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text())["miou"] != json.loads(own)["miou"]


def test_a_folder_of_ones_own_images(tmp_path, segdistill):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
    for i in range(6):
        mask = rng.integers(0, 3, (40, 48), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / f"mine/masks/{i}.png")
        Image.fromarray(np.stack([60 * mask] * 3, -1)).save(tmp_path / f"mine/images/{i}.jpg")
    config = tmp_path / "mine.yaml"
    lines = [
        "data:",
        "  name: folder",
        f"  root: {tmp_path / 'mine'}",
        "  classes: [wall, floor, door]",
        "  val_fraction: 0.34",
        "  crop: [32, 32]",
        "  batch_size: 2",
        "  workers: 0",
        "student: {name: pspnet_resnet18_quarter}",
        "method: kd",
        "train: {steps: 2, precision: fp32}",
    ]
    assert len(lines) <= 15
    config.write_text("\n".join(lines))
    assert segdistill("data", "check", config)[0] == 0
    assert segdistill("train", config, "--out", tmp_path / "teacher")[0] == 0
    teacher = f"teacher.checkpoint={tmp_path / 'teacher'}"
    status, out, err = segdistill("distill", config, teacher, "--out", tmp_path / "student")
    assert status == 0, err
    assert "kd" in out


def test_lists_layers_doctor(segdistill, run_folder):
    status, out, _ = segdistill("list", "methods")
    assert status == 0
    assert all(name in out for name in ("none", "kd", "cwd"))
    assert segdistill("list", "models")[1].count("pspnet_") > 3
    assert "synthetic" in segdistill("list", "data")[1]
    for model in ("pspnet_resnet18", run_folder):
        status, out, _ = segdistill("layers", model)
        assert status == 0
        assert "low1" in out
    status, out, _ = segdistill("doctor")
    assert status == 0
    assert "torch" in out


@pytest.mark.parametrize("command", [[], ["data"], ["demo"], ["train"], ["distill"], ["eval"], ["predict"], ["list"],
                                     ["layers"], ["compare"], ["data", "check"], ["doctor"]])  # fmt: skip
def test_help_has_an_example(segdistill, command):
    status, out, _ = segdistill(*command, "--help")
    assert status == 0
    if command and command != ["data"]:
        assert "Example: " in out
        assert f"segdistill {' '.join(command)}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml"], "no configuration at missing.yaml"),
        (["eval", "missing"], "no student at missing"),
        (["layers", "pspnet_resnet18", "--size", "0", "64"], "size: expected height and width in pixels, got 0×64"),
        (["predict", "missing", "a.png"], "no student at missing"),
        (["list", "colours"], "expected methods, models, data, metrics, configs or config"),
        (["layers", "pspent_resnet18"], "did you mean pspnet_resnet18"),
        (["trian"], "No such command"),
        (["train"], "Missing argument"),
        (["train", "x.yaml", "--oot", "y"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(segdistill, arguments, message):
    status, _, err = segdistill(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_forecast_writes_nothing(tmp_path, segdistill, run_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    teacher = f"teacher.checkpoint={run_folder}"
    status, out, _ = segdistill("distill", "tiny.yaml", "method=cwd", teacher, "--dry-run")
    out = " ".join(out.split())
    assert status == 0
    for part in ("s per step", "peak memory", "disk", "classifier", "cwd_logits", "share of"):
        assert part in out
    assert segdistill("train", "tiny.yaml", "--dry-run")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_comparison_prints_a_table_and_fails_with_its_runs(tmp_path, segdistill, run_folder):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    grid = [
        "compare",
        config,
        "methods=[none,{name: kd, weight: 1.0e+38}]",
        f"teacher.checkpoint={run_folder}",
        "seeds=1",
    ]
    status, out, err = segdistill(*grid, "--out", tmp_path / "out", "--json", tmp_path / "table.json")
    assert status == 2
    assert err.splitlines()[-1].endswith("1 of 2 runs failed; the same command tries them again")
    assert "baseline" in out
    assert "failed: synthetic_pspnet_resnet18_quarter_kd-weight=1e+38_seed0: " in " ".join(out.split())
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["miou"] is not None


def test_debug_gives_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segdistill", "--debug", "train", "missing.yaml"])
    with pytest.raises(ValueError, match="no configuration"):
        cli.main()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, cli.SPINS), ({"GOMP_SPINCOUNT": "infinite"}, "infinite"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(given, wanted):
    code = "import os, sys; from segdistill import cli; cli.wait_briefly(); "
    code += "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name not in cli.WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wanted), "False"]  # torch reads it once, as it is loaded


def test_data_check_lists_problems_and_fails(tmp_path, segdistill):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16)).save(tmp_path / f"images/{i}.png")
        Image.new("L", (16, 16), 9 if i == 2 else 1).save(tmp_path / f"masks/{i}.png")
    config = {
        "data": {"name": "folder", "root": str(tmp_path), "classes": ["a", "b"], "val_fraction": 0.25},
        "student": {"name": "pspnet_resnet18"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    status, out, _ = segdistill("data", "check", tmp_path / "c.yaml")
    assert status == 2
    assert "9" in out


def test_a_terminated_run_goes_on_where_it_stopped(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("steps: 2", "steps: 100000, threads: 1").replace("workers: 0", "workers: 1"))
    command = [sys.executable, "-m", "segdistill", "train", str(config), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "run/metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, process)
    os.killpg(process.pid, signal.SIGTERM)  # the loading process too, as a scheduler does it
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    last = err.splitlines()[-1]
    assert "stopped after step" in last
    assert "--resume" in last
    import torch

    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["facts"]["step"] >= 2


@pytest.mark.parametrize(
    ("module", "function", "words"),
    [
        ("segdistill.show", "doctor", ["doctor"]),
        ("segdistill.show.lists", "catalogue", ["list", "methods"]),
        ("segdistill.show.data", "check", ["data", "check", "c.yaml"]),
        ("segdistill.deploy.serve.server", "serve", ["serve", "runs/x"]),
        ("segdistill.engine.evaluate", "evaluate_run", ["eval", "runs/x"]),
    ],
)
def test_an_interruption_is_one_line(segdistill, monkeypatch, module, function, words):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), function, interrupt)
    assert segdistill(*words) == (130, "", "segdistill: interrupted\n")
