"""What may go wrong around a run: each time one line that says what helps, and nothing is lost."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest
import torch
import yaml

from faults import SUMMARY, assert_same_run, at_step, config, heard, interrupt, read_metrics
from segdistill import distill
from segdistill.data import loading
from segdistill.engine import loop, runtime
from segdistill.engine.config import load_config
from segdistill.engine.faults import TrainingStopped, known_fault
from segdistill.engine.lock import LOCK, is_alive, locked
from segdistill.engine.record import Recorder
from segdistill.engine.run_folder import read_json
from segdistill.engine.settings import check_same

LINUX = pytest.mark.requires(Path("/proc").is_dir(), "Linux")


# Starting and going on


def test_a_validation_leaves_a_checkpoint(run, whole):
    assert torch.load(run / "checkpoint.pt", weights_only=True)["facts"]["step"] == 2
    assert read_metrics(run)[-1]["step"] == 3
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_student_without_a_checkpoint_is_trained_again(run, whole, resume, capsys):
    (run / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="already holds a run; --resume goes on with it"):
        distill(config(), out=run)
    with pytest.raises(ValueError, match=r"started with data.images=8, not 4"):
        distill(config(data={"images": 4}), out=run, resume=resume)
    distill(config(), out=run, resume=resume)
    assert_same_run(run, whole)
    assert ("the run starts from the beginning" in capsys.readouterr().err) == (resume is True)


def test_a_finished_run_needs_no_checkpoint(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoint.pt").unlink()
    before = (run / "student.safetensors").stat().st_mtime_ns
    assert distill(config(), out=run, resume="auto") == read_json(run / "summary.json")
    assert (run / "student.safetensors").stat().st_mtime_ns == before
    assert not (run / "checkpoint.pt").exists()


def test_resume_on_the_command_line(tmp_path, segdistill, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(train={"steps": 1})), encoding="utf-8")
    heard = []
    monkeypatch.setattr(loop, "distill", lambda *_, **how: heard.append((how["resume"], how["override"])) or SUMMARY)
    for words in ([], ["--resume"], ["--resume", "auto"], ["--resume", "--override"], ["--resume=auto"]):
        status, _, err = segdistill("train", tmp_path / "tiny.yaml", *words, "--out", tmp_path / "run")
        assert status == 0, err
    assert heard == [(False, False), (True, False), ("auto", False), (True, True), ("auto", False)]
    assert segdistill("train", tmp_path / "tiny.yaml", "--resume=later")[0] == 2


def test_resume_in_an_empty_folder_starts(tmp_path, capsys):
    short = config(train={"steps": 1})
    distill(short, out=tmp_path / "a", resume=True)
    assert "holds no checkpoint yet: the run starts from the beginning" in capsys.readouterr().err
    distill(short, out=tmp_path / "b", resume="auto")
    assert "from the beginning" not in capsys.readouterr().err
    assert_same_run(tmp_path / "a", tmp_path / "b")


# One writer at a time

HOLDER = """
import os, sys, time
from pathlib import Path
from segdistill.engine.lock import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(2)  # a process that loads images, which notices late that it is alone
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder, how="alone"):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, how], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_is_held_by_one_process_until_it_dies(run, whole):
    with holder(run) as process:
        before = (run / "metrics.jsonl").read_bytes()
        with pytest.raises(
            ValueError, match=rf"run is in use: another process \(pid {process.pid} on .*\) works there"
        ):
            distill(config(), out=run, resume=True)
        assert (run / "metrics.jsonl").read_bytes() == before
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


def test_a_process_that_is_about_to_end_may_be_waited_for(tmp_path):
    with holder(tmp_path) as process:
        Timer(0.5, process.kill).start()
        with locked(tmp_path, patience=60):
            assert process.wait() == -signal.SIGKILL


