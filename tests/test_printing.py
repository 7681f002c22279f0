"""What is printed: texts as they are, on any terminal, after they are written."""

import ast
import os
import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from faults import SUMMARY, interrupt
from segdistill._printing import one_line, visible
from segdistill.engine.run_folder import read_json

ODD = "[/bold] [other] :smile: \x1b[31m\x07"
RESULT = {
    "model": f"runs/{ODD}", "split": "val", "iou": {ODD: 0.5}, "accuracy": {ODD: None}, "miou": 0.5, "macc": 0.5,
    "pixel_accuracy": 0.5, "protocol": {},
}  # fmt: skip


def test_names_are_printed_as_they_are(capsys):
    from segdistill import show
    from segdistill.commands import terminal

    show.evaluation(terminal.console, RESULT)
    show.summary(terminal.console, SUMMARY | {"student": ODD})
    show.plain(terminal.console)(ODD)
    out = capsys.readouterr().out
    assert out.count("[/bold] [other] :smile: \\x1b[31m\\x07") >= 3
    assert "\x1b" not in out
    show.doctor(terminal.console, show.findings())
    assert "segdistill[" in capsys.readouterr().out or all(show.find_spec(m[0]) for m in show.EXTRAS.values())
    assert one_line("a\n\x1b[2Jb\x9b") == "a \\x1b[2Jb\\x9b"
    assert visible("Straße\n\t道") == "Straße\n\t道"


def test_a_result_is_written_before_it_is_printed(whole, tmp_path, segdistill, monkeypatch):
    from segdistill import show
    from segdistill.engine import evaluate

    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_, **__: RESULT)
    status, out, err = segdistill("eval", whole, "--json", tmp_path / "none/table.json")
    assert (status, "pixel accuracy" in out) == (2, True)
    assert "cannot write" in err
    monkeypatch.setattr(show, "evaluation", interrupt)
    with pytest.raises(TypeError):
        segdistill("eval", whole, "--json", tmp_path / "table.json")
    assert read_json(tmp_path / "table.json") == RESULT


ASCII = """
import sys
from pathlib import Path
from segdistill.engine.config import load_config
from segdistill.engine.run_folder import read_json, write_json
folder = Path(sys.argv[1])
from segdistill.engine.config import read_config
assert read_config(folder / "c.yaml")["data"]["name"] == "Straße"
write_json(folder / "a.json", {"name": "道"})
assert read_json(folder / "a.json") == {"name": "道"}
from segdistill import cli
sys.argv = ["segdistill", "list", "config", "train"]
cli.main()
"""


def test_a_locale_that_is_not_utf8(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {name: Straße}\n", encoding="utf-8")
    (tmp_path / "code.py").write_text(ASCII, encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, tmp_path / "code.py", tmp_path]
    done = subprocess.run(command, env={**os.environ, **plain}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"?" in done.stdout
    done.stdout.decode("ascii")


def without_encoding(tree):
    """Lines of calls of `open`, `read_text` and `write_text` that leave the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        given = node.args if method else node.args[1:]  # what follows the file's name
        mode = getattr(given[0], "value", None) if given else "r"
        text = name == "open" and isinstance(mode, str) and re.fullmatch("[rwaxt+]+", mode)
        whose = getattr(node.func.value, "id", "") if method else ""
        if (method and name in ("read_text", "write_text")) or (text and whose not in ("Image", "os", "tarfile")):
            yield node.lineno


def test_every_text_file_has_an_encoding():
    code = "open(f)\nopen(f, 'rb')\np.open()\np.open('r+b')\np.read_text()\nopen(f, encoding='utf-8')\nos.open(f, g)\n"
    assert list(without_encoding(ast.parse(code))) == [1, 3, 5]
    files = sorted((REPOSITORY / "src").rglob("*.py"))
    found = {file.name: list(without_encoding(ast.parse(file.read_text(encoding="utf-8")))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
