"""The scripts that measure run, on tiny sizes; what they measure is no test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.slow
def test_students_on_worse_images(tmp_path):
    data = {"name": "synthetic", "size": [32, 32], "images": 20, "batch_size": 4}
    section = {"data": data, "student": {"name": "pspnet_resnet18_quarter"}, "train": {"steps": 4, "device": "cpu"}}
    grid = {**section, "methods": ["none", "kd"], "seeds": 2, "split": "val", "teacher": {"config": section}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    runs = tmp_path / "runs"
    done = run(sys.executable, "-m", "segdistill", "compare", str(tmp_path / "grid.yaml"), "--out", str(runs))
    assert done.returncode == 0, done.stderr
    out, sheet = tmp_path / "worse.json", tmp_path / "sheet.png"
    command = ("benchmarks/out_of_domain.py", str(runs), "--split", "val", "--out", str(out), "--sheet", str(sheet))
    done = run(sys.executable, *command)
    assert done.returncode == 0, done.stderr
    found, told = json.loads(out.read_text()), json.loads((runs / "compare.json").read_text())
    for each in told["runs"]:
        clean = found["runs"][each["method"]][str(each["seed"])]["clean"]
        assert clean == pytest.approx(100 * each["miou"], abs=0.01)  # the very images that the comparison saw
    assert len(found["teacher"]) == 1 + 4 * 4
    none, kd = found["rows"]
    assert none["clean"]["difference"] is None
    assert {"difference", "low", "high"} <= kd["all changes"]["difference"].keys()
    assert sheet.stat().st_size > 1000
