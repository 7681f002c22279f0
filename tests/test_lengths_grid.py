"""A comparison over lengths of the training."""

import re

import pytest

from comparisons import SOURCE, finished, gathered
from segdistill.comparison.grid import compare
from segdistill.comparison.plan import load_plan
from segdistill.comparison.table import cells, figures
from segdistill.engine.epochs import in_steps
from segdistill.report import write_report
from segdistill.report.comparison import draw_comparison
from segdistill.report.figures import Album
from test_compare import TINY

GRID = ["methods=[none,kd]", "seeds=2", "lengths=[40,80]"]


def lift(run):
    return 0.1 * (run.length == 80) + 0.02 * (run.method == "kd") + 0.01 * run.seed


def test_each_length_has_a_whole_schedule():
    plan = load_plan(SOURCE, [*GRID, "train.warmup=4"], "o")
    assert [(run.length, run.method) for run in plan.runs[:4]] == [(40, "none"), (40, "kd"), (80, "none"), (80, "kd")]
    found = [(r.config.train.steps, r.config.train.warmup, r.config.train.eval_every) for r in plan.runs[::2][:2]]
    assert found == [(40, 4, 10), (80, 8, 20)]
    assert plan.runs[2].folder.name == "synthetic_steps=80_pspnet_resnet18_quarter_none_seed0"
    assert len(plan.rows()) == 4
    assert load_plan(SOURCE, ["methods=[none]"], "o").runs[0].length is None
    by_epochs = load_plan(SOURCE, [*GRID, "train.warmup_epochs=0.5"], "o").runs[::2][:2]
    assert [in_steps(run.config, 80).train.warmup for run in by_epochs] == [5, 10]


def test_labels_and_lengths_cross():
    plan = load_plan(SOURCE, [*GRID, "labelled=[0.5,1.0]"], "o")
    assert len(plan.rows()) == 8
    assert plan.runs[0].folder.name == "synthetic_labelled=50pc_steps=40_pspnet_resnet18_quarter_none_seed0"


def test_a_teacher_that_is_trained_first_keeps_its_length(tmp_path):
    source = {**SOURCE, "teacher": {"config": {"student": {"name": "deeplabv3_resnet18"}, "train": {"steps": 3}}}}
    (config,) = load_plan(source, GRID, tmp_path).teachers.values()
    assert config.train.steps == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lengths=[]"], "lengths: .* at least 1 item"),
        (["lengths=[40,40]"], "lengths: expected different numbers of steps"),
        (["lengths=[0]"], r"lengths\.0: .* greater than 0"),
        (["lengths=[40]", "seconds=4"], "lengths and seconds: give one of them"),
        (["lengths=[40]", "train.epochs=2"], r"lengths: .* give train\.steps instead of train\.epochs"),
    ],
)
def test_mistakes_are_one_line(overrides, message):
    source = {**SOURCE, "train": {}} if "train.epochs=2" in overrides else SOURCE
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(source, ["methods=[none]", *overrides], "o")
    assert "\n" not in str(caught.value)


def test_each_length_has_its_own_baseline_and_the_figure_joins_them(tmp_path):
    plan = finished(tmp_path / "grid", *GRID, lift=lift)
    result = gathered(plan)
    places = [(row["length"], row["method"]) for row in result["rows"]]
    assert places == [(40, "none"), (40, "kd"), (80, "none"), (80, "kd")]
    for row in result["rows"][1::2]:
        assert row["difference"]["difference"] == pytest.approx(0.02, abs=0.01)
    header, rows = cells(result)
    assert header[:2] == ["length", "method"]
    assert [row[0] for row in rows] == ["–", "40", "40", "80", "80"]
    assert [line[2] for line in figures(result)] == ["length", None, 40, 40, 80, 80]
    page = write_report([plan.out], images=0, say=lambda _: None).read_text(encoding="utf-8")
    section = page.split('<section id="verdicts">')[1].split("</section>")[0]
    titles = re.findall("<figcaption>(.*?)</figcaption>", section)
    assert {f"{split} mIoU against the length of the training, %" for split in ("test", "val")} <= set(titles)
    assert "val mIoU against steps, %: 80 steps" in titles
    words = re.search('test mIoU against the length[^"<]*kd at 80[^"<]*', page)
    miou = next(row["miou"] for row in result["rows"] if (row["length"], row["method"]) == (80, "kd"))
    assert f"kd at 80 {100 * miou:.1f} % at 80" in words.group(0)


def test_a_method_that_val_says_nothing_of_is_left_out_of_its_figure(tmp_path):
    plan = finished(tmp_path / "grid", *GRID, lift=lift)
    result = gathered(plan)
    for line in (*result["rows"], *result["runs"]):
        if line["method"] == "kd":
            line["val_miou"] = None
    drawn = draw_comparison(Album(tmp_path, "svg"), result, plan.out).drawings
    (val,) = (drawing.svg for drawing in drawn if drawing.name == "compare_lengths_val")
    assert "none at 80" in val
    assert "kd at 80" not in val


def test_it_runs(tmp_path):
    result = compare(TINY, ["methods=[none]", "seeds=1", "lengths=[2,4]"], out=tmp_path, say=lambda _: None)
    assert [(row["length"], row["steps"], row["errors"]) for row in result["rows"]] == [(2, 2, []), (4, 4, [])]
