"""The figures of a comparison, and its part of the page."""

import doctest
import json
import re

import pytest

from comparisons import finished, gathered
from segdistill.measure.deployed import BENCHMARK, EAGER, KIND
from segdistill.report import comparison, write_report
from segdistill.report.comparison import draw_comparison, mean_band, stored_latencies
from segdistill.report.figures import Album, style


def lift(run):
    return 0.02 * len(run.method) + 0.01 * run.seed


@pytest.fixture
def draw(tmp_path):
    def make(result, folder=None):
        with style():
            return draw_comparison(Album(tmp_path / "figures"), result, folder or tmp_path)

    return make


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    students = "students=[pspnet_resnet18_quarter,pspnet_resnet18_half]"
    out = tmp_path_factory.mktemp("runs") / "grid"
    return finished(out, "methods=[none,kd,[kd,cwd]]", "seeds=2", students, "against=kd", lift=lift)


@pytest.fixture(scope="module")
def result(plan):
    return gathered(plan)


def names(compared):
    return [drawing.name for drawing in compared.drawings]


def test_examples():
    assert not doctest.testmod(comparison).failed
    band = mean_band([[[1, 0.2], [2, 0.4], [3, 0.9]], [[1, 0.4], [2, 0.4]]])
    assert [step for step, *_ in band] == [1, 2]
    assert band[0][1:] == pytest.approx((0.3, 0.02**0.5))


def test_what_is_there_is_drawn(plan, result, draw):
    found = draw(result)
    assert names(found) == ["compare_steps_0", "compare_steps_1", "compare_seconds"]
    assert [group.label for group in found.methods] == ["none", "kd", "kd+cwd"]
    assert len({group.colour for group in found.methods}) == 3
    steps, _, seconds = found.drawings
    assert steps.title == "val mIoU against steps, %: pspnet_resnet18_quarter"
    last = [row["miou"] for row in result["rows"]][1] * (1 - 2.718281828**-2)
    assert f"kd {100 * last:.1f} % at 40" in steps.svg
    assert "none, pspnet_resnet18_half" in seconds.svg
    assert found.remarks == ["Points: ● pspnet_resnet18_quarter, ■ pspnet_resnet18_half."]


def test_latency_is_drawn_where_students_differ(plan, result, draw):
    curve = plan.out / "curve.json"
    students = ("pspnet_resnet18_quarter", "pspnet_resnet18_half")
    curve.write_text(
        json.dumps({"points": [{"student": s, "ms": ms} for s, ms in zip(students, (2.0, 5.0), strict=True)]})
    )
    assert names(draw(result, plan.out))[-1] == "compare_latency"
    assert "5.0" not in draw(result, plan.out).drawings[-1].title
    curve.write_text(json.dumps({"points": [{"student": s, "ms": 2.0} for s in students]}))
    assert names(draw(result, plan.out))[-1] == "compare_seconds"
    curve.unlink()


def test_latencies_of_other_circumstances_are_not_mixed(plan, result):
    for run, threads in zip(plan.runs[::3], (1, 1, 1, 1), strict=True):
        row = {"role": "student", "format": EAGER, "ms": float(len(run.student))}
        facts = {"kind": KIND, "size": [32, 32], "threads": threads, "rows": [{**row, "role": "teacher"}, row]}
        (run.folder / BENCHMARK).write_text(json.dumps(facts))
    assert stored_latencies(plan.out, result) == {run.student: float(len(run.student)) for run in plan.runs}
    path = plan.runs[3].folder / BENCHMARK
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": 2}))
    assert stored_latencies(plan.out, result) == {}
    path.write_text(json.dumps({"kind": "speed", "rows": []}))
    assert len(stored_latencies(plan.out, result)) == 2
    for run in plan.runs[::3]:
        (run.folder / BENCHMARK).unlink()


def test_nothing_is_drawn_of_nothing(result, draw):
    bare = {**result, "runs": [{**run, "validations": []} for run in result["runs"]]}
    bare["rows"] = [{**row, "training_seconds": None} for row in result["rows"]]
    assert names(draw(bare)) == []
    one = {**result, "runs": [{**run, "validations": run["validations"][:1]} for run in result["runs"]]}
    assert names(draw(one)) == ["compare_seconds"]
    assert names(draw({**result, "rows": [{**row, "miou": None} for row in result["rows"]]})) == []


