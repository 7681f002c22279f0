"""Configurations of the package, by name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from segdistill.comparison.plan import load_plan
from segdistill.engine.config import is_config, load_config, read_config
from segdistill.engine.shipped import CONFIGS, describe_config, find_config, list_configs


def test_the_folder_of_the_repository_is_the_package_s():
    assert (REPOSITORY / "configs").resolve() == CONFIGS


@pytest.mark.parametrize("name", ["camvid/student_cpu", "camvid/student_cpu.yaml", "configs/camvid/student_cpu.yaml"])
def test_a_name_stands_wherever_a_file_does(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / "camvid/student_cpu.yaml"
    assert is_config(name)
    assert load_config(name, ["train.steps=7"]).train.steps == 7


def test_what_lies_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "camvid/student_cpu"
    mine.mkdir(parents=True)
    (mine / "config.yaml").write_text("data: {name: synthetic}\nstudent: {name: espnet}\n", encoding="utf-8")
    assert not is_config("camvid/student_cpu")
    assert read_config("camvid/student_cpu")["data"] == {"name": "synthetic"}


def test_a_comparison_and_its_teacher_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = load_plan("camvid/compare_cpu", ["teacher.config=camvid/teacher_cpu"])
    assert plan.out == Path("runs/compare_compare_cpu")


def test_a_slip_is_answered_with_the_nearest_name(segdistill, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert segdistill("train", "camvid/student_cpv") == (
        2,
        "",
        "segdistill: no configuration at camvid/student_cpv; did you mean camvid/student_cpu?\n",
    )
    with pytest.raises(ValueError, match=r"no configuration at mine.yaml; `segdistill list configs` names"):
        find_config("mine.yaml")


def test_the_list_says_what_each_is(segdistill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = segdistill("list", "configs")
    assert code == 0
    for name in list_configs():
        assert name in out
        assert describe_config(name)[:30] in out
        assert 20 < len(describe_config(name)) < 200
        assert yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_wheel_holds_them(tmp_path):
    source = tmp_path / "source"  # a build leaves folders beside what it builds
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {f"segdistill/configs/{name}.yaml" for name in list_configs()} <= set(held)
