"""The methods' pages say what the docstrings say, and what they show runs."""

import importlib.util
import re

import pytest
import yaml

from conftest import REPOSITORY
from segdistill.engine.config import load_config
from segdistill.methods import list_methods

PAGES = REPOSITORY / "docs/methods"


@pytest.fixture(scope="module")
def make_pages():
    spec = importlib.util.spec_from_file_location("make_pages", REPOSITORY / "docs/make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list_methods())
def test_pages_are_up_to_date(name, make_pages):
    written = (PAGES / f"{name}.md").read_text(encoding="utf-8").partition(f"\n{make_pages.BY_HAND}")[0]
    assert written == make_pages.page(name), "run `make docs`"


def test_the_index_is_up_to_date(make_pages):
    assert (PAGES / "README.md").read_text(encoding="utf-8") == make_pages.index(), "run `make docs`"


def test_options_are_explained(make_pages):
    for name in list_methods():
        for line in re.findall(r"^\| `.*$", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE):
            assert not line.endswith("|  |"), f"{name}: {line} has no line in the class's docstring"


@pytest.mark.parametrize("name", [name for name in list_methods() if name != "none"])
def test_python_blocks_run(name):
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    scope = {}
    exec(compile(code, f"{name}.md", "exec"), scope)
    assert any(term.startswith(f"{name}_") for term in scope["terms"])
    assert all(p.grad is None for p in scope["teacher"].parameters())


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_links_and_configurations(path):
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^):#]+)\)", text):
        assert (path.parent / link).exists(), link
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        load_config(yaml.safe_load(block))
