import doctest

import pytest
import yaml

from conftest import REPOSITORY
from segdistill.comparison import labels
from segdistill.comparison.plan import load_plan
from segdistill.methods._catalogue import resolve_methods
from segdistill.metrics import list_metrics

BASE = {
    "data": {"name": "synthetic", "size": [32, 32], "workers": 0},
    "student": {"name": "pspnet_resnet18_quarter"},
    "teacher": {"checkpoint": "runs/teacher"},
    "train": {"steps": 100, "warmup": 10, "eval_every": 25, "seed": 7},
}


def names(plan):
    return [run.folder.name for run in plan.runs]


def test_methods_times_seeds():
    plan = load_plan(BASE, ["methods=[none, kd, [cwd, ifvd], {name: skd, pair_weight: 0.5}]", "seeds=2"], "o")
    assert names(plan) == [
        f"synthetic_pspnet_resnet18_quarter_{method}_seed{seed}"
        for seed in (0, 1)
        for method in ("none", "kd", "cwd+ifvd", "skd-pair_weight=0.5")
    ]
    assert [run.config.train.seed for run in plan.runs] == [0] * 4 + [1] * 4
    assert plan.runs[2].config.method_names == ["cwd", "ifvd"]
    assert plan.runs[3].method == "skd(pair_weight=0.5)"
    assert plan.baseline == "none"
    assert plan.options.budget == "steps"
    assert load_plan(BASE, ["methods=[cwd, kd]", "seeds=[4, 9]"]).runs[-1].config.train.seed == 9
    assert load_plan(BASE, ["methods=[cwd, kd]"]).baseline == "cwd"
    assert [run.method for run in load_plan(BASE, ["method=cwd", "seeds=1"]).runs] == ["none", "cwd"]


def test_students_and_data_sets(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"data": {"name": "synthetic", "images": 3}, "student": {"name": "x"}}))
    plan = load_plan(
        BASE,
        [
            "methods=[none]",
            "seeds=1",
            "students=[pspnet_resnet18_quarter, {name: deeplabv3_resnet18_quarter, output_stride: 8}]",
            f"data=[{{label_noise: 0}}, {{label_noise: 1}}, {file}]",
            "student.aux=true",
            "data.batch_size=3",
        ],
    )
    assert [run.data for run in plan.runs][::2] == [
        "synthetic_label_noise=0_size=[32, 32]_workers=0",
        "synthetic_label_noise=1_size=[32, 32]_workers=0",
        "synthetic_images=3",
    ]
    assert len(set(names(plan))) == 6
    assert [run.config.data.options["label_noise"] for run in plan.runs][:4] == [0, 0, 1, 1]
    assert plan.runs[0].config.data.size == (32, 32)
    assert plan.runs[-1].config.data.options["images"] == 3
    assert {run.config.data.batch_size for run in plan.runs} == {3}
    assert all(run.config.student.options["aux"] for run in plan.runs)
    assert {run.student for run in plan.runs} == {"pspnet_resnet18_quarter", "deeplabv3_resnet18_quarter"}
    assert len(plan.rows()) == 6


def test_a_teacher_that_is_trained_first(tmp_path):
    teacher = {"config": {"student": {"name": "deeplabv3_resnet18"}, "train": {"steps": 3}}}
    plan = load_plan({**BASE, "teacher": teacher}, ["methods=[none,kd]", "teacher.config.train.steps=5"], tmp_path)
    (folder,), (config,) = plan.teachers.keys(), plan.teachers.values()
    assert folder == tmp_path / "teacher"
    assert (config.train.steps, config.data.size, config.distils) == (5, (32, 32), False)
    assert plan.runs[1].config.teacher.checkpoint == str(folder)
    own = {"config": {**teacher["config"], "data": {"name": "synthetic", "images": 2}}}
    data = "data=[{label_noise: 0}, {label_noise: 1}]"
    assert len(load_plan({**BASE, "teacher": teacher}, ["methods=[kd]", data], tmp_path).teachers) == 2
    assert len(load_plan({**BASE, "teacher": own}, ["methods=[kd]", data], tmp_path).teachers) == 1
    given = load_plan({**BASE, "teacher": teacher}, ["methods=[none,kd]", "teacher.checkpoint=x"], tmp_path)
    assert not given.teachers
    assert given.runs[0].config.teacher is None  # a baseline is the same whoever teaches the others
    assert given.runs[1].config.teacher.checkpoint == "x"


