"""The section `eval:` of the configuration."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from segdistill._types import Size
from segdistill.engine.section import Section

if TYPE_CHECKING:
    from segdistill.engine.protocol import Protocol


class EvalConfig(Section):
    """`eval:` — how networks see images in evaluation, in validation during training, and in prediction."""

    protocol: Literal["mmseg", "cirkd", "skd", "ade_kit", "cityscapes"] | None = None
    """The protocol of a benchmark or paper (docs/protocols.md). It sets all keys below that are left out. If `protocol`
    is left out, the network sees whole images once, and the mean IoU is over the classes that occur. Given on the
    command line, it resets all keys of the section; keys after it change single ones."""
    window: Size | None = None
    """[height, width] of sliding windows through which the network sees an image; logits are averaged where windows
    overlap. If left out, the network sees the whole image."""
    stride: Size | None = None
    """[down, across] from one window to the next. If left out, two thirds of the window."""
    short_side: int | None = None
    """Images are resized, with their aspect ratio kept, until the shorter side has this length, or less if `long_side`
    would be exceeded. The truth is not resized; logits are resized to the truth."""
    long_side: int | None = None
    """The same for the longer side."""
    scales: list[float] = Field([1.0])
    """Factors by which images are resized in addition; each factor gives one view, and the views are averaged."""
    flip: bool = False
    """Whether the network also sees each view mirrored."""
    merge: Literal["softmax", "logits"] = "softmax"
    """What is averaged over several views: probabilities (`softmax`, as in mmseg) or logits (`logits`, as in cirkd and
    skd)."""
    align_corners: bool | None = None
    """Whether logits are resized with aligned corners, if the network does not resize them itself. If left out, the
    network's own setting."""
    absent: Literal["skip", "zero"] = "skip"
    """How the mean IoU treats a class that is neither in the truth nor predicted: `skip` leaves it out, `zero` counts
    it as 0."""

    def complete(self, data: str) -> None:
        """Write the preset's values out in full, but for the keys that are given, and check all of them.

        Args:
            data: name of the data set.

        Raises:
            ValueError: if a value has no meaning.
        """
        from segdistill.engine.presets import preset

        if self.protocol is not None:
            for key, value in preset(self.protocol, data).items():
                if key not in self.model_fields_set:
                    setattr(self, key, value)
        self.build()

    def build(self) -> "Protocol":
        """The protocol."""
        from segdistill.engine.protocol import Protocol

        return Protocol(**self.model_dump(exclude={"protocol"}))

    def describe(self) -> dict[str, Any]:
        """The protocol's values by name, with that of its preset."""
        return {"name": self.protocol, **self.build().as_dict()}
