"""Which sequence an image belongs to: frames of one video, pictures of one place, slices of one patient."""

import re
from collections.abc import Iterable, Sequence

from segdistill._printing import number_of


def check_pattern(pattern: str) -> str:
    """The pattern, if it can tell sequences.

    Args:
        pattern: a regular expression.

    Raises:
        ValueError: if it is none, or has not one part in parentheses.
    """
    example = "for example ^([^_]+)_ for names such as 0001TP_006690"
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); {example}") from None
    if groups != 1:
        raise ValueError(f"{pattern!r} has {groups} parts in parentheses, expected one, the sequence; {example}")
    return pattern


def sequences(names: Iterable[str], pattern: str) -> list[str]:
    """The sequence of each item.

    Args:
        names: of the items. The folder of a split at their beginning, as in `train/0001TP_006690`, does not count: a
            sequence has one name in all splits.
        pattern: a regular expression that is searched for in a name; its part in parentheses is the sequence.

    Raises:
        ValueError: if it is nowhere in a name, or as `check_pattern`.

    >>> sequences(["0001TP_006690", "0001TP_006720", "Seq05VD_f00000"], "^([^_]+)_")
    ['0001TP', '0001TP', 'Seq05VD']
    """
    expression = re.compile(check_pattern(pattern))
    from segdistill.data.splits import without_split  # it loads torch, which a configuration's keys do not wait for

    found = []
    for name in names:
        part = expression.search(without_split(name))
        if part is None or part[1] is None:
            raise ValueError(f"data.groups: {pattern!r} is not in {name!r}, so that its sequence is not known")
        found.append(part[1])
    return found


class SharedSequences:
    """Finds sequences that have images in more than one split."""

    def __init__(self, pattern: str):
        self.pattern = pattern
        self.found: dict[str, dict[str, int]] = {}

    def add(self, split: str, names: Sequence[str]) -> None:
        """Count a split's images by sequence.

        Args:
            split: of the images.
            names: of the images.

        Raises:
            ValueError: as `sequences`.
        """
        counts: dict[str, int] = {}
        for sequence in sequences(names, self.pattern):
            counts[sequence] = counts.get(sequence, 0) + 1
        self.found[split] = counts

    def lines(self, split: str) -> list[str]:
        """How many sequences a split has, and one line for each earlier split that shares some with it.

        Args:
            split: that was added last.
        """
        own = self.found[split]
        lines = [f"{number_of(len(own), 'sequence')}: {_counted(own)}"]
        for other, its in self.found.items():
            shared = [name for name in own if name in its]
            if other == split or not shared:
                continue
            told = ", ".join(f"{name} ({number_of(its[name], 'image')} there, {own[name]} here)" for name in shared[:3])
            verb = "is" if len(shared) == 1 else "are"
            lines.append(
                f"{number_of(len(shared), 'sequence')} {verb} in {other} as well: {told}{', …' * (len(shared) > 3)}; "
                f"neighbouring frames of what {'was trained on' if other == 'train' else 'is in both'} make figures on "
                f"{split} too good"
            )
        return lines


def _counted(counts: dict[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} of {name}" for name, count in most[:5]) + ", …" * (len(most) > 5)
