"""Commands load what they use when they use it: what asks for nothing of torch's does not wait for torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from segdistill import completion
from segdistill.cli import app

COMMANDS = [
    *(name for name in get_command(app).commands if name != "data"),
    *(f"data {name}" for name in get_command(app).commands["data"].commands),
]
HEAVY = {"torch", "torchvision", "timm", "matplotlib"}

BATCH = """
import contextlib, io, json, sys
from segdistill import cli

seen = {}
for arguments in json.load(sys.stdin):
    sys.argv = ["segdistill", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY))
    seen[" ".join(arguments)] = [status, out.getvalue(), err.getvalue(), loaded]
json.dump(seen, sys.stdout)
"""


def run_all(commands):
    """Run commands one after the other in one new process: command → status, output, error, heavy modules so far."""
    code = BATCH.replace("HEAVY", repr(sorted(HEAVY)))
    found = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import segdistill, sys; print(sorted({HEAVY!r} & set(sys.modules)), len(segdistill.__all__))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("[] ")


def test_help_and_version_do_not_import_torch():
    found = run_all([["--help"], ["--version"], *([*command.split(), "--help"] for command in COMMANDS)])
    for command, (status, out, _, loaded) in found.items():
        assert (command, status, loaded) == (command, 0, [])
        assert out.strip()


PROGRAM = """#!PYTHON
import sys
from segdistill import cli
try:
    cli.main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules} & set(HEAVY)
    assert not loaded, loaded
