import hashlib
import json
import multiprocessing
import os
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
from filelock import FileLock

import test_archives
from segdistill.data import prepare as prepare_module
from segdistill.data.prepare import prepare_dataset
from segdistill.data.sources import SOURCES, Archive, Holds, Source
from servers import Answer, serve

IMAGES = {f"set/images/{i}.jpg": os.urandom(2000) for i in range(3)}
MASKS = {f"repo/masks/{i}.png": os.urandom(1000) for i in range(3)} | {"repo/README": b"no"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data set of two archives, by the name of `small`, and the server that has them."""
    monkeypatch.delenv("SEGDISTILL_MIRROR", raising=False)
    with serve() as server:
        packed = tmp_path / "packed"
        packed.mkdir()
        for name, members in (("images.tar", IMAGES), ("masks.zip", MASKS)):
            server.files[name] = test_archives.make(packed / name, members).read_bytes()
        md5 = hashlib.md5(server.files["images.tar"]).hexdigest()
        images = Archive("images.tar", 20_000, 6000, (Holds("set/images", ".jpg", 3),), f"{server.url}/images.tar",
                         f"md5:{md5}")  # fmt: skip
        masks = Archive("masks.zip", 5000, 3000, (Holds("set/masks", ".png", 3),), f"{server.url}/masks.zip",
                        into="set", strip=1, only="masks")  # fmt: skip
        monkeypatch.setitem(SOURCES, "small", Source((images, masks), "set", "SEGDISTILL_SMALL", "free", "look at it"))
        yield server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def change(monkeypatch, index, **changes):
    """The `small` data set with another archive."""
    archives = list(SOURCES["small"].archives)
    archives[index] = replace(archives[index], **changes)
    monkeypatch.setitem(SOURCES, "small", replace(SOURCES["small"], archives=tuple(archives)))


def visible(root):
    return {name: data for name, data in test_archives.tree(root).items() if not name.startswith(".segdistill")}


WANTED = IMAGES | {name.replace("repo", "set"): data for name, data in MASKS.items() if "masks" in name}


def test_a_data_set_is_fetched_and_unpacked(root, small):
    lines = []
    assert prepare_dataset("small", root, say=lines.append) == root / "set"
    assert visible(root) == WANTED
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in small.files.items()}
    md5 = hashlib.md5(small.files["images.tar"]).hexdigest()
    size = {name: len(data) for name, data in small.files.items()}
    assert lines[0] == "small: free"
    assert "about 0 MB to download, 0 MB unpacked; " in lines[1]
    assert lines[2:] == [
        f"from {small.url}/images.tar",
        f"images.tar: {size['images.tar']} bytes, sha256:{sha256['images.tar']} (md5:{md5} as published)",
        f"from {small.url}/masks.zip",
        f"masks.zip: {size['masks.zip']} bytes, sha256:{sha256['masks.zip']} (no checksum is published)",
        "set/images: 3 .jpg",
        "set/masks: 3 .png",
        "look at it",
        f"export SEGDISTILL_SMALL={root / 'set'}",
    ]
    notes = json.loads((root / ".segdistill" / "small.json").read_text())
    assert notes["masks.zip"] == {
        "sha256": sha256["masks.zip"],
        "bytes": size["masks.zip"],
        "files": 3,
        "unpacked": 3000,
        "folders": {"set/masks": [3, 3000]},
    }


def test_the_second_call_does_nothing(root, small):
    prepare_dataset("small", root)
    asked = len(small.asked)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".png", ".jpg", ".json")}
    lines = []
    prepare_dataset("small", root, say=lines.append)
    assert len(small.asked) == asked
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert lines[0] == "set/images: 3 .jpg"
    assert lines[-1].startswith("export SEGDISTILL_SMALL=")


@pytest.mark.parametrize("harm", ["gone", "empty", "short"])
def test_what_is_missing_or_damaged_is_mended(root, small, harm):
    prepare_dataset("small", root)
    path = root / "set/masks/1.png"
    (root / "set/own.txt").write_text("mine")
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if harm == "empty" else b"short")
    small.asked.clear()
    prepare_dataset("small", root)
    assert [asked["path"] for asked in small.asked] == ["/masks.zip"]
    assert visible(root) == WANTED | {"set/own.txt": b"mine"}


def test_archives_are_kept_on_request_and_taken_again(root, small):
    prepare_dataset("small", root, keep_archives=True)
    assert (root / "images.tar").read_bytes() == small.files["images.tar"]
    shutil.rmtree(root / "set")
    small.asked.clear()
    prepare_dataset("small", root)
    assert small.asked == []
    assert (root / "images.tar").is_file()  # it was to be kept
    assert set(WANTED) <= set(visible(root))


def test_an_archive_that_lies_there_is_checked(root, small):
    root.mkdir()
    (root / "images.tar").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"images.tar: it has md5:.*, expected md5:.*; remove it to fetch it anew"):
        prepare_dataset("small", root)
    assert (root / "images.tar").read_bytes() == b"something else"


def test_a_mirror_has_the_same_names(root, small, monkeypatch):
    change(monkeypatch, 0, url="http://127.0.0.1:9/nowhere.tar")
    change(monkeypatch, 1, url="http://127.0.0.1:9/nowhere.zip")
    prepare_dataset("small", root, mirror=f"{small.url}/mirror/")
    assert [asked["path"] for asked in small.asked] == ["/mirror/images.tar", "/mirror/masks.zip"]
    shutil.rmtree(root)
    monkeypatch.setenv("SEGDISTILL_MIRROR", small.url)
    prepare_dataset("small", root)
    assert visible(root) == WANTED


def test_an_interrupted_download_goes_on_in_the_next_call(root, small):
    class Interrupted:
        def __enter__(self):
            return self.told

        def __exit__(self, *_):
            pass

        def told(self, done, total):
            raise KeyboardInterrupt

    small.answers = [Answer(cut=7000)]
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("small", root, bar=lambda what: Interrupted())
    prepare_dataset("small", root)
    assert small.asked[-2]["range"] == "bytes=7000-"
    assert visible(root) == WANTED


def test_what_was_downloaded_before_an_interruption_is_removed_in_the_end(root, small, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "unpack", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset("small", root)
    assert (root / "images.tar").is_file()
    prepare_dataset("small", root)
    assert visible(root) == WANTED
    assert len(small.asked) == 2


def test_a_hostile_archive_leaves_nothing(root, small, tmp_path):
    evil = test_archives.make(tmp_path / "evil.zip", {"repo/masks/0.png": b"x", "../evil": b"x"})
    small.files["masks.zip"] = evil.read_bytes()
    lines = []
    with pytest.raises(ValueError, match=r"its member '../evil' is outside of the folder"):
        prepare_dataset("small", root, say=lines.append)
    assert lines[-1] == f"{root / 'masks.zip'}: removed"
    assert visible(root) == IMAGES
    assert not list(root.rglob("*.unpacking"))


def test_an_archive_of_something_else_is_an_error(root, small, tmp_path):
    small.files["masks.zip"] = test_archives.make(tmp_path / "m.zip", {"repo/masks/0.png": b"x"}).read_bytes()
    with pytest.raises(ValueError, match=r"did not hold what it should: set/masks has 1 of 3 files \*.png"):
        prepare_dataset("small", root)


@pytest.mark.parametrize(("share", "taken"), [(1 / 3, True), (1 / 5, False)])
@pytest.mark.parametrize("guess", ["size", "unpacked"])
def test_a_size_that_was_guessed_too_low(root, small, monkeypatch, guess, share, taken):
    real = {"size": len(small.files["images.tar"]), "unpacked": 6000}[guess]
    change(monkeypatch, 0, **{guess: int(real * share)})
    if taken:
        prepare_dataset("small", root)
        assert visible(root) == WANTED
    else:
        with pytest.raises(ValueError, match=r"more than \d+ bytes"):
            prepare_dataset("small", root)


def test_room_is_asked_for_first(root, small, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(ValueError, match="to download, 0 MB unpacked, but 0 MB are free; make room, or name another"):
        prepare_dataset("small", root)
    assert small.asked == []


def test_a_full_disk_keeps_the_archive(root, small, monkeypatch):
    def full(*_, **__):
        raise ValueError("cannot write x: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "unpack", full)
        with pytest.raises(ValueError, match="No space left"):
            prepare_dataset("small", root)
    assert (root / "images.tar").is_file()


def test_a_link_out_of_the_root_is_not_followed(root, small, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    (root / "set").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"set: a link out of .*; name the folder that it leads to as --root"):
        prepare_dataset("small", root)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_root_that_cannot_be_made(tmp_path, small):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write .*file/data: Not a directory"):
        prepare_dataset("small", tmp_path / "file" / "data")


def _process(root):
    prepare_dataset("small", root)


def test_several_processes_at_once_fetch_it_once(root, small):
    small.usual = Answer()
    workers = [multiprocessing.get_context("fork").Process(target=_process, args=(root,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(asked["path"] for asked in small.asked) == ["/images.tar", "/masks.zip"]
    assert visible(root) == WANTED


def test_a_process_that_waits_says_so(root, small):
    (root / ".segdistill").mkdir(parents=True)
    lock, lines = FileLock(root / ".segdistill" / "small.lock"), []

    def say(line):
        lines.append(line)
        if "waiting" in line:
            lock.release()

    lock.acquire()
    prepare_dataset("small", root, say=say)
    assert lines[0] == "another process prepares small there; waiting"


def test_what_needs_a_login_is_explained(root):
    lines = []
    with pytest.raises(ValueError, match=r"cityscapes: 2 packages, which only a login gives, are not in .*: leftImg"):
        prepare_dataset("cityscapes", root, say=lines.append)
    text = "\n".join(lines)
    assert "missing: leftImg8bit_trainvaltest.zip (11.0 GB): leftImg8bit/train has 0 of 2975 files" in text
    assert "csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip" in text
    assert "https://www.cityscapes-dataset.com/register/" in text


def test_packages_of_a_login_are_unpacked_and_kept(root, small, monkeypatch):
    for index in (0, 1):
        change(monkeypatch, index, url=None)
    root.mkdir()
    (root / "images.tar").write_bytes(small.files["images.tar"])
    with pytest.raises(ValueError, match=r"small: 1 packages, which only a login gives, are not in .*: masks.zip"):
        prepare_dataset("small", root)
    (root / "masks.zip").write_bytes(b"half a zi")
    with pytest.raises(ValueError, match="damaged archive"):
        prepare_dataset("small", root)
    assert (root / "masks.zip").read_bytes() == b"half a zi"  # it cost somebody hours
    (root / "masks.zip").write_bytes(small.files["masks.zip"])
    prepare_dataset("small", root)
    assert visible(root) == WANTED | small.files
    assert small.asked == []


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"voc2021: nothing is known on how to get it; did you mean voc2012?"):
        prepare_dataset("voc2021", "x")


def test_the_table_is_whole():
    for name, source in SOURCES.items():
        assert source.variable == f"SEGDISTILL_{name.upper()}"
        for archive in source.archives:
            assert archive.url is None or archive.url.startswith("http")
            assert archive.checksum is None or archive.checksum.partition(":")[0] in ("md5", "sha1", "sha256")
            assert archive.holds
            for holds in archive.holds:
                assert holds.folder.startswith(archive.into)
                assert holds.folder.startswith(source.folder)
    names = [archive.name for source in SOURCES.values() for archive in source.archives]
    assert len(names) == len(set(names))  # several data sets may share a root


def test_the_command(root, small, segdistill):
    status, out, err = segdistill("data", "prepare", "small", "--root", root, "--mirror", small.url, "--keep-archives")
    assert status == 0, err
    assert out.splitlines()[-1] == f"export SEGDISTILL_SMALL={root / 'set'}"
    assert (root / "masks.zip").is_file()
    assert err == ""  # it took no time
    status, out, err = segdistill("data", "prepare", "cityscapes", "--root", root)
    assert status == 2
    assert err.startswith("segdistill: cityscapes: 2 packages")
