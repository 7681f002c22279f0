"""Data that are decoded once: what is written, that it is read back to the last bit, and what may go wrong."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import trees
from conftest import PATIENCE, wait_until, write_image
from segdistill import distill
from segdistill.data import build_dataset
from segdistill.data.check import open_split
from segdistill.data.packed import PackedDataset, damaged_shards
from segdistill.data.sampler import eval_loader, train_loader
from segdistill.data.transforms import TrainTransform, stack
from segdistill.engine import pack as packing
from segdistill.engine.build import build_split, build_training
from segdistill.engine.config import load_config
from segdistill.engine.pack import pack_data
from segdistill.models import build_model

CLASSES = ["wall", "floor", "door"]
SIZES = [(40, 64), (48, 48), (33, 71)]


def config(root, **keys):
    """A configuration of a student on the images in a folder."""
    return load_config(
        {
            "data": {"name": "folder", "root": str(root), "classes": CLASSES, "workers": 0, **keys},
            "student": {"name": "pspnet_resnet18"},
        }
    )


@pytest.fixture(scope="session")
def _images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for index in range(count):
            size = SIZES[index % 3]
            write_image(root / f"images/{split}/{index}.png", rng.integers(0, 256, (*size, 3)))
            write_image(root / f"masks/{split}/{index}.png", rng.choice([0, 1, 2, 255], size))
    return root


@pytest.fixture
def images(_images, tmp_path):
    """Ten images of three sizes; a copy."""
    return shutil.copytree(_images, tmp_path / "images")


@pytest.fixture
def pack(images, tmp_path):
    """A pack of them, of several shards."""
    pack_data(config(images).data, tmp_path / "pack", say=lambda line: None, shard_bytes=30_000)
    return tmp_path / "pack"


def same_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_it_is_read_back_to_the_last_bit(images, pack):
    for split, count in (("train", 7), ("val", 3)):
        files, packed = build_dataset("folder", split, root=str(images), classes=CLASSES), PackedDataset(pack, split)
        assert len(packed) == count
        assert packed.names == files.names
        assert packed.classes == files.classes
        assert packed.palette == files.palette
        for index in range(count):
            for ours, theirs in zip(packed[index], files[index], strict=True):
                assert torch.equal(ours, theirs)
                assert ours.dtype == theirs.dtype
                assert ours.stride() == theirs.stride()
    assert len(list(pack.glob("train-*.bin"))) > 1


def test_crops_and_batches_are_the_same(images, pack):
    files, packed = build_dataset("folder", "train", root=str(images), classes=CLASSES), PackedDataset(pack, "train")
    transform = TrainTransform(crop=(32, 48), photometric="mmseg", cat_max_ratio=0.5, padding="mirrored")
    for index in range(7):
        torch.manual_seed(index)
        expected = stack([transform.draw(files.source(index))])
        torch.manual_seed(index)
        found = stack([transform.draw(packed.source(index))])
        assert torch.equal(found.masks, expected.masks)
        for ours, theirs in zip(found.numbers(), expected.numbers(), strict=True):
            assert torch.equal(ours, theirs)
    how = {"batch_size": 4, "steps": 5, "seed": 3}
    expected = list(train_loader(files, transform, **how))
    for workers in (0, 2):
        assert same_batches(train_loader(packed, transform, workers=workers, **how), expected)
    assert same_batches(eval_loader(packed, workers=1), eval_loader(files))


def test_a_run_is_the_same_to_the_last_bit(images, pack, tmp_path):
    # The pack is read where the images are not, too.
    students = []
    for packed in (None, str(pack)):
        raw = {
            "data": {"name": "folder", "root": str(images), "classes": CLASSES, "crop": [32, 32], "batch_size": 2,
                     "workers": 0, "packed": packed},
            "student": {"name": "espnet_c"},
            "train": {"steps": 3, "device": "cpu", "precision": "fp32", "gradient_samples": 0},
        }  # fmt: skip
        distill(raw, out=tmp_path / f"run{len(students)}")
        students.append(load_file(tmp_path / f"run{len(students)}" / "student.safetensors"))
        shutil.rmtree(images, ignore_errors=True)
    assert students[0].keys() == students[1].keys()
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])


def test_what_is_written(pack):
    index = json.loads((pack / "pack.json").read_text())
    assert (index["name"], index["classes"]) == ("folder", CLASSES)
    assert {split: found["images"] for split, found in index["splits"].items()} == {"train": 7, "val": 3}
    shard = json.loads((pack / "train-00000.json").read_text())
    pixels = np.fromfile(pack / "train-00000.bin", np.uint8)
    assert shard["bytes"] == len(pixels) == sum(4 * height * width for height, width in shard["sizes"])
    height, width = shard["sizes"][1]
    at = shard["offsets"][1]
    image, mask = PackedDataset(pack, "train")[1]
    assert np.array_equal(pixels[at : at + 3 * height * width].reshape(height, width, 3), image.permute(1, 2, 0))
    assert np.array_equal(pixels[at + 3 * height * width : at + 4 * height * width].reshape(height, width), mask)
    assert not list(pack.glob(".*.tmp"))


def test_the_size_is_said_first(images, tmp_path):
    lines = []
    pack_data(config(images).data, tmp_path / "pack", ["train"], say=lines.append)
    exact = sum(4 * h * w for h, w in (SIZES * 3)[:7])
    assert lines[0] == "train: 7 images"
    assert lines[1].startswith(f"about {exact / 1e9:.2f} GB to write; ")
    assert packing._Split("train", build_split(config(images).data, "train")).bytes() == exact


def test_what_is_there_is_kept_and_further_splits_are_added(images, tmp_path):
    pack = tmp_path / "pack"
    data = config(images).data
    pack_data(data, pack, ["val"], say=lambda line: None)
    with pytest.raises(
        ValueError, match=r"no split 'train'; there is val; `segdistill data pack CONFIG --out .*--split tr"
    ):
        PackedDataset(pack, "train")
    before = (pack / "val-00000.bin").stat().st_mtime_ns
    lines = []
    pack_data(data, pack, ["val", "train"], say=lines.append)
    assert lines[0] == "val: 3 images, all packed already"
    assert (pack / "val-00000.bin").stat().st_mtime_ns == before
    assert len(PackedDataset(pack, "train")) == 7
    lines = []
    pack_data(data, pack, say=lines.append)
    assert lines[2] == "nothing is left to write"


def test_packing_goes_on_where_it_was_stopped(images, pack, tmp_path, monkeypatch):
    whole = {path.name: path.read_bytes() for path in pack.glob("*.bin")}
    data, stopped = config(images).data, tmp_path / "stopped"
    read = packing._items
    calls = []

    def items(dataset, start, threads):
        calls.append(start)
        for count, item in enumerate(read(dataset, start, threads)):
            if len(calls) == 2 and count == 1:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(packing, "_items", items)
    with pytest.raises(KeyboardInterrupt):
        pack_data(data, stopped, say=lambda line: None, shard_bytes=30_000)
    assert sorted(path.name for path in stopped.glob("*.bin")) == ["train-00000.bin"]
    with pytest.raises(ValueError, match=r"no split 'train'; there is none at all; .*goes on if it was stopped"):
        PackedDataset(stopped, "train")
    pack_data(data, stopped, say=lambda line: None, shard_bytes=30_000)
    assert calls[2] == calls[1] > 0
    assert {path.name: path.read_bytes() for path in stopped.glob("*.bin")} == whole


@pytest.mark.requires(hasattr(signal, "SIGKILL"), "SIGKILL")
def test_a_killed_process_leaves_what_can_be_gone_on_with(images, pack, tmp_path):
    whole = {path.name: path.read_bytes() for path in pack.glob("*.bin")}
    stopped = tmp_path / "stopped"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(images).model_dump(mode="json")))
    code = (
        "import sys, time; from pathlib import Path; from segdistill.engine import pack; "
        "from segdistill.engine.config import load_config; read = pack._items\n"
        "def slow(*given):\n"
        "    for item in read(*given):\n"
        "        time.sleep(0.05); yield item\n"
        "pack._items = slow\n"
        "pack.pack_data(load_config(Path(sys.argv[1])).data, sys.argv[2], shard_bytes=30_000)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "config.yaml"), str(stopped)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    wait_until(lambda: (stopped / "train-00000.json").is_file(), process)
    process.kill()
    process.wait(PATIENCE)
    pack_data(config(images).data, stopped, say=lambda line: None, shard_bytes=30_000)
    assert {path.name: path.read_bytes() for path in stopped.glob("*.bin")} == whole
    assert not list(stopped.glob(".*.tmp"))


def test_it_travels_to_other_processes_without_its_bytes(pack):
    dataset = PackedDataset(pack, "train")
    dataset[0]
    assert len(pickle.dumps(dataset)) < 4000
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0][0], dataset[0][0])


def test_what_is_read_may_be_written_to(pack):
    dataset = PackedDataset(pack, "train")
    image, mask = dataset[0]
    before = image.clone()
    image.zero_(), mask.zero_()
    assert torch.equal(dataset[0][0], before)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"classes": ["wall", "floor", "window"]},
            r"packed with data.classes=\['wall', 'floor', 'door'\], the config.*\['wa",
        ),
        ({"image_range": [0, 100]}, r"packed with data.image_range=None, the configuration says \[0.0, 100.0\]"),
        ({"root": "elsewhere"}, "packed with data.root=.*images, the configuration says elsewhere"),
    ],
)
def test_a_pack_of_other_data_is_refused(images, pack, keys, line):
    data = config(images, packed=str(pack)).data
    assert len(build_split(data, "train")) == 7
    with pytest.raises(ValueError, match=line):
        build_split(config(**{"root": images, "packed": str(pack), **keys}).data, "train")
    other = load_config(
        {"data": {"name": "synthetic", "packed": str(pack)}, "student": {"name": "pspnet_resnet18"}}
    ).data
    with pytest.raises(ValueError, match=r"packed with data.name=folder, the configuration says synthetic"):
        build_split(other, "train")
    if "root" not in keys:
        with pytest.raises(ValueError, match=line):
            pack_data(config(images, **keys).data, pack, say=lambda line: None)


def test_images_that_changed_since_are_noticed(images, pack):
    os.rename(images / "images/train/0.png", images / "images/train/a.png")
    os.rename(images / "masks/train/0.png", images / "masks/train/a.png")
    with pytest.raises(ValueError, match=r"train-00000.json has other images than the data have now; pack them into"):
        pack_data(config(images).data, pack, say=lambda line: None)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def alter(path):
    pixels = bytearray(path.read_bytes())
    pixels[100] ^= 1
    path.write_bytes(pixels)


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        (
            "train-00001.bin",
            cut,
            r"train-00001.bin: \d+ bytes long, where its index says \d+; delete the index and pack",
        ),
        ("train-00001.bin", os.unlink, "train-00001.bin: missing, where its index says"),
        ("train-00000.json", cut, r"train-00000.json: not what .* writes \(no valid JSON\); pack the data again"),
        ("train-00000.json", os.unlink, r"train-00000.json: not what .* \(No such file or directory\); pack"),
        ("train-00000.json", lambda path: path.write_text("[]"), r"train-00000.json: .*it lacks what belongs there"),
        ("pack.json", lambda path: path.write_text("{}"), r"pack.json: .*it lacks what belongs there"),
        ("pack.json", os.unlink, "is no pack: it has no pack.json; `segdistill data pack CONFIG --out"),
    ],
)
def test_damage_is_one_line(pack, name, damage, line):
    damage(pack / name)
    with pytest.raises(ValueError, match=line):
        PackedDataset(pack, "train")
    if name != "pack.json":
        (problem,) = damaged_shards(pack)
        assert name.split(".")[0] in problem


def test_a_changed_byte_is_found_and_packed_anew(images, pack):
    assert damaged_shards(pack) == []
    alter(pack / "train-00001.bin")
    (problem,) = damaged_shards(pack)
    assert problem.endswith("train-00001.bin: its bytes have changed; delete it and its index, and pack again")
    for suffix in (".bin", ".json"):
        (pack / f"train-00001{suffix}").unlink()
    pack_data(config(images).data, pack, say=lambda line: None, shard_bytes=30_000)
    assert damaged_shards(pack) == []


def test_an_index_of_another_count_or_version(pack):
    index = json.loads((pack / "pack.json").read_text())
    index["splits"]["train"]["images"] = 8
    (pack / "pack.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"7 images of train, where pack.json says 8; pack the data again"):
        PackedDataset(pack, "train")
    (pack / "pack.json").write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(ValueError, match=r"a pack of format 2, this version reads 1"):
        PackedDataset(pack, "train")
    with pytest.raises(ValueError, match=r"no such folder; .*set data.packed to a folder that"):
        PackedDataset(pack / "nowhere", "train")


def test_too_little_room(images, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        ValueError, match=r"has room for 0.00 GB, the decoded images take about 0.00 GB; make room, name"
    ):
        pack_data(config(images).data, tmp_path / "pack", say=lambda line: None)
    assert not list((tmp_path / "pack").glob("*.bin"))


def test_a_disk_that_is_full_says_nothing_of_trainings(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packing, "_items", full)
    line = r"cannot write .*train-00000.bin: No space left on device; make room there, then run the same command again$"
    with pytest.raises(ValueError, match=line):
        pack_data(config(images).data, tmp_path / "pack", say=lambda line: None)


def test_a_pack_remembers_what_was_conspicuous(tmp_path):
    root = trees.cityscapes(tmp_path / "data")
    raw = {"data": {"name": "cityscapes", "root": str(root)}, "student": {"name": "pspnet_resnet18"}}
    data = load_config(raw).data
    pack_data(data, tmp_path / "pack", say=lambda line: None)
    line = "Cityscapes: 2 images, where the official val has 500"
    assert PackedDataset(tmp_path / "pack", "val").remarks == [line]
    index = json.loads((tmp_path / "pack/pack.json").read_text())
    del index["splits"]["val"]["remarks"]  # as the first packs were
    (tmp_path / "pack/pack.json").write_text(json.dumps(index))
    assert PackedDataset(tmp_path / "pack", "val").remarks == []
    pack_data(data, tmp_path / "pack", say=lambda line: None)
    assert PackedDataset(tmp_path / "pack", "val").remarks == [line]


def test_the_check_looks_at_the_pack(images, pack, tmp_path, segdistill):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(images, packed=str(pack)).model_dump(mode="json")))
    shutil.rmtree(images)
    out = [part for name in ("sheet", "json", "records") for part in (f"--{name}", tmp_path / name)]
    status, printed, err = segdistill("data", "check", tmp_path / "c.yaml", *out)
    assert status == 0, err
    assert " ".join(printed.split()).startswith(f"images of the pack {pack} train 7 images: ")
    assert "no problems" in printed
    assert Image.open(tmp_path / "sheet").format == "PNG"
    found = json.loads((tmp_path / "json").read_text())
    assert found["packed"] == str(pack)
    assert [found["splits"][split]["images"] for split in ("train", "val")] == [7, 3]
    alter(pack / "pack.json")
    status, printed, err = segdistill("data", "check", tmp_path / "c.yaml")
    assert status == 2
    assert "pack the data again" in " ".join(printed.split())


def test_an_image_that_cannot_be_read_stops_packing_with_its_line(images, tmp_path):
    cut_short = images / "images/train/3.png"
    cut_short.write_bytes(cut_short.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3.png: not a readable image"):
        pack_data(config(images).data, tmp_path / "pack", say=lambda line: None)
    assert not list((tmp_path / "pack").glob("*.bin"))
    assert not list((tmp_path / "pack").glob(".*.tmp"))


@pytest.fixture
def bare(images):
    """The same images, of which two of `train` have no mask."""
    for name in ("1", "5"):
        (images / f"masks/train/{name}.png").unlink()
    return images


def test_images_without_masks_are_packed_as_such(bare, tmp_path):
    # Shards of 30 000 bytes hold three images: one without a mask is in the second, at another place than among all.
    data = config(bare, labelled="masks").data
    pack_data(data, tmp_path / "pack", say=lambda line: None, shard_bytes=30_000)
    packed = data.model_copy(update={"packed": str(tmp_path / "pack")})
    for labelled in ("masks", 3, 0.5, ["0", "6"]):
        (files, chosen), (ours, same) = (
            build_training(source.model_copy(update={"labelled": labelled}), distils=True) for source in (data, packed)
        )
        assert chosen == same
        assert ours.names == files.names
        for index in range(7):
            assert ours.has_mask(index) == files.has_mask(index)
            assert all(torch.equal(a, b) for a, b in zip(ours[index], files[index], strict=True))
    assert build_training(packed, distils=True)[1] == [0, 2, 3, 4, 6]
    with pytest.raises(ValueError, match=r"train/1 had no mask when .* was packed \(and 1 more"):  # as of the files
        build_split(packed.model_copy(update={"labelled": None}), "train")
    assert len(build_split(packed, "val")) == 3
    found, problems = open_split("folder", "train", data.options, packed.packed)
    assert [name for name in found.names] == [f"train/{index}" for index in (0, 2, 3, 4, 6)]
    assert len(problems) == 2


def test_without_a_word_of_labels_a_missing_mask_stops_packing(bare, tmp_path):
    with pytest.raises(ValueError, match=r"1.png has no mask; expected .*1.png \(and 1 more"):
        pack_data(config(bare).data, tmp_path / "pack", say=lambda line: None)


def test_a_mask_that_came_later_is_noticed(bare, tmp_path):
    data = config(bare, labelled="masks").data
    pack_data(data, tmp_path / "pack", say=lambda line: None)
    pack_data(data, tmp_path / "pack", say=lambda line: None)
    shutil.copy(bare / "masks/train/4.png", bare / "masks/train/1.png")
    with pytest.raises(ValueError, match=r"train-00000.json has other images than the data have now"):
        pack_data(data, tmp_path / "pack", say=lambda line: None)


def test_a_pack_without_any_mask(images, tmp_path):
    data = load_config(
        {
            "data": {"name": "folder", "root": str(images), "masks": None, "workers": 0},
            "student": {"name": "pspnet_resnet18"},
        }
    ).data
    pack_data(data, tmp_path / "pack", ["train"], say=lambda line: None)
    packed = build_split(data.model_copy(update={"packed": str(tmp_path / "pack")}), "train")
    assert len(packed) == 7
    assert not any(map(packed.has_mask, range(7)))


def test_a_run_with_some_labels_is_the_same_to_the_last_bit(bare, tmp_path):
    pack_data(config(bare, labelled="masks").data, tmp_path / "pack", say=lambda line: None)
    raw = {
        "data": {"name": "folder", "root": str(bare), "classes": CLASSES, "crop": [32, 32], "batch_size": 2,
                 "workers": 0, "labelled": "masks", "labelled_per_batch": 1, "augment": {"classmix": 0.5}},
        "student": {"name": "espnet_c"},
        "supervised": {"class_weights": "balanced"},
        "train": {"steps": 3, "device": "cpu", "precision": "fp32", "gradient_samples": 0},
        "method": {"name": "jml", "weight": 1.0},
    }  # fmt: skip
    teacher = build_model("espnet_c", num_classes=3)
    for out, packed in (("files", None), ("pack_run", str(tmp_path / "pack"))):
        distill({**raw, "data": {**raw["data"], "packed": packed}}, teacher=teacher, out=tmp_path / out)
    students = [load_file(tmp_path / out / "student.safetensors") for out in ("files", "pack_run")]
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_data_that_are_drawn_can_be_packed(tmp_path):
    raw = {"data": {"name": "synthetic", "images": 5, "size": [32, 48]}, "student": {"name": "pspnet_resnet18"}}
    data = load_config(raw).data
    pack_data(data, tmp_path / "pack", ["train"], say=lambda line: None)
    packed, drawn = (
        build_split(data.model_copy(update={"packed": str(tmp_path / "pack")}), "train"),
        build_split(data, "train"),
    )
    assert all(torch.equal(a, b) for index in range(5) for a, b in zip(packed[index], drawn[index], strict=True))


def test_the_command(segdistill, images, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(images).model_dump(mode="json")))
    arguments = ["data", "pack", tmp_path / "config.yaml", "--out", tmp_path / "pack"]
    code, out, err = segdistill(*arguments)
    assert code == 0, err
    assert out.splitlines()[0] == "train: 7 images"
    assert out.splitlines()[-1] == f"read them with data.packed={tmp_path / 'pack'}"
    code, out, _ = segdistill(*arguments, "--verify")
    assert code == 0
    assert out.strip() == f"{tmp_path / 'pack'}: 7 images of train, 3 images of val; as it was packed"
    alter(tmp_path / "pack/val-00000.bin")
    code, out, _ = segdistill(*arguments, "--verify")
    assert code == 2
    assert "problem: " in out
    assert out.strip().endswith("1 problem")
    code, _, err = segdistill(*arguments, "--split", "test")
    assert code == 2
    assert err.count("\n") == 1


def test_classes_of_a_file_that_changed(images, tmp_path):
    (images / "classes.txt").write_text("wall\nfloor\ndoor\n")
    pack_data(config(images, classes="classes.txt").data, tmp_path / "pack", ["val"], say=lambda line: None)
    (images / "classes.txt").write_text("wall\nfloor\nwindow\n")
    with pytest.raises(ValueError, match="was packed with other classes; pack into another folder"):
        pack_data(config(images, classes="classes.txt").data, tmp_path / "pack", say=lambda line: None)
