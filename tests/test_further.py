"""Further metrics of a comparison: evaluated without training anew, summarised over seeds, shown in a table."""

import csv
import json
import shutil
import statistics

import pytest
from rich.console import Console

from comparisons import TEACHERS, finished, gathered
from segdistill.comparison import grid
from segdistill.comparison.grid import compare, is_done, run_only
from segdistill.comparison.notes import notes
from segdistill.comparison.plan import load_plan
from segdistill.comparison.statistics import holm, paired_interval
from segdistill.comparison.table import figures, further_cells, latex, markdown
from segdistill.engine.config import load_config
from segdistill.engine.evaluate import evaluate_run
from segdistill.report import write_report
from segdistill.show import compare as show_compare
from test_compare import TINY

METHODS = ["methods=[none,kd,cwd]", "seeds=3"]
LUCK = (0.001, -0.002, 0.0005)


def found(run):
    """CWD has better contours and is less sure of itself; of one run there is no NLL."""
    gain = {"none": 0.0, "kd": 0.004 * (run.seed - 1), "cwd": 0.05 + LUCK[run.seed]}[run.method]
    calibration = {"ece": 0.1 - gain, "nll": None if (run.method, run.seed) == ("kd", 1) else 0.5 - gain, "brier": 0.25}
    return {"boundary": {"miou": 0.4 + 0.01 * run.seed + gain, "iou": {}}, "calibration": calibration}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    plan = finished(tmp_path_factory.mktemp("runs") / "grid", *METHODS, "metrics=[calibration,boundary]", metrics=found)
    teachers = {"synthetic": {**TEACHERS["synthetic"], "metrics": {"boundary": {"miou": 0.6}}}}
    return plan, gathered(plan, teachers)


def value_of(result, method, metric, key):
    return next(row for row in result["rows"] if row["method"] == method)["metrics"][metric][key]


def test_figures_are_means_and_paired_differences(result):
    plan, result = result
    runs = {(run.method, run.seed): found(run)["boundary"]["miou"] for run in plan.runs}
    values = {method: [runs[method, seed] for seed in range(3)] for method in ("none", "kd", "cwd")}
    intervals = {method: paired_interval(values[method], values["none"]) for method in ("kd", "cwd")}
    corrected = holm([interval.p for interval in intervals.values()])
    for (method, interval), p in zip(intervals.items(), corrected, strict=True):
        told = value_of(result, method, "boundary", "miou")
        assert told["mean"] == pytest.approx(statistics.fmean(values[method]))
        assert told["deviation"] == pytest.approx(statistics.stdev(values[method]))
        assert told["difference"] == {**interval.as_dict(), "holm": p}
    assert value_of(result, "none", "boundary", "miou")["difference"] is None
    lacking = value_of(result, "kd", "calibration", "nll")
    assert lacking["pairs"] == 2  # of the seeds in which both sides have the figure
    assert lacking["mean"] == pytest.approx((0.5 + 0.004 + 0.5 - 0.004) / 2)


def test_what_a_figure_is_comes_with_it(result):
    told = result[1]["metrics"]
    assert [(line["metric"], line["key"], line["share"], line["better"]) for line in told] == [
        ("boundary", "miou", True, "higher"),
        ("calibration", "ece", True, "lower"),
        ("calibration", "nll", False, "lower"),
        ("calibration", "brier", False, "lower"),
    ]
    assert result[1]["runs"][0]["metrics"]["boundary"] == {"miou": pytest.approx(0.4)}  # not all that it found


