"""What may go wrong around a run: each time one line that says what helps, and nothing is lost."""

import ast
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from conftest import REPOSITORY
from faults import assert_same_run, config, leftovers, read_metrics
from segdistill import distill, load_student
from segdistill.data import sampler
from segdistill.engine import loop, run_folder, runtime, training
from segdistill.engine.checkpoint import load_checkpoint
from segdistill.engine.faults import TrainingStopped, known_fault, one_line, visible
from segdistill.engine.lock import LOCK, is_alive, locked, remove_leftovers
from segdistill.engine.record import Recorder
from segdistill.engine.run_folder import read_json, write_json, write_text

LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")


@contextmanager
def at_step(monkeypatch, step, act):
    """Do something in a run when so many of its steps are recorded."""
    record = training.Training.record

    def then(self, *arguments):
        record(self, *arguments)
        if self.done == step:
            act(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "record", then)
        yield


def interrupt(_run):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    distill(config(), out=folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in its third step; never written to by a test."""
    folder = tmp_path_factory.mktemp("faults") / "stopped"
    with at_step(pytest.MonkeyPatch(), 3, interrupt), pytest.raises(KeyboardInterrupt):
        distill(config(), out=folder)
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


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


SUMMARY = {
    "student": "s", "method": ["none"], "miou": 0.5, "macc": 0.5, "pixel_accuracy": 0.5, "best_step": 1, "steps": 1,
    "seconds": 1.0,
}  # fmt: skip


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
        with pytest.raises(ValueError, match=rf"run is in use: another process \(pid {process.pid} on .*\) trains"):
            distill(config(), out=run, resume=True)
        assert (run / "metrics.jsonl").read_bytes() == before
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
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
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


# Writing


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_file_is_whole_whatever_fails(tmp_path, monkeypatch, moment):
    file = tmp_path / "summary.json"
    write_json(file, {"a": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "write":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(run_folder.os, moment, full)
    with pytest.raises(ValueError, match=r"cannot write .*summary.json: No space left on device; make room there"):
        write_json(file, {"a": 2})
    monkeypatch.undo()
    assert read_json(file) == {"a": 1}
    assert leftovers(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(run_folder.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(run_folder.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_text(tmp_path / "file", "text")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_record_that_cannot_be_rewritten_is_kept(run, monkeypatch):
    before = (run / "metrics.jsonl").read_bytes()

    def killed(_old, _new):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Recorder(run, 4, 2)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_costs_the_steps_since_the_checkpoint(run, whole, monkeypatch):
    before = (run / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = lambda _run: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # noqa: E731
    try:
        with at_step(monkeypatch, 4, fill), pytest.raises(ValueError, match=r"checkpoint.pt: File too large; raise"):
            distill(config(), out=run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert leftovers(run) == []
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_record_on_a_full_disk_is_one_line(tmp_path):
    recorder = Recorder(tmp_path, 4, 0)
    recorder.file.close()
    recorder.file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(ValueError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        recorder.step(1, {"loss": 1.0, "images_per_s": 1.0, "memory_mb": 1.0})
    recorder.close()


def test_a_folder_that_vanishes_is_one_line(tmp_path, monkeypatch):
    out = tmp_path / "run"
    vanish = lambda _run: shutil.rmtree(out)  # noqa: E731
    with at_step(monkeypatch, 2, vanish), pytest.raises(ValueError, match=r"cannot write .*; the folder was removed"):
        distill(config(), out=out)
    assert not out.exists()


def test_places_that_are_none(tmp_path, whole, segdistill):
    (tmp_path / "file").touch()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(train={"steps": 1})), encoding="utf-8")
    places = {
        tmp_path / "file": "a file is where the folder should be; name another folder",
        tmp_path / "file/run": "a file is where the folder should be; name another folder",
        "/proc/none/run": "the folder was removed, or cannot be made",
        whole: "already holds a run; --resume goes on with it, --out DIR starts another",
    }
    for out, line in places.items():
        status, _, err = segdistill("train", tmp_path / "tiny.yaml", "--out", out)
        assert (status, err.count("\n")) == (2, 1), err
        assert line in err
    grid = ["compare", tmp_path / "tiny.yaml", "methods=[none]", "split=val"]
    assert "a file is where the folder should be" in segdistill(*grid, "--out", tmp_path / "file")[2]


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


# Damage


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def replaced(change):
    def damage(path):
        state = torch.load(path, weights_only=True)
        torch.save(change(state), path)

    return damage


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read: it is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-999]), "cannot be read: it is damaged"),
        (lambda path: torch.save(torch.zeros(2), path), "is no checkpoint of a run"),
        (replaced(lambda state: {k: v for k, v in state.items() if k != "facts"}), "is no checkpoint of a run"),
        (replaced(lambda state: state | {"facts": 3}), "is no checkpoint of a run"),
        (replaced(lambda state: {k: v for k, v in state.items() if k != "sha256"}), "is no checkpoint of a run"),
        (replaced(lambda state: state | {"facts": state["facts"] | {"step": "2"}}), "its digest is not"),
        (replaced(lambda state: state | {"optimizer": None}), "its digest is not"),
        (flip, "is damaged|cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(run, damage, line):
    damage(run / "checkpoint.pt")
    with pytest.raises(ValueError, match=line) as caught:
        distill(config(), out=run, resume=True)
    assert "delete it to train from the start" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("weights_only", "pickle", "unpickle", "\n"))


def test_a_flipped_byte_in_any_tensor_is_found(run):
    path = run / "checkpoint.pt"
    original = path.read_bytes()
    state = torch.load(path, weights_only=True)
    tensors = {**state["distiller"], "momentum": state["optimizer"]["state"][3]["momentum_buffer"]}
    for name in [*list(tensors)[::40], "momentum"]:
        flip(path, original.index(tensors[name].contiguous().numpy().tobytes()))
        with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
            load_checkpoint(run, {})
        path.write_bytes(original)


def test_a_damaged_student_is_found(run):
    flip(run / "student.safetensors", -8)
    with pytest.raises(ValueError, match=r"student.safetensors is damaged: its digest is not that of what it holds"):
        load_student(run)
    with pytest.raises(ValueError, match=r"digest is not .* it was the best so far, of step 2: put a copy back, or"):
        distill(config(), out=run, resume=True)
    (run / "student.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no student at .* delete .*checkpoint.pt to train from the start"):
        distill(config(), out=run, resume=True)


def test_a_student_of_another_card_is_found(run):
    tensors = load_file(run / "student.safetensors")
    from safetensors import safe_open

    with safe_open(run / "student.safetensors", "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, run / "student.safetensors", metadata | {"segdistill": metadata["segdistill"].replace("2", "3")})
    with pytest.raises(ValueError, match="is damaged"):
        load_student(run)
    save_file(tensors, run / "student.safetensors", {"segdistill": "[]"})
    with pytest.raises(ValueError, match="its card is no JSON object"):
        load_student(run)


@pytest.mark.parametrize("content", ["{}", "", "[1]", "\udcff"])
def test_a_damaged_summary_is_made_again(whole, tmp_path, content):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    summary = distill(config(), out=run, resume=True)
    assert summary["miou"] == read_json(whole / "summary.json")["miou"]
    assert read_json(run / "summary.json") == summary


# Signals, and numbers that overflow


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_closed_terminal_stops_a_run_after_its_step(tmp_path, whole, monkeypatch):
    hang_up = lambda _run: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
    with at_step(monkeypatch, 3, hang_up), pytest.raises(TrainingStopped, match="stopped after step 3; go on"):
        distill(config(), out=tmp_path)
    distill(config(), out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


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
        assert signal.SIGHUP in runtime.stop_signals()
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        assert runtime.stop_signals() == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGHUP, before)
        monkeypatch.delattr(signal, "SIGHUP")  # as on Windows
    assert runtime.stop_signals() == [signal.SIGINT, signal.SIGTERM]
    with runtime.runtime("cpu") as run:
        assert run.stopped == []


def test_what_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runtime.peak_memory(torch.device("cpu")) == 0
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.delattr(os, "setpgid", raising=False)
    sampler._leave_group(0)
    signal.signal(signal.SIGINT, before)


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


# What is printed


ODD = "[/bold] [other] :smile: \x1b[31m\x07"
RESULT = {
    "model": f"runs/{ODD}", "split": "val", "iou": {ODD: 0.5}, "accuracy": {ODD: None}, "miou": 0.5, "macc": 0.5,
    "pixel_accuracy": 0.5,
}  # fmt: skip


def test_names_are_printed_as_they_are(capsys):
    from segdistill import cli, show

    show.evaluation(cli.console, RESULT)
    show.summary(cli.console, SUMMARY | {"student": ODD})
    show.plain(cli.console)(ODD)
    out = capsys.readouterr().out
    assert out.count("[/bold] [other] :smile: \\x1b[31m\\x07") >= 3
    assert "\x1b" not in out
    show.doctor(cli.console)
    assert "segdistill[" in capsys.readouterr().out or all(show.find_spec(m[0]) for m in show.EXTRAS.values())
    assert one_line("a\n\x1b[2Jb\x9b") == "a \\x1b[2Jb\\x9b"
    assert visible("Straße\n\t道") == "Straße\n\t道"


def test_a_result_is_written_before_it_is_printed(whole, tmp_path, segdistill, monkeypatch):
    from segdistill import show
    from segdistill.engine import evaluate

    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_, **__: RESULT)
    status, out, err = segdistill("eval", whole, "--json", tmp_path / "none/table.json")
    assert (status, "pixel accuracy" in out) == (2, True)
    assert "cannot write" in err
    monkeypatch.setattr(show, "evaluation", interrupt)
    with pytest.raises(TypeError):
        segdistill("eval", whole, "--json", tmp_path / "table.json")
    assert read_json(tmp_path / "table.json") == RESULT


ASCII = """
import sys
from pathlib import Path
from segdistill.engine.config import load_config
from segdistill.engine.run_folder import read_json, write_json
folder = Path(sys.argv[1])
from segdistill.engine.config import read_config
assert read_config(folder / "c.yaml")["data"]["name"] == "Straße"
write_json(folder / "a.json", {"name": "道"})
assert read_json(folder / "a.json") == {"name": "道"}
from segdistill import cli
sys.argv = ["segdistill", "list", "config", "train"]
cli.main()
"""


def test_a_locale_that_is_not_utf8(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {name: Straße}\n", encoding="utf-8")
    (tmp_path / "code.py").write_text(ASCII, encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, tmp_path / "code.py", tmp_path]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"?" in done.stdout
    done.stdout.decode("ascii")


def without_encoding(tree):
    """Lines of calls of `open`, `read_text` and `write_text` that leave the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        given = node.args if method else node.args[1:]  # what follows the file's name
        mode = getattr(given[0], "value", None) if given else "r"
        text = name == "open" and isinstance(mode, str) and re.fullmatch("[rwaxt+]+", mode)
        whose = getattr(node.func.value, "id", "") if method else ""
        if (method and name in ("read_text", "write_text")) or (text and whose not in ("Image", "os")):
            yield node.lineno


def test_every_text_file_has_an_encoding():
    code = "open(f)\nopen(f, 'rb')\np.open()\np.open('r+b')\np.read_text()\nopen(f, encoding='utf-8')\nos.open(f, g)\n"
    assert list(without_encoding(ast.parse(code))) == [1, 3, 5]
    files = sorted((REPOSITORY / "src").rglob("*.py"))
    found = {file.name: list(without_encoding(ast.parse(file.read_text(encoding="utf-8")))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
