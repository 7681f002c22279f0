"""Files that cannot be written: the old ones stay whole, nothing half-written is left, one line says what helps."""

import errno
import importlib
import os
import shutil
from pathlib import Path

import pytest
import yaml

from faults import assert_same_run, at_step, config, leftovers
from segdistill import distill
from segdistill.engine import run_folder
from segdistill.engine.record import Recorder
from segdistill.engine.run_folder import read_json, write_json, write_text
from segdistill.report.figures import Album, save_figure


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_file_is_whole_whatever_fails(tmp_path, monkeypatch, moment):
    file = tmp_path / "summary.json"
    write_json(file, {"a": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if moment == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(run_folder.os, moment, full)
    line = r"cannot write .*summary.json: No space left on device; make room there, then run the same command again$"
    with pytest.raises(ValueError, match=line):  # not every command is a training
        write_json(file, {"a": 2})
    monkeypatch.undo()
    assert read_json(file) == {"a": 1}
    assert leftovers(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(run_folder.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(run_folder.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_text(tmp_path / "file", "text")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_name_that_is_no_text_comes_back(tmp_path):
    name = b"caf\xe9 \xc3\xa9".decode("ascii", "surrogateescape")  # as the system gives it under another locale
    write_json(tmp_path / "env.json", {"command": name, "class": "道"})
    assert read_json(tmp_path / "env.json") == {"command": name, "class": "道"}


def test_a_figure_is_whole_whatever_fails(tmp_path):
    class Figure:
        def savefig(self, path, **options):
            Path(path).write_text(str(options), encoding="utf-8")
            if "dpi" in options:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_figure(Figure(), tmp_path / "cost.png")
    with pytest.raises(ValueError, match=r"cannot write .*cost.png: No space left on device; make room there"):
        save_figure(Figure(), tmp_path / "cost.png", dpi=144)
    assert (tmp_path / "cost.png").read_text(encoding="utf-8") == "{'format': 'png'}"
    assert leftovers(tmp_path) == []
    with pytest.raises(ValueError, match="a file is where the folder should be"):
        Album(tmp_path / "cost.png", "png")


def test_a_record_that_cannot_be_rewritten_is_kept(run, monkeypatch):
    before = (run / "metrics.jsonl").read_bytes()

    def killed(_old, _new):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Recorder(run, 4, 2)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_costs_the_steps_since_the_checkpoint(run, whole, monkeypatch):
    before = (run / "checkpoint.pt").read_bytes()
    resource = importlib.import_module("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = lambda _run: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # noqa: E731
    line = (
        r"checkpoint.pt: File too large; raise .* run the same command again with --resume auto; last good checkpoint"
    )
    try:
        with at_step(monkeypatch, 4, fill), pytest.raises(ValueError, match=line):
            distill(config(), out=run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert leftovers(run) == []
    distill(config(), out=run, resume=True)
    assert_same_run(run, whole)


@pytest.mark.requires(Path("/dev/full").exists(), "/dev/full")
def test_a_record_on_a_full_disk_is_one_line(tmp_path):
    recorder = Recorder(tmp_path, 4, 0)
    recorder.file.close()
    recorder.file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(ValueError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        recorder.step(1, {"loss": 1.0, "images_per_s": 1.0, "memory_mb": 1.0})
    recorder.close()


def test_a_folder_that_vanishes_is_one_line(tmp_path, monkeypatch):
    out = tmp_path / "run"
    vanish = lambda _run: shutil.rmtree(out)  # noqa: E731
    with at_step(monkeypatch, 2, vanish), pytest.raises(ValueError, match=r"cannot write .*; the folder was removed"):
        distill(config(), out=out)
    assert not out.exists()


def test_places_that_are_none(tmp_path, whole, segdistill):
    (tmp_path / "file").touch()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config(train={"steps": 1})), encoding="utf-8")
    places = {
        tmp_path / "file": "a file is where the folder should be; name another folder",
        tmp_path / "file/run": "a file is where the folder should be; name another folder",
        "/proc/none/run": "the folder was removed, or cannot be made",
        whole: "already holds a run; --resume goes on with it, --out DIR starts another",
    }
    for out, line in places.items():
        status, _, err = segdistill("train", tmp_path / "tiny.yaml", "--out", out)
        assert (status, err.count("\n")) == (2, 1), err
        assert line in err
    grid = ["compare", tmp_path / "tiny.yaml", "methods=[none]", "split=val"]
    assert "a file is where the folder should be" in segdistill(*grid, "--out", tmp_path / "file")[2]
