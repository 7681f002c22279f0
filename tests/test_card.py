"""The model card of Hugging Face's hub."""

import json
import re

import pytest
import yaml

from conftest import needs_package
from segdistill import cli
from segdistill.deploy.model_card import code, escape, model_card, write_model_card
from segdistill.engine.student import make_card, save_student
from segdistill.models import build_model

NASTY = ["road", "a|b", "<img src=x onerror=alert(1)>", "[x](javascript:y)", "`tick`", "line\nbreak", "---", "'q\": {"]


def make_run(folder, classes=NASTY, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    network = build_model("fcn_resnet18", num_classes=len(classes), width=0.1, depth=0.5)
    about = {"data": "my|data", "size": [64, 96], "method": ["kd", "cwd"], **facts}
    card = make_card(network, classes, [(i, 10, 255) for i in range(len(classes))], **about)
    save_student(folder / "student.safetensors", network, card)
    scores = {"miou": 0.51234, "macc": 0.6, "pixel_accuracy": 0.7}
    iou = {name: None if name == "a|b" else 0.1 for name in classes}
    sizes = {"params": 1234567, "flops": 2 * 10**9, "flops_size": [512, 1024]}
    summary = {**scores, **sizes, "iou": iou, "images": 5, "seed": 3, "steps": 7}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "eval_test.json").write_text(json.dumps({**scores, "miou": 0.25, "images": 9}))
    (folder / "eval_train.json").write_text("{}")
    config = {
        "data": {"name": "folder", "root": "/home/me/private", "images": "a", "crop": [64, 96]},
        "student": {"name": "fcn_resnet18", "width": 0.1},
        "teacher": {"checkpoint": "/home/me/teacher", "name": None},
        "method": [{"name": "kd", "temperature": 2.0}],
        "train": {"steps": 7, "lr": 0.01, "threads": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {"command": "/usr/bin/segdistill distill c.yaml", "cpu": "A CPU", "gpus": [], "versions": {"torch": "2.9"}}
    (folder / "env.json").write_text(json.dumps({**facts, "teacher": "ab" * 32}))
    return folder


@pytest.fixture
def run(tmp_path):
    needs_package("huggingface_hub", "hub")
    return make_run(tmp_path / "my_run")


def test_the_hub_reads_its_metadata(run):
    import huggingface_hub

    card = huggingface_hub.ModelCard(model_card(run, license="cc-by-4.0"))
    assert card.data.license == "cc-by-4.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("segdistill", "image-segmentation")
    assert card.data.datasets == ["my|data"]
    assert {"semantic-segmentation", "fcn_resnet18"} <= set(card.data.tags)
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results[("val", "mean_iou")] == 51.234
    assert results[("test", "mean_iou")] == 25
    assert len(results) == 6
    assert "license" not in huggingface_hub.ModelCard(model_card(run)).data.to_dict()


def test_what_a_user_named_is_shown_and_does_nothing(run):
    text = model_card(run)
    body = text.split("\n---\n", 1)[1]
    table = body[body.index("| number |") : body.index("## How")].strip().splitlines()
    assert len(table) == 2 + len(NASTY)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table)
    assert "<img" not in body
    assert "[x](" not in body
    assert escape("[x](y)") in r"\[x\](y)"
    assert "| 1 | a\\|b | #010aff | – |" in table
    shown = code("a ``` b\x1b[31m", "bash")
    assert shown.startswith("````bash\n")
    assert shown.endswith("\n````")
    assert "\x1b" not in shown


def test_it_says_what_was_done_and_nothing_of_the_machine_it_was_done_on(run):
    text = model_card(run)
    for told in (
        "distilled with kd, cwd on my\\|data",
        "1.235 million parameters, 2.00 GFLOPs for 512×1024",
        "| val | 51.23 | 60.00 | 70.00 | 5 | 3 |",
        "segdistill distill c.yaml",
        "Machine: A CPU, torch 2.9.",
        "temperature: 2.0",
        "resized to 64×96 as in training",
        "digest `abababababababab`",
    ):
        assert told in text
    assert "/home/me" not in text
    assert "/usr/bin" not in text
    assert "Predictor" not in text
    (run / "student.onnx").write_bytes(b"x")
    assert "Predictor('student.onnx')" in model_card(run)


def test_a_baseline_and_what_is_missing(tmp_path):
    needs_package("huggingface_hub", "hub")
    run = make_run(tmp_path / "r", classes=["a", "b"], method=["none"])
    for name in ("config.yaml", "env.json", "eval_test.json"):
        (run / name).unlink()
    text = model_card(run)
    assert "trained without a teacher" in text
    assert "configuration was not kept" in text
    teacher = {"teacher": {"name": "pspnet_resnet101", "weights": "/x/y.pth"}}
    (run / "config.yaml").write_text(yaml.safe_dump(teacher))
    assert "name: pspnet_resnet101" in model_card(run)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"no summary.json in .*not finished"):
        model_card(run)
    with pytest.raises(ValueError, match="is no run folder"):
        model_card(run / "student.safetensors")
    (run / "student.safetensors").unlink()
    with pytest.raises(ValueError, match="no student at"):
        model_card(run)


def test_without_huggingface_hub_it_is_one_line(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'segdistill\[hub\]'"):
        model_card(run)


def test_the_command_keeps_what_is_there(run, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["segdistill", "card", str(run), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr()

    assert call()[0] == 0
    (run / "README.md").write_text("mine")
    code_, printed = call("--license", "mit")
    assert code_ == 2
    assert "README.md is there already" in printed.err
    assert (run / "README.md").read_text() == "mine"
    assert call("--force", "--license", "mit")[0] == 0
    assert "license: mit" in (run / "README.md").read_text()
    assert call("--out", str(run / "other.md"))[0] == 0
    with pytest.raises(ValueError, match="cannot write"):
        write_model_card(run, out=run / "student.safetensors" / "x.md")