def test_several_teachers_that_are_trained_first(tmp_path):
    trained = {"config": {"student": {"name": "deeplabv3_resnet18"}, "train": {"steps": 3}}, "views": {"flip": True}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"student": {"name": "pspnet_resnet18_half"}}))
    teacher = [trained, {"checkpoint": "x"}, {"config": str(tmp_path / "other.yaml")}]
    overrides = ["methods=[none,kd]", "teacher.0.config.train.steps=5"]
    plan = load_plan({**BASE, "teacher": teacher}, overrides, tmp_path)
    assert {folder.name: config.student.name for folder, config in plan.teachers.items()} == {
        "teacher0": "deeplabv3_resnet18", "teacher2": "pspnet_resnet18_half"
    }  # fmt: skip
    assert plan.teachers[tmp_path / "teacher0"].train.steps == 5
    sections = plan.runs[1].config.teachers
    assert [section.checkpoint for section in sections] == [str(tmp_path / "teacher0"), "x", str(tmp_path / "teacher2")]
    assert sections[0].views.flip
    assert plan.runs[0].config.teachers == []
    data = "data=[{label_noise: 0}, {label_noise: 1}]"
    assert len(load_plan({**BASE, "teacher": teacher}, ["methods=[kd]", data], tmp_path).teachers) == 4
    given = load_plan({**BASE, "teacher": teacher}, [*overrides, "teacher.0.checkpoint=y"], tmp_path)
    assert [section.checkpoint for section in given.runs[1].config.teachers][:2] == ["y", "x"]
    wrong = {"config": {"student": {"naem": "x"}}}
    with pytest.raises(ValueError, match=r"unknown key student\.naem; did you mean name"):
        load_plan({**BASE, "teacher": [wrong, {"checkpoint": "x"}]}, ["methods=[kd]"], tmp_path)
    with pytest.raises(ValueError, match=r"unknown key teacher\.1\.chekpoint"):
        load_plan({**BASE, "teacher": [trained, {"chekpoint": "x"}]}, ["methods=[kd]"], tmp_path)


def test_a_file_beside_the_configuration_names_the_teacher(tmp_path):
    own = {"data": BASE["data"], "student": {"name": "pspnet_resnet18_half"}, "train": {"steps": 5}}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(own))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**BASE, "teacher": {"config": "teacher.yaml"}}))
    plan = load_plan(tmp_path / "grid.yaml", ["methods=[none,kd]"])
    assert [config.student.name for config in plan.teachers.values()] == ["pspnet_resnet18_half"]


def test_a_file_beside_the_configuration_names_a_student(tmp_path):
    (tmp_path / "small.yaml").write_text("student: {name: pspnet_resnet18_quarter}")
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**BASE, "methods": ["none"], "students": ["small.yaml"]}))
    assert {run.student for run in load_plan(tmp_path / "grid.yaml").runs} == {"pspnet_resnet18_quarter"}


def test_a_method_that_the_others_are_held_against():
    assert load_plan(BASE, ["methods=[none,kd,cwd]", "against=cwd"]).against == "cwd"
    assert load_plan(BASE, ["methods=[none,{name: cwd, weight: 1.0}]", "against=cwd"]).against == "cwd(weight=1.0)"
    assert load_plan(BASE, ["methods=[none,cwd,{name: cwd, weight: 1.0}]", "against=cwd"]).against == "cwd"
    assert load_plan(BASE, ["methods=[none,kd]"]).against is None


def test_runs_are_evaluated_by_the_same_metrics():
    plan = load_plan(BASE, ["methods=[none,cwd]", "metrics=[sizes,agreement]", "teacher.checkpoint=runs/teacher"])
    assert {run.metrics for run in plan.runs} == {("agreement", "sizes")}
    assert {run.guide.teacher.checkpoint for run in plan.runs} == {"runs/teacher"}  # the baseline's, too
    alone = load_plan(BASE, ["methods=[none]", "metrics=[all]"]).runs[0]
    assert (alone.metrics, alone.guide) == (tuple(n for n in list_metrics() if n != "agreement"), None)
    plain = load_plan(BASE, ["methods=[none,cwd]", "metrics=[sizes]", "teacher.checkpoint=runs/teacher"]).runs[1]
    assert (plain.metrics, plain.guide) == (("sizes",), None)


