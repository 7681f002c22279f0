"""The protocols of benchmarks and papers by name, and any protocol in words. Nothing here needs torch."""

from collections.abc import Mapping
from typing import Any

MMSEG_SIDES = {
    "cityscapes": (1024, 2048),
    "ade20k": (512, 2048),
    "voc2012": (512, 2048),
    "coco_stuff": (512, 2048),
    "pascal_context": (520, 520),
}
"""What mmsegmentation's configurations resize images to, by data set: (short side, long side)."""

PRESETS: dict[str, dict[str, Any]] = {
    "mmseg": {"merge": "softmax", "absent": "skip"},
    "cirkd": {"merge": "logits", "align_corners": True, "absent": "zero"},
    "skd": {"merge": "logits", "align_corners": True, "absent": "zero"},
    "ade_kit": {"absent": "zero"},
    "cityscapes": {"absent": "skip"},
}
"""What each protocol sets, as keys of `Protocol`; the rest is as in `Protocol`."""


def preset(name: str, data: str | None) -> dict[str, Any]:
    """What a protocol sets for a data set, as keys of `Protocol`.

    Args:
        name: one of `PRESETS`.
        data: name of the data set, as a configuration gives it; None: any other.

    Raises:
        ValueError: if there is no such protocol.

    >>> preset("mmseg", "ade20k")["short_side"]
    512
    """
    if name not in PRESETS:
        raise ValueError(f"protocol: expected one of {', '.join(PRESETS)}, got {name!r}")
    chosen = dict(PRESETS[name])
    if name == "mmseg" and data in MMSEG_SIDES:
        chosen["short_side"], chosen["long_side"] = MMSEG_SIDES[data]
    return chosen


def in_words(protocol: Mapping[str, Any]) -> str:
    """One line that says how images were looked at and which classes count.

    Args:
        protocol: keys of `Protocol`, and `name` of the preset it comes from.

    >>> in_words({"name": "skd", "absent": "zero"})
    'protocol skd: whole images; absent classes count as 0'
    """
    window, stride = protocol.get("window"), protocol.get("stride")
    parts = ["whole images" if window is None else f"windows of {_size(window)}"]
    if window is not None and stride is not None:
        parts[0] += f" every {_size(stride)}"
    sides = [(side, protocol.get(f"{side}_side")) for side in ("short", "long")]
    if any(pixels for _, pixels in sides):
        parts.append("resized to " + ", ".join(f"{side} side {pixels}" for side, pixels in sides if pixels))
    scales = list(protocol.get("scales") or (1.0,))
    if scales != [1.0]:
        parts.append("scales " + " ".join(f"{scale:g}" for scale in scales))
    if protocol.get("flip"):
        parts.append("flipped")
    if len(scales) > 1 or protocol.get("flip"):
        parts.append("mean of logits" if protocol.get("merge") == "logits" else "mean of probabilities")
    text = ", ".join(parts)
    name = protocol.get("name")
    return (
        f"protocol{f' {name}' if name else ''}: {text}; "
        f"absent classes {'count as 0' if protocol.get('absent') == 'zero' else 'are left out'}"
    )


def _size(pair: Any) -> str:
    return "×".join(map(str, pair))