def test_the_table(result):
    header, rows = further_cells(result[1])
    assert header == ["method", "boundary IoU % ↑", "calibration error % ↓", "NLL ↓", "Brier score ↓"]
    assert rows[0] == ["teacher", "60.00", "–", "–", "–"]
    assert rows[1] == ["none", "41.00 ± 1.00", "10.00 ± 0.00", "0.5000 ± 0.0000", "0.2500 ± 0.0000"]
    assert rows[2][:3] == ["kd", "41.00 ± 1.40 (+0.00)", "10.00 ± 0.40 (+0.00)"]
    assert rows[3][1] == "45.98 ± 0.99 (+4.98*)"
    assert rows[3][2] == "5.02 ± 0.16 (-4.98*)"
    assert rows[3][4] == "0.2500 ± 0.0000 (+0.0000)"


def test_every_file_has_it(result):
    plan, result = result
    text = markdown(result)
    assert "\n\nFurther metrics:\n\n| method | boundary IoU % ↑ |" in text
    assert text.index("| method | test mIoU % |") < text.index("Further metrics:") < text.index("- mIoU: mean")
    tex = latex(result)
    assert tex.count(r"\begin{tabular}") == 2
    assert r"boundary IoU \% $\uparrow$" in tex
    assert json.loads((plan.out / "compare.json").read_text()) == result
    with (plan.out / "compare.csv").open() as file:
        table = {line["method"]: line for line in csv.DictReader(file)}
    own = value_of(result, "cwd", "calibration", "ece")
    assert float(table["cwd"]["calibration_ece"]) == own["mean"]
    assert float(table["cwd"]["calibration_ece_deviation"]) == own["deviation"]
    for key, end in (("difference", ""), ("low", "_low"), ("high", "_high"), ("p", "_p"), ("holm", "_p_holm")):
        assert float(table["cwd"][f"calibration_ece_difference{end}"]) == own["difference"][key]
    assert table["cwd"]["calibration_ece_difference_within_noise"] == "False"
    assert table["none"]["boundary_miou_difference"] == ""
    assert float(table["teacher"]["boundary_miou"]) == 0.6
    assert {len(line) for line in figures(result)} == {len(table["cwd"])}


def test_the_terminal_and_the_report_have_it(result):
    plan, result = result
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_compare.comparison(console, result)
    text = console.export_text()
    assert "further metrics: boundary" in text
    assert "further metrics: calibration" in text  # a table for each: the terminal is narrow
    assert "45.98 ± 0.99 (+4.98*)" in text
    page = write_report([plan.out], images=0, say=lambda _: None).read_text(encoding="utf-8")
    section = page.split('<section id="verdicts">')[1].split("</section>")[0]
    assert '<h3 class="head">further metrics</h3>' in section
    assert "45.98 ± 0.99 (+4.98*)" in section


def test_notes_say_how_it_is_read(result, tmp_path):
    def note(result):
        return next(line for line in notes(result) if line.startswith("Further metrics: "))

    told = note(result[1])
    assert "difference from none, paired by seed, with a star" in told
    assert "2 comparisons of its column, is below 0.05" in told
    alone = gathered(finished(tmp_path / "one", "methods=[none,kd]", "seeds=1", "metrics=[boundary]", metrics=found))
    assert note(alone).endswith("the difference from none, paired by seed.")
    assert further_cells(alone)[1][2] == ["kd", "39.60 (-0.40)"]
    none = gathered(finished(tmp_path / "none", "methods=[none]", "seeds=2", "metrics=[boundary]", metrics=found))
    assert note(none).endswith("which way a figure is better.")


