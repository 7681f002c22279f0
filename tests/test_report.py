"""The report: what is read, what is compared with what, and the page itself."""

import doctest
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from faults import read_metrics
from segdistill import cli
from segdistill.comparison.work import evaluate_teacher
from segdistill.data import build_dataset
from segdistill.engine import settings
from segdistill.engine.config import load_config
from segdistill.engine.eval_config import EvalConfig
from segdistill.engine.evaluate import evaluate
from segdistill.engine.protocol import infer_ids
from segdistill.engine.student import load_student, make_card, save_student
from segdistill.engine.teacher import Mapped, build_teacher
from segdistill.models import build_model
from segdistill.report import classes, collect, figures, inference, pictures, write_report
from segdistill.report.collect import Spread, find_runs, number, read_run
from segdistill.report.figures import page_svg, place_labels
from segdistill.report.page import percent, points, short, tiles, tint
from segdistill.report.prototypes import Prototypes
from segdistill.report.study import read_study
from segdistill.report.teachers import take_compared

DATA = {"name": "synthetic", "size": [32, 32], "images": 6, "batch_size": 4, "workers": 0}
NAMES = build_dataset("synthetic", "val", images=1, size=(32, 32)).classes


def iou(level, step=0.02):
    return {name: round(level + step * i, 4) for i, name in enumerate(NAMES)}