@pytest.mark.requires(hasattr(os, "fork"), "fork")
def test_helpers_of_a_dead_process_are_waited_for(tmp_path):
    with holder(tmp_path, "fork") as process:
        process.kill()
        process.wait()
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_comparison_is_held_too(tmp_path):
    from segdistill.comparison.grid import compare

    with locked(tmp_path), pytest.raises(ValueError, match="is in use: another process"):
        compare(config(), ["methods=[none]", "seeds=1", "split=val"], out=tmp_path)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, capsys):
    def unsupported(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with locked(tmp_path):
        pass
    assert "cannot be locked; let one process only train there" in capsys.readouterr().err


def test_what_dead_writers_left_is_cleared_away(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not is_alive({"pid": gone.pid, "host": runtime.platform.node()})
    kept = [f".eval_val.json.{os.getppid()}-00.tmp", "other.tmp", "student.safetensors"]
    lost = [f".checkpoint.pt.{gone.pid}-00.tmp", f".checkpoint.pt.{os.getpid()}-11.tmp", ".checkpoint.pt.tmp"]
    for name in kept + lost:
        (tmp_path / name).touch()
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {*kept, LOCK}


# Memory and lost processes


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 1),
        (MemoryError(), 1),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 2),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), 2),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"), 3),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 0),
        (TrainingStopped("out of memory; …; last good checkpoint: runs/a/checkpoint.pt"), 0),
    ],
)
def test_what_the_machine_lacks_is_known(error, line):
    said = known_fault(error) or ""
    assert ("out of memory; lower data.batch_size" in said) == (line == 1)
    assert ("lower data.workers" in said) == (line > 1)
    assert ("/dev/shm" in said) == (line == 3)
    assert bool(said) == (line > 0)


def test_memory_that_does_not_suffice_keeps_the_checkpoint(run, whole, monkeypatch):
    def greedy(_run):
        torch.empty(2**50, dtype=torch.uint8)

    with at_step(monkeypatch, 3, greedy), pytest.raises(TrainingStopped, match=r"out of memory; .*checkpoint.pt"):
        distill(config(), out=run, resume=True)
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


@LINUX
def test_a_lost_loader_is_one_line(run, whole, monkeypatch):
    def kill(_run):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    changes = config(data={"workers": 1})
    with at_step(monkeypatch, 3, kill), pytest.raises(TrainingStopped, match=r"loads images was lost .*checkpoint.pt"):
        distill(changes | {"train": changes["train"] | {"log_every": 1}}, out=run, resume=True)
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


# Signals, and numbers that overflow


