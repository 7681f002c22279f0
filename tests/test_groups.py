"""Sequences: how they are told from names, kept together in splits, and found in two of them."""

import doctest
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from segdistill import load_config
from segdistill.data import build_dataset, check_splits, groups
from segdistill.data.groups import SharedSequences, check_pattern, sequences
from segdistill.data.splits import choose_fraction
from segdistill.engine.settings import fixed_settings

FRAME = r"^([^_]+)_"


def test_the_part_in_parentheses_is_the_sequence():
    assert not doctest.testmod(groups).failed
    assert sequences(["a/x_1", "a/x_2", "b/y_1"], "([^/]+)/[^/]+$") == ["a", "a", "b"]
    assert sequences([], FRAME) == []


def test_a_sequence_has_one_name_in_all_splits():
    assert sequences(["train/s1_0", "val/s1_1", "validation/s2_0"], FRAME) == ["s1", "s1", "s2"]
    assert sequences(["night/s1_0"], FRAME) == ["night/s1"]  # a folder that is no split's


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("(a", r"'\(a' is no regular expression \(missing \)"),
        ("a_", "'a_' has 0 parts in parentheses, expected one, the sequence; for example"),
        ("(a)(b)", "has 2 parts in parentheses"),
    ],
)
def test_patterns_that_tell_nothing(pattern, line):
    with pytest.raises(ValueError, match=line):
        check_pattern(pattern)
    data = {"name": "synthetic", "groups": pattern}
    with pytest.raises(ValueError, match=rf"data\.groups: .*{line}"):
        load_config({"data": data, "student": {"name": "pspnet_resnet18"}, "method": "none"})


def test_a_name_without_a_sequence_is_named():
    with pytest.raises(ValueError, match=r"data\.groups: '\^\(\[\^_\]\+\)_' is not in 'frame7'"):
        sequences(["a_1", "frame7"], FRAME)
    with pytest.raises(ValueError, match="is not in 'b'"):
        sequences(["b"], "(a)?b")


def shared_out(count, fractions, seed=0):
    """Split → its sequences, for sequences of 1, 2, 3, … images."""
    names = [f"s{n}_{frame}" for n in range(count) for frame in range(n + 1)]
    own = sequences(names, FRAME)
    found = {
        split: choose_fraction(dict.fromkeys(names), split, *fractions, seed, "", own)
        for split in ("train", "val", "test")
        if split == "train" or fractions[("val", "test").index(split)]
    }
    assert sorted(name for part in found.values() for name in part) == sorted(names)
    assert all(list(part) == sorted(part) for part in found.values())
    return {split: {name.split("_")[0] for name in part} for split, part in found.items()}, found


def test_fractions_take_whole_sequences():
    for seed in range(20):
        splits, found = shared_out(12, (0.25, 0.2), seed)
        assert not splits["train"] & splits["val"]
        assert not splits["train"] & splits["test"]
        assert not splits["val"] & splits["test"]
        assert abs(len(found["val"]) - 0.25 * 78) <= 6  # half of the largest sequence
        assert abs(len(found["test"]) - 0.2 * 78) <= 6
    assert shared_out(12, (0.25, 0.2), 1) == shared_out(12, (0.25, 0.2), 1)
    assert len({str(shared_out(12, (0.25, 0.2), seed)[0]) for seed in range(5)}) > 1


def test_every_split_gets_a_sequence():
    for seed in range(10):
        splits, _ = shared_out(3, (0.9, 0.05), seed)
        assert {len(part) for part in splits.values()} == {1}
        assert len(shared_out(2, (0.0, 0.9), seed)[0]["train"]) == 1
    with pytest.raises(ValueError, match=r"2 sequences \(s0, s1\) cannot be shared out among 3 splits"):
        shared_out(2, (0.2, 0.2))


