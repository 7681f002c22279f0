"""`student:` and `teacher:` — a network, where its weights are from, and what is read from it."""

from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import Field

from segdistill._options import refuse_unknown
from segdistill.engine.section import Open, Section
from segdistill.models.normalisation import Normalisation

if TYPE_CHECKING:
    from segdistill.engine.protocol import Protocol


class ViewsConfig(Section):
    """`teacher.views:` — in how many ways a teacher sees each image; the probabilities of all are averaged."""

    flip: bool = False
    """Whether the teacher sees each image mirrored as well."""
    scales: list[float] = Field([1.0])
    """Factors by which the images that it sees are resized, such as [0.75, 1.0]; it sees a view of each."""

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

    name: str | None = None
    """Name of the network, `<family>_<backbone>` or `<library>:<name>`; `segdistill list models` prints examples."""
    checkpoint: str | None = None
    """A run folder or a student's file, instead of a name: it says itself what network it is."""
    weights: str | None = None
    """A file with all tensors of the named network, `pip:PACKAGE` for one in an installed package, or `published` for
    those that the network's library publishes."""
    weights_key: str | None = None
    """Which of the state dicts in that file is taken, where there are several: `ema` is the running average, whatever
    its key (state_dict_ema, model_ema, …), any other word a key of the file. Left out, the trained weights are taken
    (of mmengine's files the average, as it does itself), and a printed line says so."""
    source: str | None = None
    """Where that file is from: openmmlab, skd, cirkd, torchvision, espnet, or segdistill. Left out, the names of its
    tensors tell. Without a file, whose details and normalisation a network of this package is built with."""
    normalisation: Normalisation | None = None
    """`{mean: …, std: …, range: 1 | 255, bgr: …}` of the images, instead of the network's own."""
    align_corners: bool | None = None
    """Whether the network's logits are resized with aligned corners, in training as in evaluation, and so are maps in
    the decoder of a network of this package. Left out, as in its source: yes for skd and cirkd, no for all others."""
    taps: dict[str, str] | None = None
    """Tap name → path of a submodule, on top of the network's own or proposed taps; `segdistill layers MODEL` prints
    paths. A path with `:input` behind it is the submodule's input."""
    classifier: str | None = None
    """Path of the final 1×1 convolution, for methods that read its weights."""
    classes: list[str] | None = None
    """Names of a teacher's classes, where they are not those of the data; likewise of a network that is evaluated as it
    is."""
    num_classes: int | None = Field(None, gt=1)
    """How many classes it has, where they have no names."""
    class_map: Literal["names"] | dict[int | str, int | str | None] | None = None
    """Which of the data's classes each class of a teacher, or of a network that is evaluated as it is, is: `{its class:
    the data's class}` by name or number, null to leave one out; or `names` for those that have one name."""

    views: ViewsConfig | None = None
    """Of a teacher only: `{flip: true, scales: [0.75, 1.0]}` averages its probabilities over these views of each image.
    Taps other than `logits` are those of the image as it is (docs/training.md)."""
    cache: str | None = None
    """Of a teacher only: folder in which what the methods read from it is kept for `cache_views` views of each image.
    It is filled once, before training; from then on the teacher does not run, in this run or in the next that has the
    same teacher, data and augmentation, of any seed (docs/training.md)."""
    cache_views: int = Field(1, gt=0)
    """With `cache`: how many ways of augmenting each image there are; epoch e takes number e mod `cache_views`. Without
    a cache, augmentation is another one each time."""
    cache_precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """With `cache`: how its numbers are kept. `float16` holds all that a teacher in bf16 gives, and refuses values
    beyond 65 504; `bfloat16` has their range and an eighth of their precision; `float32` takes twice the room."""
    cache_topk: int | None = Field(None, gt=0)
    """With `cache`: how many of a pixel's largest logits are kept, with the probability of all others together, which
    they share evenly when read. An approximation, for data of many classes; left out, all logits are kept."""

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
        given = sorted(key for key in self.model_fields_set if key.startswith("cache_"))
        defaults = {key: type(self).model_fields[key].default for key in given}
        if self.cache is None and any(getattr(self, key) != defaults[key] for key in given):
            raise ValueError(f"{given[0]} is of a cached teacher; set cache: FOLDER beside it, or leave it out")
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