def write_run(folder, method="none", *, seed=0, level=0.2, teacher=None, finished=True, student=None, **options):
    """A run folder as training leaves it, with or without real weights."""
    folder.mkdir(parents=True)
    config = {
        "data": DATA,
        "student": {"name": "pspnet_resnet18_quarter", "output_stride": 16},
        "teacher": None if teacher is None else {"checkpoint": str(teacher)},
        "method": [{"name": method, **options}],
        "train": {"steps": 40, "seed": seed, "log_every": 10},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": s, "loss": 3 / s**3, "ce": 2 / s, f"{method}_logits": 1 / s, "lr": 0.1, "grad_norm": 1.0,
         "images_per_s": 9.0, "data_wait": 0.1, "memory_mb": 100.0}
        for s in (10, 20, 30, 40)
    ]  # fmt: skip
    scores = {"miou": float(np.mean(list(iou(level).values()))), "macc": level + 0.1, "pixel_accuracy": 0.7}
    for step, share in ((20, 0.5), (40, 1.0)):
        values = {f"val_{key}": value * share for key, value in scores.items()}
        lines.append({"step": step, **values, "val_iou": {k: v * share for k, v in iou(level).items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = {**scores, "iou": iou(level), "params": 700_000, "flops": 7e9, "steps": 40, "best_step": 40,
                   "seconds": 60.0, "student": "pspnet_resnet18_quarter", "method": [method], "seed": seed}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    if student is not None:
        torch.manual_seed(student)
        network = build_model("pspnet_resnet18_quarter", num_classes=len(NAMES), output_stride=16)
        palette = [(i, 2 * i, 255 - i) for i in range(len(NAMES))]
        save_student(folder / "student.safetensors", network, make_card(network, NAMES, palette))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a baseline and of cwd, and their teacher; the first ones with weights."""
    root = tmp_path_factory.mktemp("runs")
    teacher = write_run(root / "teacher", level=0.4, student=1)
    for seed in (0, 1):
        write_run(root / f"none_seed{seed}", seed=seed, level=0.2 + 0.02 * seed, student=2 if not seed else None)
        name = f"cwd_seed{seed}"
        write_run(root / name, "cwd", seed=seed, level=0.25 + 0.03 * seed, teacher=teacher,
                  student=3 if not seed else None)  # fmt: skip
    return root


class Page(HTMLParser):
    """What a page is made of, and whether its elements are closed in order."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.images, self.text, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        if tag == "img":
            self.images.append(given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def check_page(path):
    """The page as a browser without a network sees it."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all("alt" in image for image in page.images)
    assert all(image["src"].startswith("data:") for image in page.images if "src" in image)
    assert all(given.get("aria-label") for tag, given in page.tags if tag == "svg")
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)  # no file, no network
    assert not re.search(r"url\((?!#)|@import", text)
    assert "mathdefault" not in text  # matplotlib's own marks of powers
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", " ".join(page.text))
    for anchor in re.findall(r'href="#([\w-]+)"', text):
        assert anchor in page.ids
    return page, " ".join(" ".join(page.text).split())


def test_a_run_is_read_as_far_as_it_goes(tmp_path):
    folder = write_run(tmp_path / "run", "kd", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "loss": NaN, "kd_logits": Infinity}\n[1]\n{"step": 60, "lo')
    run = read_run(folder)
    assert (run.done, run.planned, run.finished, run.seed) == (50, 40, False, 0)
    assert (run.methods, run.network, run.data) == (["kd"], "pspnet_resnet18_quarter", "synthetic")
    assert run.result["miou"] == pytest.approx(np.mean(list(iou(0.2).values())))  # of the best validation
    assert run.classes == NAMES
    assert run.cost("images_per_s") == 9.0
    assert [number(v) for v in (float("nan"), float("inf"), None, True, "1", 2)] == [None] * 5 + [2.0]


def test_runs_are_found_in_folders(runs, tmp_path):
    assert find_runs(runs / "teacher") == [runs / "teacher"]
    assert len(find_runs(runs)) == 5
    with pytest.raises(ValueError, match=r"no run at .*expected a folder with config.yaml"):
        find_runs(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary.json is not a JSON object"):
        read_run(tmp_path)


def test_seeds_are_grouped_and_compared_in_pairs(runs):
    study = read_study([runs])
    assert [(group.label, group.role, len(group.runs)) for group in study.groups] == [
        ("baseline", "baseline", 2),
        ("cwd", "student", 2),
    ]
    assert study.teacher.runs[0].name == "teacher"
    assert study.focus.label == "cwd"
    gain = study.gain(study.focus)  # 5 and 6 points
    assert (gain.mean, gain.sd, gain.count) == (pytest.approx(0.055), pytest.approx(0.0070711, abs=1e-6), 2)
    miou = study.groups[0].result("miou")
    assert (miou.mean - np.mean(list(iou(0.21).values())), miou.sd) == (
        pytest.approx(0),
        pytest.approx(0.0141421, abs=1e-6),
    )
    assert study.groups[1].iou(NAMES[0]) == pytest.approx(0.265)
    assert study.gain(study.groups[0]) is None
    assert Spread.of([None, float("nan")]) is None


def test_a_gain_without_pairs_has_no_deviation(runs):
    study = read_study([runs / "cwd_seed0", runs / "cwd_seed1"], baseline=runs / "none_seed0", teacher=runs / "teacher")
    gain = study.gain(study.focus)
    assert (gain.mean, gain.sd) == (pytest.approx(0.065), None)
    assert study.given.label == "baseline"


def test_a_baseline_of_another_schedule_is_told(tmp_path):
    student = write_run(tmp_path / "cwd", "cwd")
    longer = write_run(tmp_path / "longer")
    config = (longer / "config.yaml").read_text()
    (longer / "config.yaml").write_text(config.replace("steps: 40", "steps: 80"))
    study = read_study([student, longer])
    assert study.unequal(study.focus) == ["train.steps"]
    assert "differs from its baseline in train.steps" in study.notes[0]
    # of two baselines, the one of the same schedule
    equal = read_study(
        [student, longer, write_run(tmp_path / "equal", level=0.1)]
    )  # of two, the one of the same schedule
    assert equal.baseline(equal.focus).runs[0].name == "equal"
    assert equal.notes == []


def change(folder, **sections):
    """Change sections of a run's configuration; what is no mapping is another section instead."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, values in sections.items():
        config[name] = {**(config.get(name) or {}), **values} if isinstance(values, dict) else values
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_baseline_of_other_losses_or_another_protocol_is_told(tmp_path):
    student = write_run(tmp_path / "cwd", "cwd")
    other = change(write_run(tmp_path / "none"), supervised={"jaccard": 1.0}, eval={"flip": True, "absent": "zero"})
    study = read_study([student, other])
    assert study.unequal(study.focus) == ["eval.absent", "eval.flip", "supervised.jaccard"]
    assert study.notes[:2] == [
        "The runs differ in eval.absent (skip, zero): their figures are not comparable.",
        "The runs differ in eval.flip (False, True): their figures are not comparable.",
    ]
    assert "differs from its baseline in eval.absent, eval.flip, supervised.jaccard" in study.notes[2]


def test_a_protocol_by_its_name_is_that_of_its_settings(tmp_path):
    named = change(write_run(tmp_path / "named", "cwd"), eval={"protocol": "skd"})
    values = yaml.safe_dump(load_config(named).eval.model_dump(mode="json", exclude={"protocol"}))
    spelt = change(write_run(tmp_path / "spelt"), eval=yaml.safe_load(values))
    assert read_study([named, spelt]).notes == []


def test_figures_of_other_images_are_told(tmp_path):
    student = write_run(tmp_path / "cwd", "cwd")
    other = change(write_run(tmp_path / "none"), data={"only": {"val": "a*", "train": "b*"}})
    line = "The runs differ in data.only.val (None, a*): their figures are not comparable."
    assert [note for note in read_study([student, other]).notes if "comparable" in note] == [line]


def test_the_gap_is_closed_by_the_gain(tmp_path):
    """Of a student with the lucky seed alone, neither is held against the mean of all baselines."""
    for seed, level in ((0, 0.1), (1, 0.3)):
        write_run(tmp_path / f"none{seed}", seed=seed, level=level)
    teacher = write_run(tmp_path / "teacher", level=0.5)
    write_run(tmp_path / "cwd", "cwd", seed=1, level=0.35, teacher=teacher)
    study = read_study([tmp_path])
    after, most = (group.result("miou").mean for group in (study.focus, study.teacher))
    before = study.start(study.focus).mean
    assert study.gain(study.focus).mean == pytest.approx(after - before)
    assert before == pytest.approx(np.mean(list(iou(0.3).values())))
    told = {title: (value, remark) for title, value, remark in tiles(study)}
    value, remark = told["gap closed"]
    assert value == f"{100 * (after - before) / (most - before):.0f} %"
    assert f"from {100 * before:.2f} to" in remark


def test_a_baseline_is_that_of_the_same_student(tmp_path):
    for width in (16, 64):
        for method, level in (("none", 0.1 + 0.001 * width), ("kd", 0.2)):
            folder = write_run(tmp_path / f"{method}{width}", method, level=level)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["student"]["head_width"] = width
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    study = read_study([tmp_path])
    assert {g.label: study.baseline(g).label for g in study.groups if g.role == "student"} == {
        "kd (head_width=16)": "baseline (head_width=16)",
        "kd (head_width=64)": "baseline (head_width=64)",
    }
    alone = read_study([tmp_path / "kd16", tmp_path / "none64"])
    assert alone.unequal(alone.focus) == ["student.head_width"]


def test_no_two_groups_have_one_label(tmp_path):
    for parent in ("a", "b"):
        options = {name: len(name) + (parent == "b") for name in ("weight", "temperature", "sigma", "rank")}
        write_run(tmp_path / parent / "cwd", "cwd", **options)
        write_run(tmp_path / parent / "c/cwd", "cwd", extra=1, **options)
    assert {group.label for group in read_study([tmp_path / "a/cwd", tmp_path / "b/cwd"]).groups} == {
        "cwd (a/cwd)",
        "cwd (b/cwd)",
    }
    labels = {group.label for group in read_study([tmp_path]).groups}
    assert len(labels) == 4
    assert f"cwd ({tmp_path / 'a/c/cwd'})" in labels


def test_the_teacher_is_that_of_the_student_in_focus(tmp_path):
    for name, level in (("a", 0.5), ("b", 0.6)):
        teacher = write_run(tmp_path / f"teacher_{name}", level=level)
        for seed in range(3 if name == "a" else 1):
            write_run(tmp_path / f"kd_{name}{seed}", "kd", teacher=teacher, seed=seed, level=level - 0.1)
    study = read_study([tmp_path])
    assert study.teacher.runs[0].name == "teacher_b"
    assert study.notes == [
        f"The runs have 2 teachers; shown is that of {study.focus.label}, {(tmp_path / 'teacher_b').resolve()}."
    ]


def taught_by_two(root, **students):
    """A student of two teachers, the first one mirrored as well; and both teachers."""
    a = write_run(root / "a", level=0.5, student=students.get("a"))
    b = write_run(root / "b", level=0.6, student=students.get("b"))
    kd = write_run(root / "kd", "kd", level=0.3, student=students.get("kd"))
    config = yaml.safe_load((kd / "config.yaml").read_text())
    config["teacher"] = [{"checkpoint": str(a), "views": {"flip": True}}, {"checkpoint": str(b)}]
    (kd / "config.yaml").write_text(yaml.safe_dump(config))
    return kd, a, b


def test_several_teachers_are_shown_as_their_mean(tmp_path):
    kd, a, b = taught_by_two(tmp_path)
    study = read_study([tmp_path])
    assert [group.first.name for group in study.groups] == ["kd"]
    assert study.teacher.first.network == "the mean of 3: pspnet_resnet18_quarter (2 views) + pspnet_resnet18_quarter"
    assert study.teacher.result("params") == Spread(1_400_000, None, 1)
    assert study.teacher.result("miou") is None  # it was not evaluated yet
    assert [run.name for run in study.all_runs] == ["a", "b", "kd"]
    means = [100 * read_run(folder).result["miou"] for folder in (a, b)]
    told = ", ".join(f"pspnet_resnet18_quarter {mean:.2f} %" for mean in means)
    assert study.notes == [
        f"{study.focus.label} learned from the mean of 3 networks or views. The teacher on this page is that mean. "
        f"Alone, seeing each image once: {told}."
    ]
    named = read_study([kd], teacher=b)
    assert (named.notes, named.members, named.teacher.first.name) == ([], [], "b")
    config = yaml.safe_load((kd / "config.yaml").read_text())
    (kd / "config.yaml").write_text(yaml.safe_dump({**config, "teacher": ["a"]}))
    with pytest.raises(ValueError, match=r"teacher.*a mapping or a list of mappings"):
        read_study([kd])


FEATURES_ALONE = {
    "mimic": [{"name": "mimic"}],
    "at": ["at"],
    "local": "local",
    "two": [{"name": "mimic", "taps": ["low1", "features"]}, {"name": "at"}],
    "a term without weight": [{"name": "kd", "weight": 0.0}, {"name": "mimic"}],
}
"""Methods that read nothing of a teacher that is averaged."""


@pytest.mark.parametrize("method", FEATURES_ALONE.values(), ids=FEATURES_ALONE)
def test_methods_that_read_features_alone_learned_from_the_first_teacher(tmp_path, method):
    kd, a, b = taught_by_two(tmp_path)
    change(kd, method=method)
    study = read_study([tmp_path])
    assert [group.first.name for group in study.groups] == ["kd"]  # the other network is none of the students
    assert (study.teacher.first.name, study.members) == ("a", [])
    assert study.teacher.result("miou").mean == read_run(a).result["miou"]
    beginning = (
        f"{study.focus.label} did not learn from the mean of 3 networks or views: its methods read neither logits nor "
        "output, and all else is the first network's."
    )
    told = f" The teacher on this page is that network alone, {a.resolve()}, which sees each image once."
    assert study.notes == [beginning + told]
    assert (read_study([kd], teacher=b).notes, read_study([kd], teacher=b).teacher.first.name) == ([], "b")
    shutil.rmtree(a)
    study = read_study([tmp_path])
    assert (study.notes, study.teacher) == ([beginning], None)  # not the second network, of which it saw nothing


def test_one_teachers_views_are_not_seen_by_features(tmp_path):
    a = write_run(tmp_path / "a", level=0.5)
    kd = write_run(tmp_path / "kd", "kd", level=0.3)
    for method, members in (("kd", 1), ("mimic", 0), (["mimic", "kd"], 1), ("a method of another place", 1)):
        change(kd, method=method, teacher={"checkpoint": str(a), "views": {"flip": True}})
        study = read_study([tmp_path])
        assert len(study.members) == members
        assert (" did not learn from the mean of 2 " in study.notes[0]) == (not members)


def test_what_two_students_learned_from_one_list_may_differ(tmp_path):
    kd, a, b = taught_by_two(tmp_path)
    change(shutil.copytree(kd, tmp_path / "mimic"), method="mimic")
    study = read_study([tmp_path])
    assert study.notes[0] == (
        f"The runs have 2 teachers; shown is that of {study.focus.label}, {a.resolve()}, {b.resolve()}."
    )


def test_the_page_has_the_figures_of_the_first_teacher_where_the_mean_was_not_seen(tmp_path):
    kd, a, _ = taught_by_two(tmp_path, a=1, b=2, kd=3)
    change(kd, method="mimic")
    text = write_report([tmp_path], images=1, say=lambda _: None).read_text(encoding="utf-8")
    row = text.split('<tr class="teacher">')[1].split("</tr>")[0]
    assert f"<b>{100 * read_run(a).result['miou']:.2f}</b>" in row
    assert "the mean of" not in row
    assert "did not learn from the mean of 3 networks or views" in text
    study = read_study([tmp_path])
    with inference.survey(study, "cpu", lambda _: None) as found:
        image, _, predicted = found.predict(0)
        with torch.no_grad():
            ids = infer_ids(load_student(a), image[None], found.protocol)[0]
        assert torch.equal(predicted["teacher"], ids)


def test_of_several_teachers_that_are_not_all_there_the_first_one_is_shown(tmp_path):
    _, a, b = taught_by_two(tmp_path)
    shutil.rmtree(b)
    study = read_study([tmp_path])
    assert study.teacher.first.name == "a"
    assert study.notes == [
        f"{study.focus.label} learned from the mean of 3 networks or views, of which not all are there; the teacher's "
        f"figures and pictures are those of {a.resolve()} alone, which sees each image once."
    ]


def test_runs_with_one_teacher_and_with_two_have_different_ones(tmp_path):
    _, a, _ = taught_by_two(tmp_path)
    write_run(tmp_path / "cwd", "cwd", level=0.2, teacher=a)
    assert any(
        note.startswith("The runs have 2 teachers; shown is that of kd") for note in read_study([tmp_path]).notes
    )


def test_the_mean_of_several_teachers_is_evaluated_as_a_whole(tmp_path):
    taught_by_two(tmp_path / "here", a=1, b=2, kd=3)
    moved = shutil.move(tmp_path / "here", tmp_path / "moved")
    kd = moved / "kd"
    text = write_report([moved], images=1, say=lambda _: None).read_text(encoding="utf-8")
    config = load_config(kd)
    sections = [
        section.model_copy(update={"checkpoint": str(moved / name)})
        for section, name in zip(config.teachers, ("a", "b"), strict=True)
    ]
    whole = evaluate_teacher(config.model_copy(update={"teacher": sections}), "val")
    alone = evaluate(load_student(moved / "a"), build_dataset("synthetic", "val", images=6, size=(32, 32)))
    assert whole["miou"] != alone["miou"]
    row = text.split('<tr class="teacher">')[1].split("</tr>")[0]
    assert f"<b>{100 * whole['miou']:.2f}</b>" in row
    assert f"{whole['params'] / 1e6:.2f}" in row
    assert '<td class="n">2</td>' in row  # runs
    assert '<td class="n">40</td>' in row  # steps
    assert "the mean of 3: pspnet_resnet18_quarter (2 views) + pspnet_resnet18_quarter" in row
    assert "the teacher is the mean of 3: pspnet" in text
    study = read_study([moved])
    with inference.survey(study, "cpu", lambda _: None) as found:
        image, _, predicted = found.predict(0)
        teacher = build_teacher(config.model_copy(update={"teacher": sections}), NAMES)
        with torch.no_grad():
            ids = infer_ids(Mapped(teacher), image[None], found.protocol)[0]
        assert torch.equal(predicted["teacher"], ids)
        assert np.array_equal(found.confusion["teacher"].sum(1), found.confusion["kd"].sum(1))
    told = write_report([moved], images=0, say=lambda _: None).read_text(encoding="utf-8")
    assert "has no figures here, which need the networks: leave out --images 0" in told


def test_a_mean_that_does_not_know_all_classes_has_no_figures(tmp_path):
    kd, _, _ = taught_by_two(tmp_path, a=1, b=2, kd=3)
    config = yaml.safe_load((kd / "config.yaml").read_text())
    config["teacher"][0]["class_map"] = {name: name for name in NAMES[:-1]}
    (kd / "config.yaml").write_text(yaml.safe_dump(config))
    text = write_report([tmp_path], images=1, say=lambda _: None).read_text(encoding="utf-8")
    assert "No pictures: the teacher does not know all classes of the data" in text


def test_a_comparison_has_the_figures_of_the_mean(tmp_path):
    taught_by_two(tmp_path)
    table = {"runs": [{"folder": "kd", "data": "synthetic"}], "split": "test"}
    found = {"miou": 0.625, "metrics": {"boundary": {"miou": 0.375}}}
    study = read_study([tmp_path])
    take_compared(study.teacher.first, study.focus.first, tmp_path, {**table, "teachers": {"synthetic": found}})
    assert study.teacher.evaluation("test", "miou") == Spread(0.625, None, 1)
    other = read_study([tmp_path])
    for folder, teachers in ((tmp_path / "elsewhere", {"synthetic": found}), (tmp_path, {"other": found})):
        take_compared(other.teacher.first, other.focus.first, folder, {**table, "teachers": teachers})
    assert other.teacher.evaluation("test", "miou") is None


def test_groups_of_one_method_are_told_apart(tmp_path):
    for weight in (1.0, 3.0):
        write_run(tmp_path / f"w{weight}", "cwd", teacher=tmp_path, weight=weight)
    study = read_study([tmp_path / "w1.0", tmp_path / "w3.0"])
    assert [group.label for group in study.groups] == ["cwd (weight=1.0)", "cwd (weight=3.0)"]
    assert len({group.colour for group in study.groups}) == 2


def test_a_teachers_path_of_another_place_is_found_beside_the_run(tmp_path, monkeypatch):
    write_run(tmp_path / "here/teacher")
    write_run(tmp_path / "here/kd", "kd", teacher="elsewhere/teacher")
    assert read_study([tmp_path / "here/kd"]).teacher.runs[0].name == "teacher"
    monkeypatch.chdir(tmp_path / "here/kd")
    assert read_study(["."]).teacher.runs[0].name == "teacher"
    write_run(tmp_path / "cwd", "cwd", teacher=tmp_path)  # a folder that is there, but no run
    assert read_study([tmp_path / "cwd"]).teacher is None


def test_other_classes_are_refused_in_one_line(runs, tmp_path):
    folder = write_run(tmp_path / "other")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"iou": {"wall": 0.5}}))
    with pytest.raises(ValueError, match=f"has {len(NAMES)} classes, .*other 1; a report compares runs on the same"):
        read_study([runs / "cwd_seed0", folder])
    (folder / "summary.json").write_text(json.dumps(summary | {"iou": dict.fromkeys([*NAMES[:-1], "wall"], 0.5)}))
    with pytest.raises(ValueError, match=f"the class '{NAMES[-1]}' where .*other has 'wall'"):
        read_study([runs / "cwd_seed0", folder])


def test_class_rows_are_sorted_by_difficulty_with_their_shares(runs):
    study = read_study([runs])
    confusion = np.eye(len(NAMES)) * np.arange(1, len(NAMES) + 1)
    rows = classes.class_rows(study, study.focus, confusion)
    assert [row.name for row in rows] == NAMES  # IoU rises along the list
    assert rows[0].gain == pytest.approx(0.055)
    assert rows[0].share == pytest.approx(1 / confusion.sum())
    assert rows[0].teacher == pytest.approx(0.4)


def test_improvement_is_what_it_says():
    rng = np.random.default_rng(0)
    student, other = rng.integers(0, 50, (4, 4)).astype(float), rng.integers(1, 50, (4, 4)).astype(float)
    student[2] = 0
    change = classes.improvement(student, other)
    for i in range(4):
        for j in range(4):
            if i == 2:
                assert np.isnan(change[i, j])
                continue
            difference = student[i, j] / student[i].sum() - other[i, j] / other[i].sum()
            assert change[i, j] == pytest.approx(difference if i == j else -difference)
    worst = classes.largest_changes(change, list("abcd"), 3)
    off = sorted((abs(change[i, j]) for i in (0, 1, 3) for j in range(4) if i != j), reverse=True)
    assert [abs(value) for _, _, value in worst] == pytest.approx(off[:3])


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    xs, ys = rng.integers(0, 5, 12).tolist(), rng.normal(size=12).tolist()  # with ties
    assert classes.rank_correlation(xs, ys) == pytest.approx(spearmanr(xs, ys).statistic, abs=1e-6)
    assert classes.rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert classes.rank_correlation([1, 2], [1, 2]) is None


@pytest.mark.parametrize("module", [classes, collect, figures, pictures, settings])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_prototypes_of_a_linear_image_of_the_teacher_coincide():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (4, 6, 6))
    labels[labels == 1] = 0  # class 1 is absent
    teacher = torch.randn(4, 5, 6, 6) + labels[:, None]
    mixed = torch.einsum("nahw,ab->nbhw", teacher, torch.randn(5, 8))
    linear, same = Prototypes(3, mapped=True), Prototypes(3, mapped=False)
    for i in range(4):
        one = slice(i, i + 1)
        linear.add(mixed[one], teacher[one], labels[one], fit=i % 2 == 0)
        same.add(teacher[one] + torch.tensor([3.0, 0, 0, 0, 4.0])[:, None, None], teacher[one], labels[one], fit=False)
    found, moved = linear.distances(), same.distances()
    unit = torch.pdist(torch.stack([teacher.transpose(0, 1)[:, labels == c].mean(1) for c in (0, 2)])).item()
    assert found.means[0] < 1e-3
    assert found.means[1] == pytest.approx(1.0, abs=1e-2)
    assert np.isnan(found.within[1])
    assert moved.within[0] == pytest.approx(5 / unit, rel=1e-4)
    assert Prototypes(3, mapped=True).distances() is None


