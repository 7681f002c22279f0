"""What the documents show is run: Python blocks as they are, configurations through the config check."""

import re
import shlex

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import REPOSITORY, needs_package
from segdistill.comparison.plan import load_plan
from segdistill.engine.config import load_config
from segdistill.engine.shipped import list_configs
from segdistill.methods import list_methods

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configurations_are_valid_and_short(text):
    assert text.count("\n") <= 15
    assert load_config(yaml.safe_load(text)).distils


FIRST_SCREEN = README.partition("## All commands")[0]


def test_the_first_screen_leads_to_a_student_of_five_photographs(tmp_path, monkeypatch, segdistill):
    needs_package("onnxruntime", "export")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for number in range(5):
        mask = draw.choice([0, 1, 2, 11, 255], (3, 4)).astype(np.uint8).repeat(30, 0).repeat(30, 1)
        for kind, pixels in (("images", np.stack([mask, 255 - mask, mask // 2], -1)), ("masks", mask)):
            path = tmp_path / f"photos/{kind}/{number}.{'jpg' if kind == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (text,) = re.findall(r"```yaml\n(.*?)```", FIRST_SCREEN, re.DOTALL)
    short, count = re.subn(r"steps: \d+", "steps: 2", text)  # the rest is as it stands
    assert count == 1
    (tmp_path / "mine.yaml").write_text(short)
    _, block = re.findall(r"```bash\n(.*?)```", FIRST_SCREEN, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
    assert [line[1] for line in lines] == ["data", "train", "distill", "export", "predict"]
    for line in lines:
        status, out, err = segdistill(*line[1:])
        assert status == 0, (line, out, err)
    assert len(list((tmp_path / "seen/blend").iterdir())) == 5


def test_the_first_screen_trains_nothing_that_a_cpu_cannot():
    assert "resnet101" not in FIRST_SCREEN


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configurations_are_valid(name):
    (load_plan if "/compare" in name else load_config)(name)


def test_shipped_configurations_are_named_as_they_are():
    named = re.findall(
        r"^segdistill (?:data check|train|distill|compare|eval) +((?!runs/)[a-z0-9_]+/[a-z0-9_]+)(?!\S)", README, re.M
    )
    assert named
    assert set(named) <= set(list_configs())


def test_commands_exist():
    from typer.main import get_command

    from segdistill.cli import app

    commands = set(get_command(app).commands)
    named = set(re.findall(r"^segdistill (\w+)", "\n".join(blocks("bash")), re.MULTILINE))
    assert named
    assert named <= commands


def test_every_method_is_named():
    for name in list_methods():
        assert f"`{name}`" in README


def test_commands_of_the_makefile_exist():
    targets = re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
