"""Standard data sets in miniature: trees of painted files under exactly the names of the downloads.

Every function writes one data set and returns the root that a configuration would give. Each mask holds void, the first
classes and the last one, so that a wrong table of ids shows.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]
SIZE = (64, 128)

CITIES = {
    "train": ("aachen", "bochum"),
    "val": ("frankfurt", "lindau"),
    "test": ("berlin", "bielefeld"),
    "train_extra": ("augsburg", "bad-honnef"),
}
LABEL_IDS = (0, 7, 8, 11, 12, 33, 26, 3)
"""Of Cityscapes: void, the first classes, the last, a car, out of roi."""
TRAIN_IDS = (255, 0, 1, 2, 3, 18, 13, 255)

VOC_TRAIN = ("2007_000032", "2007_000039", "2007_000063", "2007_000068")
VOC_VAL = ("2007_000033", "2007_000042", "2007_000061", "2007_000123")
VOC_TEST = ("2008_000006", "2008_000011", "2008_000012", "2008_000018")
SBD_ONLY = ("2008_000002", "2008_000003", "2008_000007", "2008_000009")
CONTEXT_TRAIN = ("2008_000002", "2008_000003", "2008_000007", "2008_000008")
CONTEXT_VAL = ("2008_000009", "2008_000015", "2008_000016", "2008_000019")


def picture(path: Path, size: Size = SIZE, seed: int = 0) -> None:
    """Paint an RGB image of soft noise: JPEG or PNG, as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR).save(path)