def test_images_are_chosen_by_their_gain_and_apart_from_one_another():
    baseline = np.full((40, 2), 0.5)
    student = baseline.copy()
    student[10:14, 0], student[30, 1], student[5] = 0.9, 0.1, np.nan
    student[20] = [0.7, 0.6]
    helped, hurt, score = pictures.choose({"a": student, "b": baseline}, "a", "b", 2)
    assert (helped, hurt) == ([10, 20], [30])  # 11 to 13 show the same scene as 10
    assert score[20] == pytest.approx(0.15)
    best, worst, _ = pictures.choose({"a": student}, "a", None, 1)
    assert (best, worst) == ([10], [30])


def test_pictures_keep_their_colours():
    ids = np.uint8([[0, 1, 2], [255, 1, 0]])
    colours = [(9, 8, 7), (250, 0, 1), (0, 255, 0)]
    pixels = np.asarray(pictures.open_uri(pictures.indexed_uri(ids, colours)))
    assert pixels[0].tolist() == [[*colour, 255] for colour in colours]
    assert pixels[1, 0, 3] == 0
    photo = pictures.open_uri(pictures.photo_uri(torch.full((3, 8, 1500), 0.5)))
    assert photo.size == (pictures.WIDTH, 4)
    assert abs(int(np.asarray(photo)[0, 0, 0]) - 128) <= 3