def test_labels():
    assert not doctest.testmod(labels, extraglobs={"resolve_methods": resolve_methods}).failed


def test_the_shipped_comparison_is_the_table():
    plan = load_plan(REPOSITORY / "configs/camvid/compare_cpu.yaml")
    assert plan.out.name == "compare_compare_cpu"
    assert [config.student.name for config in plan.teachers.values()] == ["deeplabv3plus_tf_efficientnet_lite2"]
    assert len(plan.runs) == 8 * 6


def test_a_schedule_is_fitted_to_another_number_of_steps():
    run = load_plan(BASE, ["methods=[none]", "seconds=60"]).runs[0].with_steps(330)
    train = run.config.train
    assert (train.steps, train.warmup, train.eval_every) == (330, 33, 83)  # four validations, as before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "methods: say what to compare"),
        (["method=none"], "methods: say what to compare"),
        (["methods=[none,null]"], "method: expected a name, a mapping, or a list of both, got None"),
        (["methods=[none,[kd,3]]"], "method: expected a name or a mapping, got 3"),
        (["methods=[none,[]]"], r"method: expected a name, a mapping, or a list of both, got \[\]"),
        (["methods=[none]", "data=3"], "data: expected a mapping, got 3"),
        (["methods=[none]", "student=3"], "student: expected a mapping, got 3"),
        (["methods=[none]", "students=[3]"], "expected names, files or mappings, got 3"),
        (["methods=[]"], "methods: .* at least 1 item"),
        (["methods=[none,kdd]"], "no method 'kdd'; did you mean kd"),
        (["methods=[kd,kd]"], "methods: kd is named 2 times"),
        (["methods=[none]", "seeds=[1,1]"], "different whole numbers"),
        (["methods=[none]", "seeds=0"], "seeds: expected a count"),
        (["methods=[none]", "sedes=3"], "unknown key sedes; did you mean seeds"),
        (["methods=[none]", "budget=seconds"], "budget=seconds and seconds=N go together"),
        (["methods=[none]", "budget=steps", "seconds=4"], "go together"),
        (["methods=[none]", "students=[pspnet_resnet18, pspnet_resnet18]"], "named 2 times"),
        (["methods=[none]", "data=[]"], "at least one data set"),
        (["methods=[none]", "data=[3]"], "expected names, files or mappings, got 3"),
        (["methods=[none]", "train.step=3"], "unknown key train.step; did you mean steps"),
        (["methods=[none]", "teacher.config=missing.yaml"], "beside it belong views and cache, not checkpoint"),
        (["methods=[none]", "metrics=[boundry]"], "^metrics: no metric 'boundry'; did you mean boundary"),
        (["methods=[none]", "metrics=boundary"], "metrics: .* valid list"),
        (["methods=[none]", "metrics=[agreement]"], "^metrics: agreement compares a student with its teacher, and the"),
        (["methods=[none,cwd]", "against=cdw"], "against: no method 'cdw'; did you mean cwd?"),
        (["methods=[none,cwd]", "against=none"], "against: none is the baseline, which all are held against; name an"),
        (["methods=[none,{name: cwd, weight: 1},{name: cwd, weight: 2}]", "against=cwd"], "'cwd'; .* begin so"),
        (["methods=[none]", "labelled=[]"], "labelled: .* at least 1 item"),
        (["methods=[none]", "labelled=[0.5,0.50]"], "labelled: 50 % is named 2 times"),
    ],
)
def test_mistakes_are_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(BASE, overrides)
    assert "\n" not in str(caught.value)


def test_a_method_needs_a_teacher():
    alone = {key: value for key, value in BASE.items() if key != "teacher"}
    assert load_plan(alone, ["methods=[none]"]).runs
    with pytest.raises(ValueError, match=r"method kd needs a teacher; set teacher\.checkpoint=RUN or teacher\.config"):
        load_plan(alone, ["methods=[none,kd]"])
