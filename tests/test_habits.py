"""What surrounds the code: files that other programs read, and rules that the tests themselves keep."""

import re

import pytest
import torch
import yaml

import conftest
from conftest import REPOSITORY, lacking, needs_package
from segdistill import __version__
from segdistill.engine.runtime import pick_precision

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
FORMS = [p for p in sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml")) if p.stem != "config"]


def commands(path):
    """All commands of a workflow; YAML 1.1 reads the key `on` as true."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", True, "permissions", "jobs"} <= set(workflow)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    return [step["run"] for step in steps if "run" in step]


def test_ci_runs_what_everyone_runs():
    assert "bash .ci/run" in commands(REPOSITORY / ".github/workflows/ci.yml")
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert "export CI=true" in script
    assert script.rstrip().endswith("make lint\nmake test")


def test_the_package_is_built_and_checked():
    assert commands(REPOSITORY / ".github/workflows/package.yml")[1:] == [
        "python -m build",
        "python -m twine check --strict dist/*",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_actions_are_pinned(path):
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in used)


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_issue_forms_are_valid(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "labels", "body"}
    ids = [item["id"] for item in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    for item in form["body"]:
        assert item["type"] in ("input", "textarea")
        assert item["attributes"]["label"]


def test_there_is_a_form_for_each_kind():
    assert [path.stem for path in FORMS] == ["bug", "feature", "method"]


def test_hooks_are_pinned():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", hook["rev"]) for hook in hooks if hook["repo"] != "local")
    names = [hook["id"] for repository in hooks for hook in repository["hooks"]]
    assert {"ruff-check", "ruff-format", "mypy", "lint-imports"} <= set(names)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == __version__


@pytest.mark.parametrize(("value", "expected"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_in_ci_a_missing_tool_is_a_failure_that_names_it(monkeypatch, value, expected):
    monkeypatch.setenv("CI", value)
    with pytest.raises(expected, match="needs Chromium: apt-get install chromium"):
        lacking("Chromium", "apt-get install chromium")
    with pytest.raises(expected, match=r"needs no_such_package: pip install 'segdistill\[report\]'"):
        needs_package("no_such_package", "report")


def test_what_ci_could_not_install_may_be_lacking(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("SEGDISTILL_MAY_LACK", "Chromium")
    with pytest.raises(pytest.skip.Exception, match="needs Chromium"):
        lacking("Chromium", "apt-get install chromium")
    with pytest.raises(pytest.fail.Exception, match="needs Linux"):
        lacking("Linux", "run the tests where it is")


def test_every_skip_goes_through_the_helper():
    other = re.compile(r"pytest\.(skip\(|importorskip\()|mark\.skip|unittest\.skip")
    files = sorted(REPOSITORY.glob("tests/test_*.py"))
    assert files
    found = [
        path.name for path in files if other.search(path.read_text(encoding="utf-8")) and path.name != "test_habits.py"
    ]
    assert found == [], "use `lacking` or `needs_package` of conftest.py"


def test_camvid_in_a_place_that_is_named_but_wrong_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_CAMVID", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="has no folder train/"):
        conftest.camvid_root()
    (tmp_path / "train").mkdir()
    assert conftest.camvid_root() == tmp_path


def test_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == "fp32"  # as every test sees it, on any machine
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert pick_precision("auto", cpu) == "bf16"
    assert pick_precision("fp32", cpu) == "fp32"
