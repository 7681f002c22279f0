"""A network as an ONNX graph: from an image to the class of each pixel and the logits."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from segdistill._printing import one_line
from segdistill._types import Size
from segdistill.deploy.portable import portable
from segdistill.taps import aligned, as_logits, resize_logits

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""Version of ONNX's operators that the graphs are written in."""
INPUT = "image"
Input = Literal["float", "uint8"]
Output = Literal["ids", "logits", "both"]
DTYPES = {"float": torch.float32, "uint8": torch.uint8}
AXES = {0: "N", 2: "H", 3: "W"}
"""Axes of the image that `dynamic` leaves open, and what they are called."""


@dataclass(frozen=True)
class Interface:
    """What goes into a graph and what comes out.

    Args:
        size: (H,W) of the image; of a dynamic graph, of the example.
        dynamic: whether images may have any size, and a batch any number of them.
        input: `float`, RGB in 0…1, or `uint8`, RGB in 0…255.
        output: `ids` (N,H,W) uint8, `logits` (N,C,H,W) float32, or both.
    """

    size: Size
    dynamic: bool = False
    input: Input = "float"
    output: Output = "both"

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return ["ids", "logits"] if self.output == "both" else [self.output]


class Deployed(nn.Module):
    """A network as it is deployed: an image as its user has it → the class of each pixel, and the logits.

    Args:
        network: in eval mode.
        interface: what goes in and comes out.
    """

    def __init__(self, network: nn.Module, interface: Interface):
        super().__init__()
        self.network = network
        self.interface = interface

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the interface, in its order.

        Args:
            image: (N,3,H,W), of the interface's kind.
        """
        logits = as_logits(self.network(as_float(image))).float()
        size = (image.shape[-2], image.shape[-1])
        results = {"logits": logits}
        if "ids" in self.interface.outputs:
            results["ids"] = resize_logits(logits, size, aligned(self.network)).argmax(1).to(torch.uint8)
        return tuple(results[name] for name in self.interface.outputs)


def as_float(image: Tensor) -> Tensor:
    """An image of either kind as networks take it: float32 in 0…1."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def as_input(images: Tensor, interface: Interface) -> NDArray[Any]:
    """Images (N,3,H,W) uint8 as a file of the interface takes them."""
    array: NDArray[Any] = (images if interface.input == "uint8" else as_float(images)).contiguous().numpy()
    return array


def deployed(network: nn.Module, interface: Interface) -> "Deployed":
    """A copy of a network as it is deployed.

    Args:
        network: images (N,3,H,W) in 0…1 → logits.
        interface: what goes in and comes out.
    """
    return Deployed(copy.deepcopy(network).cpu().float().eval(), interface)


def to_onnx(network: nn.Module, interface: Interface) -> "ModelProto":
    """Write a network as an ONNX graph, `image` → `ids`, `logits`, with its weights inside.

    Args:
        network: images (N,3,H,W) in 0…1 → logits; it is not changed.
        interface: what goes in and comes out.

    Raises:
        ValueError: if the exporter cannot write it.
    """
    return write_graph(deployed(network, interface), interface, interface.outputs)


def write_graph(module: nn.Module, interface: Interface, outputs: Sequence[str]) -> "ModelProto":
    """Write any module that takes the interface's image as an ONNX graph.

    Args:
        module: any.
        interface: what goes in.
        outputs: names of what comes out.

    Raises:
        ValueError: if the exporter cannot write it.
    """
    any_size = {INPUT: dict.fromkeys(AXES, Dim.DYNAMIC)} if interface.dynamic else None
    try:
        with torch.no_grad(), portable(), quietly():
            program = torch.onnx.export(
                module,
                (example(interface),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=any_size,
                external_data=False,
            )
    except Exception as error:
        raise ValueError(_reason(error)) from error
    assert program is not None
    model: ModelProto = program.model_proto
    _forget_origin(model)
    if interface.dynamic:
        _name_axes(model)
    return model


def example(interface: Interface) -> Tensor:
    """An image to trace a network with; for a dynamic graph two, since a batch of one would be taken for a constant.

    Args:
        interface: of the graph.
    """
    image = torch.rand(2 if interface.dynamic else 1, 3, *interface.size)
    return image if interface.input == "float" else (255 * image).to(torch.uint8)


def _forget_origin(model: "ModelProto") -> None:
    """Take out what the exporter notes at each value: lines of code, with the paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _name_axes(model: "ModelProto") -> None:
    """Call the open axes N, H and W, instead of what the exporter's symbols are called."""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip((0, -2, -1), AXES.values(), strict=True):
            if not axes[axis].HasField("dim_value"):
                axes[axis].dim_param = name


@contextmanager
def quietly() -> Iterator[None]:
    """Keep exporters from telling of their steps, their guesses and their own future."""
    sink, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """What made the exporter fail, in one line: the innermost cause says it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return one_line(f"{type(error).__name__}: {text}")[:300]