def test_an_svg_joins_a_page_without_clashes():
    raw = (
        '<?xml version="1.0"?>\n<svg height="9pt" viewBox="0 0 9 9" width="9pt"><metadata>x</metadata>'
        '<g id="series-3_x"><path id="p1" d="M 1.23456 2"/></g><g id="axes_1"/><use href="#p1" style="fill: #1b2027"/>'
        "<text style=\"font: 8px 'DejaVu Sans', sans-serif\">1.23456</text></svg>"
    )
    svg = page_svg(raw, "f7", 'a "b" <c>')
    assert svg.startswith('<svg class="plot" role="img" aria-label="a &quot;b&quot; &lt;c&gt;" viewBox="0 0 9 9"')
    for part in (
        'class="series-3"',
        'id="f7-p1"',
        'href="#f7-p1"',
        "var(--ink)",
        "8px var(--font)",
        ">1.23456<",
        "M 1.23 2",
    ):
        assert part in svg
    assert "axes_1" not in svg
    assert "metadata" not in svg


def test_points_on_top_of_one_another_are_all_named():
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    points = [(8.0, 0.38 + 0.002 * i, f"method {i}") for i in range(9)] + [(25.0, 0.5, "teacher")]
    axes.plot([x for x, *_ in points], [y for _, y, _ in points], "o")
    axes.margins(0.2)
    place_labels(axes, points)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
    assert {text.get_text() for text in axes.texts} == {name for *_, name in points}
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_numbers_as_people_read_them():
    assert (percent(None), percent(0.5), percent(Spread(0.5, 0.01, 2))) == ("–", "50.0", "50.00 ± 1.00")
    assert (points(-0.0123), points(Spread(0.02, None, 1))) == ("−1.2", "+2.00")
    assert (short(None), short(1234.6), short(0.01234), short(Spread(2e6, None, 1), 1e-6)) == (
        "–",
        "1,235",
        "0.0123",
        "2",
    )
    assert tint(None) == "transparent"
    assert tint(0.05) == "rgba(31,119,201,0.25)"


