"""Smaller numbers: static int8 with layers kept in float where they are needed, and half precision."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdistill._printing import untold
from segdistill._types import Stages, Told
from segdistill.deploy.formats import Array, open_onnx
from segdistill.deploy.graph import INPUT, quietly
from segdistill.deploy.verify import Check

if TYPE_CHECKING:
    from onnx import ModelProto

WEIGHTED = ("Conv", "MatMul", "Gemm")
"""Operators whose layers are ranked by the error that they cause in int8."""
OPERATORS = (*WEIGHTED, "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators that work in int8. Others are as fast in float, or lose more than they gain: a softmax, a resize."""
RANKING_IMAGES = 2


class Quantizer:
    """An ONNX graph in int8: weights per channel, activations by the range that they have on images (static QDQ).

    Args:
        graph: in float32.
        images: to calibrate with, as the graph takes them.
    """

    def __init__(self, graph: "ModelProto", images: Iterable[Array]):
        import onnx
        from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.images = iter(images)

            def get_next(self) -> dict[str, Array] | None:
                image = next(self.images, None)
                return None if image is None else {INPUT: image}

        with tempfile.TemporaryDirectory(prefix="segdistill-int8-") as folder, quietly():
            plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
            onnx.save(graph, plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # joins convolutions with their batch norms
            self.graph = onnx.load(prepared)
            calibrator = create_calibrator(
                prepared, list(OPERATORS), augmented_model_path=str(Path(folder) / "observed.onnx")
            )
            calibrator.collect_data(Reader())
            self.ranges = calibrator.compute_data()
            with suppress(AttributeError):
                del calibrator.infer_session  # it holds the file, which Windows could not delete
        self.layers = [node.name for node in self.graph.graph.node if node.op_type in WEIGHTED]

    def build(self, *, keep: Collection[str] = (), only: Sequence[str] = ()) -> "ModelProto":
        """The graph in int8.

        Args:
            keep: nodes that stay in float.
            only: the only nodes that are quantised; all, if empty.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        graph = type(self.graph)()
        graph.CopyFrom(self.graph)
        with quietly():
            quantizer = QDQQuantizer(
                graph,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=list(only),
                nodes_to_exclude=list(keep),
                op_types_to_quantize=list(OPERATORS),
                extra_options={},
            )
            quantizer.quantize_model()
        built: ModelProto = quantizer.model.model
        return built

    def ranked(self, images: Sequence[Array], progress: Told | None = None) -> list[str]:
        """The layers, those first that change the outputs most if they alone are in int8.

        Args:
            images: that the outputs are compared on.
            progress: called with (layers done, layers in all).
        """
        wanted = _numbers(open_onnx(self.graph), images)
        errors = {}
        for number, layer in enumerate(self.layers, 1):
            found = _numbers(open_onnx(self.build(only=[layer])), images)
            errors[layer] = sum(float(np.mean((a - b) ** 2)) for a, b in zip(wanted, found, strict=True))
            if progress is not None:
                progress(number, len(self.layers))
        return sorted(errors, key=lambda layer: -errors[layer])

    def label(self, layer: str) -> str:
        """The path of the module that a layer is from, by its weight's name; the node's name where it has none.

        Args:
            layer: name of a node.
        """
        node = next(node for node in self.graph.graph.node if node.name == layer)
        weights = [name for name in node.input if name.endswith(".weight")]
        return weights[0].removeprefix("network.").removesuffix(".weight") if weights else layer


def _numbers(run: Callable[[Array], Any], images: Sequence[Array]) -> list[Array]:
    """The logits of images; of a graph that gives class numbers alone, those."""
    results = [run(image) for image in images]
    return [np.asarray(result.get("logits", result.get("ids")), np.float32) for result in results]


@dataclass
class Quantised:
    """What the search for layers that have to stay in float found."""

    graph: "ModelProto"
    check: Check
    kept: list[str] = field(default_factory=list)
    """Paths of the layers that stay in float."""


def search(
    quantizer: Quantizer,
    measure: Callable[["ModelProto"], Check],
    images: Sequence[Array],
    max_drop: float,
    say: Callable[[str], None],
    progress: Stages | None = None,
) -> Quantised:
    """The int8 graph that keeps as few layers in float as the mean IoU allows.

    Layers are ranked by the error that each causes alone. As many of the worst as needed stay in float: 1, 2, 4, …
    until the loss is small enough, then fewer again by halving.

    Args:
        quantizer: of the graph.
        measure: compares a graph with the student.
        images: by which the layers are ranked.
        max_drop: points of mIoU, of 100, that may be lost.
        say: is told what happens.
        progress: as for `export_student`.

    Raises:
        ValueError: if the loss is too large even with all layers in float, or cannot be measured.
    """
    graph = quantizer.build()
    check = measure(graph)
    if check.drop is None:
        raise ValueError("int8 needs validation images with labels, by which its loss is measured; give --config")
    if _within(check, max_drop):
        return Quantised(graph, check)
    say(f"int8 loses {check.drop:.2f} points of mIoU: looking for the layers that have to stay in float")
    with (progress or untold)("layers ranked") as told:
        ranking = quantizer.ranked(images, told)

    def attempt(count: int) -> Quantised:
        keep = ranking[:count]
        graph = quantizer.build(keep=keep)
        found = Quantised(graph, measure(graph), [quantizer.label(layer) for layer in keep])
        say(f"{count} of {len(ranking)} layers in float: {found.check.drop:.2f} points")
        return found

    low, high = 0, 1
    while not _within((best := attempt(high)).check, max_drop):
        if high == len(ranking):
            lost = f"int8 loses {best.check.drop:.2f} points of mIoU even with all layers in float"
            raise ValueError(f"{lost}, --max-drop {max_drop:g}; nothing was written")
        low, high = high, min(2 * high, len(ranking))
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle)
        if _within(found.check, max_drop):
            best, high = found, middle
        else:
            low = middle
    return best


def _within(check: Check, max_drop: float) -> bool:
    return check.drop is not None and check.drop <= max_drop


def half_file(source: Path) -> Path:
    """Write a graph's file in float16 beside it.

    Args:
        source: the file of the graph.
    """
    import onnx

    target = source.with_suffix(".half")
    target.write_bytes(to_half(onnx.load(source)).SerializeToString())
    return target


def to_half(graph: "ModelProto") -> "ModelProto":
    """The graph in float16 inside; what goes in and comes out stays as it is.

    Args:
        graph: in float32; it is not changed.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = type(graph)()
    copied.CopyFrom(graph)
    with quietly():
        half: ModelProto = convert_float_to_float16(copied, keep_io_types=True)
    return half
