import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import PATIENCE, wait_until
from faults import heard
from segdistill.comparison.executors import local as pool
from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.process import restore, terminate_as_interrupt
from segdistill.comparison.executors.task import Outcome, Task


def double(number):
    print("doubling", number)
    return 2 * number


def fail(kind):
    raise kind("two\nlines")


def die():
    os._exit(7)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def where():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def slow(folder, name):
    (folder / f"{name}.new").write_text(str(os.getpid()))
    (folder / f"{name}.new").rename(folder / name)
    time.sleep(PATIENCE)
    (folder / f"{name} slept").touch()


def test_values_come_back_from_processes_of_their_own():
    outcomes = dict(Local().run([Task(where, ()), Task(where, ())]))
    pids = {outcome.value[1] for outcome in outcomes.values()}
    assert len(pids | {os.getpid()}) == 3


def test_a_failure_is_one_line_and_ends_nothing_else(tmp_path):
    tasks = [
        Task(fail, (ValueError,)),
        Task(fail, (KeyError,), tmp_path / "log.txt"),
        Task(die, ()),
        Task(double, (4,)),
        Task(fail, (MemoryError,)),
        Task(double, (5,), Path("/proc/none/log.txt")),
    ]
    outcomes = dict(Local(2).run(tasks))
    assert outcomes[0] == Outcome(error="two lines")
    assert outcomes[1].error.startswith("KeyError: ")
    assert "Traceback" in (tmp_path / "log.txt").read_text()
    assert "exit code 7" in outcomes[2].error
    assert outcomes[3] == Outcome(8)
    assert outcomes[4].error.startswith("out of memory; lower data.batch_size")
    assert outcomes[5].error.startswith("cannot write /proc/none: ")
    assert not any(outcome.killed for outcome in outcomes.values())


@pytest.mark.requires(sys.platform != "win32", "signals of Unix")
def test_a_process_that_was_killed_is_told_from_one_that_failed():
    ((_, outcome),) = Local().run([Task(be_killed, ())])
    assert outcome == Outcome(error="the process ended with exit code -9; was it out of memory?", killed=True)


def test_what_a_task_prints_goes_into_its_log(tmp_path):
    list(Local().run([Task(double, (3,), tmp_path / "new/log.txt")]))
    assert (tmp_path / "new/log.txt").read_text() == "doubling 3\n"


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [pool._gpu(slot) for slot in range(3)] == ["4", "6", "4"]
    outcomes = dict(Local(2).run([Task(where, ()), Task(where, ())]))
    assert {outcome.value[0] for outcome in outcomes.values()} == {"4", "6"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert pool._gpu(1) is None


def test_whoever_stops_the_caller_stops_the_tasks(tmp_path):
    running = Local(2).run([Task(double, (1,)), Task(slow, (tmp_path, "a")), Task(slow, (tmp_path, "b"))])
    assert next(running) == (0, Outcome(2))
    running.close()
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob("* slept"))


def alive(pid):
    """Whether a process runs; one that has ended may still wait for whoever adopted it to take notice."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_a_task_ends_when_its_caller_is_killed(tmp_path):
    code = "import sys; from pathlib import Path; from test_pool import Local, Task, slow\n"
    code += "list(Local().run([Task(slow, (Path(sys.argv[1]), 'a'))]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    wait_until((tmp_path / "a").is_file, caller)
    caller.kill()
    caller.wait()
    pid = (tmp_path / "a").read_text()
    wait_until(lambda: not alive(pid))
    assert not (tmp_path / "a slept").exists()


def test_jobs_are_positive():
    with pytest.raises(ValueError, match="jobs: expected at least 1, got 0"):
        Local(0)


@pytest.mark.requires(hasattr(signal, "SIGHUP"), "SIGHUP")
def test_a_closed_terminal_stops_the_tasks_too():
    with heard(signal.SIGHUP):
        before = terminate_as_interrupt()
        try:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGHUP)
        finally:
            restore(before)
