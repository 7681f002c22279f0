"""The section `eval:` of the configuration."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from segdistill._types import Size
from segdistill.engine.section import Section

if TYPE_CHECKING:
    from segdistill.engine.protocol import Protocol


class EvalConfig(Section):
    """`eval:` — how networks look at images where they are evaluated, in validation too, and where they predict."""

    protocol: Literal["mmseg", "cirkd", "skd", "ade_kit", "cityscapes"] | None = None
    """A benchmark's or paper's protocol (docs/protocols.md), whose values hold for all keys below that are left out.
    Left out itself, the network sees whole images once, and the mean is over the classes that are there. Given on the
    command line, it puts all keys of the section back; those after it change single ones."""
    window: Size | None = None
    """[height, width] of windows that the network sees of an image, whose logits are averaged where they overlap. Left
    out, it sees the whole image."""
    stride: Size | None = None
    """[down, across] from one window to the next; left out, two thirds of the window."""
    short_side: int | None = None
    """Images are resized, their ratio kept, so that the shorter side gets this long, or less where `long_side` would be
    exceeded. The truth stays as it is, and logits are resized to it."""
    long_side: int | None = None
    """Likewise of the longer side."""
    scales: list[float] = Field([1.0])
    """Factors by which images are resized besides; the views are merged."""
    flip: bool = False
    """Whether each view is seen mirrored as well."""
    merge: Literal["softmax", "logits"] = "softmax"
    """What is averaged over several views: probabilities (mmseg) or logits (cirkd, skd)."""
    align_corners: bool | None = None
    """Whether logits are resized with aligned corners, where the network does not resize them itself. Left out, as the
    network says."""
    absent: Literal["skip", "zero"] = "skip"
    """What a class that is neither in the truth nor predicted is in the mean IoU: left out, or 0."""

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
