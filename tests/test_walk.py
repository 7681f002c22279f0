"""What is found in a folder, and what is passed over."""

import os

import pytest

from segdistill.data import walk
from segdistill.data.sets.folder import Folder
from segdistill.data.walk import (
    by_stem,
    check_folder,
    file_list,
    files_below,
    find_files,
    folders_in,
    holds_files,
    names_below,
    searched_once,
)

KINDS = (".png", ".jpg")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(root, **options):
    return [path.relative_to(root).as_posix() for path in files_below(root, KINDS, **options)]


def test_files_come_sorted_by_folder_and_name(tmp_path):
    names = ["a-b/x.png", "a/b.jpg", "a/c.PNG", "b.png", "z/y/x.jpg"]
    touch(tmp_path, *reversed(names), "notes.txt", "a/table.csv")
    assert found(tmp_path) == ["a/b.jpg", "a/c.PNG", "a-b/x.png", "b.png", "z/y/x.jpg"]
    assert found(tmp_path) == [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path, KINDS)]
    assert list(find_files(tmp_path, KINDS)) == ["a/b", "a/c", "a-b/x", "b", "z/y/x"]


def test_hidden_and_foreign_ones_are_passed_over_wherever_they_are(tmp_path):
    touch(
        tmp_path, "a.png", ".b.png", "._a.png", "d/._a.png", ".ipynb_checkpoints/a.png", "d/.cache/x/a.png",
        "__MACOSX/a.png", "d/__MACOSX/e/a.png", "@eaDir/a.png", "$RECYCLE.BIN/a.png", ".DS_Store", "Thumbs.db",
        "desktop.ini",
    )  # fmt: skip
    assert found(tmp_path) == ["a.png"]
    assert folders_in(tmp_path) == ["d"]
    assert holds_files(tmp_path, KINDS)
    assert not holds_files(tmp_path / "d", KINDS)
    assert not holds_files(tmp_path / "gone", KINDS)


def test_the_root_itself_may_be_hidden(tmp_path):
    touch(tmp_path, ".cache/a.png")
    assert found(tmp_path / ".cache") == ["a.png"]


def test_folders_that_are_left_out(tmp_path):
    touch(tmp_path, "a.png", "out/ids/a.png", "out/b.png")
    assert found(tmp_path, without=[tmp_path / "out/ids", tmp_path / "gone"]) == ["a.png", "out/b.png"]


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path / "far", "x.png", "deep/y.png", "one.png")
    touch(tmp_path / "here", "a.png")
    (tmp_path / "here/linked").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "here/b.png").symlink_to("../far/one.png")
    assert found(tmp_path / "here") == ["a.png", "b.png", "linked/deep/y.png", "linked/one.png", "linked/x.png"]
    (tmp_path / "whole").symlink_to("here")
    assert len(found(tmp_path / "whole")) == 5


def test_links_in_a_circle_end_and_each_folder_counts_once(tmp_path):
    touch(tmp_path, "z/a.png")
    (tmp_path / "z/up").symlink_to(tmp_path)
    (tmp_path / "z/self").symlink_to(".")
    (tmp_path / "again").symlink_to("z")  # the folder is known by its own name, though the link sorts before it
    assert found(tmp_path) == ["z/a.png"]