def test_a_whole_report(runs, tmp_path):
    lines = []
    path = write_report([runs], out=tmp_path / "out", images=2, figures="png", device="cpu", say=lines.append)
    page, text = check_page(path)
    assert lines == ["6 images through teacher, baseline, cwd"]
    for section in ("results", "training", "classes", "prototypes", "confusions", "pictures", "costs", "runs"):
        assert section in page.ids
    assert "+5.50 ± 0.71" in text
    made = {file.stem for file in (tmp_path / "out/figures").glob("*.png")}
    wanted = {"miou", "term_loss", "term_cwd_logits", "classes", "gain_difficulty", "gain_pixels"}
    wanted |= {"prototypes_features", "prototypes_scores", "confusion_baseline", "confusion_teacher"}
    assert wanted <= made
    assert made & {"helped", "hurt"}
    shots = [given for tag, given in page.tags if tag == "article"]
    assert 1 <= len(shots) <= 4
    ious = json.loads(shots[0]["data-ious"])
    assert ious.keys() == {"teacher", "baseline", "cwd"}
    layers = [image["data-layer"] for image in page.images if "data-layer" in image][:8]
    assert layers == ["photo", "truth", "teacher", "baseline", "cwd", "change", "errors of baseline", "errors of cwd"]
    sliders = [given for tag, given in page.tags if tag == "input" and given["type"] == "range"]
    assert all(given.get("aria-label") for given in sliders)


