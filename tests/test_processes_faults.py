"""What ends one of several processes ends all of them, each with one line, and the run goes on from its checkpoint."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from processes import CLASSES, in_processes, uneven_folder
from segdistill import cli, supervised
from segdistill.engine import run_folder, training
from segdistill.engine.joining import agree

CONFIG = {
    "data": {"name": "folder", "classes": CLASSES, "batch_size": 4, "workers": 0, "crop": [32, 32]},
    "student": {"name": "pspnet_resnet18", "width": 0.25},
    "train": {"save_every": 1, "log_every": 1, "precision": "fp32", "threads": 1},
}
LOST = "another one of the 2 processes of this run ended or cannot be reached"


@pytest.fixture
def config(tmp_path):
    root = uneven_folder(tmp_path / "data", size=32)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"data": CONFIG["data"] | {"root": root}}))
    return path


def fail_at_step(step, rank, fault):
    """Let `fault` happen in one process as it computes a step's loss."""
    calls, plain = [], supervised.cross_entropy

    def cross_entropy(*args, **kwargs):
        calls.append(1)
        if int(os.environ["RANK"]) == rank and len(calls) == step:
            fault()
        return plain(*args, **kwargs)

    supervised.cross_entropy = cross_entropy


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def full_disk():
    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run_folder.os.replace = replace


FAULTS = {
    "killed": (1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "bad image": (None, None),
    "out of memory": (1, out_of_memory),
    "full disk": (0, full_disk),
}
SAYS = {
    "killed": None,
    "bad image": r"images/train/\d.png",
    "out of memory": "out of memory; lower data.batch_size.*last good checkpoint: .*checkpoint.pt",
    "full disk": "No space left on device.*last good checkpoint: .*checkpoint.pt",
}


def main(arguments, name, folder):
    rank, fault = FAULTS[name]
    training.quick_check = lambda _: []  # it would find the image before the first step
    if fault is not None:
        fail_at_step(3, rank, fault)
    sys.stderr = open(folder / f"{os.environ['RANK']}.txt", "w")  # noqa: SIM115
    sys.argv = ["segdistill", "train", *map(str, arguments)]
    cli.main()


def said(folder, rank):
    return [line for line in (folder / f"{rank}.txt").read_text().splitlines() if line.startswith("segdistill")]


@pytest.mark.parametrize("name", SAYS)
def test_all_end_with_one_line_each(config, tmp_path, name):
    if name == "bad image":
        (tmp_path / "data/images/train/3.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    began = time.monotonic()
    codes = in_processes(main, [config, "train.steps=9", "--out", out], name, tmp_path, joined=False)
    assert time.monotonic() - began < 30 + 60  # on a machine that does other things as well
    guilty = FAULTS[name][0]
    if name == "bad image":  # whichever comes to it
        (guilty,) = (rank for rank in (0, 1) if LOST not in "".join(said(tmp_path, rank)))
    assert codes[1 - guilty] == 2
    assert codes[guilty] == (-signal.SIGKILL if name == "killed" else 2)
    (line,) = said(tmp_path, 1 - guilty)
    assert line.startswith(f"segdistill, process {1 - guilty} of 2: {LOST}")
    assert line.endswith("--resume auto goes on from the last checkpoint")
    if SAYS[name] is None:
        assert said(tmp_path, guilty) == []
    else:
        (line,) = said(tmp_path, guilty)
        assert line.startswith(f"segdistill, process {guilty} of 2: ")
        assert re.search(SAYS[name], line), line
    for rank in (0, 1):
        assert "Traceback" not in (tmp_path / f"{rank}.txt").read_text()


def processes_of(out):
    """Process number → rank of the workers of a run."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
        if str(out).encode() in words and ranks:
            found[int(folder.name)] = ranks[0]
    return found


def torchrun(config, out, *options, kill=None):
    """A run of two processes, one of which is killed after three steps if named: its exit code, and what it says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
    command += ["-m", "segdistill", "train", config, "train.steps=40", "--out", out, "--resume", "auto"]
    run = subprocess.Popen(
        [str(word) for word in command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = out / "metrics.jsonl"
    while kill is not None and run.poll() is None:
        if metrics.is_file() and metrics.read_text().count("\n") >= 3:
            (pid,) = [pid for pid, rank in processes_of(out).items() if rank == kill]
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    try:
        _, text = run.communicate(timeout=300)
    finally:
        run.terminate()
    return run.returncode, text


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for item in items for tensor in tensors(item)]


class Store(dict):
    """What torchrun's store does, with what an earlier attempt left in it."""

    def check(self, keys):
        return all(key in self for key in keys)

    def get(self, key):
        return self[key].encode()

    set = dict.__setitem__


def test_processes_do_not_take_those_before_them_for_one_another():
    store = Store({"hello/1": "before", "hello/2": "before", "welcome/1": "before old", "welcome/2": "before old"})
    found = {}
    threads = [threading.Thread(target=lambda r=r: found.update({r: agree(store, r, 3, 60)})) for r in (0, 2, 1)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)  # the first one has answered those before by then
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    (meeting,) = set(found.values())
    assert meeting != "old"


@pytest.mark.parametrize(("rank", "whom"), [(0, "others (1, 2)"), (2, "the first one (0)")])
def test_a_process_that_waits_in_vain_says_so(rank, whom):
    with pytest.raises(
        ConnectionError, match=re.escape(f"process {rank} of 3 has waited 0 s for {whom}, which did not")
    ):
        agree(Store(), rank, 3, 0.01)


@pytest.mark.slow
@pytest.mark.requires(sys.platform == "linux", "/proc, and signals of Unix")
def test_a_killed_one_is_started_again_by_torchrun(config, tmp_path):
    """Afterwards the run is, bit by bit, the one that was never broken; without a restart, all end."""
    whole, broken, ended = (tmp_path / name for name in ("whole", "broken", "ended"))
    assert torchrun(config, whole)[0] == 0
    code, text = torchrun(config, broken, "--max-restarts", "1", kill=0)
    assert code == 0, text
    assert f"segdistill, process 1 of 2: {LOST}" in text
    assert "Traceback" not in text
    a, b = (tensors(torch.load(run / "checkpoint.pt")) for run in (whole, broken))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    one, other = (json.loads((run / "summary.json").read_text()) for run in (whole, broken))
    assert one["miou"] == other["miou"]
    code, text = torchrun(config, ended, kill=1)
    assert code == 1
    assert f"segdistill, process 0 of 2: {LOST}" in text
    assert text.count("Traceback") == 1  # torchrun's own
