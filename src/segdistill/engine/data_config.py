"""`data:` — which images a run sees, and how."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic
from pydantic import Field

from segdistill._options import refuse_unknown
from segdistill._types import Size
from segdistill.data.augmentations import augmentation
from segdistill.data.groups import check_pattern
from segdistill.data.sets import SETS
from segdistill.engine.section import Open, Owner, Section


class UnlabelledConfig(Open):
    """Images without labels that join each batch: all terms that need no labels use them.

    Other keys are options of the data set `name`.
    """

    name: str = "folder"
    """Name of the data set whose training images are used; `folder` is any folder of images. Labels of this data set
    are not read."""
    root: str | None = None
    """Folder of the images, with its subfolders; for a data set with another `name`, its root."""
    batch_size: int = Field(gt=0)
    """How many of these images join each batch, in addition to the `data.batch_size` images of the data set."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set itself."""
        return self.extra_keys | ({} if self.root is None else {"root": self.root})

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "UnlabelledConfig":
        known = SETS.options(self.name).model_fields
        refuse_unknown(self.options, {*known, *UnlabelledConfig.model_fields}, "unknown key data.unlabelled.{}")
        SETS.resolve(self.name, self.options)
        return self


class AugmentConfig(Section):
    """`data.augment:` — further changes to some training images, made before the networks see them."""

    colour: float = Field(0.0, ge=0, le=1)
    """Probability that the colours of an image vary as with `photometric: fast`. `photometric` varies the colours of
    all images; set only one of the two."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Probability of CutMix: a box from another image of the same data set, half as large as the picture, is pasted in
    with its labels."""
    classmix: float = Field(0.0, ge=0, le=1)
    """Probability of ClassMix: half of the classes of another training image are pasted in, cut out by its labels. This
    is also done to images of `data.unlabelled`, which then have labels at these pixels."""


