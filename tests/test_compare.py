"""A grid as a whole: what is trained, kept, continued, reported."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from conftest import PATIENCE, wait_until
from faults import at_step, interrupt, read_metrics
from segdistill import distill, load_config
from segdistill.comparison.grid import compare
from segdistill.comparison.notes import notes
from segdistill.comparison.plan import load_plan
from segdistill.comparison.result import training_record
from segdistill.comparison.statistics import paired_interval
from segdistill.comparison.table import cells, latex, markdown
from segdistill.comparison.work import measure

TINY = {
    "data": {
        "name": "synthetic", "size": [32, 32], "images": 4, "crop": [32, 32], "batch_size": 4, "workers": 0,
        "eval_batch_size": 4,
    },
    "student": {"name": "pspnet_resnet18_quarter", "output_stride": 16},
    "train": {"steps": 3, "precision": "fp32", "log_every": 1, "save_every": 1, "threads": 1},
    "teacher": {
        "config": {
            "student": {"name": "deeplabv3_resnet18_quarter"},
            "train": {"steps": 1, "precision": "fp32", "threads": 1},
        }
    },
    "seeds": 2,
}  # fmt: skip
ALONE = {key: value for key, value in TINY.items() if key != "teacher"}
FAILING = "{name: cwd, weight: 1.0e+38}"
GRID = [f"methods=[none, kd, {FAILING}]"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid with a method that fails: its folder, its result, what it said."""
    folder, said = tmp_path_factory.mktemp("compare") / "grid", []
    return folder, compare(TINY, GRID, out=folder, say=said.append), said


def test_every_run_is_there(grid):
    folder, result, said = grid
    runs = {run["folder"]: run for run in result["runs"]}
    assert len(runs) == 6
    for name, run in runs.items():
        if run["status"] == "done":
            files = {"config.yaml", "summary.json", "metrics.jsonl", "eval_test.json"}
            assert files <= {path.name for path in (folder / name).iterdir()}
            assert run["miou"] == json.loads((folder / name / "eval_test.json").read_text())["miou"]
            assert run["steps"] == 3
    assert json.loads((folder / "compare.json").read_text()) == result
    assert sum("test mIoU" in line for line in said) == 5  # the teacher's too


def test_a_run_that_fails_does_not_stop_the_others(grid):
    _, result, said = grid
    none, kd, failing = result["rows"]
    assert failing["miou"] is None
    assert failing["seeds"] == []
    assert len(failing["errors"]) == 2
    assert re.search(r"is (nan|inf) at step 0", failing["errors"][0])
    assert (none["seeds"], kd["seeds"]) == ([0, 1], [0, 1])
    assert sum("failed: " in line for line in said) == 2


def test_rows_hold_means_differences_and_costs(grid):
    folder, result, _ = grid
    none, kd, _ = result["rows"]
    scores = {(run["method"], run["seed"]): run["miou"] for run in result["runs"] if run["status"] == "done"}
    pairs = [[scores[method, seed] for seed in (0, 1)] for method in ("kd", "none")]
    interval = paired_interval(*pairs).as_dict()
    assert {key: kd["difference"][key] for key in interval} == interval
    assert kd["difference"]["holm"] == interval["p"]  # the only comparison: the other method failed
    assert kd["bootstrap"]["low"] <= kd["bootstrap"]["difference"] <= kd["bootstrap"]["high"]
    assert kd["bootstrap"]["difference"] == pytest.approx(kd["difference"]["difference"])
    assert none["baseline"]
    assert none["difference"] is None
    assert kd["miou"] == pytest.approx(sum(pairs[0]) / 2)
    for row in (none, kd):
        assert row["seconds_per_step"] > 0
        assert row["peak_memory"] > 1e8
        assert row["params"] == none["params"]
        assert row["flops"] > 0
    teacher = result["teachers"]["synthetic"]
    assert (teacher["run"], teacher["network"]) == ("teacher", "deeplabv3_resnet18_quarter")
    assert teacher["miou"] is not None
    left = json.loads((folder / f"teacher/eval_{result['split']}.json").read_text())  # for a report
    assert (left["miou"], left["iou"]) == (teacher["miou"], teacher["iou"])
    summary = json.loads((folder / "teacher/summary.json").read_text())
    assert summary["steps"] == 1