@pytest.mark.parametrize("name", ["a.png", "folder", "d/b.jpg"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    touch(tmp_path, "d/a.png")
    (tmp_path / name).symlink_to("/gone/x")
    with pytest.raises(ValueError, match=f"{name}: a link to /gone/x, which is not there; mend the link or remove it"):
        found(tmp_path)


def test_other_links_that_lead_nowhere_do_not_matter(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "notes.txt").symlink_to("/gone/x")
    (tmp_path / ".#a.png").symlink_to("user@host")  # an editor's lock
    assert found(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["a.png", "folder"])
def test_a_link_to_itself_is_named(tmp_path, name):
    (tmp_path / name).symlink_to(name)
    assert folders_in(tmp_path) == []
    with pytest.raises(ValueError, match=f"{name}: a link to {name}, which is not there"):
        found(tmp_path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert found(tmp_path) == []


def test_a_folder_of_an_images_name_is_searched(tmp_path):
    touch(tmp_path, "x.png/a.png")
    assert found(tmp_path) == ["x.png/a.png"]


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def refuse(folder):  # the superuser may read anything, so it is played
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"/a: cannot be searched \(Permission denied\); see that you may read it"):
        found(tmp_path)


def test_no_file_is_asked_about(tmp_path, monkeypatch):
    # In a folder of 100 000 images a question to the file system for each of them is what takes the time.
    touch(tmp_path, *(f"{i % 3}/{i}.png" for i in range(60)))
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *args, **how: asked.append(args) or stat(*args, **how))
    assert len(find_files(tmp_path, KINDS)) == 60
    assert len(asked) < 10


def test_two_files_of_one_name(tmp_path):
    touch(tmp_path, "a/b.png", "a/b.jpg")
    with pytest.raises(ValueError, match=r"a/b\.png and b\.jpg have one name; keep one of the two"):
        find_files(tmp_path, KINDS)


def test_a_folder_that_is_not_there(tmp_path):
    touch(tmp_path, "some/a.png")
    (tmp_path / "link").symlink_to("/gone")
    for name, line in (
        ("other", "no such folder; in .* there is some; set x"),
        ("link", "a link to /gone, which is not there; set x"),
        ("some/a.png", "a file, not a folder; set x"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {line}"):
            check_folder(tmp_path / name, "set x")


def test_files_by_name_are_paths_when_asked_for(tmp_path):
    files = by_stem(tmp_path, ["a/x_sat.jpg", "a/y_sat.jpg", "b/z.png"], "_sat")
    assert dict(files) == {"a/x_sat": tmp_path / "a/x_sat.jpg", "a/y_sat": tmp_path / "a/y_sat.jpg"}
    assert "b/z" not in files
    assert "a/x_sat" in files
    assert list(files.only(["a/y_sat"]).values()) == [tmp_path / "a/y_sat.jpg"]
    assert list(files.renamed("train/")) == ["train/a/x_sat", "train/a/y_sat"]
    assert files.renamed("") is files
    for known in (files, dict(files)):
        paths = file_list(known, ["a/y_sat", "a/x_sat"])
        assert list(paths) == [paths[0], paths[-1]] == paths[:] == [tmp_path / "a/y_sat.jpg", tmp_path / "a/x_sat.jpg"]
        assert len(paths) == 2
    with pytest.raises(ValueError, match="have one name"):
        by_stem(tmp_path, ["a/x.jpg", "a/x.png"])


def test_folders_are_searched_once_where_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    counted, entries = [], walk.entries
    monkeypatch.setattr(walk, "entries", lambda folder: (counted.append(folder), entries(folder))[1])
    with searched_once():
        first = names_below(tmp_path, (".png",))
        (tmp_path / "b.png").touch()
        assert names_below(tmp_path, (".png",)) == first == ["a.png"]
        assert names_below(tmp_path, (".jpg",)) == []
    assert len(counted) == 2
    assert names_below(tmp_path, (".png",)) == ["a.png", "b.png"]


def test_a_folder_may_have_the_name_of_a_file(tmp_path):
    (tmp_path / "x.png").mkdir()
    (tmp_path / "x.png" / "y.png").touch()
    assert names_below(tmp_path, (".png",)) == ["x.png/y.png"]


def test_splits_of_one_search_are_those_of_two(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(20):
        touch(tmp_path, f"images/{number}.jpg", f"masks/{number}.png")
    options = {"root": str(tmp_path), "classes": ["a", "b"]}
    alone = [Folder(split, **options).names for split in ("train", "val")]
    with searched_once():
        assert [Folder(split, **options).names for split in ("train", "val")] == alone
        assert Folder("val", **options, split_seed=1).names != alone[1]
    assert sorted(alone[0] + alone[1]) == sorted(map(str, range(20)))
