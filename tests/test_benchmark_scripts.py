"""The scripts that measure run, on tiny sizes; what they measure is no test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, **more):
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_dry():
    done = run("sh", "benchmarks/gpu.sh", "--dry")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("\n{") :])
    (part,) = found["parts"]
    assert [row["method"] for row in part["methods"]] == ["kd", "cwd", "jml", "dist", "bpkd"]
    assert found["skipped"] == []
    assert part["overlap"].keys() == {"step_ms", "copy_ms", "both_ms", "hidden"}
    assert part["profile"]["operators"]


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(tmp_path):
    out = tmp_path / "gpu.json"
    done = run(sys.executable, "benchmarks/gpu.py", "--dry", "--minutes", "0", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["skipped"] == ["light"]


@pytest.mark.slow
def test_growth_has_a_slope_for_each_curve(tmp_path):
    done = run(sys.executable, "benchmarks/growth.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    axes = {"pixels", "classes", "channels", "batch", "queue", "runs", "images"}
    assert {row["axis"] for row in rows} == axes
    assert all(len(row["sizes"]) == len(row["values"]) >= 2 for row in rows)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_table_of_steps_has_every_method():
    done = run(sys.executable, "benchmarks/step.py", "--quick", "--only", "kd", "skd", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "time / student" in done.stdout
    done = run(sys.executable, "benchmarks/released.py", "/nowhere")
    assert done.returncode == 2
    assert "expected a clone of" in done.stderr
