"""The evaluation protocol: how a network looks at an image, and how the benchmark averages over classes."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segdistill._types import Size
from segdistill.engine.modes import evaluating
from segdistill.engine.presets import preset
from segdistill.engine.rows import Given, Mirrored, Network, Rows, Whole, Windows, resized
from segdistill.taps import aligned


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(name: str, value: Any) -> Size:
    try:
        height, width = value
        good = _whole(height) and _whole(width) and min(height, width) > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"{name}: expected (height, width) in pixels, got {value!r}")
    return height, width


def _factors(value: Any) -> tuple[float, ...]:
    try:
        factors = tuple(float(scale) for scale in value)
        good = bool(factors) and all(0 < factor < math.inf for factor in factors)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"scales: expected factors such as (0.5, 1.0), got {value!r}")
    return factors


@dataclass(frozen=True)
class Protocol:
    """How a network looks at an image, and which classes the mean IoU is over. The truth is never resized.

    Args:
        window: (h,w) of the windows that the network sees of an image; None: the whole image. Where windows overlap,
            logits are averaged. An image that is smaller is seen as it is, without padding.
        stride: (down, across) from one window to the next (default: two thirds of the window, rounded). The last
            window is moved back to the image's border.
        short_side: the image is resized, its ratio kept, so that its shorter side gets this long (or shorter, where
            `long_side` would be exceeded).
        long_side: likewise of its longer side.
        scales: factors by which the image is resized besides; the network sees one view of each.
        flip: whether it sees each view mirrored as well.
        merge: what is averaged over several views: probabilities (`softmax`) or `logits`.
        align_corners: how logits are resized to the view, and from there to the truth (default: as the network says
            itself by its attribute `align_corners`, else not). A network that gives logits at its input's size has
            resized them already, in its own way.
        absent: what becomes of a class that is neither in the truth nor in the prediction of the whole split: it
            leaves the mean IoU (`skip`) or counts in it as 0 (`zero`).

    Raises:
        ValueError: if a value has no meaning, or windows would leave gaps.

    >>> Protocol(window=(769, 769)).steps
    (513, 513)
    """

    window: Size | None = None
    stride: Size | None = None
    short_side: int | None = None
    long_side: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: Literal["softmax", "logits"] = "softmax"
    align_corners: bool | None = None
    absent: Literal["skip", "zero"] = "skip"

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            pair = getattr(self, name)
            if pair is not None:
                object.__setattr__(self, name, _pair(name, pair))
        if self.stride is not None and self.window is None:
            raise ValueError(f"stride: {list(self.stride)} without a window; give window as well")
        if self.window is not None and any(a > b for a, b in zip(self.steps, self.window, strict=True)):
            raise ValueError(
                f"stride: {list(self.steps)} is more than the window {list(self.window)}, which leaves pixels that no "
                "window sees; take at most the window"
            )
        for name in ("short_side", "long_side"):
            side = getattr(self, name)
            if side is not None and (not _whole(side) or side < 1):
                raise ValueError(f"{name}: expected pixels, got {side!r}")
        object.__setattr__(self, "scales", _factors(self.scales))
        for name, known in (("merge", ("softmax", "logits")), ("absent", ("skip", "zero"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")

    @property
    def steps(self) -> Size:
        """The stride that counts: the given one, else two thirds of the window, as SKD and mmsegmentation take."""
        assert self.window is not None
        down, across = self.stride or (max(1, int(side * 2 / 3 + 0.5)) for side in self.window)
        return down, across

    @property
    def sees_once(self) -> bool:
        """Whether the network sees each image whole and once."""
        return self.window is None and len(self.scales) == 1 and not self.flip

    @property
    def gives_probabilities(self) -> bool:
        """Whether what it gives is probabilities, merged from several views, and not logits."""
        return self.merge == "softmax" and len(self.scales) * (1 + self.flip) > 1

    def view(self, size: Size, scale: float = 1.0) -> Size:
        """(H,W) that an image is resized to.

        mmcv's rule: of the image's own sides, or those that the protocol wants, times the scale and rounded, the one
        that is reached first gives the factor; sides times the factor are rounded half up.

        Args:
            size: (H,W) of the image.
            scale: one of `scales`.

        >>> Protocol(short_side=512, long_side=2048).view((364, 500))
        (512, 703)
        """
        wanted = {min: self.short_side, max: self.long_side}
        if self.short_side is None and self.long_side is None:
            if scale == 1:
                return size
            wanted = {min: min(size), max: max(size)}
        factor = min(int(side * scale + 0.5) / ends(size) for ends, side in wanted.items() if side is not None)
        height, width = (max(1, int(side * factor + 0.5)) for side in size)
        return height, width

    def as_dict(self) -> dict[str, Any]:
        """The values by name, as JSON holds them, with the stride that counts."""
        values = {**asdict(self), "stride": None if self.window is None else self.steps}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


PLAIN = Protocol()
"""Whole images at their own size, and the mean over the classes that are there."""

WHOLE = 2**21
"""Pixels of the largest result that is finished at once: an image of Cityscapes."""

BAND = 2**19
"""Pixels of a band of rows that is finished at once, of a larger one."""


def named_protocol(name: str, data: str | None = None) -> Protocol:
    """The protocol that a preset names.

    Args:
        name: such as `mmseg`.
        data: name of the data set, for presets that differ by it.

    Raises:
        ValueError: if there is no such preset.
    """
    return Protocol(**preset(name, data))


def read_protocol(values: Any) -> Protocol:
    """The protocol that a student's card gives, with what this version knows of it; a plain one if it gives none.

    Args:
        values: what `as_dict` gave, or None.
    """
    known = {field.name for field in fields(Protocol)}
    return Protocol(**{key: value for key, value in (values or {}).items() if key in known})


def infer(network: nn.Module, images: Tensor, protocol: Protocol = PLAIN, *, size: Size | None = None) -> Tensor:
    """What a network says of images under a protocol, at the images' size.

    Args:
        network: takes RGB images in 0…1 and gives logits (or whatever `as_logits` understands), at any resolution. It
            runs in eval mode and without gradients.
        images: (N,3,H,W) float in 0…1, or uint8; they need not be on the network's device.
        protocol: windows, sizes, views.
        size: (H,W) of the result, that of the truth (default: the images').

    Returns:
        Logits (N,C,H,W) on the network's device, in float32 at least; probabilities where several views are merged by
        `softmax`.
    """
    with _looking(network):
        return torch.cat(list(_bands(network, images, protocol, size)), dim=-2)


def infer_ids(
    network: nn.Module,
    images: Tensor,
    protocol: Protocol = PLAIN,
    *,
    size: Size | None = None,
    check: Callable[[int], None] | None = None,
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The classes that `infer` finds likeliest, in memory that does not grow with the logits of the whole image.

    Rows of windows are averaged from the top down, and rows that are finished become class numbers at once. Whole
    images, and views of other scales, need the network's logits at its own resolution.

    Args:
        network: as for `infer`.
        images: likewise.
        protocol: likewise.
        size: likewise.
        check: called with the number of classes that the network gives; it may raise.
        watch: called with the first row of each band of rows and what `infer` gives there, (N,C,h,W).

    Returns:
        Class numbers (N,H,W) on the network's device: uint8, of more than 256 classes int64. They are exactly those of
        `infer(…).argmax(1)`.
    """
    found: list[Tensor] = []
    with _looking(network):
        for band in _bands(network, images, protocol, size):
            if check is not None and not found:
                check(band.shape[1])
            if watch is not None:
                watch(sum(part.shape[-2] for part in found), band)
            found.append(band.argmax(1).to(torch.uint8 if band.shape[1] <= 256 else torch.int64))
    return torch.cat(found, dim=-2)


@contextmanager
def _looking(network: Network) -> Iterator[None]:
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        yield


def _bands(network: nn.Module, images: Tensor, protocol: Protocol, size: Size | None) -> Iterator[Tensor]:
    """The result from the top down, in bands (N,C,h,W)."""
    height, width = size or (images.shape[-2], images.shape[-1])
    count = len(protocol.scales) * (1 + protocol.flip)
    step = height if height * width <= WHOLE else max(1, BAND // width)
    views = _views(network, images, protocol, (height, width))
    if step < height:
        views = list(views)  # they go down side by side; else each one is gone before the next
    for top in range(0, height, step):
        merged: Tensor | None = None
        for view in views:
            part = view.rows(top, min(top + step, height))
            if count > 1:
                part = (part.softmax(1) if protocol.merge == "softmax" else part) / count
            merged = part if merged is None else merged.add_(part)
        assert merged is not None
        yield merged


def _views(network: nn.Module, images: Tensor, protocol: Protocol, size: Size) -> Any:
    """The network's logits of each view, each brought back to the size of the result."""
    align = aligned(network) if protocol.align_corners is None else protocol.align_corners
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), images.device)
    for seen, mirrored in looks(Given(images), protocol):
        logits: Rows
        if protocol.window is None:
            logits = Whole(network, seen, align, device)
        else:
            logits = Windows(network, seen, protocol.window, protocol.steps, align, device)
        yield resized(Mirrored(logits) if mirrored else logits, size, align)


def looks(image: Rows, protocol: Protocol) -> Iterator[tuple[Rows, bool]]:
    """An image as each of a protocol's views has it: resized, then as it is, then mirrored.

    Args:
        image: (N,3,H,W).
        protocol: of its sizes, scales and `flip`.

    Yields:
        What is seen, which is `image` itself where nothing is done to it, and whether it is mirrored.
    """
    for scale in protocol.scales:
        seen = resized(image, protocol.view(image.size, scale))
        yield seen, False
        if protocol.flip:
            yield Mirrored(seen), True
