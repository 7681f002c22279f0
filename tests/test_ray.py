"""A comparison on a Ray cluster: machines that are lost, commands that are stopped, the table at the end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import PATIENCE, needs_package, wait_until
from segdistill.comparison.executors import choice
from segdistill.comparison.executors import cluster as way
from segdistill.comparison.executors import ray as executor
from segdistill.comparison.executors.choice import choose_executor
from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.ray import Ray
from segdistill.comparison.executors.task import Outcome, Task
from segdistill.comparison.grid import compare
from segdistill.comparison.plan import load_plan
from segdistill.engine.lock import LOCK
from segdistill.engine.record import read_records
from segdistill.engine.run_folder import METRICS, STUDENT
from test_compare import ALONE, TINY
from test_pool import alive, fail, slow

pytestmark = pytest.mark.requires(sys.platform == "linux", "Linux, where Ray is tried")

TIMES = {"seconds_per_step", "training_seconds", "peak_memory"}


def figures(result):
    """All rows of a comparison, without what depends on the machine."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in result["rows"]]


def be_lost(folder):
    """End the actor that waits for this task, as when its machine is lost; the second time, the task's own process."""
    count = len(list(folder.iterdir()))
    (folder / str(count)).touch()
    if count < 2:
        os.kill((parent_process().pid, os.getpid())[count], signal.SIGKILL)
        time.sleep(PATIENCE)
    print("not lost")
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getcwd()


