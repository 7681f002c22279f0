"""Commands in docs/reproduce.md and in the comments of configurations: each one names what there is, and parses."""

import re
import shlex
from itertools import takewhile

import pytest
from typer.main import get_command

from conftest import REPOSITORY
from segdistill.cli import app
from segdistill.comparison.plan import load_plan
from segdistill.data.sources import SOURCES
from segdistill.engine.config import load_config
from segdistill.engine.shipped import CONFIGS, list_configs

PAGE = (REPOSITORY / "docs/reproduce.md").read_text(encoding="utf-8")
OURS = ("_cpu", "_teacher", "_released")
"""Ends of names that are no paper's row; the rows of SSTKD's ablation are of a CPU's size."""


def head(name):
    """The lines of comment that a configuration starts with."""
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(takewhile(lambda line: line.startswith("#"), lines))


def comment(name):
    """What a configuration says about itself, on one line."""
    return " ".join(line.lstrip("# ").strip() for line in head(name).splitlines())


def commands(text):
    """The commands of a page or comment: lines of blocks, and what stands between backticks."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    inline = re.findall(r"`(segdistill [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.partition(" #")[0].strip() for line in blocks.splitlines() if line.startswith("segdistill ")]
    lines += re.findall(r"^# +(segdistill .*)$", text, re.MULTILINE)
    return [" ".join(command.split()) for command in (*lines, *inline)]


TOLD = [text for name in list_configs() for text in (comment(name), head(name))]
ALL = sorted({command for text in (PAGE, *TOLD) for command in commands(text) if "#" not in command})


@pytest.mark.parametrize("command", ALL)
def test_a_command_parses(command):
    _, verb, *arguments = shlex.split(command)
    group = get_command(app)
    assert verb in group.commands
    if verb == "data":
        assert arguments[0] in group.commands["data"].commands
        assert arguments[1] in (SOURCES if arguments[0] == "prepare" else list_configs())
        return
    context = group.commands[verb].make_context(verb, list(arguments))  # refuses options that there are not
    if verb not in ("train", "distill", "eval", "compare"):
        return
    named = str(context.params.get("config" if verb != "eval" else "model"))
    changes = list(context.params["overrides"] or [])
    if named.startswith("runs/") or named == "RUN":
        return
    assert named in list_configs()
    if verb == "compare":
        load_plan(named, changes)
        return
    config = load_config(named, changes)
    if verb == "distill":
        assert config.distils
        assert config.teacher is not None
    if verb == "eval":
        assert config.student.weights is not None


def test_there_are_such_commands():
    assert len(commands(PAGE)) > 30
    assert sum("segdistill distill" in command for command in commands(PAGE)) > 25


def test_every_recipe_of_a_paper_has_its_row():
    for name in list_configs():
        if name.endswith(OURS) or name.startswith(("camvid/sstkd_", "camvid/compare", "recipes/")):
            continue
        verb = "eval" if "/mmseg_" in name else "distill"
        assert f"segdistill {verb} {name}" in PAGE, name


@pytest.mark.parametrize("name", list_configs())
def test_published_figures_agree_with_the_comments(name):
    row = re.search(rf"^\|.*`segdistill distill {name}(?: train.steps=40000)?` \|(.*)\|$", PAGE, re.MULTILINE)
    for figure in re.findall(r"\d\d\.\d\d", row[1] if row else ""):
        assert figure in comment(name)


def test_files_agree_with_the_comments():
    told = "\n".join(comment(name) for name in list_configs())
    files = set(re.findall(r"[\w-]+\.pth", PAGE)) - {"kd_deeplabv3_resnet18_ade20k_best_model.pth"}
    assert len(files) > 8
    assert {file for file in files if file not in told} == set()
