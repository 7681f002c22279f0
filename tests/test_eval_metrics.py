"""`segdistill eval --metric`: what is chosen, where the teacher comes from, what is printed and written."""

import json
import re

import pytest

from conftest import REPOSITORY
from segdistill.metrics import list_metrics, metric_class
from test_report import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    teacher = write_run(root / "teacher", student=1)
    write_run(root / "none", student=2)
    write_run(root / "cwd", "cwd", teacher=teacher, student=3)
    write_run(root / "lost", "cwd", teacher=root / "gone", student=3)
    return root


def test_all_of_them_are_printed_and_written(runs, segdistill):
    code, out, _ = segdistill("eval", runs / "cwd", "--metric", "all")
    assert code == 0
    written = json.loads((runs / "cwd/eval_val.json").read_text())
    assert list(written["metrics"]) == list_metrics()
    for name in list_metrics():
        for key, headline in metric_class(name).headlines.items():
            title, value = headline.title, written["metrics"][name][key]
            told = "–" if value is None else f"{100 * value:.2f}" if title.endswith("%") else f"{value:.4f}"
            line = next(line for line in out.splitlines() if title in line)
            assert told in line, title


def test_without_a_teacher_all_are_those_that_need_none(runs, segdistill):
    code, _, _ = segdistill("eval", runs / "none", "--metric", "all", "--json", runs / "none.json")
    assert code == 0
    assert list(json.loads((runs / "none.json").read_text())["metrics"]) == [
        n for n in list_metrics() if n != "agreement"
    ]


def test_a_few_are_chosen_and_a_teacher_is_named(runs, segdistill):
    given = ("--metric", "sizes", "--metric", "agreement", "--teacher", runs / "none", "--json", runs / "few.json")
    assert segdistill("eval", runs / "none", *given)[0] == 0
    found = json.loads((runs / "few.json").read_text())["metrics"]
    assert list(found) == ["agreement", "sizes"]
    assert (found["agreement"]["agreement"], found["agreement"]["kept"]) == (1.0, 1.0)  # it is its own teacher
    assert found["agreement"]["corrected"] == 0.0


def test_by_default_nothing_is_added(runs, segdistill):
    code, out, _ = segdistill("eval", runs / "none", "--json", runs / "plain.json")
    assert code == 0
    assert "metrics" not in json.loads((runs / "plain.json").read_text())
    assert "further" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--metric", "boundry"], "no metric 'boundry'; did you mean boundary?"),
        (
            ["none", "--metric", "agreement"],
            "its teacher, but the run has no teacher; --teacher RUN names one",
        ),
        (["none", "--metric", "agreement", "--teacher", "nowhere"], "nowhere"),
        (["lost", "--metric", "all"], "gone"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(runs, segdistill, arguments, message):
    code, _, error = segdistill("eval", runs / arguments[0], *arguments[1:])
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_they_are_listed(segdistill):
    code, out, _ = segdistill("list", "metrics")
    assert code == 0
    assert all(name in out for name in list_metrics())


def test_the_example_of_the_page_runs():
    page = (REPOSITORY / "docs/evaluation.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in list_metrics())
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "evaluation.md", "exec"), {})
