"""`student:` and `teacher:` — a network, where its weights are from, and what is read from it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from segdistill._options import refuse_unknown
from segdistill.engine.section import Open, Owner, Section
from segdistill.models.normalisation import Normalisation

if TYPE_CHECKING:
    from segdistill.engine.protocol import Protocol


class ViewsConfig(Section):
    """`teacher.views:` — versions of each image whose probabilities are averaged for a teacher."""

    flip: bool = False
    """Whether the teacher also sees each image mirrored."""
    scales: list[float] = Field([1.0])
    """Factors by which images are resized for the teacher, such as [0.75, 1.0]; each factor gives one view."""

    def build(self) -> "Protocol":
        """The views, as those of an evaluation are described."""
        from segdistill.engine.protocol import Protocol

        return Protocol(scales=tuple(self.scales), flip=self.flip)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ViewsConfig":
        self.build()
        return self


class NetworkConfig(Open):
    """`student:` or `teacher:` — a network. Other keys are options of its family, such as `pretrained` and `aux`."""

    owners: ClassVar[Mapping[str, Owner]] = dict.fromkeys(
        ("cache_views", "cache_precision", "cache_topk"),
        Owner("cache", "of a cached teacher; set cache: FOLDER beside it, or leave it out"),
    )

    name: str | None = None
    """Name of the network, `<family>_<backbone>` or `<library>:<name>`; `segdistill list models` prints examples."""
    checkpoint: str | None = None
    """A run folder or a student's file, instead of `name`; it contains the description of the network."""
    weights: str | None = None
    """A file with all tensors of the named network, `pip:PACKAGE` for a file in an installed package, or `published`
    for the weights that the network's library publishes."""
    weights_key: str | None = None
    """Which state dict of the file is loaded if it has several: `ema` is the running average under any of its usual
    keys (state_dict_ema, model_ema, …); any other word is a key of the file. If left out, the trained weights are
    loaded and a line says so; from mmengine's files the average is loaded, as mmengine does."""
    source: str | None = None
    """The project that the file comes from: openmmlab, skd, cirkd, torchvision, espnet or segdistill. If left out, it
    is recognised by the names of the tensors. Without a file, the network is built with the details and the
    normalisation of this project."""
    normalisation: Normalisation | None = None
    """`{mean: …, std: …, range: 1 | 255, bgr: …}` of the images, instead of the network's own normalisation."""
    align_corners: bool | None = None
    """Whether the network's logits are resized with aligned corners, in training and in evaluation, and also the maps
    in the decoder of a network of this package. If left out, as in its source: yes for skd and cirkd, no for all
    others."""
    taps: dict[str, str] | None = None
    """Tap name → path of a submodule; it adds to or replaces the network's own or proposed taps.
    `segdistill layers MODEL` prints paths. A path that ends with `:input` means the submodule's input."""
    classifier: str | None = None
    """Path of the final 1×1 convolution, for methods that read its weights."""
    classes: list[str] | None = None
    """Names of a teacher's classes, if they differ from those of the data. The same for a network that is evaluated
    without training."""
    num_classes: int | None = Field(None, gt=1)
    """Number of the network's classes, if they have no names."""
    class_map: Literal["names"] | dict[int | str, int | str | None] | None = None
    """Which class of the data each class of a teacher becomes, or each class of a network that is evaluated without
    training: `{its class: the data's class}` by name or number, null to leave a class out. `names` matches classes with
    equal names."""

    views: ViewsConfig | None = None
    """For a teacher only: `{flip: true, scales: [0.75, 1.0]}` averages its probabilities over these views of each
    image. All taps except `logits` come from the unchanged image (docs/training.md)."""
    cache: str | None = None
    """For a teacher only: folder that stores what the methods read from the teacher, for `cache_views` views of each
    image. It is filled once, before training. Then the teacher does not run any more, neither in this run nor in later
    runs with the same teacher, data and augmentation and any seed (docs/training.md)."""
    cache_views: int = Field(1, gt=0)
    """With `cache`: number of different augmentations of each image; epoch e uses number e mod `cache_views`. Without a
    cache, every epoch has a new augmentation."""
    cache_precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """With `cache`: number format. `float16` stores everything that a bf16 teacher outputs, and refuses values beyond
    65 504; `bfloat16` has the range of float32 and an eighth of float16's precision; `float32` takes twice the
    space."""
    cache_topk: int | None = Field(None, gt=0)
    """With `cache`: how many of the largest logits of a pixel are stored, with the total probability of all other
    classes. When the cache is read, the other classes share this probability evenly. This is an approximation, for data
    with many classes. If left out, all logits are stored."""

    @property
    def is_code(self) -> bool:
        """Whether a function of the user's own makes the network."""
        return (self.name or "").startswith("python:")

    @property
    def options(self) -> dict[str, Any]:
        """Options of the family."""
        return self.extra_keys

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> "NetworkConfig":
        from segdistill.models.build import model_options

        line = "unknown key network.{}"
        if self.name is None:
            refuse_unknown(self.options, NetworkConfig.model_fields, line)
            if self.weights is not None:
                raise ValueError("weights need a name; for a run of segdistill's own use checkpoint")
            if self.checkpoint is not None:
                self._refuse_what_a_checkpoint_says()
            return self
        if self.checkpoint is not None:
            raise ValueError("give name or checkpoint, not both: a checkpoint says what network it is")
        if self.weights_key is not None and self.weights in (None, "published"):
            raise ValueError("weights_key chooses among the weights of a file; give weights: FILE")
        known = model_options(self.name)
        if known.model_config.get("extra") == "allow":  # a function of the user's own says what it takes when called
            return self
        refuse_unknown(self.options, {*known.model_fields, *NetworkConfig.model_fields}, line)
        self._complete(known.model_validate(self.options).model_dump())
        return self

    def _refuse_what_a_checkpoint_says(self) -> None:
        for key in ("weights_key", "source", "normalisation", "align_corners", "num_classes"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} beside checkpoint: a checkpoint brings its own; leave {key} out")