class DataConfig(Open):
    """`data:` — the data set, its images and their augmentation. Other keys are options of the data set `name`."""

    owners: ClassVar[Mapping[str, Owner]] = {
        "labelled_per_batch": Owner(
            "labelled", "with data.labelled alone; without it all images have labels", lambda value: value is not None
        ),
        "labelled_seed": Owner(
            "labelled",
            "of a choice by number or share, and data.labelled is {}; leave it out",
            lambda value: isinstance(value, int | float),
        ),
    }

    name: str
    """Name of the data set; `segdistill list data` prints all of them with their options."""
    size: Size | None = None
    """[height, width] that images and masks are resized to before anything else, in training and in evaluation. If left
    out, they keep their size. A data set that draws its images makes them of this size."""
    crop: Size | None = None
    """[height, width] of the random crop that is trained on; smaller images are padded. If left out, whole images are
    used, which then must all have the same size."""
    augmentation: str | None = None
    """Name of the augmentation of a paper's code: `skd`, `cwd`, `cirkd`, `mmseg` (ADE20K, VOC, COCO-Stuff),
    `mmseg_cityscapes`, `mmseg_context` (docs/data.md). It sets the keys from `scale` to `padding` below; keys that are
    given as well replace its values."""
    scale: tuple[float, float] = (0.5, 2.0)
    """[smallest, largest] random factor by which a training image is resized before it is cropped."""
    scale_step: float | None = Field(None, gt=0)
    """Distance between the possible factors, such as 0.1 for 0.5, 0.6, …, 2.0. If left out, every factor in the range
    is possible."""
    fit: tuple[int, int] | None = None
    """[long, short] sides of a rectangle (landscape or portrait) that decides what the random factor multiplies. At
    factor 1, an image just fits into this rectangle with its aspect ratio kept. With [2048, 512] and factors from 0.5
    to 2, short sides are 256 … 1024. If left out, the factor multiplies the image's own size."""
    flip: bool = True
    """Whether a training image is mirrored left to right, with probability 1/2."""
    cat_max_ratio: float | None = Field(None, gt=0, lt=1)
    """A crop is drawn again, up to ten times, if it has fewer than two classes, or if one class covers this share of
    its labelled pixels, such as 0.75. If left out, the first crop is taken."""
    photometric: Literal["fast", "mmseg"] | bool = False
    """Whether and how the colours of training images vary at random: `fast` (or true) varies brightness, contrast and
    saturation; `mmseg` also varies hue, as OpenMMLab's `PhotoMetricDistortion` does."""
    augment: AugmentConfig | None = None
    """Further changes to some training images, each with a probability: colours, CutMix, ClassMix."""
    padding: Literal["random", "end", "mirrored"] = "random"
    """Where an image that is smaller than the crop is placed: `random` anywhere in the crop; `end` at the top left,
    with the padding below and to the right; `mirrored` the same as `end`, but a flip also mirrors the padding."""
    fill: tuple[float, float, float] | None = None
    """RGB colour of the padding, in 0 … 1; labels there are 255. If left out, the mean that the student subtracts."""
    draft: bool = False
    """Whether training may decode JPEGs at 1/2, 1/4 or 1/8 of their size, as long as twice the needed rows and columns
    remain. This is faster for photographs that are much larger than the training images; pixels differ slightly
    (docs/data.md)."""
    packed: str | None = None
    """Folder that `segdistill data pack` has written for these data. Images are read from there, already decoded, and
    the original files are not needed. The result of the training is the same to the last bit. Not with `draft`, which
    decodes files."""
    groups: str | None = None
    """Which images belong together, such as the frames of one video: a regular expression that is searched for in their
    names. The part in parentheses is the sequence, as in `^([^_]+)_` for CamVid's `0001TP_006690`. A comparison then
    draws whole sequences for its intervals over images, `segdistill data check` lists sequences that are in two splits,
    and `folder` keeps each sequence in one split."""
    batch_size: int = Field(8, gt=0)
    """Images of `data.name` in the batch of one step, in all processes together; `train.accumulate` splits it
    further."""
    workers: int = Field(2, ge=0)
    """Number of processes that load images; 0 loads them in the training process."""
    eval_batch_size: int = Field(1, gt=0)
    """Number of images that are evaluated at a time; more than 1 needs images of the same size."""
    unlabelled: UnlabelledConfig | None = None
    """Images without labels that join each batch, from another folder or data set."""
    only: dict[Literal["train", "val", "test"], str | list[str]] | None = None
    """A pattern of names, or a list of patterns, for each split, as in `{train: "0001TP*", test: "Seq05VD*"}`: only the
    images that match are used. Splits that are not named stay complete. `*` stands for any characters."""
    labelled: int | float | str | list[str] | None = None
    """The training images whose labels are used: their number (46), their share (0.125), a pattern of their names
    ("0001TP*") or several, a file that lists them (`list.txt`, one image per line), or `masks`: all images that have a
    mask. The other training images count as images without labels: all terms that need no labels use them. A student
    without a teacher cannot learn from them and trains on the labelled images only."""
    labelled_per_batch: int | None = Field(None, gt=0)
    """How many of the `batch_size` images of a batch have labels, at least one less than all. If left out, batches are
    drawn at random from all images: with 46 labelled images of 367, one in eight has labels on average."""
    labelled_seed: int = Field(0, ge=0)
    """Seed for the random choice of `labelled` by number or share. A smaller choice is always contained in a larger one
    with the same seed."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_augmentation(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("augmentation") is not None:
            return {**augmentation(given["augmentation"]), **given}
        return given

    @pydantic.field_validator("groups")
    @classmethod
    def _check_groups(cls, value: str | None) -> str | None:
        return None if value is None else check_pattern(value)

    @pydantic.field_validator("photometric")
    @classmethod
    def _name_fast(cls, value: Any) -> Any:
        return "fast" if value is True else value

    @pydantic.model_validator(mode="after")
    def _check_colour(self) -> "DataConfig":
        if self.augment is not None and self.augment.colour and self.photometric:
            raise ValueError(
                f"augment.colour: photometric={self.photometric} varies the colours of every image already; leave "
                "one of them out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_draft(self) -> "DataConfig":
        if self.draft and self.packed is not None:
            raise ValueError(
                "draft: of JPEGs that training decodes, and a pack is decoded already; leave draft or packed out"
            )
        return self

    @pydantic.field_validator("size", "crop")
    @classmethod
    def _check_size(cls, value: Size | None) -> Size | None:
        if value is not None and min(value) < 1:
            raise ValueError(f"expected [height, width] in pixels, got {list(value)}")
        return value

    @pydantic.field_validator("labelled", mode="before")
    @classmethod
    def _check_labelled(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)  # true would be one image
        if isinstance(value, bool) or (whole and value < 0) or (isinstance(value, float) and not 0 < value <= 1):
            raise ValueError(f"expected a share above 0 and up to 1.0, or a whole number of images, got {value}")
        if value in (0, []):
            raise ValueError("no labels at all; give the number of images that have some, or leave it out")
        return value

    @pydantic.model_validator(mode="after")
    def _check_labels_per_batch(self) -> "DataConfig":
        count = self.labelled_per_batch
        if count is not None and count >= self.batch_size:
            raise ValueError(
                f"data.labelled_per_batch is {count}, of a batch of {self.batch_size} (data.batch_size): no image "
                "without labels would be seen; data.only leaves such images out"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of the data set itself."""
        options = self.extra_keys
        if self.size is not None and self._draws_any_size:
            options["size"] = self.size
        if self.groups is not None and self.groups_choose:
            options["groups"] = self.groups
        return options

    @property
    def groups_choose(self) -> bool:
        """Whether the data set makes its splits of whole sequences, so that `groups` says what is trained on."""
        return "groups" in SETS.options(self.name).model_fields

    @property
    def seen_by_labels(self) -> bool:
        """Whether labels decide what is seen of an image: how it is cropped, or what of it is pasted into others."""
        return self.cat_max_ratio is not None or (self.augment is not None and self.augment.classmix > 0)

    @property
    def images_per_step(self) -> int:
        """Images of one step, with and without labels."""
        return self.batch_size + (0 if self.unlabelled is None else self.unlabelled.batch_size)

    @property
    def resize(self) -> Size | None:
        """(H,W) that images are resized to; None where the data set makes them of that size itself."""
        return None if self._draws_any_size else self.size

    @property
    def _draws_any_size(self) -> bool:
        return "size" in SETS.options(self.name).model_fields

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "DataConfig":
        known = SETS.options(self.name)
        refuse_unknown(self.extra_keys, {*known.model_fields, *DataConfig.model_fields}, "unknown key data.{}")
        self._complete(known.model_validate(self.options).model_dump())
        return self