def test_the_survey_agrees_with_the_evaluation(runs):
    study = read_study([runs])
    with inference.survey(study, "cpu", lambda _: None) as found:
        dataset = found.dataset
        result = evaluate(load_student(runs / "cwd_seed0"), dataset)
        assert found.confusion["cwd"].tolist() == result["confusion"]
        image, truth, predicted = found.predict(3)
        assert image.shape == (3, 32, 32)
        for name, ids in predicted.items():
            for c in range(len(NAMES)):
                hit, union = ((ids == c) & (truth == c)).sum(), ((ids == c) & (truth != 255) | (truth == c)).sum()
                expected = float(hit / union) if (truth == c).any() else float("nan")
                assert found.by_image[name][3, c] == pytest.approx(expected, nan_ok=True)
        assert found.features.keys() == found.scores.keys() == {"baseline", "cwd"}


@pytest.mark.parametrize("section", [{"window": [24, 24]}, {"short_side": 40, "absent": "zero"}], ids=str)
def test_the_survey_follows_the_protocol(runs, tmp_path, section):
    copied = shutil.copytree(runs, tmp_path / "runs")
    for path in copied.glob("*/config.yaml"):
        text = path.read_text().replace(str(runs), str(copied))
        path.write_text(yaml.safe_dump({**yaml.safe_load(text), "eval": section}))
    with inference.survey(read_study([copied]), "cpu", lambda _: None) as found:
        protocol = EvalConfig(**section).build()
        for label, folder in (("cwd", "cwd_seed0"), ("baseline", "none_seed0")):
            network = load_student(copied / folder)
            assert found.confusion[label].tolist() == evaluate(network, found.dataset, protocol=protocol)["confusion"]
            image, _, predicted = found.predict(2)
            assert torch.equal(predicted[label], infer_ids(network, image[None], protocol)[0])
        assert found.features.keys() == found.scores.keys() == {"baseline", "cwd"}