def test_seeds_that_were_validated_at_other_steps_have_no_mean(result, draw):
    apart = [{**run, "validations": [[run["seed"] + 1, 0.5], [run["seed"] + 11, 0.6]]} for run in result["runs"]]
    assert names(draw({**result, "runs": apart})) == ["compare_seconds"]
    mixed = [new if run["method"] == "kd" else run for run, new in zip(result["runs"], apart, strict=True)]
    drawn = draw({**result, "runs": mixed}).drawings[0].svg
    assert re.search(r"none [\d.]+ % at 40", drawn)
    assert not re.search(r"kd [\d.]+ % at", drawn)


def shares(result, labels):
    """The comparison over several shares of labels."""
    rows = [
        {**row, "labelled": label, "miou": row["miou"] + 0.1 * n}
        for n, label in enumerate(labels)
        for row in result["rows"]
    ]
    return {**result, "rows": rows, "runs": [{**run, "labelled": labels[0]} for run in result["runs"]]}


def test_labels(result, draw):
    found = draw(shares(result, ["12.5 %", "25 %", "100 %"]))
    labels = [drawing for drawing in found.drawings if "labels" in drawing.name]
    assert [drawing.title for drawing in labels] == [
        "test mIoU against labels, %: pspnet_resnet18_quarter",
        "test mIoU against labels, %: pspnet_resnet18_half",
    ]
    assert "kd at 12.5 %" in labels[0].svg
    assert "at 100" in labels[0].svg
    assert not re.search(
        r"kd at 100 % [\d.]+ % at 100", labels[0].svg
    )  # an older table does not say how many: side by side
    many = shares(result, ["46", "0001TP*", "100 %"])
    for row in many["rows"]:
        row["labelled_images"] = {"46": 46, "0001TP*": 62, "100 %": 367}[row["labelled"]]
    (first, _) = (drawing.svg for drawing in draw(many).drawings if "labels" in drawing.name)
    assert re.search(r"kd at 46 [\d.]+ % at 46, .*kd at 0001TP\* [\d.]+ % at 62, .*kd at 100 % [\d.]+ % at 367", first)
    assert any("_seconds_" in name for name in names(found))  # a figure for each share
    assert "12.5 % labels" in "".join(drawing.title for drawing in found.drawings)


def test_what_is_too_much_is_said(tmp_path, draw):
    weights = ",".join(f"{{name: cwd, weight: {n}.5}}" for n in range(1, 15))
    plan = finished(tmp_path / "many", f"methods=[none,{weights}]", "seeds=1", "against='cwd(weight=1.5)'")
    found = draw(gathered(plan))
    assert len(found.methods) == 12
    assert [group.label for group in found.methods][:2] == ["none", "cwd(weight=1.5)"]
    assert found.remarks == ["Figures leave out the 3 methods that reach least."]
    result = gathered(finished(tmp_path / "few", "methods=[none,kd]", "seeds=1"))
    many = shares(result, [f"{n}" for n in range(1, 9)])
    many["runs"] = []
    assert draw(many).remarks[-1] == "Not drawn, for their number: 7 labels, 8 labels."


def test_a_teacher_far_above_is_only_named(result, draw):
    def lines(miou):
        teacher = {**result["teachers"]["synthetic"], "miou": miou}
        return draw({**result, "teachers": {"synthetic": teacher}}).drawings[-1].svg

    highest = max(row["miou"] for row in result["rows"])
    near, far = lines(highest + 0.01), lines(0.99)
    assert "stroke-dasharray" in near
    assert "stroke-dasharray" not in far
    assert "teacher 99.0" in far


def test_the_page(plan, result):
    page = write_report([plan.out], images=0, say=lambda _: None).read_text(encoding="utf-8")
    section = page.split('<section id="verdicts">')[1].split("</section>")[0]
    assert re.findall('<h3 class="head">(.*?)</h3>', section) == ["against none", "against kd"]
    assert section.count("<table>") == 2
    assert section.count("<svg") == 3
    assert "after Holm&#39;s correction" in section
    assert "Points: ● pspnet_resnet18_quarter" in section
