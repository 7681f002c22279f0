"""What the documents show is run: Python blocks as they are, configurations through the config check."""

import re

import pytest
import yaml

from conftest import REPOSITORY
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
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)
