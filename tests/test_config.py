import re

import pytest
import yaml

from segdistill.comparison.plan import load_plan
from segdistill.engine.config import dump_config, load_config
from segdistill.engine.optim import schedule
from segdistill.engine.train_config import TrainConfig

BASE = {"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18"}}


def test_defaults_are_written_out_and_run_again():
    config = load_config(BASE)
    assert config.method == [{"name": "none"}]
    assert config.data.options["images"] is None
    again = load_config(yaml.safe_load(dump_config(config)))
    assert again.model_dump() == config.model_dump()


def test_overrides():
    overrides = ["method=cwd", "method.weight=5", "train.lr=0.1", "data.crop=[64, 96]", "student.aux=true"]
    config = load_config(BASE, overrides)
    assert config.method[0]["weight"] == 5.0
    assert config.train.lr == 0.1
    assert config.data.crop == (64, 96)
    assert config.student.options["aux"] is True
    assert "method" not in BASE


def test_a_checkpoint_replaces_a_name_and_a_name_a_checkpoint():
    teacher = {**BASE, "teacher": {"name": "pspnet_resnet50", "weights": "x.pth"}}
    assert load_config(teacher, ["teacher.checkpoint=runs/a"]).teacher.name is None
    checkpoint = {**BASE, "teacher": {"checkpoint": "runs/a"}}
    assert load_config(checkpoint, ["teacher.name=pspnet_resnet50"]).teacher.checkpoint is None


def test_another_data_set_has_other_options():
    config = load_config({**BASE, "data": {"name": "cityscapes", "root": "x", "coarse": True, "crop": [64, 64]}})
    written = config.model_dump(mode="json")  # as a run's folder has it, with all options
    data = load_config(written, ["data.name=voc2012", "data.aug=true"]).data
    assert (data.options["aug"], data.options["root"], data.crop) == (True, "x", (64, 64))
    with pytest.raises(ValueError, match=r"unknown key data\.coarsee; did you mean coarse"):
        load_config({**BASE, "data": {"name": "cityscapes", "coarsee": True}})
    with pytest.raises(ValueError, match=r"unknown key data\.corse"):  # a mistake stays one
        load_config({**BASE, "data": {"name": "cityscapes", "corse": True}}, ["data.name=voc2012"])


def test_the_size_goes_to_a_data_set_that_draws_it():
    config = load_config(BASE, ["data.size=[64, 96]"])
    assert config.data.options["size"] == (64, 96)
    assert config.data.resize is None
    assert load_config(yaml.safe_load(dump_config(config))).data.size == (64, 96)