def test_the_page_names_the_protocol(tmp_path):
    folder = write_run(tmp_path / "run")
    written = yaml.safe_load((folder / "config.yaml").read_text())
    for section, line in (({"protocol": "skd", "absent": "zero"}, "; protocol skd: whole images; absent"), (3, None)):
        (folder / "config.yaml").write_text(yaml.safe_dump({**written, "eval": section}))
        _, text = check_page(write_report([folder], say=lambda _: None))
        assert line in text if line else "protocol" not in text


def test_a_run_alone_without_anything_else(tmp_path):
    folder = write_run(tmp_path / 'a <b> & "c"', finished=False)
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:2]
    broken = '{"step": 30, "loss": NaN, "ce": Infinity}'
    (folder / "metrics.jsonl").write_text("\n".join([*lines, broken]) + "\n")
    path = write_report([folder], say=lambda _: None)
    assert path == folder / "report/index.html"
    page, text = check_page(path)
    assert {"results", "training", "costs", "runs"} <= set(page.ids)
    assert not {"classes", "prototypes", "confusions", "pictures"} & set(page.ids)
    assert "unfinished" in text
    assert 'a <b> & "c"' in text


def test_what_methods_show_is_drawn(runs, tmp_path):
    folder = write_run(tmp_path / "i2ckd", "i2ckd", teacher=runs / "teacher")
    lines = read_metrics(folder)
    for line in lines:
        if "loss" in line:
            line["analysis_i2ckd_within"] = 1 / line["step"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([folder], out=tmp_path / "out", images=0, say=lambda _: None)
    page, text = check_page(tmp_path / "out/index.html")
    assert "prototypes" in page.ids
    assert "I2CKD: distance to the own class" in text
    assert "term analysis" not in text


def test_gradients_of_terms_are_drawn(runs, tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / f"runs/kd{seed}", "kd", teacher=runs / "teacher", seed=seed)
        lines = read_metrics(folder)
        for line in lines:
            if "loss" in line and line["step"] > 10:
                line |= {"gradient_ce": 3.0, "gradient_kd_logits": 1.0 + 4 * seed, "cosine_kd_logits": 0.5 - seed}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([tmp_path / "runs"], out=tmp_path / "out", images=0, say=lambda _: None)
    page, text = check_page(tmp_path / "out/index.html")
    assert "gradients" in page.ids
    assert "term gradient" not in text
    assert "term cosine" not in text
    (label,) = [given["aria-label"] for tag, given in page.tags if tag == "svg" and "shares of" in given["aria-label"]]
    assert "ce 50 %, kd_logits 50 %" in label  # 3 beside the mean of 1 and 5
    assert "kd_logits +0.00" in label
    assert not (tmp_path / "out/figures").exists()


def test_figures_as_files(tmp_path):
    folder = write_run(tmp_path / "run", "none")
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        write_report([folder], out=tmp_path / kind, images=0, figures=kind, say=lambda _: None)
        file = tmp_path / kind / "figures" / f"miou.{kind}"
        assert file.read_bytes().startswith(start)
        if kind == "png":
            assert Image.open(file).convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert "Validation mIoU, %" in file.read_text()  # a file has its title, which the page has outside the figure
    with pytest.raises(ValueError, match="figures: expected one of png, pdf, svg, got gif"):
        write_report([folder], figures="gif")


@pytest.mark.filterwarnings("error")
def test_odd_names_of_classes(tmp_path):
    names = ["a class of sixty letters, which no axis has the room to show", r"tab $\foo$ <b>", "sky"]
    for method in ("none", "kd"):
        folder = write_run(tmp_path / "runs" / method, method)
        summary = json.loads((folder / "summary.json").read_text())
        levels = (0.2, 0.3, 0.4) if method == "none" else (0.3, 0.2, 0.6)
        summary["iou"] = dict(zip(names, levels, strict=True))
        (folder / "summary.json").write_text(json.dumps(summary))
        counts = [[50, 20, 30], [10, 20, 5], [0, 5 if method == "kd" else 9, 300]]
        (folder / "eval_val.json").write_text(json.dumps({"miou": 0.3, "confusion": counts}))
    page, text = check_page(write_report([tmp_path / "runs"], images=0, out=tmp_path / "out", say=lambda _: None))
    assert {"classes", "confusions"} <= set(page.ids)
    assert "a class of sixty letter…" in text
    assert names[0] in text
    assert "10⁻¹" not in text
    assert "\\times" not in text


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("summary.json", "iou", 3, "a mapping"),
        ("summary.json", "steps", "many", "a whole number"),
        ("summary.json", "steps", True, "a whole number"),
        ("summary.json", "student", ["x"], "a text"),
        ("summary.json", "flops_size", 512, "a list"),
        ("env.json", "versions", [1], "a mapping"),
        ("env.json", "gpus", 2, "a list"),
        ("eval_test.json", "iou", [0.5], "a mapping"),
        ("eval_test.json", "confusion", 3, "rows of numbers"),
        ("eval_test.json", "confusion", [[1], [2, 3]], "rows of numbers"),
        ("eval_test.json", "confusion", [["a"]], "rows of numbers"),
        ("config.yaml", "student", "pspnet", "a mapping"),
        ("config.yaml", "train", [1], "a mapping"),
    ],
)
def test_a_value_of_another_kind_is_one_line(tmp_path, name, key, value, expected):
    folder = write_run(tmp_path / "kd", "kd")
    file = folder / name
    values = yaml.safe_load(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match=rf"{name}: {key} is .*, expected {expected}; put a copy of the file back, or"):
        write_report([folder], images=0, say=lambda _: None)
    file.write_text(json.dumps(values | {key: None}))
    if key != "student":
        read_run(folder)


