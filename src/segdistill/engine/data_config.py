"""`data:` — which images a run sees, and how."""

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field

from segdistill._options import refuse_unknown
from segdistill._types import Size
from segdistill.data.augmentations import augmentation
from segdistill.data.groups import check_pattern
from segdistill.data.sets import SETS
from segdistill.engine.section import Open, Section


class UnlabelledConfig(Open):
    """Images without labels, mixed into each batch: every term but cross-entropy sees them.

    Other keys are options of the data set `name`.
    """

    name: str = "folder"
    """Name of the data set whose training images they are; `folder` is any folder of images. Labels that it has are not
    read."""
    root: str | None = None
    """Folder of the images, whose subfolders are searched too; of a data set with another `name`, its own root."""
    batch_size: int = Field(gt=0)
    """How many of them join each batch, beside `data.batch_size` labelled ones."""

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
    """`data.augment:` — what else happens to training images now and then, before teacher and student see them."""

    colour: float = Field(0.0, ge=0, le=1)
    """Probability that an image's colours vary as `photometric: fast` says, which varies those of all images; the two
    exclude each other."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Probability of CutMix: a box, half as large as the picture, is put in from another image of the same data set,
    with its labels."""
    classmix: float = Field(0.0, ge=0, le=1)
    """Probability of ClassMix: half of the classes of another training image are put in, by its labels; into images of
    `data.unlabelled` as well, which then have labels there."""


class DataConfig(Open):
    """`data:` — the data set and how it is fed. Other keys are options of the data set `name`."""

    name: str
    """Name of the data set; `segdistill list data` prints all of them with their options."""
    size: Size | None = None
    """[height, width] that images and masks are resized to before anything else, for training and for evaluation. Left
    out, they stay as they are. A data set that draws its images makes them of this size."""
    crop: Size | None = None
    """[height, width] of the random crop that is trained on; images that are smaller are padded. Left out, whole images
    are used, which then must all have one size."""
    augmentation: str | None = None
    """Name of an augmentation as a paper's code does it, which sets the keys from `scale` to `padding` below: `skd`,
    `cwd`, `cirkd`, `mmseg` (ADE20K, VOC, COCO-Stuff), `mmseg_cityscapes`, `mmseg_context` (docs/data.md). Keys that are
    given beside it win."""
    scale: tuple[float, float] = (0.5, 2.0)
    """[least, largest] factor by which a training image is resized at random before it is cropped."""
    scale_step: float | None = Field(None, gt=0)
    """Distance of the factors that are drawn, such as 0.1: 0.5, 0.6, …, 2.0. Left out, any factor in the range is."""
    fit: tuple[int, int] | None = None
    """[long, short] sides of a rectangle, lying or standing, that a training image would just fit into at factor 1, its
    proportions kept: with [2048, 512] and factors from 0.5 to 2, short sides are 256 … 1024. Left out, factors are of
    the image itself."""
    flip: bool = True
    """Whether a training image is mirrored left to right, every second time on average."""
    cat_max_ratio: float | None = Field(None, gt=0, lt=1)
    """A crop is drawn anew, up to ten times, while it has fewer than two classes, or one that covers this share of its
    labelled pixels, such as 0.75. Left out, the first crop is taken."""
    photometric: Literal["fast", "mmseg"] | bool = False
    """Whether, and how, colours of training images vary at random: `fast` (or true) brightness, contrast, saturation;
    `mmseg` these and hue, as OpenMMLab's `PhotoMetricDistortion`."""
    augment: AugmentConfig | None = None
    """What happens to training images besides, each with a probability: colours, CutMix, ClassMix."""
    padding: Literal["random", "end", "mirrored"] = "random"
    """Where an image lies that is smaller than the crop: `random` anywhere in it; `end` above and left, the padding
    below and right; `mirrored` the same, but that a flip takes the padding along."""
    fill: tuple[float, float, float] | None = None
    """RGB colour of the padding, in 0 … 1; labels there are 255. Left out, the mean that the student subtracts."""
    draft: bool = False
    """Whether training may decode JPEGs at 1/2, 1/4 or 1/8 of their size where twice the rows and columns that it needs
    remain: faster for photographs much larger than what is trained on; pixels differ slightly (docs/data.md)."""
    packed: str | None = None
    """Folder that `segdistill data pack` has written of these data: images are read from there, already decoded, and
    the data set's files are not needed. What is trained is the same to the last bit."""
    groups: str | None = None
    """Which images belong together, such as the frames of one video: a regular expression that is searched for in their
    names, with the sequence in parentheses, as `^([^_]+)_` for CamVid's `0001TP_006690`. A comparison then draws whole
    sequences for its intervals over images, `segdistill data check` names sequences that are in two splits, and
    `folder` makes its splits of whole ones."""
    batch_size: int = Field(8, gt=0)
    """Labelled images in the batch of one step, of all processes together; `train.accumulate` splits it further."""
    workers: int = Field(2, ge=0)
    """Processes that load images ahead; 0 loads them in the training process."""
    eval_batch_size: int = Field(1, gt=0)
    """Images that are evaluated at a time; more than 1 needs images of one size."""
    unlabelled: UnlabelledConfig | None = None
    """Images without labels that join each batch, from another folder or data set."""
    only: dict[Literal["train", "val", "test"], str | list[str]] | None = None
    """Split → pattern of names, or a list of them, as `{train: "0001TP*", test: "Seq05VD*"}`: of that split those
    images alone are used. Splits that are not named stay whole. `*` stands for any characters."""
    labelled: int | float | str | list[str] | None = None
    """The training images whose labels count: how many (46), their share (0.125), a pattern of their names ("0001TP*")
    or several, a file that lists them (`list.txt`, an image a line), or `masks`: those that have a mask, where others
    have none. The other training images are learned from as images without labels, of which every term but those of
    the labels sees all. A student that learns alone has nothing from them: it trains on the labelled ones."""
    labelled_per_batch: int | None = Field(None, gt=0)
    """How many of a batch's `batch_size` images have labels; the others have none. Left out, images come as they come,
    and so do labels: with 46 of 367, one in eight."""
    labelled_seed: int = Field(0, ge=0)
    """Of the choice of `labelled` by number or share. A smaller choice is a part of a larger one of the same seed."""

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
        if count is not None and self.labelled is None:
            raise ValueError("data.labelled_per_batch: with data.labelled alone; without it all images have labels")
        if count is not None and count > self.batch_size:
            raise ValueError(f"data.labelled_per_batch is {count}, of a batch of {self.batch_size} (data.batch_size)")
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
