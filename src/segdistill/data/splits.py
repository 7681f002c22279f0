"""Which images belong to which split: by folders, by lists, or by a seeded fraction of their names."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from segdistill._printing import number_of
from segdistill.data.dataset import SPLITS, check_split
from segdistill.data.walk import Files, entries, is_hidden, once

Item = TypeVar("Item")

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""What the folder or the list of a split is called."""

LIKE_A_SPLIT = re.compile(
    r"(mini)?(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?|h[eo]ld[-_ ]?out)+([^a-z].*)?"
    r"|(fold|split)[-_ ]?\d+"
)


def split_of(name: str) -> str | None:
    """The split that a folder or a list of this name holds; None where it is none's.

    Args:
        name: without suffix.

    >>> split_of("Validation"), split_of("train2017"), split_of("valley")
    ('val', None, None)
    """
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def without_split(name: str) -> str:
    """An item's name without the folder of a split at its beginning.

    Args:
        name: of the item.

    >>> without_split("train/0001TP_006690"), without_split("berlin/0001")
    ('0001TP_006690', 'berlin/0001')
    """
    first, _, rest = name.partition("/")
    return rest if rest and split_of(first) else name


def like_a_split(name: str) -> bool:
    """Whether a folder or a list has the name of a split, or one that looks like that of a split.

    Args:
        name: without suffix.

    >>> like_a_split("val"), like_a_split("train2017"), like_a_split("valley")
    (True, True, False)
    """
    return split_of(name) is not None or bool(LIKE_A_SPLIT.fullmatch(name.lower()))


def find_splits(names: Iterable[str], place: Path, kind: str) -> dict[str, str]:
    """Which of some folders or lists are those of splits.

    Args:
        names: of the folders or lists in a place.
        place: where they are, for the error line.
        kind: `folder` or `list`.

    Returns:
        Split → name.

    Raises:
        ValueError: if two are of one split, or if one looks like a split but is not known.
    """
    names = list(names)
    end = ".txt" if kind == "list" else ""
    found: dict[str, str] = {}
    for split in SPLITS:
        own = [name for name in names if split_of(name) == split]
        if len(own) > 1:
            raise ValueError(
                f"{place}: {own[0]}{end} and {own[1]}{end} are both {split}; say which one is meant: "
                f"data.splits: {{{split}: {own[0]}{end}, …}}"
            )
        if own:
            found[split] = own[0]
    odd = [name for name in names if split_of(name) is None and like_a_split(name)]
    if odd and not (
        found and kind == "list"
    ):  # lists may overlap, as trainval.txt does; a folder's images would be lost
        raise ValueError(
            f"{place}: {kind} {odd[0]}{end} looks like a split, but known are {', '.join(chain(*NAMES.values()))}; "
            "rename it, or say what is what: data.splits: {train: NAME, val: NAME}, or {} if nothing there is a split"
        )
    return found


def find_lists(root: Path) -> dict[str, str]:
    """The lists in a data set's root, such as `train.txt`: split → name.

    Args:
        root: of the data set.

    Raises:
        ValueError: as `find_splits`.
    """
    names = sorted(e.name[:-4] for e in entries(root) if e.name.endswith(".txt") and not is_hidden(e.name))
    return {split: f"{name}.txt" for split, name in find_splits(names, root, "list").items()}


def _only(found: Mapping[str, Item], names: Iterable[str]) -> Mapping[str, Item]:
    chosen: Any = found.only(names) if isinstance(found, Files) else {name: found[name] for name in names}
    return cast("Mapping[str, Item]", chosen)


def choose_listed(path: Path, found: Mapping[str, Item], ending: str = "") -> Mapping[str, Item]:
    """The entries that a list names, in its order.

    Args:
        path: of the list, an image a line, with or without suffix.
        found: what there is, by name.
        ending: of the names, which a line may leave out, as it is not in the masks' names.

    Raises:
        ValueError: if the list cannot be read, or names something twice, or something that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable list ({error}); write a text file with an image a line") from None
    chosen: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry:
            continue
        name: str | None = entry
        if entry not in found:
            names = (Path(entry).with_suffix("").as_posix(), entry + ending)
            name = next((name for name in names if name in found), None)
        if name is None:
            raise ValueError(f"{path}, line {number}: no image {entry!r}; write its path inside the images' folder")
        if name in chosen:
            raise ValueError(f"{path}, line {number}: {entry!r} is listed twice")
        chosen[name] = None
    return _only(found, chosen)


def choose_fraction(
    found: Mapping[str, Item],
    split: str,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    hint: str,
    sequences: Sequence[str] | None = None,
) -> Mapping[str, Item]:
    """The entries of a split where nothing says which is which: ranked by a hash of their names.

    It is the same on every machine, and a new image hardly moves the others. With sequences, those are ranked and go
    into one split as a whole, as many as come nearest to the fraction of the images.

    Args:
        found: what there is, by name.
        split: train, val or test.
        val_fraction: share of `val`.
        test_fraction: share of `test`.
        seed: of the ranks.
        hint: what to do for a split without a fraction.
        sequences: that of each entry.

    Raises:
        ValueError: if the fractions leave nothing for `train`, or the split has none, or the sequences are too few.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must leave some for train")
    fractions = {"val": val_fraction, "test": test_fraction}
    check_split(split, ["train", *(name for name, part in fractions.items() if part)], hint)
    if sequences is not None:
        chosen = _whole_sequences(dict(zip(found, sequences, strict=True)), fractions, seed)
        return _only(found, [name for name in sorted(found) if chosen[name] == split])
    # What was ranked is kept beside its ranks, so that nothing else can get its number meanwhile.
    ranked, _ = once(("ranks", seed, id(found)), lambda: (_ranked(found, seed), found))
    val, test = (max(1, round(part * len(ranked))) if part else 0 for part in fractions.values())
    parts = {"val": ranked[:val], "test": ranked[val : val + test], "train": ranked[val + test :]}
    return _only(found, sorted(parts[split]))


def _ranked(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: lot(name, seed))


def lot(name: str, seed: int) -> bytes:
    """What a name is ranked by where some are chosen: the same on every machine, whatever other names there are.

    Args:
        name: of an item, whatever bytes the name of its file has.
        seed: of the ranking.
    """
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def _whole_sequences(sequence_of: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of each entry; all of a sequence are in one."""
    sizes = Counter(sequence_of.values())
    needed = 1 + sum(part > 0 for part in fractions.values())
    if len(sizes) < needed:
        raise ValueError(
            f"data.groups: {number_of(len(sizes), 'sequence')} ({', '.join(list(sizes)[:3])}) cannot be "
            f"shared out among {needed} splits; leave data.groups out, or make the splits by folders or lists"
        )
    ranked = _ranked(sizes, seed)
    splits: dict[str, str] = {}
    for split, part in fractions.items():
        wanted, count = part * len(sequence_of), 0
        left = needed - 1 - len(set(splits.values()))  # that the splits after this one need, train among them
        while part and len(ranked) > left:
            size = sizes[ranked[0]]
            if count and abs(count + size - wanted) >= wanted - count:
                break
            count += size
            splits[ranked.pop(0)] = split
    return {name: splits.get(sequence, "train") for name, sequence in sequence_of.items()}
