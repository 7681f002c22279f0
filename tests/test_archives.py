import errno
import io
import os
import stat
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest

from segdistill.data import archives
from segdistill.data.archives import BadArchiveError, unpack

KINDS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]


def make(path, members):
    """An archive of {name: bytes, or None for a folder}, or of a list of such pairs."""
    pairs = list(members.items()) if isinstance(members, dict) else members
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in pairs:
                archive.writestr(zipfile.ZipInfo(name + "/") if data is None else name, data or b"")
        return path
    with tarfile.open(path, "w:" + path.suffix[1:].replace("tar", "")) as archive:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in(tmp_path, kind):
    members = {"a": None, "a/x.png": os.urandom(100_000), "./a/b/y.txt": b"", "top": b"text", "empty": None}
    seen = []
    archive = make(tmp_path / f"x.{kind}", members)
    found = unpack(archive, tmp_path / "out", limit=10**6, progress=lambda *at: seen.append(at))
    assert found == (3, 100_004)
    assert tree(tmp_path / "out") == {"a/x.png": members["a/x.png"], "a/b/y.txt": b"", "top": b"text"}
    assert (tmp_path / "out" / "empty").is_dir()
    assert seen[-1] == (100_004, 100_004 if kind == "zip" else None)


def test_members_are_placed_by_their_names(tmp_path):
    archive = make(tmp_path / "x.tar", {"repo-1/CamVid/a.png": b"a", "repo-1/README": b"no", "pax": b""})

    def place(name):
        return PurePosixPath(*name.parts[1:]) if "CamVid" in name.parts else None

    assert unpack(archive, tmp_path / "out", limit=100, place=place) == (1, 1)
    assert tree(tmp_path / "out") == {"CamVid/a.png": b"a"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/..", "/tmp/segdistill_evil", "C:/evil", "a\\..\\evil"])
def test_names_that_lead_outside_are_refused(tmp_path, kind, name):
    archive = make(tmp_path / f"x.{kind}", {"fine": b"x", name: b"evil"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BadArchiveError, match=r"its member .* is (outside of the folder|of a name that is none)") as e:
        unpack(archive, tmp_path / "in" / "out", limit=10**6)
    assert "\n" not in str(e.value)
    after = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "in") for path in after)
    assert not os.path.exists("/tmp/segdistill_evil")


@pytest.mark.parametrize(
    ("type_", "what"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device or pipe"),
        (tarfile.BLKTYPE, "a device or pipe"),
        (tarfile.FIFOTYPE, "a device or pipe"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, type_, what):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = type_, "/etc/passwd"
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("x/y"))  # would be written through the link
    with pytest.raises(BadArchiveError, match=f"its member 'x' is {what}; no data set has such a thing"):
        unpack(tmp_path / "x.tar", tmp_path / "out", limit=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mode", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFIFO, "a device or pipe")])
def test_links_and_pipes_in_a_zip_are_refused(tmp_path, mode, what):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BadArchiveError, match=f"its member 'x' is {what}"):
        unpack(tmp_path / "x.zip", tmp_path / "out", limit=100)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_two_files_of_one_name_are_refused(tmp_path, kind):
    archive = make(tmp_path / f"x.{kind}", [("a/x", b"1"), ("a/./x", b"2")])
    with pytest.raises(BadArchiveError, match="two members are 'x' in one folder"):
        unpack(archive, tmp_path / "out", limit=100)
    assert tree(tmp_path / "out") == {"a/x": b"1"}


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_bombs_are_stopped(tmp_path, kind):
    archive = make(tmp_path / f"x.{kind}", {str(i): bytes(1 << 20) for i in range(20)})
    size = archive.stat().st_size
    assert size * archives.RATIO < 20 << 20
    with pytest.raises(BadArchiveError, match=rf"bytes come out of its {size}, which is not what it should hold"):
        unpack(archive, tmp_path / "out", limit=10**9)
    assert sum(map(len, tree(tmp_path / "out").values())) <= max(archives.FREE, archives.RATIO * size) + (1 << 20)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_more_than_it_should_hold_is_stopped(tmp_path, kind):
    archive = make(tmp_path / f"x.{kind}", {"a": os.urandom(3000), "b": os.urandom(3000)})
    assert unpack(archive, tmp_path / "enough", limit=6000) == (2, 6000)
    with pytest.raises(BadArchiveError, match="more than 5999 bytes come out"):
        unpack(archive, tmp_path / "out", limit=5999)


def test_a_bomb_of_names_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 10)
    archive = make(tmp_path / "x.tar", {str(i): b"" for i in range(11)})
    with pytest.raises(BadArchiveError, match="more than 10 members"):
        unpack(archive, tmp_path / "out", limit=100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_one_line(tmp_path, kind):
    archive = make(tmp_path / f"x.{kind}", {"a": os.urandom(50_000), "b": os.urandom(50_000)})
    whole = archive.read_bytes()
    broken = [b"", b"<html>not found</html>", whole[:60_000]]
    if kind != "tar":  # a plain tar has no checksum of contents
        broken.append(whole[:30_000] + bytes([whole[30_000] ^ 1]) + whole[30_001:])
    for data in broken:
        archive.write_bytes(data)
        with pytest.raises(BadArchiveError, match="a damaged archive") as error:
            unpack(archive, tmp_path / f"out{len(data)}", limit=10**6)
        assert "\n" not in str(error.value)


def test_an_encrypted_zip_is_one_line(tmp_path):
    archive = make(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flag in the file's header, and in the list at the end
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(BadArchiveError, match="encrypted"):
        unpack(archive, tmp_path / "out", limit=100)


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path, monkeypatch):
    archive = make(tmp_path / "x.zip", {"a": b"x"})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.os, "open", full)
    with pytest.raises(ValueError, match=r"cannot write .*/out/a: No space left on device; see to it") as error:
        unpack(archive, tmp_path / "out", limit=100)
    assert not isinstance(error.value, BadArchiveError)


def test_a_file_where_a_folder_is_needed(tmp_path):
    archive = make(tmp_path / "x.tar", {"a": b"", "a/b": b""})
    with pytest.raises(ValueError, match="cannot write"):
        unpack(archive, tmp_path / "out", limit=100)