def stripes(values: Sequence[int], size: Size = SIZE, shift: int = 0) -> np.ndarray:
    """(H,W) uint16 of upright stripes, one per value, from left to right; shifted round by some values."""
    values = np.roll(np.asarray(values, np.uint16), shift)
    return np.repeat(values[np.arange(size[1]) * len(values) // size[1]][None], size[0], axis=0)


def mask(path: Path, values: np.ndarray, palette: bytes | None = None) -> None:
    """Write a mask of 8 bits: grey, or with a palette (mode P)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def voc_palette() -> bytes:
    """VOC's colour map: the bits of an index spread over red, green and blue, from the high bit down."""
    index = np.arange(256)
    colours = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(colours, 1).astype(np.uint8).tobytes()


def lines(path: Path, names: Iterable[str]) -> None:
    """Write a list, a name a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def cityscapes(
    folder: Path,
    images: int = 2,
    size: Size = SIZE,
    *,
    labels: Sequence[str] = ("labelIds",),
    coarse: bool = False,
    sequence: bool = False,
) -> Path:
    """`leftImg8bit` and `gtFine`: train, val and test; with `coarse`, `train_extra` and `gtCoarse` as well.

    Args:
        folder: the root that is made.
        images: of each split.
        size: (H,W).
        labels: what is written of the masks: labelIds, labelTrainIds.
        coarse: whether `leftImg8bit/train_extra` and `gtCoarse` are there.
        sequence: whether `leftImg8bit_sequence` is there, with three frames around each labelled one.
    """
    for split, cities in CITIES.items():
        if split == "train_extra" and not coarse:
            continue
        for index in range(images):
            city = cities[index % len(cities)]
            stem = f"{city}_{index:06d}_000019"
            picture(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", size, index)
            kinds = (["gtFine"] if split != "train_extra" else []) + (
                ["gtCoarse"] if coarse and split != "test" else []
            )
            for kind in kinds:
                for name in labels:
                    ids = TRAIN_IDS if name == "labelTrainIds" else LABEL_IDS if split != "test" else (1, 2, 3)
                    mask(folder / kind / split / city / f"{stem}_{kind}_{name}.png", stripes(ids, size, index))
            for frame in (18, 19, 20) if sequence and split != "train_extra" else ():
                name = f"{city}_{index:06d}_{frame:06d}_leftImg8bit.png"
                picture(folder / "leftImg8bit_sequence" / split / city / name, size, frame)
    return folder


def ade20k(folder: Path, images: int = 2, size: Size = SIZE, *, test: bool = False) -> Path:
    """`ADEChallengeData2016`, beside it `release_test` if asked for."""
    root = folder / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for index in range(1, images + 1):
            name = f"ADE_{short}_{index:08d}"
            picture(root / "images" / split / f"{name}.jpg", size, index)
            mask(root / "annotations" / split / f"{name}.png", stripes((0, 1, 2, 3, 149, 150), size, index))
    lines(root / "objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall"])
    for index in range(1, images + 1) if test else ():
        picture(folder / "release_test" / "testing" / f"ADE_test_{index:08d}.jpg", size, index)
    return root


def voc2012(
    folder: Path, images: int = 2, size: Size = SIZE, *, aug: bool = False, sbd: bool = False, test: bool = False
) -> Path:
    """`VOCdevkit/VOC2012`; `SegmentationClassAug` and its images with `aug`, `benchmark_RELEASE` beside it with `sbd`.

    The masks are palette PNGs; those of VOC have the void border (255), those of SBD have none. SBD's own train holds
    VOC's val images too, as the real one does.
    """
    root = folder / "VOCdevkit" / "VOC2012"
    train, val, more = VOC_TRAIN[:images], VOC_VAL[:images], SBD_ONLY[:images]
    bordered, plain = (255, 0, 1, 15, 20), (0, 1, 4, 19, 20)
    for index, name in enumerate((*train, *val)):
        picture(root / "JPEGImages" / f"{name}.jpg", size, index)
        mask(root / "SegmentationClass" / f"{name}.png", stripes(bordered, size, index), voc_palette())
    lists = {"train": train, "val": val, "trainval": sorted((*train, *val))}
    for name, names in lists.items():
        lines(root / "ImageSets" / "Segmentation" / f"{name}.txt", names)
    for index, name in enumerate(more if aug or sbd else ()):
        picture(root / "JPEGImages" / f"{name}.jpg", size, index)
    for index, name in enumerate((*train, *val) if aug else ()):
        mask(root / "SegmentationClassAug" / f"{name}.png", stripes(bordered, size, index), voc_palette())
    for index, name in enumerate(more if aug else ()):
        mask(root / "SegmentationClassAug" / f"{name}.png", stripes(plain, size, index), voc_palette())
    if sbd:
        _sbd(folder / "benchmark_RELEASE" / "dataset", [*val[:1], *more], size, plain)
    if test:
        for index, name in enumerate(VOC_TEST[:images]):
            picture(root / "JPEGImages" / f"{name}.jpg", size, index)
        lines(root / "ImageSets" / "Segmentation" / "test.txt", VOC_TEST[:images])
    return folder / "VOCdevkit"


def _sbd(root: Path, names: Sequence[str], size: Size, values: Sequence[int]) -> None:
    from scipy.io import savemat

    (root / "cls").mkdir(parents=True)
    half = len(names) // 2
    lines(root / "train.txt", names[: half + 1])
    lines(root / "val.txt", names[half + 1 :])
    for index, name in enumerate(names):
        picture(root / "img" / f"{name}.jpg", size, index)
        labels = stripes(values, size, index).astype(np.uint8)
        content = {"GTcls": {"Segmentation": labels, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": [[1.0]]}}
        savemat(root / "cls" / f"{name}.mat", content, do_compression=True)


def pascal_context(
    folder: Path, images: int = 2, size: Size = SIZE, *, converted: bool = True, mat: bool = False
) -> Path:
    """`VOCdevkit/VOC2010`: mmseg's `SegmentationClassContext` if converted, `trainval/*.mat` of 459 ids if `mat`."""
    root = folder / "VOCdevkit" / "VOC2010"
    for split, all_names in (("train", CONTEXT_TRAIN), ("val", CONTEXT_VAL)):
        names = all_names[:images]
        lines(root / "ImageSets" / "Main" / f"{split}.txt", names)
        if converted:
            lines(root / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
        for index, name in enumerate(names):
            picture(root / "JPEGImages" / f"{name}.jpg", size, index)
            if converted:
                mask(root / "SegmentationClassContext" / f"{name}.png", stripes((0, 1, 2, 3, 59), size, index))
            if mat:
                from scipy.io import savemat

                (root / "trainval").mkdir(exist_ok=True)
                labels = stripes((1, 2, 9, 18, 458), size, index)  # 1 is none of the 59; the last of them is wood
                savemat(root / "trainval" / f"{name}.mat", {"LabelMap": labels}, do_compression=True)
    return folder / "VOCdevkit"


COCO = {
    "train2017": ("000000000009", "000000000025", "000000000030", "000000000034"),
    "val2017": ("000000000139", "000000000285", "000000000632", "000000000724"),
}


def coco_stuff(
    folder: Path,
    images: int = 2,
    size: Size = SIZE,
    *,
    labels: Sequence[str] = ("raw",),
    annotations: str = "annotations",
) -> Path:
    """`images/{train,val}2017` and the masks of stuffthingmaps.

    Args:
        folder: the root that is made.
        images: of each split.
        size: (H,W).
        labels: what is written of the masks: raw, labelTrainIds.
        annotations: the masks' folder.
    """
    for split, names in COCO.items():
        for index, name in enumerate(names[:images]):
            picture(folder / "images" / split / f"{name}.jpg", size, index)
            place = folder / annotations / split
            if "raw" in labels:
                mask(place / f"{name}.png", stripes((255, 0, 12, 91, 181), size, index))
            if "labelTrainIds" in labels:
                mask(place / f"{name}_labelTrainIds.png", stripes((255, 0, 11, 80, 170), size, index))
    return folder


def huggingface(
    folder: Path, images: int = 2, size: Size = SIZE, splits: Sequence[str] = ("train", "validation")
) -> Path:
    """Parquet files as the hub has them: `data/train-00000-of-00001.parquet`, columns `image` and `annotation`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (folder / "data").mkdir(parents=True)
    for split in splits:
        rows: dict[str, list[dict[str, object]]] = {"image": [], "annotation": []}
        for index in range(images):
            image, labels = folder / f"{index}.jpg", folder / f"{index}.png"
            picture(image, size, index)
            mask(labels, stripes((0, 1, 2, 3), size, index))
            for column, path in (("image", image), ("annotation", labels)):
                rows[column].append({"bytes": path.read_bytes(), "path": path.name})
                path.unlink()
        table = pa.table({column: pa.array(values, kind) for column, values in rows.items()})
        features = {column: {"_type": "Image"} for column in rows}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
