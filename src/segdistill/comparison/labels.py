"""What the rows of a comparison are called, and their folders."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segdistill._options import closest
from segdistill.methods._catalogue import method_options

PLACES = {"data": "data", "labelled": "labels", "length": "length", "student": "student"}
"""Entries of a row that say what it is of, in the order of `Cell.place`; each is a column where rows differ in it."""

UNITS = {"labelled": "labels", "length": "steps"}
"""What stands behind such an entry in a sentence."""


def named_places(rows: Iterable[Mapping[str, Any]], keys: Iterable[str] = PLACES) -> list[str]:
    """Those entries in which rows differ.

    Args:
        rows: of a comparison; one of an older file may lack an entry.
        keys: of the entries that are looked at.
    """
    rows = list(rows)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]


def place_name(row: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Where a row belongs, in words.

    Args:
        row: of a comparison.
        keys: of its entries that are named.

    >>> place_name({"labelled": "12.5 %", "length": 800, "student": "pspnet"}, ["labelled", "length", "student"])
    '12.5 % labels, 800 steps, pspnet'
    """
    return ", ".join(f"{row[key]} {UNITS.get(key, '')}".rstrip() for key in keys)


def method_label(method: Sequence[Mapping[str, Any]]) -> str:
    """The name of a method in tables: its names, and the options that are not the defaults.

    Args:
        method: what `resolve_methods` returned.

    >>> method_label(resolve_methods(["kd", {"name": "cwd", "weight": 5}]))
    'kd+cwd(weight=5.0)'
    """
    parts = []
    for entry in method:
        defaults = method_options(entry["name"]).model_fields
        changed = [f"{k}={v}" for k, v in entry.items() if k != "name" and v != defaults[k].default]
        parts.append(entry["name"] + (f"({', '.join(changed)})" if changed else ""))
    return "+".join(parts)


def share_label(share: int | float | str | Sequence[str]) -> str:
    """How many images have labels, as tables name it.

    Args:
        share: a value of `data.labelled`.

    >>> share_label(0.125), share_label(46), share_label("0001TP*"), share_label(["0001TP*", "0006R0*"])
    ('12.5 %', '46', '0001TP*', '0001TP* 0006R0*')
    """
    if isinstance(share, float):
        return f"{100 * share:g} %"
    return str(share) if isinstance(share, int | str) else " ".join(share)


def entry_labels(section: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each entry; where names are the same, with the settings in which the entries differ.

    Args:
        section: of the configuration, for messages.
        entries: sections.

    Raises:
        ValueError: if two entries are the same.
    """
    names = [str(entry.get("name") or Path(str(entry.get("checkpoint", section))).stem) for entry in entries]
    labels = []
    for name, entry in zip(names, entries, strict=True):
        same = [other for other, its in zip(entries, names, strict=True) if its == name]
        keys = {key for other in same for key in other}
        differing = [k for k in sorted(keys) if any(other.get(k) != entry.get(k) for other in same)]
        labels.append("_".join([name, *(f"{key}={entry[key]}" for key in differing if key in entry)]))
    return unique(section, labels)


def unique(section: str, labels: list[str]) -> list[str]:
    """The labels, if each has a folder name of its own.

    Args:
        section: of the configuration, for messages.
        labels: of its entries.

    Raises:
        ValueError: if two have the same.
    """
    folders = [slug(label) for label in labels]
    for label, folder in zip(labels, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{section}: {label} is named {folders.count(folder)} times")
    return labels


def baseline_of(methods: Sequence[str]) -> str:
    """The method that the others are held against: `none` if it is there, else the first one.

    Args:
        methods: their labels.
    """
    return "none" if "none" in methods else methods[0]


def find_against(given: str | None, labels: Sequence[str]) -> str | None:
    """The label of the method that is named, by its label or, where one alone begins so, by its name.

    Args:
        given: what the configuration says.
        labels: of the methods.

    Raises:
        ValueError: if there is no such method, or it is the baseline.
    """
    if given is None:
        return None
    own = [label for label in labels if label == given] or [label for label in labels if label.startswith(f"{given}(")]
    if len(own) != 1:
        told = f"; {', '.join(own)} begin so" if own else closest(given, labels)
        raise ValueError(f"against: no method {given!r}{told}")
    if own[0] == baseline_of(labels):
        raise ValueError(f"against: {own[0]} is the baseline, which all are held against; name another method")
    return own[0]


def slug(label: str) -> str:
    """A label as part of a folder's name.

    Args:
        label: any.

    >>> slug("skd(pair_weight=0.5)"), slug("12.5 %")
    ('skd-pair_weight=0.5', '12.5pc')
    """
    return re.sub(r"[^\w.=+-]+", "-", label.replace(" %", "pc")).strip("-")
