"""The Slurm page, as it is written: its script and commands run, with a cluster of this one machine."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
import yaml

from conftest import PATIENCE, REPOSITORY, wait_until
from faults import assert_same_run, read_metrics
from segdistill import distill, load_config
from segdistill.comparison.plan import load_plan
from test_compare import TINY

PAGE = (REPOSITORY / "docs/cluster.md").read_text(encoding="utf-8").split("## Slurm")[1].split("\n## ")[0]
SCRIPT, ONE, MANY = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)

pytestmark = pytest.mark.requires(sys.platform != "win32", "bash")

SBATCH = """#!{python}
# A cluster that does each job at once. A run that is named in the file `preempt` is asked to make room, as by Slurm,
# when it has begun; a job that queues itself again is done again.
import os, pathlib, re, subprocess, sys, time
home = pathlib.Path({home!r})
options, arguments = [], sys.argv[1:]
while arguments[0].startswith("--"):
    options.append(arguments.pop(0))
job = str(100 + len(list(home.glob("job*"))))
(home / f"job{{job}}").write_text(" ".join(options))
array = next((o for o in options if o.startswith("--array=")), None)
first, last = map(int, re.findall("[0-9]+", array)) if array else (0, 0)
for task in range(first, last + 1):
    own = f"{{job}}{{task}}"
    environment = {{**os.environ, "SLURM_JOB_ID": own, **({{"SLURM_ARRAY_TASK_ID": str(task)}} if array else {{}})}}
    again = True
    while again:
        with open(f"slurm_{{job}}_{{task}}.txt", "a") as log:
            shell = subprocess.Popen(["bash", *arguments], env=environment, stdout=log, stderr=log)
        preempt = home / "preempt"
        if preempt.is_file() and f"{{task}}" == preempt.read_text().split()[0]:
            record = pathlib.Path(preempt.read_text().split()[1]) / "metrics.jsonl"
            while shell.poll() is None and not (record.is_file() and record.read_text().count("\\n") > 1):
                time.sleep(0.05)
            preempt.unlink()
            shell.terminate()
        status = shell.wait()
        requeued = home / f"requeued{{own}}"
        again = requeued.is_file()
        if again:
            with open(home / f"done again {{own}}", "a") as file:
                file.write(requeued.read_text())
            requeued.unlink()
    (home / f"status{{own}}").write_text(str(status))
print(job if "--parsable" in options else f"Submitted batch job {{job}}")
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" >> "{home}/requeued$2"
"""
SEGDISTILL = """#!/bin/sh
exec {python} -m segdistill "$@"
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder with the page's script; returns it, and what runs commands there with the cluster's tools."""
    home, tools = tmp_path / "cluster", tmp_path / "bin"
    home.mkdir()
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("segdistill", SEGDISTILL)):
        (tools / name).write_text(text.format(python=sys.executable, home=str(home)))
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    (tmp_path / "segdistill.sbatch").write_text(SCRIPT)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def submit(commands):
        subprocess.run(
            ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True, timeout=PATIENCE, text=True
        )

    return tmp_path, submit


def test_one_run_makes_room_and_goes_on(slurm):
    folder, submit = slurm
    source = {key: TINY[key] for key in ("data", "student")}
    source["train"] = {**TINY["train"], "steps": 60, "save_every": 0}
    (folder / "my.yaml").write_text(yaml.safe_dump(source))
    (folder / "cluster/preempt").write_text("0 runs/student")
    submit(ONE.replace("distill my", "train my"))  # alone, for want of a teacher
    (again,) = (folder / "cluster").glob("done again *")
    assert again.read_text() == "1000\n"
    assert "stopped after step" in next(folder.glob("slurm_*")).read_text()
    assert (folder / "cluster" / again.name.replace("done again ", "status")).read_text() == "0"
    distill(load_config(folder / "my.yaml", ["method=none"]), out=folder / "whole")
    assert_same_run(folder / "whole", folder / "runs/student")


@pytest.mark.parametrize(("asked", "status", "queued"), [(1, 2, 1), (3, 2, 1), (1, 0, 0), (0, 2, 0), (0, 0, 0)])
def test_a_job_is_queued_again_once_and_only_if_it_is_not_done(slurm, asked, status, queued):
    """A command that takes its time to stop, as one that writes a checkpoint."""
    folder, _ = slurm
    command = folder / "bin/segdistill"
    command.write_text(f"""#!{sys.executable}
import os, pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
pathlib.Path("began").touch()
while len(asked) < {asked}:
    time.sleep(0.01)
    pathlib.Path("heard").write_text(str(len(asked)))
time.sleep(0.3 * bool(asked))
pathlib.Path("ended").touch()
sys.exit({status})
""")
    tools = f"{folder}/bin{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "segdistill.sbatch"], cwd=folder, env=environment)
    wait_until((folder / "began").is_file)
    for number in range(asked):
        wait_until(lambda n=number: (folder / "heard").is_file() and (folder / "heard").read_text() == str(n), job)
        job.terminate()
    assert job.wait(PATIENCE) == status
    assert (folder / "ended").is_file()
    told = folder / "cluster/requeued7"
    assert (told.read_text() if told.is_file() else "") == "7\n" * queued


@pytest.mark.slow
def test_an_array_of_which_a_task_makes_room(slurm):
    folder, submit = slurm
    source = {**TINY, "methods": ["none", "kd"], "seeds": 1, "train": {**TINY["train"], "steps": 60, "save_every": 0}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(source))
    names = [run.folder.name for run in load_plan(source, out=folder / "runs/table").runs]
    (folder / "cluster/preempt").write_text(f"2 runs/table/{names[1]}")
    submit(MANY)
    jobs = [path.read_text() for path in sorted((folder / "cluster").glob("job*"))]
    assert jobs == ["--parsable", "--parsable --dependency=afterok:100 --array=1-2", "--dependency=afterany:101"]
    (again,) = (folder / "cluster").glob("done again *")
    assert (again.name, again.read_text()) == ("done again 1012", "1012\n")  # the one that made room, and once
    assert {path.read_text() for path in (folder / "cluster").glob("status*")} == {"0"}
    result = json.loads((folder / "runs/table/compare.json").read_text())
    assert [run["status"] for run in result["runs"]] == ["done", "done"]
    assert [line["step"] for line in read_metrics(folder / "runs/table" / names[1]) if "loss" in line][-1] == 60
    assert "2 of 2 runs are there already" in next(folder.glob("slurm_102*")).read_text()