@pytest.fixture
def seen(monkeypatch):
    """Let the machines import this folder, too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))


@pytest.mark.usefixtures("seen")
def test_tasks_on_a_cluster_of_this_machine(tmp_path, monkeypatch):
    needs_package("ray", "ray")
    said = []
    with pytest.raises(ValueError, match=r"^a run takes 4096 CPUs and 1 GPU, the largest machine of the Ray cluster"):
        Ray("local", cpus=4096, gpus=1)
    cluster = Ray(gpus=0, jobs=3, say=said.append)  # it is there already
    try:
        (tmp_path / "losses").mkdir()
        log = tmp_path / "run/log.txt"
        tasks = [
            Task(be_lost, (tmp_path / "losses",), log, log.parent),
            Task(fail, (KeyError,), tmp_path / "failed/log.txt", tmp_path / "failed"),
            Task(slow, (tmp_path, "a")),
        ]
        carried_out = cluster.run(tasks)
        outcomes = dict(next(carried_out) for _ in range(2))
        assert outcomes[0] == Outcome(("", os.getcwd()))
        assert outcomes[1].error.startswith("KeyError: ")
        assert "Traceback" in (tmp_path / "failed/log.txt").read_text()
        assert log.read_text() == "not lost\n"
        assert said[0].startswith("Ray: 1 machine with ")
        assert said[1:] == ["run lost its worker; it is queued again"] * 2
        wait_until((tmp_path / "a").is_file)
        carried_out.close()
        wait_until(lambda: not alive((tmp_path / "a").read_text()))
        assert not (tmp_path / "a slept").exists()
        assert not list(tmp_path.glob(".shared*"))
        monkeypatch.setattr(executor, "_seen_by_all", elsewhere)
        unseen = cluster.run(tasks[:1])
        with pytest.raises(ValueError, match=r"of the Ray cluster does not see /elsewhere; name a folder that all"):
            next(unseen)
    finally:
        cluster.close()


@contextmanager
def elsewhere(_tasks):
    yield Path("/elsewhere/token")


def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch, segdistill):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**ALONE, "methods": ["none"]}))
    lines = {
        ("--executor", "slurm"): "'slurm' is not one of 'local', 'ray'",
        ("--cpus", "2", "--address", "a:1"): "--address, --cpus: of --executor ray alone",
        (
            "--only",
            "1",
            "--executor",
            "ray",
        ): "--only does one run on this machine, and makes no table; leave out",
        ("--only", "1", "--jobs", "2"): "leave out --jobs",
        ("--only", "3"): "--only: expected teacher or a number from 1 to 2 (--list names the runs), got 3",
        ("--only", "1", "seconds=9"): "--only: seconds=N is measured on one machine for all runs",
    }
    for arguments, line in lines.items():
        status, _, error = segdistill("compare", grid, *arguments)
        assert (status, error.count("\n")) == (2, 1)
        assert line in error
    monkeypatch.setitem(sys.modules, "ray", None)
    assert segdistill("compare", grid, "--executor", "ray")[2] == (
        "segdistill: --executor ray needs Ray; pip install 'segdistill[ray]'\n"
    )


def test_an_address_where_nobody_is(tmp_path, monkeypatch, segdistill):
    needs_package("ray", "ray")
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**ALONE, "methods": ["none"]}))
    for address, line in {
        "127.0.0.1:1": "no Ray cluster at 127.0.0.1:1: ",
        "ray://127.0.0.1:1": "no Ray cluster at ray://127.0.0.1:1: ",
        "head": "--address: expected HOST:PORT, ray://HOST:PORT, auto or local, got head",
    }.items():
        status, _, error = segdistill("compare", grid, "--executor", "ray", "--address", address)
        assert (status, error.count("\n")) == (2, 1)
        assert line in error
    with socket.create_server(("127.0.0.1", 0)) as other:  # it takes what is said, and says something else or nothing
        place = f"127.0.0.1:{other.getsockname()[1]}"
        Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.1 400 Bad Request"), daemon=True).start()
        assert "something else answers there" in segdistill("compare", grid, "--executor", "ray", "--address", place)[2]
        monkeypatch.setattr(way, "ANSWER", 0.1)
        error = segdistill("compare", grid, "--executor", "ray", "--address", f"ray://{place}")[2]
        assert f"no Ray cluster at ray://{place}: timed out" in error
    for jobs, cpus, gpus in ((0, 1, 1), (1, 0, 1), (1, 1, 1.5), (1, 1, -1)):
        with pytest.raises(ValueError, match="expected"):
            Ray("local", jobs=jobs, cpus=cpus, gpus=gpus)


def test_one_run_alone_and_their_list(tmp_path, segdistill):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**TINY, "methods": ["none", "kd"], "seeds": 1}))
    status, out, _ = segdistill("compare", grid, "--list")
    assert (status, out.splitlines()) == (
        0,
        ["1 synthetic_pspnet_resnet18_quarter_none_seed0", "2 synthetic_pspnet_resnet18_quarter_kd_seed0"],
    )
    status, _, error = segdistill("compare", grid, "--out", tmp_path / "out", "--only", "2")
    assert status == 2
    assert f"{tmp_path}/out/teacher is not trained yet; the same command with --only teacher does it" in error
    status, out, _ = segdistill(
        "compare", grid, "teacher=null", "methods=[none]", "--out", tmp_path, "--only", "teacher"
    )
    assert (status, out) == (0, "no teacher has to be trained before the runs\n")


def test_which_executor_and_gpus(monkeypatch):
    monkeypatch.setattr(executor, "Ray", lambda address, **how: (address, how["jobs"], how["cpus"], how["gpus"]))
    asked = {"auto": None, "cpu": 0, "cuda": 1, "cuda:1": 1}
    for device, gpus in asked.items():
        plan = load_plan(ALONE, ["methods=[none]", f"train.device={device}"])
        assert choose_executor("ray", plan) == (None, None, 1, gpus)
        assert choose_executor("ray", plan, address="a:1", jobs=2, cpus=3, gpus=0.5) == ("a:1", 2, 3, 0.5)
    local = choose_executor("local", plan, jobs=2)
    assert isinstance(local, choice.Local)
    assert local.jobs == 2


class Silent:
    """A cluster without machines, then with one; it answers nothing in between."""

    def __init__(self):
        needs_package("ray", "ray")
        import ray

        self.looks, self.exceptions = 0, ray.exceptions

    def nodes(self):
        self.looks += 1
        return [] if self.looks < 4 else [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}]

    def wait(self, references, **_how):
        return ([], references) if self.looks < 4 else (references, [])

    def get(self, reference, timeout=None):
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, actor):
        pass


@pytest.fixture
def silent():
    needs_package("ray", "ray")
    cluster = object.__new__(Ray)
    cluster.ray, cluster.limit, cluster.needed, said = Silent(), None, {"CPU": 2, "GPU": 0.5}, []
    cluster.say = said.append
    return cluster, said


def test_a_cluster_without_room_is_waited_for(silent):
    cluster, said = silent
    assert cluster._ended({"a": 1}) == []  # there is room again
    assert cluster._ended({"a": 1}) == ["a"]
    assert said == ["no machine of the Ray cluster has room for 2 CPUs and 0.5 GPUs any more; waiting for one"]
    assert (cluster.jobs, cluster.threads) == (2, 2)
    cluster.limit = 1
    assert cluster.jobs == 1


def test_what_ray_says_becomes_a_line(silent):
    cluster, _ = silent
    errors = cluster.ray.exceptions
    assert cluster._outcome(errors.WorkerCrashedError()) is None
    assert cluster._outcome(errors.TaskCancelledError()).error.startswith("Ray: ")
    with pytest.raises(ValueError, match=r"the Ray cluster was lost .*; the same command goes on with the runs"):
        cluster._outcome(errors.RaySystemError(RuntimeError("no head")))
    with pytest.raises(ValueError, match="cannot import segdistill; install it there"):
        cluster._outcome(errors.RayError("creation task:\nNo module named 'segdistill'"))


def test_a_task_that_always_loses_its_machine_fails(silent, monkeypatch, tmp_path):
    cluster, said = silent
    cluster.ray.looks = 9
    lost, late = cluster.ray.exceptions.WorkerCrashedError, cluster.ray.exceptions.GetTimeoutError("not yet")
    begins = [True, late, True, late, True]  # in between, Ray gave out the machine that was lost, and it never began
    monkeypatch.setattr(cluster, "_start", lambda task, token: (lost(), "actor", begins.pop(0)))
    ((position, outcome),) = cluster.run([Task(len, ("four",), tmp_path / "name/log.txt")])
    assert (position, outcome.error) == (0, "it lost its worker 3 times, most often for want of memory there")
    assert said == ["name lost its worker; it is queued again"] * 2
    monkeypatch.setattr(cluster, "_start", lambda task, token: (lost(), "actor", late))
    ((_, outcome),) = cluster.run([Task(len, ("four",))])
    assert outcome.error == "Ray could not begin it on any machine, 3 times"
    assert len(said) == 2


def hold(folders, step, process=None):
    """Let the runs in these folders come so far, and hold the process of each there; returns the processes' numbers."""
    held = {}

    def all_there():
        for folder in folders:
            if folder not in held and len(read_records(folder / METRICS)) >= step:
                held[folder] = json.loads((folder / LOCK).read_text())["pid"]
                os.kill(held[folder], signal.SIGSTOP)
        return len(held) == len(folders)

    wait_until(all_there, process)
    return list(held.values())


