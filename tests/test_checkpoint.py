import json

import pytest
import torch
from safetensors.torch import save_file

from conftest import Malicious
from segdistill import build_model, load_student
from segdistill.engine.build import build_network
from segdistill.engine.checkpoint import load_checkpoint, save_checkpoint
from segdistill.engine.network_config import NetworkConfig
from segdistill.engine.run_folder import write_atomically
from segdistill.engine.student import make_card, read_card, save_student
from segdistill.models.weights.files import load_named

NAME = "pspnet_resnet18_quarter"


def test_a_student_comes_back_as_it_was(tmp_path):
    network = build_model(NAME, num_classes=3, aux=True, output_stride=16).eval()
    card = make_card(network, ["a", "b", "c"], [(0, 0, 0)] * 3, miou=0.5)
    save_student(tmp_path / "student.safetensors", network, card)
    loaded = load_student(tmp_path)
    images = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(loaded(images), network(images))
    assert loaded.aux is None
    assert read_card(tmp_path)["miou"] == 0.5


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def killed(path):
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, killed)
    assert file.read_text() == "old"


def test_checkpoints_go_back_into_their_parts(tmp_path):
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path, {"net": a, "other": None}, {"step": 3})
    assert load_checkpoint(tmp_path, {"net": b, "other": None}) == {"step": 3}
    torch.testing.assert_close(a.weight, b.weight)
    with pytest.raises(ValueError, match="lacks other"):
        load_checkpoint(tmp_path, {"net": b, "other": a})
    with pytest.raises(ValueError, match="has net"):
        load_checkpoint(tmp_path, {"net": None, "other": None})
    with pytest.raises(ValueError, match="net does not fit"):
        load_checkpoint(tmp_path, {"net": torch.nn.Linear(3, 2)})


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"net": {}, "facts": Malicious()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, {"net": torch.nn.Linear(2, 2)})
    assert "must never run" not in capsys.readouterr().out


def test_students_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no student at"):
        load_student(tmp_path)
    (tmp_path / "student.safetensors").write_text("nonsense")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_student(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "student.safetensors")
    with pytest.raises(ValueError, match="has no segdistill card"):
        load_student(tmp_path)
    card = {"network": {"name": NAME, "num_classes": 3}, "classes": []}
    save_file({"a": torch.zeros(1)}, tmp_path / "student.safetensors", {"segdistill": json.dumps(card)})
    with pytest.raises(ValueError, match=r"lacks \d+ tensors: .*; has 1 tensors: a that PSPNet has not"):
        load_student(tmp_path)


def test_weights_of_another_shape():
    network = build_model(NAME, num_classes=3)
    tensors = build_model(NAME, num_classes=4).state_dict()
    with pytest.raises(ValueError, match=r"classifier.bias is \(4,\), expected \(3,\)|classifier.weight is"):
        load_named(network, tensors, "file")


def test_a_teacher_from_weights_or_from_a_run(tmp_path):
    network = build_model(NAME, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    built = build_network(NetworkConfig(name=NAME, weights=str(tmp_path / "weights.pth")), 3, "teacher")
    torch.testing.assert_close(built.classifier.weight, network.classifier.weight)
    save_student(tmp_path / "s.safetensors", network, make_card(network, ["a", "b", "c"], [(0, 0, 0)] * 3))
    with pytest.raises(ValueError, match=r"has 3 classes \(a, b, c\), the data 5"):
        build_network(NetworkConfig(checkpoint=str(tmp_path / "s.safetensors")), 5, "teacher")
    with pytest.raises(ValueError, match="teacher: name a network"):
        build_network(NetworkConfig(), 5, "teacher")