@pytest.fixture
def folder(tmp_path):
    """Four sequences of three frames, in one folder."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for n in range(12):
            Image.new("RGB" if kind == "images" else "L", (4, 4), n if kind == "images" else n % 2).save(
                tmp_path / kind / f"s{n // 3}_{n}.png"
            )
    return {"root": str(tmp_path), "classes": ["a", "b"], "val_fraction": 0.25}


def test_a_folder_is_split_by_sequences(folder):
    train, val = (build_dataset("folder", split, **folder, groups=FRAME) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3)
    assert not set(sequences(train.names, FRAME)) & set(sequences(val.names, FRAME))
    plain = build_dataset("folder", "val", **folder)
    assert len(set(sequences(plain.names, FRAME))) > 1  # which is what goes wrong without


def test_the_configuration_hands_groups_to_a_folder_alone(folder):
    config = {"student": {"name": "pspnet_resnet18"}, "method": "none"}
    own = load_config({**config, "data": {"name": "folder", **folder, "groups": FRAME}})
    assert own.data.options["groups"] == FRAME
    assert fixed_settings(own)["data.groups"] == FRAME  # it says what is trained on
    again = load_config(own.model_dump(mode="json"))
    assert again == own
    drawn = load_config({**config, "data": {"name": "synthetic", "groups": FRAME}})
    assert "groups" not in drawn.data.options
    assert "data.groups" not in fixed_settings(drawn)  # it may be added when all runs are done


def test_check_names_what_is_in_two_splits(folder):
    shared = [r for r in check_splits("folder", folder, groups=FRAME).values() if not isinstance(r, str)]
    assert any("in train as well" in line for line in shared[1].remarks)
    assert shared[0].remarks == [] or "sequences: " in shared[0].remarks[-1]
    apart = check_splits("folder", {**folder, "groups": FRAME}, groups=FRAME)
    assert apart["val"].remarks[-1].startswith("1 sequence: 3 of s")
    assert not any("as well" in line for line in apart["val"].remarks)


ODD = {
    "train": ("^(s[123])_", "s0_0"),
    "val": ("^(s[023])_", "s1_3"),
    "test": ("^(s[012])_", "s3_10"),
}
"""Split → a pattern that fits all names but some of that split, and the first of those."""


@pytest.fixture
def three(folder):
    """Splits of the sequences s0 and s2, s1, s3; val and test have a copy of an image of train, all a torn mask."""
    root = Path(folder["root"])
    lists = {"train": ("s0", "s2"), "val": ("s1",), "test": ("s3",)}
    for split, own in lists.items():
        names = sorted(file.stem for file in (root / "images").iterdir() if file.stem.split("_")[0] in own)
        (root / f"{split}.txt").write_text("\n".join(names))
    for name in ("s0_1", "s1_4", "s3_9"):
        (root / "masks" / f"{name}.png").write_bytes(b"torn")
    for one, other in (("s0_2", "s1_5"), ("s2_8", "s3_11")):
        shutil.copy(root / "images" / f"{one}.png", root / "images" / f"{other}.png")
    return {"root": str(root), "classes": ["a", "b"]}


@pytest.mark.parametrize("split", ODD)
def test_a_pattern_that_does_not_fit_is_a_problem_beside_the_others(three, split):
    pattern, name = ODD[split]
    fits, odd = (check_splits("folder", three, groups=one) for one in (FRAME, pattern))
    line = f"data.groups: {pattern!r} is not in {name!r}, so that its sequence is not known"
    for one in ODD:
        assert odd[one].problems == ([line] if one == split else []) + fits[one].problems
        assert (odd[one].sizes, odd[one].share) == (fits[one].sizes, fits[one].share)
        assert len(fits[one].problems) == (1 if one == "train" else 2)
    assert "occurs in train and in val" in odd["val"].problems[-1]
    assert "occurs in train and in test" in odd["test"].problems[-1]
    assert not any("sequence" in remark for remark in odd[split].remarks)
    other = next(one for one in ODD if one != split)
    assert any("sequence" in remark for remark in odd[other].remarks)


def test_a_pattern_that_fits_nothing_is_a_problem_of_each_split(folder):
    found = check_splits("folder", folder, groups="^(x)_")
    for split in ("train", "val"):
        assert [problem[:32] for problem in found[split].problems] == ["data.groups: '^(x)_' is not in '"]
        assert found[split].images in (3, 9)


@pytest.mark.parametrize("split", ODD)
def test_the_exit_status_says_that_a_pattern_does_not_fit(three, split, segdistill, tmp_path):
    for file in (Path(three["root"]) / "masks").iterdir():
        Image.new("L", (4, 4), 1).save(file)
    for number, file in enumerate((Path(three["root"]) / "images").iterdir()):
        Image.new("RGB", (4, 4), 10 + number).save(file)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"name": "folder", **three}, "student": {"name": "pspnet_resnet18"}}))
    assert segdistill("data", "check", path, f"data.groups={FRAME}", "--workers", 0)[0] == 0
    pattern, name = ODD[split]
    status, out, _ = segdistill("data", "check", path, f"data.groups={pattern}", "--workers", 0)
    assert status == 2
    assert f"problem: data.groups: {pattern!r} is not in {name!r}" in " ".join(out.split())
    assert out.count("of 4×4") == 3


def test_lines_on_shared_sequences():
    found = SharedSequences(FRAME)
    found.add("train", ["a_1", "a_2", "b_1"])
    assert found.lines("train") == ["2 sequences: 2 of a, 1 of b"]
    found.add("val", ["a_3", "c_1"])
    found.add("test", ["a_4", "c_2", "d_1", "e_1", "f_1", "g_1"])
    assert found.lines("val")[1] == (
        "1 sequence is in train as well: a (2 images there, 1 here); neighbouring frames of what was trained on make "
        "figures on val too good"
    )
    assert found.lines("test") == [
        "6 sequences: 1 of a, 1 of c, 1 of d, 1 of e, 1 of f, …",
        "1 sequence is in train as well: a (2 images there, 1 here); neighbouring frames of what was trained on make "
        "figures on test too good",
        "2 sequences are in val as well: a (1 image there, 1 here), c (1 image there, 1 here); neighbouring frames "
        "of what is in both make figures on test too good",
    ]
