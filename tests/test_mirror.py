"""A comparison's folder at a URL: what is sent, fetched, and in which order."""

import os
import shutil
import subprocess
import sys
import tempfile

import fsspec
import pytest
import yaml

from faults import assert_same_run, at_step, config, interrupt
from segdistill import distill
from segdistill.comparison.executors import mirrored
from segdistill.comparison.executors.local import Local
from segdistill.comparison.executors.mirrored import Mirrored, work_in_copy
from segdistill.comparison.executors.task import Outcome, Task
from segdistill.comparison.grid import compare
from segdistill.comparison.mirror import Mirror, _frozen, is_url, scratch_folder
from segdistill.comparison.plan import load_plan
from test_compare import ALONE, TINY


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    place = f"{request.param}://{tmp_path}/store"
    yield place
    system, root = fsspec.core.url_to_fs(place)
    if system.exists(root):
        system.rm(root, recursive=True)


def listed(url):
    system, root = fsspec.core.url_to_fs(url)
    return sorted(path.removeprefix(root).lstrip("/") for path in system.find(root))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_what_one_machine_sends_another_gets(url, tmp_path):
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    here.reach()
    write(tmp_path / "here/run", checkpoint_pt="1", student_safetensors="s", log_txt="said\n", _lock="x")
    write(tmp_path / "here", plan_json="{}")
    write(tmp_path / "here/run/tensorboard", events="e")
    here.upload("run")
    assert listed(url) == ["run/checkpoint.pt", "run/log.txt", "run/student.safetensors", "run/tensorboard/events"]
    here.upload()
    assert "plan.json" in listed(url)
    write(tmp_path / "there/run", summary_json="of a run that is no more", log_txt="own\n", _lock="y")
    there.download("run", but={"checkpoint.pt"})
    assert sorted(path.name for path in (tmp_path / "there/run").iterdir()) == [
        ".lock", "log.txt", "student.safetensors", "tensorboard",
    ]  # fmt: skip
    there.download()
    assert (tmp_path / "there/run/checkpoint.pt").read_text() == "1"
    assert (tmp_path / "there/plan.json").read_text() == "{}"
    assert (tmp_path / "there/run/log.txt").read_text() == "own\n"  # what is printed goes there
    assert there.download_log("run") == "said\n"
    assert there.download_log("other") == ""
    assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]


def test_only_what_is_new_is_sent_and_what_is_removed_goes(url, tmp_path, monkeypatch):
    mirror, sent = Mirror(url, tmp_path / "here"), []
    mirror.reach()
    put = sys.modules[Mirror.__module__]._put
    monkeypatch.setattr(
        sys.modules[Mirror.__module__],
        "_put",
        lambda system, source, target: (sent.append(target.rpartition("/")[2]), put(system, source, target)),
    )
    write(tmp_path / "here/run", checkpoint_pt="1", student_safetensors="s", metrics_jsonl="{}\n", eval_json="old")
    mirror.upload("run")
    assert sent[-1] == "checkpoint.pt"  # after what it stands on
    assert len(sent) == 4
    sent.clear()
    mirror.upload("run")
    assert sent == []
    (tmp_path / "here/run/eval.json").unlink()
    with (tmp_path / "here/run/metrics.jsonl").open("a") as file:
        file.write("{}\n")
    write(tmp_path / "here/run", checkpoint_pt="two")
    mirror.upload("run", only=("metrics.jsonl",))
    assert sent == ["metrics.jsonl"]
    assert "run/eval.json" in listed(url)
    mirror.upload("run")
    assert sent == ["metrics.jsonl", "checkpoint.pt"]
    assert "run/eval.json" not in listed(url)


def test_a_checkpoint_is_taken_before_the_student_it_counts_on(tmp_path, monkeypatch):
    write(tmp_path, student_safetensors="1", checkpoint_pt="1")

    def link(source, target):
        shutil.copy(source, target)
        write(tmp_path, student_safetensors="2", checkpoint_pt="2")  # the run goes on meanwhile

    monkeypatch.setattr(os, "link", link)
    files = Mirror("memory://x", tmp_path)._files("")
    with _frozen([*files, tmp_path / "gone"]) as copies:
        taken = {path.name: copy.read_text() for path, copy in copies.items()}
    assert taken == {"checkpoint.pt": "1", "student.safetensors": "2"}
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    with _frozen(files) as copies:
        assert copies[tmp_path / "student.safetensors"].read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "student.safetensors"]


def test_an_upload_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    mirror = Mirror(f"file://{tmp_path}/store", tmp_path / "here")
    mirror.reach()
    write(tmp_path / "here/run", checkpoint_pt="old")
    mirror.upload("run")
    write(tmp_path / "here/run", checkpoint_pt="newer")

    def half(source, target, _size):
        target.write(b"ne")
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", half)
        with pytest.raises(ValueError, match=r"cannot write file://.*: connection lost"):
            mirror.upload("run")
    assert (tmp_path / "store/run/checkpoint.pt").read_text() == "old"
    mirror.upload("run")
    assert (tmp_path / "store/run/checkpoint.pt").read_text() == "newer"


