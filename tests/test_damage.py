"""Files that are damaged or lost: one line names them, and nothing is read that was not written."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faults import config
from segdistill import distill, load_student
from segdistill.engine.checkpoint import load_checkpoint, tensor_digest
from segdistill.engine.run_folder import read_json


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


def replaced(change):
    def damage(path):
        state = torch.load(path, weights_only=True)
        torch.save(change(state), path)

    return damage


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read: it is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-999]), "cannot be read: it is damaged"),
        (lambda path: torch.save(torch.zeros(2), path), "is no checkpoint of a run"),
        (replaced(lambda state: {k: v for k, v in state.items() if k != "facts"}), "is no checkpoint of a run"),
        (replaced(lambda state: state | {"facts": 3}), "is no checkpoint of a run"),
        (replaced(lambda state: {k: v for k, v in state.items() if k != "sha256"}), "is no checkpoint of a run"),
        (replaced(lambda state: state | {"facts": state["facts"] | {"step": "2"}}), "its digest is not"),
        (replaced(lambda state: state | {"optimizer": None}), "its digest is not"),
        (flip, "is damaged|cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(run, damage, line):
    damage(run / "checkpoint.pt")
    with pytest.raises(ValueError, match=line) as caught:
        distill(config(), out=run, resume=True)
    assert "delete it to train from the start" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("weights_only", "pickle", "unpickle", "\n"))


def test_a_flipped_byte_in_any_tensor_is_found(run):
    path = run / "checkpoint.pt"
    original = path.read_bytes()
    state = torch.load(path, weights_only=True)
    tensors = [v for k, v in state["distiller"].items() if k.endswith("running_mean")][::4]
    tensors += [v["momentum_buffer"] for v in list(state["optimizer"]["state"].values())[1:20:6]]
    for tensor in tensors:
        content = bytes(tensor.untyped_storage())
        flip(path, original.index(content) + len(content) // 2)
        with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
            load_checkpoint(run, {})
        path.write_bytes(original)


def test_a_damaged_student_is_found(run):
    flip(run / "student.safetensors", -8)
    with pytest.raises(ValueError, match=r"student.safetensors is damaged: its digest is not that of what it holds"):
        load_student(run)
    with pytest.raises(ValueError, match=r"digest is not .* it was the best so far, of step 2: put a copy back, or"):
        distill(config(), out=run, resume=True)
    (run / "student.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no student at .* delete .*checkpoint.pt to train from the start"):
        distill(config(), out=run, resume=True)


def test_a_student_of_another_card_is_found(run):
    tensors = load_file(run / "student.safetensors")
    from safetensors import safe_open

    with safe_open(run / "student.safetensors", "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, run / "student.safetensors", metadata | {"segdistill": metadata["segdistill"].replace("2", "3")})
    with pytest.raises(ValueError, match="is damaged"):
        load_student(run)
    save_file(tensors, run / "student.safetensors", {"segdistill": "[]"})
    with pytest.raises(ValueError, match="its card is no JSON object"):
        load_student(run)


@pytest.mark.parametrize("content", ["{}", "", "[1]", "\udcff"])
def test_a_damaged_summary_is_made_again(whole, tmp_path, content):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    summary = distill(config(), out=run, resume=True)
    assert summary["miou"] == read_json(whole / "summary.json")["miou"]
    assert read_json(run / "summary.json") == summary


@pytest.mark.parametrize("content", [None, "", "data: {", "student: {name: pspnet_resnet18}", "\udcff"])
def test_a_folder_that_forgot_its_configuration(run, content):
    if content is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"run does not say what it was started with: .*; put a copy back, or name"):
        distill(config(), out=run, resume=True)
    assert (run / "checkpoint.pt").exists()


def test_a_checkpoint_of_other_facts(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["sha256"], state["facts"]["best"]
    torch.save(state | {"sha256": tensor_digest(state)}, run / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt lacks what it should say of the run: step, seconds, best"):
        distill(config(), out=run, resume=True)