@pytest.mark.requires(hasattr(signal, "SIGHUP"), "SIGHUP")
def test_a_closed_terminal_stops_a_run_after_its_step(tmp_path, whole, monkeypatch):
    hang_up = lambda _run: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
    with (
        heard(signal.SIGHUP),
        at_step(monkeypatch, 3, hang_up),
        pytest.raises(TrainingStopped, match="stopped after step 3; go on"),
    ):
        distill(config(), out=tmp_path)
    distill(config(), out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_an_interrupted_run_says_that_it_finishes_its_step_first(tmp_path, monkeypatch, capfd):
    ctrl_c = lambda _run: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with at_step(monkeypatch, 2, ctrl_c), pytest.raises(TrainingStopped, match="stopped after step 2; go on"):
        distill(config(), out=tmp_path)
    assert capfd.readouterr().err.count("stopping after this step, which is saved; Ctrl-C again ends it at once\n") == 1


def test_a_terminal_that_is_gone_does_not_end_a_run(tmp_path):
    class Gone:
        def isatty(self):
            return False

        def write(self, _text):
            raise OSError(errno.EIO, "Input/output error")

        flush = write

    recorder = Recorder(tmp_path, 4, 0, stream=Gone())
    recorder.step(1, {"loss": 1.0, "images_per_s": 1.0, "memory_mb": 1.0})
    recorder.close()
    assert read_metrics(tmp_path)[0]["step"] == 1


def test_which_signals_are_heard(monkeypatch):
    if hasattr(signal, "SIGHUP"):
        with heard(signal.SIGHUP):
            assert signal.SIGHUP in runtime.stop_signals()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
            assert runtime.stop_signals() == [signal.SIGINT, signal.SIGTERM]
        monkeypatch.delattr(signal, "SIGHUP")  # as on Windows
    assert runtime.stop_signals() == [signal.SIGINT, signal.SIGTERM]
    with runtime.runtime("cpu") as run:
        assert run.stopped == []


def test_what_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runtime.peak_memory(torch.device("cpu")) == 0
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.delattr(os, "setpgid", raising=False)
    loading._leave_group(0)
    signal.signal(signal.SIGINT, before)


def test_a_run_that_starts_afresh_keeps_no_figures_of_the_one_before(tmp_path, monkeypatch):
    for name in ("summary.json", "eval_test.json", "eval_test_images.safetensors"):
        (tmp_path / name).write_text("{}")
    with at_step(monkeypatch, 1, interrupt), pytest.raises(KeyboardInterrupt):
        distill(config(), out=tmp_path, resume="auto")
    assert not (tmp_path / "summary.json").exists()
    assert not list(tmp_path.glob("eval_*"))


def test_another_method_is_told_by_its_name_not_by_its_options(tmp_path):
    old, new = (load_config(config(method=name)) for name in ("kd", "cwd"))
    with pytest.raises(ValueError, match=r"started with method.0.name=kd, not cwd; resume it unchanged$"):
        check_same(old, new, tmp_path)


def test_a_run_goes_on_at_another_learning_rate(run, whole):
    lower = config(train={"lr": 0.001, "weight_decay": 0.0, "clip": 1.0})
    with pytest.raises(ValueError, match=r"started with train.clip=None, not 1.0; resume it unchanged, or --override"):
        distill(lower, out=run, resume=True)
    with pytest.raises(ValueError, match=r"started with data.images=8, not 4; resume it unchanged$"):
        distill(config(data={"images": 4}), out=run, resume=True, override=True)
    distill(lower, out=run, resume=True, override=True)
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["train"]["lr"] == 0.001
    (change,) = read_json(run / "env.json")["overrides"]
    assert change == {
        "step": 2,
        "train.clip": [None, 1.0],
        "train.lr": [0.01, 0.001],
        "train.weight_decay": [5e-4, 0.0],
    }
    rates = {line["step"]: line["lr"] for line in read_metrics(run) if "lr" in line}
    known = {line["step"]: line["lr"] for line in read_metrics(whole) if "lr" in line}
    assert [rates[step] / known[step] for step in (1, 2, 3, 4)] == pytest.approx([1, 1, 0.1, 0.1])
    (group,) = torch.load(run / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.0, 0.001)


def test_a_run_goes_on_in_another_precision(tmp_path, monkeypatch):
    half = config(train={"precision": "fp16"})
    with at_step(monkeypatch, 3, interrupt), pytest.raises(KeyboardInterrupt):
        distill(half, out=tmp_path)
    distill(config(), out=tmp_path, resume=True, override=True)
    assert read_json(tmp_path / "env.json")["overrides"][0]["train.precision"] == ["fp16", "fp32"]


@pytest.mark.parametrize("kind", ["running_var", "weight"])
def test_what_overflowed_is_never_saved(run, monkeypatch, kind):
    before = {name: (run / name).read_bytes() for name in ("checkpoint.pt", "student.safetensors")}

    def overflow(training):
        tensor = next(t for name, t in training.network.state_dict().items() if name.endswith(kind))
        tensor[0] = float("nan")

    with at_step(monkeypatch, 4, overflow), pytest.raises(TrainingStopped, match=rf"{kind} is not finite at step 4"):
        distill(config(), out=run, resume=True)
    assert {name: (run / name).read_bytes() for name in before} == before