def test_damaged_files(tmp_path):
    folder = write_run(tmp_path / "runs/kd", "kd")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \xff')
    assert len(collect.read_run(folder).steps) == 4
    comparison = tmp_path / "runs/compare.json"
    comparison.write_text("{}\n")
    write_report([tmp_path / "runs"], images=0, say=lambda _: None)
    comparison.write_text('{"format": 0}')
    page = write_report([tmp_path / "runs"], images=0, say=lambda _: None).read_text(encoding="utf-8")
    assert "No verdicts: compare.json is not of this version" in page
    for text in ("[]", '{"half'):
        comparison.write_text(text)
        with pytest.raises(ValueError, match=r"compare\.json is not a JSON object; delete it"):
            write_report([tmp_path / "runs"], images=0)
    for content, line in (
        (b"data: \xff", "is not a text in UTF-8"),
        (b"data: [", "is not valid YAML"),
        (b"[]", "expected keys"),
    ):
        (folder / "config.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.yaml:? {line}"):
            collect.read_run(folder)


def test_many_runs_stay_small(tmp_path):
    for i in range(20):
        method = ("none", "kd")[i % 2]
        folder = write_run(tmp_path / f"runs/{i}", method, seed=i // 2, level=0.2 + 0.01 * i)
        line = (folder / "metrics.jsonl").read_text().splitlines()[0]
        many = "\n".join(line.replace('"step": 10,', f'"step": {step},') for step in range(1, 1000))
        (folder / "metrics.jsonl").write_text(many + "\n")
    path = write_report([tmp_path / "runs"], images=0, out=tmp_path / "out", say=lambda _: None)
    _, text = check_page(path)
    assert path.stat().st_size < 1_500_000
    assert "10 runs" in text


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["segdistill", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, capsys.readouterr()

    folder = write_run(tmp_path / "run", "cwd")
    (folder / "metrics.jsonl").unlink()
    single = folder, "--images", 0, "--out", tmp_path / "out"
    status, said = run(*single)
    assert status == 0
    assert "index.html" in said.out
    status, said = run(tmp_path / "nothing")
    assert (status, said.err.count("\n")) == (2, 1)
    assert "no run at" in said.err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, said = run(*single)
    assert status == 2
    assert "pip install 'segdistill[report]'" in said.err


def test_a_comparison_shows_its_verdicts(tmp_path):
    row = {
        "data": "d", "student": "s", "method": "cwd<1", "seeds": [0, 1], "pairs": 2,
        "miou": 0.31, "miou_deviation": 0.01,
        "difference": {"difference": 0.02, "low": -0.01, "high": 0.05, "within_noise": True, "p": 0.1, "holm": 0.2,
                       "deviation": 0.01, "seeds_needed": 10}, "bootstrap": None, "labelled": None,
        "training_seconds": 9.0,
        "gap_closed": 0.25, "steps": 8, "seconds_per_step": 1.0, "peak_memory": 5e8, "params": 1e6, "flops": 1e9,
        "flops_size": [512, 1024], "errors": [], "baseline": False,
    }  # fmt: skip
    result = {"split": "test", "confidence": 0.9, "resamples": 100, "baseline": "none", "seeds": [0, 1], "jobs": 1}
    result |= {
        "format": 3,
        "budget": "steps",
        "teachers": {},
        "rows": [row],
        "runs": [],
        "sequences": {},
        "against": None,
    }
    write_run(tmp_path / "cwd", "cwd", level=0.3)
    (tmp_path / "compare.json").write_text(json.dumps(result))
    page = write_report([tmp_path], images=0, say=lambda _: None).read_text(encoding="utf-8")
    section = page.split('<section id="verdicts">')[1].split("</section>")[0]
    assert 'href="#verdicts"' in page
    cells = re.findall("<t[dh][^>]*>([^<]*)</t[dh]>", section)
    header, line = cells[: len(cells) // 2], cells[len(cells) // 2 :]
    assert header == [
        "method",
        "test mIoU %",
        "difference",
        "over seeds 90 %",
        "over images 90 %",
        "p seeds",
        "p images",
        "verdict",
        "seeds for +1",
        "gap closed",
    ]
    told = ["cwd&lt;1", "31.00 ± 1.00", "+2.00", "[-1.00, +5.00]", "–", "0.200", "–", "within noise", "10", "25 %"]
    assert line == told
