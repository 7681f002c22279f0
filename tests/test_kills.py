"""Runs that are killed, raced and starved for real: `make faults`. What is left goes on to the very same result."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest

from conftest import lacking
from faults import assert_same_run, config, leftovers, read_metrics
from segdistill import list_methods
from segdistill.engine.lock import locked

pytestmark = [pytest.mark.slow, pytest.mark.requires(sys.platform != "win32", "signals of Unix")]

KILLS = 5
"""Of each method."""

METHODS = [*list_methods(), ["kd", "cwd"]]


def train(changes, out, queue=None):
    """One run in a process of its own; its error goes into the queue."""
    import torch

    from segdistill import distill

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        distill(changes, out=out, resume="auto")
        said = None
    except ValueError as error:
        said = str(error)
    if queue is not None:
        queue.put(said)


def train_and_die(changes, out, call, moment):
    """A run that is killed when it gives the `call`-th file its name, before or after."""
    from segdistill.engine import run_folder

    calls, replace = [], os.replace

    def replace_and_die(*names):
        calls.append(names)
        if moment == "after":
            replace(*names)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "before":
            replace(*names)

    run_folder.os.replace = replace_and_die
    train(changes, out)


@pytest.fixture(scope="module")
def processes():
    """Makes processes in which torch is loaded already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["segdistill.engine.loop", "segdistill.methods", "torchmetrics.classification"])
    return context


def start(processes, function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def finish(processes, changes, out):
    process = start(processes, train, changes, out)
    process.join()
    assert process.exitcode == 0
    assert leftovers(out) == []


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, processes):
    folder = tmp_path_factory.mktemp("kills") / "teacher"
    finish(processes, config(student={"name": "deeplabv3_resnet18_quarter"}, train={"steps": 2}), folder)
    return folder


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_killed_at_random_moments(tmp_path, teacher, processes, method):
    size = {"size": [64, 64], "crop": [64, 64]}
    train_ = {"steps": 6, "save_every": 1, "eval_every": 3, "ema": 0.9, "optimizer": "adamw"}
    changes = config(data=size, teacher={"checkpoint": str(teacher)}, method=method, train=train_)
    began = time.monotonic()
    finish(processes, changes, tmp_path / "whole")
    needed = time.monotonic() - began
    moments, kills = random.Random(str(method)), 0
    while kills < KILLS:
        process = start(processes, train, changes, tmp_path / "parts")
        process.join(moments.uniform(0, needed))
        if process.is_alive():
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # it was faster: that one is compared, and another begins
            assert_same_run(tmp_path / "whole", tmp_path / "parts")
            shutil.rmtree(tmp_path / "parts")
    finish(processes, changes, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_file(tmp_path, processes, moment):
    changes = config()
    finish(processes, changes, tmp_path / "whole")
    for call in range(1, 99):
        out = tmp_path / str(call)
        process = start(processes, train_and_die, changes, out, call, moment)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        finish(processes, changes, out)
        assert_same_run(tmp_path / "whole", out)
    assert call > 6  # settings, environment, record, students, checkpoints, summary


def test_two_at_once(tmp_path, processes):
    changes = config(train={"steps": 8})
    finish(processes, changes, tmp_path / "whole")
    refused = 0
    for round_ in range(6):
        out, queue = tmp_path / str(round_), processes.Queue()
        pair = [start(processes, train, changes, out, queue) for _ in range(2)]
        said = [queue.get() for _ in pair]
        for process in pair:
            process.join()
        lines = [line for line in said if line is not None]
        assert len(lines) < 2
        assert all("is in use: another process (pid" in line for line in lines)
        refused += len(lines)
        assert len(read_metrics(out)) == len(read_metrics(tmp_path / "whole"))
        assert_same_run(tmp_path / "whole", out)
    assert refused > 0


def train_as(rank, port, changes, out, queue):
    """One of two processes of one run."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    train(changes, out, queue)


def start_both(processes, changes, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    queue = processes.Queue()
    return queue, [start(processes, train_as, rank, port, changes, out, queue) for rank in range(2)]


def test_two_processes_of_one_run_go_on(tmp_path, processes):
    changes = config(train={"steps": 8, "save_every": 1})
    for out in (tmp_path / "whole", tmp_path / "parts"):
        queue, pair = start_both(processes, changes, out)
        while out.name == "parts" and not (out / "checkpoint.pt").is_file():
            time.sleep(0.01)
        for process in pair:
            if out.name == "parts":
                process.kill()
            process.join()
    with locked(tmp_path / "parts"):  # the one that holds it is refused, and the other does not go on alone
        queue, pair = start_both(processes, changes, tmp_path / "parts")
        assert "is in use" in queue.get()
        for process in pair:
            process.join(60)
            process.kill()
    queue, pair = start_both(processes, changes, tmp_path / "parts")
    assert [queue.get() for _ in pair] == [None, None]
    for process in pair:
        process.join()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert leftovers(tmp_path / "parts") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a size that may change: (folder, set its size); where this user may not mount one, a skip."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size, *how):
        options = ",".join([*how, f"size={size // 1024}k"])
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)

    if sys.platform != "linux" or resize(2**20).returncode:
        lacking("a file system that may be mounted", "run as root on Linux")
    yield folder, lambda size: resize(size, "remount")
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up(tmp_path, processes, small_disk):
    disk, resize = small_disk
    changes = config(train={"steps": 6, "save_every": 1})
    finish(processes, changes, tmp_path / "whole")
    full = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    starved, queue = 0, processes.Queue()
    for share in (0.01, 0.1, 0.3, 0.6, 1.0, 1.3, 1.6):
        shutil.rmtree(disk / "run", ignore_errors=True)
        resize(max(int(share * full), 16 * 1024))
        process = start(processes, train, changes, disk / "run", queue)
        said = queue.get()
        process.join()
        assert leftovers(disk / "run") == []
        if said is not None:
            assert "cannot write" in said
            assert "No space left on device; make room there" in said
            starved += 1
            resize(4 * full)
            finish(processes, changes, disk / "run")
        assert_same_run(tmp_path / "whole", disk / "run")
    assert starved >= 5
