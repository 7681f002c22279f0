"""One network at several widths: what is trained, measured, drawn."""

import csv
import io
import json

import pytest
import torch

from segdistill import cli
from segdistill._printing import number_of
from segdistill.comparison.labels import PLACES
from segdistill.comparison.plan import load_plan
from segdistill.comparison.widths import load_curve
from segdistill.data import build_dataset
from segdistill.engine.run_folder import STUDENT
from segdistill.engine.student import make_card, save_student
from segdistill.models import build_model
from segdistill.report import efficiency
from segdistill.report.efficiency import draw_curve, measure_curve, paint_curve, table

TINY = {
    "data": {"name": "synthetic", "size": [32, 32], "images": 4, "crop": [32, 32], "batch_size": 4, "workers": 0},
    "student": {"name": "fcn_resnet18", "depth": 0.5},
    "train": {"steps": 1, "precision": "fp32"},
    "widths": [0.25, 0.1],
    "seeds": 2,
}


def student(width):
    torch.manual_seed(0)
    return build_model("fcn_resnet18", num_classes=11, width=width, depth=0.5).eval()


def plan_of(folder, *overrides):
    return load_curve(TINY, ["methods=[none]", *overrides], folder)


def compared(plan, failed=()):
    """What `compare` returns for a plan, without training; each run's folder gets a student."""
    rows = []
    for (place, method), runs in plan.rows().items():
        width = runs[0].config.student.options["width"]
        errors = [f"{run.folder.name}: it broke" for run in runs if width in failed]
        for run in runs if not errors else ():
            run.folder.mkdir(parents=True, exist_ok=True)
            network = student(width)
            save_student(run.folder / STUDENT, network, make_card(network, ["a"] * 11, [(0, 0, 0)] * 11))
        score = None if errors else width + 0.1 * (method != "none")
        where = {**dict(zip(PLACES, place, strict=True)), "method": method}
        rows.append({**where, "miou": score, "miou_deviation": 0.01, "seeds": [0, 1], "errors": errors})
    return {"rows": rows, "teachers": {}, "runs": []}


def test_the_students_are_one_network_at_several_widths(tmp_path):
    plan = plan_of(tmp_path)
    assert [run.config.student.options["width"] for run in plan.runs] == [0.25, 0.1] * 2
    assert {run.config.student.options["depth"] for run in plan.runs} == {0.5}
    assert [run.config.student.options["width"] for run in plan_of(tmp_path, "widths=[1]").runs] == [1, 1]
    rest = {key: value for key, value in TINY.items() if key != "widths"}
    assert len(load_curve(rest, ["methods=[none]", "seeds=1"], tmp_path).runs) == 4
    assert load_curve(rest, ["methods=[none]"]).out.name == "curve_grid"
    assert len({run.student for run in load_plan(TINY, ["methods=[none]"]).runs}) == 2  # `compare` takes them, too


def test_what_they_cost_is_measured_and_joined_with_what_they_reach(tmp_path):
    plan = plan_of(tmp_path)
    result = measure_curve(plan, compared(plan), size=None, threads=1, repeats=2, device="cpu")
    assert result["size"] == [32, 32]
    assert [point["width"] for point in result["points"]] == [0.1, 0.25]
    for point in result["points"]:
        network = student(point["width"])
        tensors = network.state_dict().values()
        assert point["params"] == sum(p.numel() for p in network.parameters())
        assert point["bytes"] == sum(t.numel() * t.element_size() for t in tensors)
        assert point["flops"] > 0 < point["ms"] <= point["ms_p95"]
        assert point["miou"] == point["width"]
    assert result["teacher"] is None
    assert result["threads"] == 1