"""

COMPLETING = """
eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 segdistill --show-completion bash)"
complete -p segdistill
for line in "$@"; do
    IFS='|' read -ra COMP_WORDS <<< "$line|"
    [[ "$line" == *"|" ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _segdistill_completion segdistill
    echo "$line -> ${COMPREPLY[*]}"
done
"""

WORDS = {
    "segdistill|da": ["data"],
    "segdistill|--qu": ["--quiet"],
    "segdistill|distill|camvid/stu": ["camvid/student_cpu"],
    "segdistill|distill|camvid/student_cpu|method|=": ["cwd", "kd", "sstkd"],
    "segdistill|distill|camvid/student_cpu|method|=|cw": ["cwd"],
    "segdistill|distill|camvid/student_cpu|train.steps=3|data.name|=|voc": ["voc2012"],
    "segdistill|distill|camvid/student_cpu|train.lr|=|": [],
    "segdistill|data|prepare|v": ["voc2012"],
    "segdistill|benchmark|--method|ss": ["sstkd"],
    "segdistill|list|conf": ["configs", "config"],
    "segdistill|predict|runs/": [],
    "segdistill|eval|runs/a|--split|te": ["test"],
}
"""What a bash has read, with the equals sign as a word of its own, and some of what it may go on with."""


@pytest.mark.requires(shutil.which("bash") is not None, "bash")
def test_a_shell_completes_names_and_does_not_wait_for_torch(tmp_path):
    program = tmp_path / "segdistill"
    program.write_text(PROGRAM.replace("PYTHON", sys.executable).replace("HEAVY", repr(sorted(HEAVY))))
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    command = ["bash", "--norc", "-c", COMPLETING, "bash", *WORDS]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": path}
    )
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first == "complete -o default -F _segdistill_completion segdistill"  # files where nothing else is known
    for (words, wanted), line in zip(WORDS.items(), lines, strict=True):
        asked, _, told = line.partition(" -> ")
        assert asked == words
        assert set(wanted) <= set(told.split()), line
        assert bool(told) == bool(wanted), line


ZSH = """
autoload -Uz compinit; compinit -D -u
_message() {}
_arguments() { print -r -- "$1 $2" }
words=(segdistill dis) CURRENT=2
autoload -Uz _segdistill
_segdistill
print -r -- then ${_comps[segdistill]}
_segdistill_completion
"""
"""A shell whose first TAB loads the script from its folder; in place of a menu it prints what it was given."""


@pytest.mark.parametrize("shell", ["complete_zsh", "complete_fish"])
def test_other_shells_are_given_names(shell, tmp_path):
    wanted = {
        "segdistill dis": "distill",
        "segdistill distill camvid/stu": "camvid/student_cpu",
        "segdistill distill camvid/student_cpu method=cw": "method=cwd",
    }
    code = "from segdistill import cli; cli.main()"
    for words, answer in wanted.items():
        variables = {
            completion.COMPLETE: shell,
            "_TYPER_COMPLETE_ARGS": words,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **variables}
        )
        assert answer in done.stdout, (words, done)


def test_the_first_tab_of_a_zsh_is_answered_too():
    from typer._completion_shared import get_completion_script

    completion.mend_scripts()
    completion.mend_scripts()
    script = get_completion_script(prog_name="segdistill", complete_var=completion.COMPLETE, shell="zsh")
    assert script.startswith("#compdef segdistill\n")
    assert script.count("if [[ $funcstack[1] = _segdistill ]]; then\n  _segdistill_completion") == 1


@pytest.mark.requires(shutil.which("zsh") is not None, "zsh")
def test_a_zsh_completes_from_the_first_tab_on(tmp_path):
    from typer._completion_shared import get_completion_script

    completion.mend_scripts()
    script = get_completion_script(prog_name="segdistill", complete_var=completion.COMPLETE, shell="zsh")
    (tmp_path / "_segdistill").write_text(script)
    program = tmp_path / "segdistill"
    program.write_text(PROGRAM.replace("PYTHON", sys.executable).replace("HEAVY", repr(sorted(HEAVY))))
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["zsh", "-f", "-c", f"fpath+={tmp_path}\n{ZSH}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    first, _, later = done.stdout.partition("then _segdistill_completion\n")
    assert "distill" in first, done
    assert first == later


def test_what_is_completed_where_a_shell_splits_no_words(monkeypatch, tmp_path):
    monkeypatch.delenv(completion.COMPLETE, raising=False)
    completion.mend_words()
    assert completion.overrides("method=cw") == ["method=cwd"]
    assert completion.overrides("data.name=voc") == ["data.name=voc2012"]
    assert completion.overrides("train.lr=") == completion.overrides("me") == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid").mkdir()
    (tmp_path / "camera.yaml").touch()
    assert {"camvid/student_cpu", "camera.yaml", "camvid/"} <= set(completion.config("cam"))
    assert "camera.yaml" not in completion.config("camvid/")
    assert "camvid/student_cpu" in completion.config("camvid/")
    assert completion.config("runs/") == []


MISTAKES = {
    "top": ("trian", {"steps": 1}, "unknown key trian; did you mean train?"),
    "train": ("train", {"stepz": 1}, "unknown key train.stepz; did you mean steps?"),
    "data": ("data", {"name": "folder", "root": ".", "clases": []}, "unknown key data.clases; did you mean classes?"),
    "student": ("student", {"name": "pspnet_resnet18", "auxx": 1}, "unknown key student.auxx; did you mean aux?"),
    "smp": ("student", {"name": "smp:Unet:resnet18", "pretrain": 1}, "unknown key student.pretrain; did you mean"),
    "method": ("method", {"name": "sstkd", "levles": 1}, "method sstkd has no option 'levles'; did you mean levels?"),
    "methods": ("method", ["kd", "cdw"], "no method 'cdw'; did you mean cwd?"),
}


def test_a_mistake_in_a_key_does_not_import_torch(tmp_path):
    good = {"data": {"name": "synthetic"}, "student": {"name": "pspnet_resnet18"}}
    for name, (section, value, _) in MISTAKES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**good, section: value}))
    for command in (["distill"], ["train"], ["compare"], ["data", "check"]):
        more = ["methods=[none, kd]"] if command == ["compare"] else []
        names = [name for name in MISTAKES if command != ["train"] or not name.startswith("method")]  # train sets it
        found = run_all([[*command, str(tmp_path / f"{name}.yaml"), *more] for name in names])
        for name, (status, _, err, loaded) in zip(names, found.values(), strict=True):
            assert (command, name, status, loaded) == (command, name, 2, [])
            assert MISTAKES[name][2] in err


@pytest.mark.parametrize("command", ["methods", "models", "data", "config", "config train", "config teacher.weights"])
def test_lists_are_printed(command, segdistill):
    status, out, _ = segdistill("list", *command.split())
    assert status == 0
    assert out.strip()


def test_lists_of_keys_that_are_not_there(segdistill):
    status, _, err = segdistill("list", "config", "train.lrr")
    assert status == 2
    assert "no configuration key 'train.lrr'; did you mean train.lr?" in err
    status, _, err = segdistill("list", "methods", "kd")
    assert status == 2
    assert "only config has keys" in err


def test_stubs_ship_beside_the_packages():
    import segdistill

    root = Path(segdistill.__file__).parent
    lazy = [file for file in root.rglob("__init__.py") if "exports(__name__" in file.read_text()]
    assert len(lazy) >= 4
    assert all(file.with_suffix(".pyi").is_file() for file in lazy)
