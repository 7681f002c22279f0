"""How people lay out images and masks in folders: where each kind is, and which names belong together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from segdistill.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES
from segdistill.data.splits import like_a_split
from segdistill.data.walk import (
    Files,
    by_stem,
    check_folder,
    entries,
    folders_in,
    holds_files,
    is_hidden,
    names_below,
)

AUTO = "auto"
IMAGE_FOLDERS = ("images", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "labels", "annotations", "SegmentationClass")

Endings = tuple[str, str]
ENDINGS: tuple[Endings, ...] = (("", ""), ("", "_mask"), ("_sat", "_mask"))
"""What usually follows the common part of the names of an image and of its mask."""
LOSSY = (".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Layout:
    """Where images and masks are.

    Attributes:
        images: folder of the images in the root; `{split}` in it stands for the split's folder.
        masks: folder of the masks likewise; None: there are none.
        endings: what the names of images and masks have behind their common part; None: that is seen from the names.
    """

    images: str
    masks: str | None
    endings: Endings | None = None

    def __str__(self) -> str:
        named = {"images": self.images, "masks": self.masks}
        if self.endings is not None:
            named |= {"image_suffix": self.endings[0], "mask_suffix": self.endings[1]}
        return "{" + ", ".join(f'{key}: "{value}"' for key, value in named.items() if value is not None) + "}"


def detect_layout(root: Path, given: Layout, splits: Iterable[str] = ()) -> Layout:
    """The one way in which a folder can be read, of those that are usual.

    Args:
        root: of the data set.
        given: what was said of it; folders that are `auto` are looked for.
        splits: folders of splits, beside those that look like some.

    Returns:
        What was found; `images` and `masks` where nothing was, so that an error line names them.

    Raises:
        ValueError: if there is more than one way.
    """
    if AUTO not in (given.images, given.masks):
        return given
    image_folders = IMAGE_FOLDERS if given.images == AUTO else (given.images,)
    mask_folders = MASK_FOLDERS if given.masks == AUTO else (given.masks,)
    ways = [replace(given, images=i, masks=m) for i, m in product(image_folders, mask_folders) if i != m]
    ways += [
        replace(given, images=f"{{split}}/{way.images}", masks=None if way.masks is None else f"{{split}}/{way.masks}")
        for way in ways
        if "{" not in f"{way.images}{way.masks}"
    ]
    named = [name for name in splits if name != "." and not name.endswith(".txt")]
    splits = [*named, *(name for name in folders_in(root) if like_a_split(name))]
    found = [way for way in ways if _is_there(root, way, splits)]
    if given.masks == AUTO and given.images in (AUTO, "."):
        places = [_directly_in(root / folder) for folder in [".", *splits]]
        pairs = [given.endings] if given.endings is not None else ENDINGS
        found += [Layout(".", ".", pair) for pair in pairs if any(_together(names, pair) for names in places)]
    if len(found) > 1:
        raise ValueError(f"{root} can be read in two ways; say in data: which one is meant, {found[0]} or {found[1]}")
    default = Layout(image_folders[0] or "", mask_folders[0], given.endings)
    return found[0] if found else default


def _is_there(root: Path, way: Layout, splits: Sequence[str]) -> bool:
    def holds(folder: str, suffixes: Sequence[str]) -> bool:
        places = [folder.replace("{split}", name) for name in splits] if "{split}" in folder else [folder]
        return any(holds_files(root / place, suffixes) for place in places)

    return holds(way.images, IMAGE_SUFFIXES) and (way.masks is None or holds(way.masks, MASK_SUFFIXES))


def _directly_in(folder: Path) -> list[str]:
    names = [e.name for e in entries(folder) if not is_hidden(e.name)] if folder.is_dir() else []
    return [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]


def tell_apart(names: Iterable[str], endings: Endings) -> tuple[list[str], list[str]]:
    """Tell images from masks that lie in one folder.

    Args:
        names: of files, with suffixes.
        endings: what images' and masks' names have behind their common part; if neither has anything, images are
            JPEGs or WebPs, and masks the others.
    """
    images: list[str] = []
    masks: list[str] = []
    for name in names:
        stem, _, suffix = name.rpartition(".")
        lossy = f".{suffix.lower()}" in LOSSY
        if endings == ("", ""):
            is_mask = not lossy
        elif endings[1]:
            is_mask = stem.endswith(endings[1])
        else:
            is_mask = not stem.endswith(endings[0])
        (masks if is_mask else images).append(name)
    return images, masks


def _together(names: Iterable[str], endings: Endings) -> bool:
    return _matches(*tell_apart(names, endings), endings)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _matches(images: Iterable[str], masks: Iterable[str], endings: Endings) -> bool:
    """Whether any image has a mask, if their names end so."""
    image_end, mask_end = endings
    # What holds the ending nowhere is passed over without being cut.
    stems = (_stem(name) for name in masks if mask_end in name)
    common = {stem.removesuffix(mask_end) for stem in stems if stem.endswith(mask_end)}
    if not common:
        return False
    stems = (_stem(name) for name in images if image_end in name)
    return any(stem.removesuffix(image_end) in common for stem in stems if stem.endswith(image_end))


def find_pairs(images: Path, masks: Path | None, endings: Endings | None) -> tuple[Files, Files, Endings]:
    """The images of a folder, and the masks of those that have one.

    Args:
        images: the folder.
        masks: the folder of the masks, which may be the same; None: there are none.
        endings: what images' and masks' names have behind their common part; None: what fits, of the usual ones.

    Returns:
        Images and masks, each by the image's path in its folder without suffix, sorted; and the endings.

    Raises:
        ValueError: if a folder is missing, two files have one name, or several endings fit.
    """
    check_folder(images, "set data.images")
    if masks is None:
        pictures = names_below(images, IMAGE_SUFFIXES)
        found = by_stem(images, pictures, "" if endings is None else endings[0])
        return found, Files(images, {}), endings or ENDINGS[0]
    check_folder(masks, "set data.masks, or `masks: null` for images without labels")
    together = masks.samefile(images)
    pictures = names_below(images, IMAGE_SUFFIXES, [] if together else [masks])  # where one lies in the other
    labels = pictures if together else names_below(masks, MASK_SUFFIXES, [images])

    def sides(pair: Endings) -> tuple[list[str], list[str]]:
        if not together:
            return pictures, labels
        ours, theirs = tell_apart(pictures, pair)
        return ours, [name for name in theirs if name.lower().endswith(MASK_SUFFIXES)]

    if endings is None:
        fitting = [pair for pair in ENDINGS if _matches(*sides(pair), pair)]
        if len(fitting) > 1:
            one, other = (f'{{image_suffix: "{pair[0]}", mask_suffix: "{pair[1]}"}}' for pair in fitting[:2])
            raise ValueError(f"{masks}: masks of two kinds of names; say in data: which are meant, {one} or {other}")
        endings = fitting[0] if fitting else ENDINGS[0]
    pictures, labels = sides(endings)
    image_end, mask_end = endings
    found, labelled = by_stem(images, pictures, image_end), by_stem(masks, labels, mask_end)
    partners = ((name, labelled.inside.get(name.removesuffix(image_end) + mask_end)) for name in found)
    return found, Files(masks, {name: path for name, path in partners if path is not None}), endings
