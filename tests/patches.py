"""A network of one convolution, as a torch function and as the ONNX file that `segdistill export` would write of it."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from segdistill.runtime import METADATA

CLASSES = ["road", "tree", "sky", "car", "sign"]
COLOURS = [[0, 0, 0], [10, 200, 30], [40, 50, 255], [200, 10, 10], [90, 90, 0]]


def patch_network(count=5):
    """Weights of a network that sees patches of 4×4 pixels, and finds no class more than others."""
    weight = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return weight, -weight.sum((1, 2, 3)) / 2


class Patches(nn.Module):
    """The network in torch."""

    def forward(self, images):
        weight, bias = patch_network()
        return F.conv2d(images, weight, bias, stride=4)


def write_onnx(path: Path, size=(24, 32), *, outputs=("ids", "logits"), kind="uint8", classes=CLASSES, **facts) -> Path:
    """The same network as a file, as `segdistill export` writes it."""
    weight, bias = patch_network(len(classes))
    free = size is None
    batch, *sides = ("N", "H", "W") if free else (1, *size)
    element = TensorProto.UINT8 if kind == "uint8" else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["image"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["seen", "share"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "weight", "bias"], ["logits"], strides=[4, 4]),
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["sides"]),
        helper.make_node("Shape", ["logits"], ["shape_of_logits"]),
        helper.make_node("Slice", ["shape_of_logits", "zero", "two"], ["first"]),
        helper.make_node("Concat", ["first", "sides"], ["full"], axis=0),
        helper.make_node(
            "Resize", ["logits", "", "", "full"], ["large"], mode="linear", coordinate_transformation_mode="half_pixel"
        ),
        helper.make_node("ArgMax", ["large"], ["wide"], axis=1, keepdims=0),
        helper.make_node("Cast", ["wide"], ["ids"], to=TensorProto.UINT8),
    ]
    constants = {
        "share": np.float32(1 / 255 if kind == "uint8" else 1),
        "weight": weight.numpy(),
        "bias": bias.numpy(),
        "zero": np.array([0]),
        "two": np.array([2]),
        "four": np.array([4]),
    }
    given = {
        "ids": helper.make_tensor_value_info("ids", TensorProto.UINT8, [batch, *sides]),
        "logits": helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(classes), "h", "w"]),
    }
    graph = helper.make_graph(
        nodes,
        "patches",
        [helper.make_tensor_value_info("image", element, [batch, 3, *sides])],
        [given[name] for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    metadata = {
        "schema": 1,
        "classes": classes,
        "palette": COLOURS,
        "align_corners": False,
        "dynamic": free,
        "input": {"name": "image", "dtype": kind, "size": None if free else list(size)},
        **facts,
    }
    helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    onnx.save(model, path)
    return path


def expected_logits(pixels, size=None):
    weight, bias = patch_network()
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(F.conv2d(image, weight, bias, stride=4), size=size or pixels.shape[:2], mode="bilinear")[0]