def let_go(processes):
    for number in processes:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


def is_asked_to_stop(number):
    """Whether SIGTERM waits for a process that is held."""
    pending = re.findall(r"(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", Path(f"/proc/{number}/status").read_text())
    return any(int(mask, 16) >> signal.SIGTERM - 1 & 1 for mask in pending)


@pytest.mark.slow
@pytest.mark.usefixtures("seen")
def test_a_machine_is_lost_and_the_table_is_the_same(tmp_path):
    """Two machines: the command is stopped, goes on, loses a machine, and comes to the table of a single one."""
    needs_package("ray", "ray")
    from ray.cluster_utils import Cluster

    steps = 60
    source = {**TINY, "train": {**TINY["train"], "steps": steps}, "methods": ["none", "kd"], "seeds": 1}
    expected = compare(source, out=tmp_path / "local", executor=Local(), say=lambda line: None)
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(yaml.safe_dump(source))
    folders = [run.folder for run in load_plan(source, out=out).runs]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    held = []
    try:
        command = [sys.executable, "-m", "segdistill", "compare", str(grid), "--out", str(out)]
        command += ["--executor", "ray", "--address", cluster.address, "--gpus", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        held += hold(folders, 2, process)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: all(map(is_asked_to_stop, held)))
        let_go(held)
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
        assert f"stopped; the same command goes on with the runs in {out}" in error
        done = [torch.load(f / "checkpoint.pt", weights_only=True)["facts"]["step"] for f in folders]
        assert max(done) < steps

        said = []
        workers = Ray(cluster.address, gpus=0, say=said.append)

        def lose():
            held[:] = hold(folders, max(done) + 3)
            cluster.remove_node(machines[0], allow_graceful=False)
            wait_until(lambda: any("lost its worker" in line for line in said))
            let_go(held)

        loser = Thread(target=lose, daemon=True)
        loser.start()
        result = compare(source, out=out, executor=workers, say=said.append)
        loser.join()
        workers.close()
    finally:
        let_go(held)
        cluster.shutdown()
    assert "Ray: 3 machines with 2 CPUs, 0 GPUs; 1 CPU a run, 2 at a time" in said
    assert sum("lost its worker; it is queued again" in line for line in said) == 1
    assert [row["errors"] for row in result["rows"]] == [[], []]
    assert figures(result) == figures(expected)
    for key in ("miou", "macc", "pixel_accuracy", "iou"):
        assert result["teachers"]["synthetic"][key] == expected["teachers"]["synthetic"][key]
    for folder in folders:
        assert f"step {steps}/{steps}" in (folder / "log.txt").read_text()
        for name in (STUDENT, "eval_test_images.safetensors"):
            ours, its = (load_file(place / name) for place in (folder, tmp_path / "local" / folder.name))
            assert ours.keys() == its.keys()
            assert all(torch.equal(ours[key], its[key]) for key in its)
