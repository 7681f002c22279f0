"""`segdistill eval --metric`: what is chosen, where the teacher comes from, what is printed and written."""

import json
import re

import pytest

from conftest import REPOSITORY
from segdistill.engine.student import make_card, save_student
from segdistill.metrics import list_metrics, metric_class
from segdistill.models import build_model
from test_report import NAMES, write_run

OTHERS = {
    "many": [f"thing {number}" for number in range(20)],
    "few": NAMES[:5],
    "longer": ["nothing", *NAMES],
    "shuffled": NAMES[::-1],
    "renamed": [f"my {name}" for name in NAMES],
}
"""Classes of networks that are no teachers of these data, but for the last one, whose names may mean the same."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    teacher = write_run(root / "teacher", student=1)
    write_run(root / "none", student=2)
    write_run(root / "cwd", "cwd", teacher=teacher, student=3)
    write_run(root / "lost", "cwd", teacher=root / "gone", student=3)
    write_run(root / "foreign", "cwd", teacher=root / "many.safetensors", student=3)
    for name, classes in OTHERS.items():
        network = build_model("pspnet_resnet18_quarter", num_classes=len(classes), output_stride=16)
        save_student(root / f"{name}.safetensors", network, make_card(network, classes, [(0, 0, 0)] * len(classes)))
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


def test_a_teachers_names_may_be_others(runs, segdistill):
    given = ("--metric", "agreement", "--teacher", runs / "renamed.safetensors", "--json", runs / "renamed.json")
    assert segdistill("eval", runs / "none", *given)[0] == 0
    assert json.loads((runs / "renamed.json").read_text())["metrics"].keys() == {"agreement"}


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
        *(
            (["none", "--metric", "agreement", "--teacher", f"{name}.safetensors"], f"{name}.safetensors{line}")
            for name, line in {
                "many": " has 20 classes, the data set 11 (sky, building, ",
                "few": " has 5 classes, the data set 11 (sky, building, ",
                "longer": " has 12 classes, the data set 11 (sky, building, ",
                "shuffled": f": class 0 of the network is {NAMES[-1]}, which is class 10 of the data; class_map: ",
            }.items()
        ),
        (["foreign", "--metric", "all"], "many.safetensors has 20 classes"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(runs, segdistill, arguments, message):
    given = [runs / argument if argument.endswith(".safetensors") else argument for argument in arguments[1:]]
    code, _, error = segdistill("eval", runs / arguments[0], *given)
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