def test_a_comparison_without_them_has_no_table(tmp_path):
    plain = gathered(finished(tmp_path / "grid", "methods=[none,kd]", "seeds=2"))
    older = {key: value for key, value in plain.items() if key != "metrics"}
    for result in (plain, older):
        assert further_cells(result) is None
        assert "urther" not in markdown(result) + latex(result)
        assert not any("boundary" in name for name in figures(result)[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "grid"
    compare(TINY, ["methods=[none, kd]", "seeds=1"], out=folder, say=lambda _: None)
    return folder


def test_finished_runs_are_evaluated_again_and_not_trained(trained, tmp_path):
    folder, said = shutil.copytree(trained, tmp_path / "grid"), []
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("student.safetensors")}
    small = ["methods=[none, kd]", "seeds=1"]
    wide = compare(TINY, [*small, "metrics=[boundary, agreement]"], out=folder, jobs=2, say=said.append)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert "2 runs, 2 at a time; each prints into log.txt in its folder" in said
    assert wide["jobs"] == 1  # times and memory are those of the training
    plan = load_plan(TINY, small, folder)
    damaged = plan.runs[1].folder
    (damaged / "eval_test.json").write_text("{")
    (damaged / "eval_test_images.safetensors").unlink()
    assert compare(TINY, [*small, "metrics=[boundary, agreement]"], out=folder, say=said.append)["runs"] == wide["runs"]
    for run, entry in zip(plan.runs, wide["runs"], strict=True):
        other = evaluate_run(
            run.folder, split="test", device="cpu", metrics=["boundary", "agreement"], teacher=folder / "teacher"
        )
        assert entry["metrics"]["boundary"]["miou"] == other["metrics"]["boundary"]["miou"]
        assert entry["metrics"]["agreement"]["kept"] == other["metrics"]["agreement"]["kept"]
        assert entry["miou"] == other["miou"]
    teacher = wide["teachers"]["synthetic"]["metrics"]
    own = evaluate_run(folder / "teacher", split="test", device="cpu", metrics=["boundary"])["metrics"]["boundary"]
    assert teacher["boundary"]["miou"] == own["miou"]
    assert set(teacher["agreement"].values()) == {None}
    again = compare(TINY, [*small, "metrics=[agreement]"], out=folder, say=said.append)
    assert said[-1] == "2 of 2 runs are there already"
    assert [line["metric"] for line in again["metrics"]] == ["agreement"] * 4
    sizes = compare(TINY, [*small, "metrics=[sizes]"], out=folder, say=lambda _: None)
    assert sizes["runs"][0]["metrics"].keys() == {"sizes"}
    kept = json.loads((plan.runs[0].folder / "eval_test.json").read_text())
    assert kept["metrics"].keys() == {"boundary", "agreement", "sizes"}  # what was found before stays
    cell = load_plan(TINY, [*small, "metrics=[agreement]"], folder).runs[0]
    (folder / "teacher/student.safetensors").write_bytes(b"another one")
    assert not is_done(cell, "test")  # the baseline was held against another teacher
    assert is_done(load_plan(TINY, [*small, "metrics=[sizes]"], folder).runs[0], "test")


def test_one_run_needs_the_teacher_that_it_is_compared_with(tmp_path):
    plan = load_plan(TINY, ["methods=[none, kd]", "seeds=1", "metrics=[agreement]"], tmp_path / "grid")
    with pytest.raises(ValueError, match="teacher is not trained yet; the same command with --only teacher does it"):
        run_only(plan, "1", say=lambda _: None)


def test_a_teacher_of_other_classes_is_refused_before_training(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_evaluate_teachers", lambda plan, executor: {"synthetic": {"miou": None}})
    source = {**TINY, "teacher": {"checkpoint": str(trained / "teacher")}}
    small = ["methods=[none, kd]", "seeds=1"]
    with pytest.raises(ValueError, match="agreement needs a teacher that knows all classes of synthetic; leave it out"):
        compare(source, [*small, "metrics=[agreement]"], out=tmp_path / "grid", say=lambda _: None)
    assert not list((tmp_path / "grid").glob("synthetic*"))


def test_a_configuration_names_the_teacher_of_an_evaluation(trained):
    (run,) = trained.glob("*_none_seed0")
    guide = load_config(next(trained.glob("*_kd_seed0")))
    results = [
        evaluate_run(run, device="cpu", metrics=["agreement"], teacher=teacher)["metrics"]
        for teacher in (guide, trained / "teacher")
    ]
    assert results[0] == results[1]