def test_a_run_that_failed_is_a_line_and_none_at_all_an_error(tmp_path):
    plan = plan_of(tmp_path / "one")
    result = measure_curve(plan, compared(plan, failed=[0.1]), size=(32, 48), threads=None, repeats=1, device="cpu")
    assert [point["width"] for point in result["points"]] == [0.25]
    assert len(result["errors"]) == 2
    assert result["size"] == [32, 48]
    plan = plan_of(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no run in .* has a student; .*: it broke"):
        measure_curve(plan, compared(plan, failed=[0.1, 0.25]), size=None, threads=None, repeats=1, device="cpu")


def test_everything_is_written(tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    monkeypatch.setattr(efficiency, "compare", lambda plan, **_: compared(plan))
    result = draw_curve(plan, repeats=1, threads=1, figures="svg")
    assert json.loads((tmp_path / "curve.json").read_text()) == result
    rows = list(csv.DictReader(io.StringIO((tmp_path / "curve.csv").read_text())))
    assert [(row["width"], row["method"], row["seeds"]) for row in rows] == [
        ("0.1", "none", "0 1"),
        ("0.25", "none", "0 1"),
    ]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "curve.svg").read_text()
    assert "latency, ms (32×32, 1 thread)" in text
    assert "×0.25" in text
    draw_curve(TINY, ["methods=[none]"], out=tmp_path / "again", repeats=1)
    assert (tmp_path / "again" / "curve.png").is_file()


def test_the_teacher_is_a_point_and_a_line(tmp_path):
    points = [
        {"student": "s", "width": w, "method": m, "miou": w / 2 + g, "miou_deviation": None, "seeds": [0],
         "ms": 100 * w, "ms_p95": 110 * w, "bytes": 1e7 * w * w, "params": 1e6, "flops": 1e9 * w, "peak_mib": 1}
        for m, g in (("none", 0), ("cwd", 0.1)) for w in (0.25, 1)
    ]  # fmt: skip
    teacher = {**points[-1], "network": "big_one", "miou": 0.8}
    facts = {"network": "net", "data": "d", "split": "val", "baseline": "none", "size": [8, 8], "threads": 2}
    result = {**facts, "device": "cpu", "points": points, "teacher": teacher, "errors": []}
    paint_curve(result, tmp_path / "deep", "svg")
    text = (tmp_path / "deep" / "curve.svg").read_text()
    assert "teacher, big_one" in text
    assert "2 threads" in text
    assert table(result).splitlines()[-1].startswith(",teacher,0.8,")
    paint_curve({**result, "device": "cuda", "teacher": {**teacher, "miou": None}}, tmp_path, "svg")  # of other classes
    assert "8×8, cuda" in (tmp_path / "curve.svg").read_text()
    assert number_of(1, "run") == "1 run"


def test_the_teacher_is_measured_in_the_same_turns(tmp_path):
    classes = build_dataset("synthetic", "val", images=1).classes
    save_student(tmp_path / STUDENT, student(0.5), make_card(student(0.5), classes, [(0, 0, 0)] * 11))
    plan = load_curve(TINY, ["methods=[none,cwd]", f"teacher.checkpoint={tmp_path / STUDENT}"], tmp_path / "o")
    found = compared(plan) | {"teachers": {"synthetic": {"network": "fcn", "miou": 0.9}}}
    result = measure_curve(plan, found, size=None, threads=1, repeats=1, device="cpu")
    assert result["teacher"]["network"] == "fcn"
    assert result["teacher"]["params"] == sum(p.numel() for p in student(0.5).parameters())
    assert [(p["method"], p["width"]) for p in result["points"]] == [
        ("none", 0.1), ("none", 0.25), ("cwd", 0.1), ("cwd", 0.25)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["widths=[0.5,0.5]"], "widths: expected different ones"),
        (["widths=[]"], "widths: .*at least 1"),
        (["widths=[0]"], "widths.*greater than 0"),
        (["widths=wide"], "widths: .*list"),
        (["students=[fcn_resnet18]"], "students and widths: give one of them"),
        (["widths=null"], "a curve is of one student at several widths"),
        (["data=[{images: 4}, {images: 6}]"], "a curve is of one data set"),
        (["student.pretrained=true"], "student.pretrained: ImageNet weights are of width 1 alone"),
        (["student.name=torchvision:fcn_resnet50"], "unknown key student.depth; there are"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, overrides, line):
    with pytest.raises(ValueError, match=line) as error:
        load_curve(TINY, ["methods=[none]", *overrides], tmp_path)
    assert "\n" not in str(error.value)


def test_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(TINY))
    monkeypatch.setattr(efficiency, "compare", lambda plan, **_: compared(plan, failed=[0.1]))
    arguments = ["curve", str(tmp_path / "c.yaml"), "methods=[none]", "--out", str(tmp_path / "o"), "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["segdistill", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "25.00 ± 1.00" in out
    assert "fcn_resnet18 by width" in out
    assert err == "segdistill: 2 runs failed; the same command tries them again\n"
