"""A comparison over shares of labels."""

import json
import re

import pytest
import torch

from comparisons import SOURCE, finished, gathered
from conftest import write_image
from segdistill.comparison.grid import compare
from segdistill.comparison.plan import load_plan
from segdistill.comparison.table import cells
from segdistill.engine.evaluate import evaluate_run
from segdistill.report import write_report
from test_compare import TINY

GRID = ["methods=[none,kd]", "seeds=2", "labelled=[0.25,0.5,1.0]"]


def lift(run):
    return {"25 %": 0.0, "50 %": 0.05, "100 %": 0.2}[run.labelled] + 0.02 * (run.method == "kd") + 0.01 * run.seed


def test_labels_are_a_dimension_of_the_grid():
    plan = load_plan(SOURCE, GRID, "o")
    assert [run.labelled for run in plan.runs[:6]] == ["25 %", "25 %", "50 %", "50 %", "100 %", "100 %"]
    assert [run.config.data.labelled for run in plan.runs[:6:2]] == [0.25, 0.5, 1.0]
    assert plan.runs[0].folder.name == "synthetic_labelled=25pc_pspnet_resnet18_quarter_none_seed0"
    assert len(plan.rows()) == 6
    named = load_plan(SOURCE, ["methods=[none]", "seeds=1", "labelled=[3, '*a', ['a*', 'b*']]"], "o")
    given = [(run.labelled, run.config.data.labelled) for run in named.runs]
    assert given == [("3", 3), ("*a", "*a"), ("a* b*", ["a*", "b*"])]
    assert load_plan(SOURCE, ["methods=[none]", "data.labelled=3"], "o").runs[0].labelled is None
    with pytest.raises(ValueError, match=r"labelled: expected numbers of images, .*, got \[0\.5, True\]"):
        load_plan(SOURCE, ["methods=[none]", "labelled=[0.5, true]"], "o")
    with pytest.raises(ValueError, match=r"data\.labelled: .*expected a share above 0 and up to 1\.0"):
        load_plan(SOURCE, ["methods=[none]", "labelled=[0.5, 1.5]"], "o")


def test_a_teacher_that_is_trained_first_has_all_labels(tmp_path):
    source = {**SOURCE, "teacher": {"config": {"student": {"name": "deeplabv3_resnet18"}, "train": {"steps": 3}}}}
    plan = load_plan(source, [*GRID, "data.labelled_per_batch=2"], tmp_path)
    (config,) = plan.teachers.values()
    assert (config.data.labelled, config.data.labelled_per_batch) == ("masks", None)
    assert {run.config.data.labelled_per_batch for run in plan.runs} == {2}


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize(
    ("seen", "own"),
    [("data.cat_max_ratio=0.75", True), ("data.augment.classmix=0.5", True), ("data.flip=false", False)],
)
def test_where_labels_decide_what_is_seen_each_share_has_its_cache(teachers, seen, own):
    section = [{"checkpoint": "runs/teacher", "cache": "c"}, {"checkpoint": "runs/other"}][:teachers]
    plan = load_plan({**SOURCE, "teacher": section}, [*GRID, seen], "o")
    caches = {run.labelled: run.config.cached_teacher.cache for run in plan.runs if run.config.distils}
    assert caches == {share: f"c/labelled={share[:-2]}pc" if own else "c" for share in ("25 %", "50 %", "100 %")}
    assert {len(run.config.teachers) for run in plan.runs if run.config.distils} == {teachers}


def test_each_share_has_its_own_baseline(tmp_path):
    plan = finished(tmp_path / "grid", *GRID, lift=lift)
    result = gathered(plan)
    assert [(row["labelled"], row["method"]) for row in result["rows"]][:3] == [
        ("25 %", "none"), ("25 %", "kd"), ("50 %", "none"),
    ]  # fmt: skip
    for row in result["rows"][1::2]:
        assert row["difference"]["difference"] == pytest.approx(0.02, abs=0.01)
    header, rows = cells(result)
    assert header[:2] == ["labels", "method"]
    assert [row[0] for row in rows] == ["–", "25 %", "25 %", "50 %", "50 %", "100 %", "100 %"]
    page = write_report([plan.out], images=0, say=lambda _: None).read_text(encoding="utf-8")
    section = page.split('<section id="verdicts">')[1].split("</section>")[0]
    titles = re.findall("<figcaption>(.*?)</figcaption>", section)
    assert "test mIoU against labels, %" in titles
    assert "val mIoU against steps, %: 25 % labels" in titles


def test_it_runs_where_images_have_no_masks(tmp_path):
    for split, count, masks in (("train", 6, 4), ("val", 2, 2), ("test", 2, 2)):
        for number in range(count):
            image = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number)).byte().numpy()
            write_image(tmp_path / f"images/{split}/{number}.png", image)
            if number < masks:
                write_image(tmp_path / f"masks/{split}/{number}.png", (image[..., 0] > 127).astype("uint8"))
    data = {"name": "folder", "root": str(tmp_path), "classes": ["a", "b"], "crop": [32, 32], "batch_size": 2}
    source = {**TINY, "data": {**data, "workers": 0, "cat_max_ratio": 0.9}}
    source["teacher"] = {**source["teacher"], "cache": str(tmp_path / "cache")}
    result = compare(source, ["methods=[none,kd]", "seeds=1", "labelled=[2,4]"], out=tmp_path / "o", say=lambda _: None)
    assert [row["errors"] for row in result["rows"]] == [[]] * 4
    assert [row["labelled_images"] for row in result["rows"]] == [2, 2, 4, 4]
    run = next(tmp_path.glob("o/*labelled=2_*_kd_seed0"))
    assert evaluate_run(run, split="train", device="cpu")["images"] == 4


def test_it_runs(tmp_path):
    source = {**TINY, "data": {**TINY["data"], "images": 8}}
    result = compare(source, ["methods=[none,kd]", "seeds=1", "labelled=[0.5,1.0]"], out=tmp_path, say=lambda _: None)
    assert [row["errors"] for row in result["rows"]] == [[]] * 4
    assert [(row["labelled"], row["labelled_images"]) for row in result["rows"][::2]] == [("50 %", 4), ("100 %", 8)]
    assert (tmp_path / "teacher/eval_test.json").is_file()  # its data are those of the runs, but for the labels
    scores = {run["labelled"]: run["miou"] for run in result["runs"] if run["method"] == "none"}
    assert scores["50 %"] != scores["100 %"]
    assert json.loads((tmp_path / "compare.json").read_text()) == result
    with pytest.raises(ValueError, match="label"):
        compare(source, ["methods=[none]", "seeds=1", "labelled=[99]"], out=tmp_path / "b", say=lambda _: None)