def test_tables_in_four_formats(grid):
    folder, result, _ = grid
    header, rows = cells(result)
    assert [row[0] for row in rows] == ["teacher", "none", "kd", "cwd(weight=1e+38)"]
    assert {len(row) for row in rows} == {len(header)}
    assert "(2 of 2 failed)" in rows[-1][1]
    assert rows[2][header.index("verdict")] in ("better", "worse", "within noise")  # of one comparison
    text = (folder / "compare.md").read_text()
    assert text == markdown(result)
    assert text.count("- failed: ") == 2
    with (folder / "compare.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["method"] for line in table] == [row[0] for row in rows]
    assert float(table[2]["miou"]) == result["rows"][1]["miou"]
    assert float(table[2]["difference_low"]) == result["rows"][1]["difference"]["low"]
    tex = (folder / "compare.tex").read_text()
    assert tex.count(r" \\") == 5
    assert r"$\pm$" in tex
    assert "_" not in tex.split(r"\toprule")[1].replace(r"\_", "")


def test_done_runs_are_kept_and_failed_ones_tried_again(grid, tmp_path):
    folder, result = shutil.copytree(grid[0], tmp_path / "grid"), grid[1]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.*") if "38" not in path.parent.name}
    said = []
    again = compare(TINY, GRID, out=folder, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "4 of 6 runs are there already" in said
    assert again["rows"] == result["rows"]
    fewer = compare(TINY, ["methods=[none, kd]", "seeds=1"], out=folder, say=said.append)
    assert fewer["rows"][1]["difference"]["within_noise"] is None  # one seed has no spread
    assert fewer["rows"][1]["bootstrap"]["within_noise"] is not None
    assert cells(fewer)[1][2][cells(fewer)[0].index("verdict")] == "one seed"
    changed = compare(TINY, ["methods=[none]", "seeds=1", "train.lr=0.5"], out=folder, say=said.append)
    assert "was started with train.lr=0.01, not 0.5" in changed["rows"][0]["errors"][0]
    assert "delete" in changed["rows"][0]["errors"][0]


@pytest.fixture
def moved(grid, tmp_path):
    """The grid's folder in another place, with what a call of two methods on it returns and says."""
    shutil.copytree(grid[0], tmp_path / "moved")

    def again(*overrides):
        said = []
        return compare(TINY, ["methods=[none, kd]", *overrides], out=tmp_path / "moved", say=said.append), said

    return tmp_path / "moved", again


def test_a_grid_may_move(moved):
    _, again = moved
    result, said = again()
    assert "4 of 4 runs are there already" in said
    assert [row["errors"] for row in result["rows"]] == [[], []]


def test_students_of_another_teacher_do_not_enter_the_table(moved):
    folder, again = moved
    old, _ = again()
    shutil.rmtree(folder / "teacher")
    same, said = again()
    assert "4 of 4 runs are there already" in said  # the very same teacher, trained again
    assert same["rows"] == old["rows"]
    shutil.rmtree(folder / "teacher")
    result, _ = again("teacher.config.train.seed=5")
    none, kd = result["rows"]
    assert (none["errors"], kd["miou"]) == ([], None)
    assert all("was taught by another teacher than the one that is there now (delete" in e for e in kd["errors"])
    assert result["teachers"]["synthetic"]["miou"] != old["teachers"]["synthetic"]["miou"]


def test_a_second_data_set_joins(moved):
    folder, _ = moved
    plan = load_plan(TINY, ["methods=[none, kd]", "data=[{images: 4}, {images: 6}]"], folder)
    assert [path.name for path in plan.teachers] == ["teacher", "teacher_synthetic_images=6"]


def test_how_often_is_validated_is_not_free(moved):
    _, again = moved
    result, _ = again("train.eval_every=1")
    assert all("started with train.eval_every=0, not 1" in e for row in result["rows"] for e in row["errors"])
    assert [len(row["errors"]) for row in result["rows"]] == [2, 2]


def test_the_teacher_is_evaluated_on_the_data_of_the_runs(moved):
    folder, again = moved
    old, _ = again()
    for run in folder.glob("synthetic_*"):
        shutil.rmtree(run)
    result, _ = again("data.difficulty=0.2", "teacher=null", f"teacher.checkpoint={folder}/teacher", "seeds=1")
    assert result["teachers"]["synthetic"]["weights"] == old["teachers"]["synthetic"]["weights"]
    assert result["teachers"]["synthetic"]["miou"] != old["teachers"]["synthetic"]["miou"]


@pytest.mark.parametrize("name", ["summary.json", "eval_test.json", "eval_test_images.safetensors"])
def test_a_damaged_file_costs_one_run(moved, name):
    folder, again = moved
    whole, _ = again()
    broken = folder / "synthetic_pspnet_resnet18_quarter_kd_seed1"
    (broken / name).write_text('{"trunc')
    with (broken / "metrics.jsonl").open("a") as file:  # half a line costs nothing
        file.write('{"step": 3, "lo')
    result, _ = again()
    none, kd = result["rows"]
    (error,) = kd["errors"]
    assert error.startswith(broken.name)
    assert f"(delete {broken} to start it afresh)" in error
    assert none == whole["rows"][0]
    scores = [next(r["miou"] for r in result["runs"] if (r["method"], r["seed"]) == (m, 0)) for m in ("none", "kd")]
    gap = result["teachers"]["synthetic"]["miou"] - scores[0]
    closed = (scores[1] - scores[0]) / gap if gap > 0 else None  # of the pair that is left, as the difference
    assert (kd["pairs"], kd["gap_closed"]) == (1, pytest.approx(closed) if closed is not None else None)
    assert "the seeds that both finished, in some rows 1 only" in " ".join(notes(result))


def test_a_finished_run_without_its_checkpoint_is_only_evaluated(moved):
    folder, again = moved
    run = folder / "synthetic_pspnet_resnet18_quarter_none_seed0"
    (run / "checkpoint.pt").unlink()
    before = (run / "student.safetensors").stat().st_mtime_ns
    result, _ = again("methods=[none]", "seeds=1", "split=val")
    assert result["rows"][0]["miou"] is not None
    assert (run / "student.safetensors").stat().st_mtime_ns == before


def test_a_student_of_the_users_own_is_evaluated(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from segdistill import build_model\n"
        "def make(num_classes):\n"
        "    return build_model('pspnet_resnet18_quarter', num_classes=num_classes, output_stride=16)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = {**ALONE, "student": {"name": "python:mine:make"}}
    result = compare(source, ["methods=[none]", "seeds=1"], out=tmp_path / "out")
    assert result["rows"][0]["errors"] == []


def test_latex_prints_what_it_is_given(grid):
    _, result, _ = grid
    odd = {**result, "rows": [{**result["rows"][0], "method": r"a{b}$c^~\d_%&#"}]}
    line = latex(odd).splitlines()[-3]
    assert line.startswith(r"a\{b\}\$c\textasciicircum{}\textasciitilde{}\textbackslash{}d\_\%\&\# & ")


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    plan = load_plan(TINY, ["methods=[none]", "seeds=1", "train.steps=4"], tmp_path)
    (run,) = plan.runs
    with at_step(monkeypatch, 2, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        distill(run.config, out=run.folder)
    result = compare(ALONE, ["methods=[none]", "seeds=1", "train.steps=4"], out=tmp_path)
    assert result["rows"][0]["errors"] == []
    lines = read_metrics(run.folder)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    distill(run.config, out=tmp_path / "whole")
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["distiller"] for f in (run.folder, tmp_path / "whole")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_terminated_grid_saves_its_run_and_goes_on(tmp_path):
    config = tmp_path / "grid.yaml"
    config.write_text(yaml.safe_dump({**ALONE, "methods": ["none"], "train": {**TINY["train"], "save_every": 0}}))
    command = [sys.executable, "-m", "segdistill", "compare", str(config), "seeds=1", "train.steps=100000"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "out/synthetic_pspnet_resnet18_quarter_none_seed0"
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 1, process)
    os.kill(process.pid, signal.SIGTERM)  # this process alone: it has to pass it on
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "the same command goes on" in error.splitlines()[-1]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["facts"]["step"] >= 2


def steady(config, folder, seconds):
    """A machine on which every image takes 25 ms, however fast the one is that runs the test."""
    return 0.025 * config.data.batch_size


def test_the_time_of_a_step_is_measured():
    (run,) = load_plan(ALONE, ["methods=[none]", "seeds=1"]).runs
    assert measure(run.config, run.folder, 0.0) > 0
    assert not run.folder.exists()


def test_equal_seconds_become_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("segdistill.comparison.grid.measure", steady)
    plan = ["methods=[none]", "seeds=2", "seconds=0.5"]
    result = compare(ALONE, plan, out=tmp_path, say=lambda line: None)
    (measured,) = result["measured"].values()
    assert measured == {"seconds_per_step": 0.1, "steps": 5}
    assert [run["steps"] for run in result["runs"]] == [measured["steps"]] * 2
    assert load_config(tmp_path / result["runs"][0]["folder"]).train.steps == measured["steps"]
    assert "0.5 s of training per run" in " ".join(notes(result))
    again = compare(ALONE, plan, out=tmp_path, say=lambda line: None)
    assert again["measured"] == result["measured"]  # it is not measured a second time, so that runs can go on
    assert again["rows"] == result["rows"]
    other = compare(ALONE, [*plan[:2], "seconds=0.4"], out=tmp_path, say=lambda line: None)
    assert "was started with" in other["rows"][0]["errors"][0]
    assert compare(ALONE, plan, out=tmp_path, say=lambda line: None)["rows"] == result["rows"]  # nor after a detour
    larger = compare(ALONE, [*plan, "data.batch_size=2"], out=tmp_path, say=lambda line: None)
    assert [row["steps"] for row in larger["measured"].values()] == [10]
    short = compare(ALONE, [*plan[:2], "seconds=0.01"], out=tmp_path / "short", say=lambda line: None)
    assert [row["steps"] for row in short["measured"].values()] == [1]  # one at least


def test_runs_at_a_time(tmp_path):
    source = {**ALONE, "train": {**TINY["train"], "threads": None}}
    result = compare(source, ["methods=[none]"], out=tmp_path, jobs=2, say=lambda line: None)
    assert [run["status"] for run in result["runs"]] == ["done", "done"]
    for run in result["runs"]:
        assert "step 3/3" in (tmp_path / run["folder"] / "log.txt").read_text()
        assert load_config(tmp_path / run["folder"]).train.threads >= 1
    assert "2 runs at a time" in " ".join(notes(result))
    later = compare(source, ["methods=[none]"], out=tmp_path, say=lambda line: None)  # they were, whoever asks
    assert "2 runs at a time" in " ".join(notes(later))


def test_the_clock_leaves_validation_out(tmp_path):
    lines = [{"step": 2, "images_per_s": 4.0}, {"step": 2, "val_miou": 0.5}, {"step": 4, "images_per_s": 8.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_record(tmp_path / "metrics.jsonl", 4) == {
        "seconds_per_step": 0.5,
        "training_seconds": 3.0,
        "validations": [[2, 0.5]],
    }


def test_what_is_wrong_with_all_runs_is_said_before_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"no student at .*missing"):
        compare(TINY, [*GRID, f"teacher.checkpoint={tmp_path}/missing"], out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"the teacher could not be trained: .*is (nan|inf) at step"):
        compare(TINY, [*GRID, "teacher.config.train.lr=1e38", "teacher.config.train.steps=3"], out=tmp_path / "b")
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in "ab":
            Image.new("L", (8, 8)).save(tmp_path / kind / f"{name}.png")
    data = f"data={{name: folder, root: {tmp_path}, classes: [a, b], val_fraction: 0.5}}"
    with pytest.raises(ValueError, match=r"no split 'test'.*; split=val compares on the validation split"):
        compare(TINY, [*GRID, data], out=tmp_path / "c")
    for changes, line in (
        (["methods=[none]", "data.groups=^(zzz)_"], r"data\.groups: '\^\(zzz\)_' is not in"),
        (["methods=[none, {name: bpkd, kernel_size: 4}]"], r"method bpkd\(kernel_size=4\): .*4"),
    ):
        with pytest.raises(ValueError, match=line):
            compare(TINY, changes, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