def test_a_run_goes_on_on_another_machine(tmp_path, monkeypatch, capsys):
    url = f"file://{tmp_path}/store"
    changes = config(train={"save_every": 1})
    distill(changes, out=tmp_path / "whole")
    one, other = Mirror(url, tmp_path / "one"), Mirror(url, tmp_path / "other")
    one.reach()
    with at_step(monkeypatch, 3, interrupt, after="save"), pytest.raises(KeyboardInterrupt):
        work_in_copy(one, "run", ["teacher"], distill_into, (changes, tmp_path / "one/run"))
    assert "run/checkpoint.pt" in listed(url)
    write(tmp_path / "store/run", log_txt="said before\n")
    write(tmp_path / "other/run", log_txt="")
    work_in_copy(other, "run", [], distill_into, (changes, tmp_path / "other/run"))
    assert "said before\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "store/run")


def distill_into(changes, folder):
    return distill(changes, out=folder, resume="auto")["miou"]


def test_checkpoints_are_sent_while_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirrored, "LOOK", 0.01)
    monkeypatch.setattr(mirrored, "SEND_LOG", 1)
    mirror = Mirror(f"file://{tmp_path}/store", tmp_path / "here")
    mirror.reach()
    upload, failing = mirror.upload, [True]

    def upload_later(name, **how):
        if failing.pop() if failing else False:
            raise ValueError("the network is away")
        upload(name, **how)

    monkeypatch.setattr(mirror, "upload", upload_later)
    assert work_in_copy(mirror, "run", [], wait_until_sent, (tmp_path,)) == "done"
    assert "the network is away; it is tried again" in capsys.readouterr().err


def wait_until_sent(folder):
    from conftest import wait_until

    write(folder / "here/run", checkpoint_pt="1")
    wait_until((folder / "store/run/checkpoint.pt").is_file)
    write(folder / "here/run", log_txt="step 1")
    wait_until((folder / "store/run/log.txt").is_file)
    return "done"


def touch(folder, name, error):
    write(folder / name, summary_json="{}")
    if error:
        raise ValueError(f"{folder / name} is wrong")
    return 1


def test_tasks_of_an_executor(tmp_path):
    url, folder = f"file://{tmp_path}/store", tmp_path / "copy"
    with Mirrored(Local(2), url, folder, [folder / "teacher"]) as executor:
        assert (executor.jobs, executor.prints) == (2, False)
        assert executor.threads >= 1
        tasks = [Task(touch, (folder, name, name == "b"), None, folder / name) for name in "ab"]
        tasks.append(Task(len, ("four",)))
        outcomes = dict(executor.run(tasks))
        (folder / "compare.json").write_text("{}")
    assert outcomes == {0: Outcome(1), 1: Outcome(error=f"{url}/b is wrong"), 2: Outcome(4)}
    assert listed(url) == ["a/summary.json", "b/summary.json", "compare.json"]


@pytest.mark.slow
def test_a_comparison_at_a_url_has_the_same_table(tmp_path, monkeypatch):
    overrides = ["methods=[none, kd]", "seeds=1"]
    plain = compare(TINY, overrides, out=tmp_path / "plain", say=lambda line: None)
    url = f"file://{tmp_path}/store"
    for machine in ("one", "two"):  # the second one finds everything there
        (tmp_path / machine).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / machine))
        said = []
        result = compare(TINY, overrides, out=url, say=said.append)
        for ours, theirs in zip(result["rows"], plain["rows"], strict=True):
            for key in ("miou", "iou", "difference", "bootstrap", "gap_closed"):
                assert ours[key] == theirs[key]
    assert "2 of 2 runs are there already" in said
    assert {"compare.json", "compare.csv", "plan.json", "teacher/checkpoint.pt"} <= set(listed(url))


def test_places_that_cannot_be_used(tmp_path, segdistill):
    assert is_url("s3://bucket/table")
    assert not is_url("runs/table")
    assert scratch_folder("s3://a/b/") == scratch_folder("s3://a/b") != scratch_folder("s3://a/c")
    assert load_plan(ALONE, ["methods=[none]"], "s3://a/b").url == "s3://a/b"
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**ALONE, "methods": ["none"]}))
    (tmp_path / "file").touch()
    for out, line in {
        "memory://table": "memory://table: each process has a memory of its own",
        "nothing://table": "cannot use nothing://table: Protocol not known: nothing",
        f"file://{tmp_path}/file/table": f"cannot use file://{tmp_path}/file/table: ",
    }.items():
        status, _, error = segdistill("compare", grid, "--out", out)
        assert (status, error.count("\n")) == (2, 1)
        assert line in error


def test_a_package_that_is_lacking_is_named(tmp_path):
    code = "import sys; sys.modules['s3fs'] = None; from pathlib import Path\n"
    code += "from segdistill.comparison.mirror import Mirror; Mirror('s3://bucket/table', Path(sys.argv[1])).reach()"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "ImportError: Install s3fs to access S3" in ended.stderr