def test_lists_of_methods():
    config = load_config({**BASE, "method": ["kd", {"name": "cwd", "weight": 5}]})
    assert config.method_names == ["kd", "cwd"]
    assert config.distils


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stepz=3", "unknown key train.stepz; did you mean steps?"),
        ("trian.steps=3", "unknown key trian; did you mean train?"),
        ("data.batchsize=3", "unknown key data.batchsize; did you mean batch_size?"),
        ("data.imagess=3", "unknown key data.imagess; did you mean images?"),
        ("student.auxx=true", "unknown key student.auxx; did you mean aux?"),
        ("student.name=pspent_resnet18", "did you mean pspnet_resnet18"),
        ("method=cdw", "did you mean cwd"),
        ("method={name: kd, wieght: 1}", "method kd has no option 'wieght'; did you mean weight?"),
        ("method={name: kd, weight: much}", "method kd, weight: Input should be a valid number"),
        ("method={name: kd, weight: -1}", "method kd, weight: expected 0 (which leaves the term out) or more, got -1"),
        ("method={name: mimic, taps: [low1, low2], weight: [1, -2]}", "method mimic, weight: expected 0 (which"),
        ("method={name: cwd, features_weight: .inf}", "method cwd, features_weight: expected 0 (which"),
        ("method={name: dist, temperature: 0}", "method dist, temperature: expected a number above 0, got 0"),
        ("method={name: i2ckd, score_temperature: -4}", "method i2ckd, score_temperature: expected a number above"),
        ("method={name: kd, temperature: .nan}", "method kd, temperature: expected a number above 0, got nan"),
        ("data.name=synthetik", "did you mean synthetic"),
        ("data.crop=[64]", "data.crop: too few values, got [64]"),
        ("data.crop=64", "data.crop: expected a list of values, got 64"),
        ("eval.window=[64]", "eval.window: too few values, got [64]"),
        ("train.steps=0", "train.steps: Input should be greater than 0, got 0"),
        ("train.clip=-1", "train.clip: Input should be greater than 0, got -1"),  # it would turn the gradient round
        ("train.clip=0", "train.clip: Input should be greater than 0, got 0"),
        ("train.lr=.inf", "train.lr: Input should be a finite number, got inf"),
        ("train.weight_decay=-1", "train.weight_decay: Input should be greater than or equal to 0, got -1"),
        ("train.seed=99999999999999999999", "train.seed: Input should be less than 9223372036854775808"),
        ("data.crop=[0, 32]", "data.crop: expected [height, width] in pixels, got [0, 32]"),
        ("data.size=[32, -4]", "data.size: expected [height, width] in pixels, got [32, -4]"),
        ("train.optimizer=adam", "train.optimizer: Input should be 'sgd' or 'adamw', got 'adam'"),
        ("train.steps=true", "train.steps: expected a number, got true"),  # and not 1
        ("data.augment={cutmix: on}", "data.augment.cutmix: expected a number, got true"),
        ("data.images=true", "data.images: expected a number, got true"),
        ("method={name: mimic, weight: [yes]}", "method mimic, weight: expected a number, got true"),
        ("train.betas=[0.9,false]", "train.betas: expected a number, got false"),
        ("train.momentum=1", "train.momentum: Input should be less than 1, got 1"),
        ("steps", "expected key.sub=value"),
        ("data.name.x=1", "which has no keys"),
    ],
)
def test_mistakes_are_one_line_with_a_hint(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(BASE, [change])
    assert "\n" not in str(caught.value)


OWNED = {
    "train": [
        ({"momentum": 0.95}, "optimizer", "adamw"),
        ({"momentum": 0.95, "nesterov": True}, "optimizer", "adamw"),
        ({"optimizer": "adamw", "betas": [0.8, 0.9]}, "optimizer", "sgd"),
        ({"power": 1.0}, "schedule", "cosine"),
        ({"schedule": "step", "milestones": [0.5], "gamma": 0.3}, "schedule", "poly"),
        ({"min_lr": 1e-4}, "schedule", "constant"),
    ],
    "supervised": [
        ({"ohem": 0.7, "ohem_min_kept": 9}, "ohem", None),
        ({"jaccard": 1.0, "class_weights": "balanced", "ohem": 0.7, "ohem_min_kept": 9}, "ce", 0.0),
    ],
    "teacher": [({"checkpoint": "a", "cache": "b", "cache_views": 3, "cache_topk": 4}, "cache", None)],
    "data": [
        ({"name": "synthetic", "labelled": 3, "labelled_seed": 2, "labelled_per_batch": 1}, "labelled", None),
        ({"name": "synthetic", "labelled": 3, "labelled_seed": 2}, "labelled", "masks"),
    ],
}
"""Section → what a file says there, and an override with which some of it says nothing any more."""
CASES = [(section, *case) for section, cases in OWNED.items() for case in cases]


@pytest.mark.parametrize(("section", "given", "owner", "value"), CASES)
def test_what_only_a_files_choice_used_goes_with_it(section, given, owner, value):
    config = load_config({**BASE, section: given}, [f"{section}.{owner}={yaml.safe_dump(value)}"])
    found = getattr(config, section)
    assert getattr(found, owner) == value
    owned = [key for key in given if key not in (owner, "name", "checkpoint", "jaccard", "optimizer", "schedule")]
    for key in owned:
        if not (key == "labelled_per_batch" and value == "masks"):
            assert getattr(found, key) == type(found).model_fields[key].default, key
    assert load_config(yaml.safe_load(dump_config(config))).model_dump() == config.model_dump()
    for key in owned:  # in one place the two contradict each other, on the command line too
        both = {**given, owner: value}
        with pytest.raises(ValueError, match=r"; (leave|set|without)"):
            load_config({**BASE, section: both})
        with pytest.raises(ValueError, match=f"{section}.*{key}: "):
            load_config(BASE | ({section: {"name": "synthetic"}} if section == "data" else {}), [
                *([f"{section}.checkpoint=a"] if section == "teacher" else []),
                f"{section}.{key}={yaml.safe_dump(given[key], default_flow_style=True)}",
                f"{section}.{owner}={yaml.safe_dump(value)}",
                *(["supervised.jaccard=1"] if section == "supervised" else []),
            ])  # fmt: skip


def test_a_comparisons_labels_take_the_seed_of_their_choice_along(tmp_path):
    raw = {**BASE, "data": {"name": "synthetic", "images": 8, "labelled_seed": 3}, "methods": ["none"]}
    raw |= {"labelled": [0.5, "masks"], "seeds": 1}
    seeds = [run.config.data.labelled_seed for run in load_plan(raw, out=tmp_path).runs]
    assert seeds == [3, 0]


def test_files(tmp_path):
    with pytest.raises(ValueError, match="no configuration at"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("data: [")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "code.yaml").write_text("data: !!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_config(tmp_path / "code.yaml")
    (tmp_path / "missing.yaml").write_text("student: {name: pspnet_resnet18}")
    with pytest.raises(ValueError, match="data: missing from the configuration"):
        load_config(tmp_path / "missing.yaml")


def test_schedule():
    train = load_config(BASE, ["train.steps=100", "train.warmup=10", "train.power=1"]).train
    assert schedule(0, train) == pytest.approx(0.1)
    assert schedule(9, train) == pytest.approx(0.91)
    assert schedule(50, train) == pytest.approx(0.5)
    assert schedule(99, train) == pytest.approx(0.01)


def test_schedule_with_a_floor():
    train = TrainConfig(steps=100, power=0.9, lr=0.01, min_lr=1e-4)
    for step in (0, 1, 50, 99):  # as OpenMMLab writes it
        expected = (0.01 - 1e-4) * (1 - step / 100) ** 0.9 + 1e-4
        assert 0.01 * schedule(step, train) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"min_lr is 0.1, above lr, 0.01"):
        TrainConfig(lr=0.01, min_lr=0.1)
