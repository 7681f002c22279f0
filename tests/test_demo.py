import io
import json
import sys
from pathlib import Path

from rich.console import Console

from segdistill.comparison.plan import load_plan
from segdistill.demo import GRID, demo_report, run_demo
from segdistill.show import compare as show_compare

SMALL = [
    "data.size=[32,32]", "data.crop=[32,32]", "data.images=4", "data.workers=0", "student.output_stride=16",
    "train.steps=2", "train.precision=fp32", "train.threads=1", "teacher.config.train.steps=1",
    "teacher.config.train.precision=fp32", "teacher.config.train.threads=1",
]  # fmt: skip


def test_the_demo_is_a_comparison(tmp_path):
    said = []
    rows = run_demo(tmp_path, seeds=2, say=said.append, overrides=SMALL)
    assert "a teacher, then 6 runs of students" in said[0]  # before anything is done
    assert [row["run"] for row in rows] == ["teacher", "baseline", "kd", "cwd"]
    assert rows[0]["network"] == "deeplabv3plus_resnet18_half"
    assert {row["network"] for row in rows[1:]} == {"deeplabv3plus_resnet18_quarter"}
    assert [len(row["mious"]) for row in rows] == [1, 2, 2, 2]
    assert rows[0]["params"] > rows[1]["params"] == rows[3]["params"]
    assert all(row["ms"] > 0 for row in rows)
    result = json.loads((tmp_path / "compare.json").read_text())
    assert result["split"] == "val"
    assert rows[3]["miou"] == f"{100 * result['rows'][2]['miou']:.2f} ± {100 * result['rows'][2]['miou_deviation']:.2f}"
    folder = said[-1].rsplit(" ", 1)[1]
    assert folder.endswith("cwd_seed0")
    console = Console(width=120, record=True, file=io.StringIO())
    show_compare.demo(console, rows)
    text = console.export_text()
    assert "val mIoU %" in text
    assert rows[3]["miou"] in text
    show_compare.comparison(console, result)
    assert "what it cost" in console.export_text()
    demo_report(tmp_path, say=said.append)
    page = Path(said[-1].removeprefix("report: "))
    assert page == tmp_path / "report/index.html"
    text = page.read_text(encoding="utf-8")
    assert '<section id="verdicts">' in text
    assert "cwd" in text


def test_without_what_draws_the_report_the_demo_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    demo_report(tmp_path, say=said.append)
    assert said == ["no report: a report needs matplotlib; pip install 'segdistill[report]'"]


def test_its_configuration_is_whole():
    plan = load_plan(GRID, ["seeds=2"])
    assert len(plan.runs) == 6
    assert [config.train.steps for config in plan.teachers.values()] == [400]
    assert {run.config.train.steps for run in plan.runs} == {250}
