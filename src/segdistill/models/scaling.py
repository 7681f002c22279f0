"""Narrower and shallower networks: one rule of rounding, and timm's backbones by their own parameters."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType
from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, model_cfgs
from timm.models.resnet import ResNet
from torch import nn

LARGEST = 8.0
"""Multiple of a network's channels or blocks that is still taken for one."""
KINDS = "ResNets, EfficientNets, MobileNets (V1 to V4), RegNets and ConvNeXts"
"""Of timm's backbones that can be scaled."""


def scaled(channels: int, width: float) -> int:
    """Channels × width as MobileNet rounds them: to a multiple of 8, at least 8, never by more than a tenth down.

    >>> [scaled(64, width) for width in (1, 0.75, 0.3, 0.1)]
    [64, 48, 24, 8]
    """
    if width == 1:
        return channels
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def shortened(blocks: int, depth: float) -> int:
    """Blocks × depth, rounded half up, at least one.

    >>> [shortened(3, depth) for depth in (1, 0.5, 0.1)]
    [3, 2, 1]
    """
    return max(1, int(blocks * depth + 0.5))


def check_scale(width: float, depth: float = 1.0) -> None:
    """Refuse what is no multiplier.

    Args:
        width: of channels.
        depth: of blocks.

    Raises:
        ValueError: if one of them is not above 0 and at most `LARGEST`.
    """
    for name, value in (("width", width), ("depth", depth)):
        if not 0 < value <= LARGEST:
            hint = f"; channels of the head are head_width: {value:g}" if name == "width" and value > 0 else ""
            raise ValueError(f"{name}: expected a multiplier above 0 and at most {LARGEST:g}, got {value:g}{hint}")


def backbone_maker(
    timm_name: str, arguments: dict[str, Any], width: float = 1.0, depth: float = 1.0
) -> Callable[..., nn.Module]:
    """A function that makes a timm network of another width and depth, by the parameters that timm itself has for it.

    Args:
        timm_name: of the network.
        arguments: of `timm.create_model`.
        width: multiplies channels. A ResNet's plain 7×7 stem keeps its 64, for which timm has no parameter.
        depth: multiplies the blocks of each stage; timm rounds those of EfficientNets and MobileNets up.

    Returns:
        A function that takes further arguments of `timm.create_model`.

    Raises:
        ValueError: if timm has no parameter for it.
    """
    if width == 1 and depth == 1:
        return partial(timm.create_model, timm_name, **arguments)
    with torch.device("meta"):
        whole: Any = timm.create_model(timm_name, **arguments)
    if type(whole) is ResNet:
        arguments = arguments | _resnet(whole, width, depth)
    elif type(whole) is ConvNeXt:
        arguments = arguments | _convnext(whole, width, depth)
    elif type(whole) is RegNet:
        arguments = arguments | _regnet(timm_name, width, depth)
    elif isinstance(whole, EfficientNet | MobileNetV3):
        return partial(_multiplied(timm_name, width, depth), **arguments)
    else:
        raise ValueError(
            f"backbone {timm_name}: timm cannot scale a {type(whole).__name__}; width and depth are for {KINDS}"
        )
    return partial(timm.create_model, timm_name, **arguments)


def _convnext(network: Any, width: float, depth: float) -> dict[str, Any]:
    return {
        "depths": tuple(shortened(len(stage.blocks), depth) for stage in network.stages),
        "dims": tuple(scaled(info["num_chs"], width) for info in network.feature_info),
    }


def _resnet(network: Any, width: float, depth: float) -> dict[str, Any]:
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    made: dict[str, Any] = {"layers": tuple(shortened(len(stage), depth) for stage in stages)}
    ends = zip(network.feature_info[-4:], stages, strict=True)
    made["channels"] = tuple(scaled(info["num_chs"] // stage[0].expansion, width) for info, stage in ends)
    stem: Any = network.conv1
    if isinstance(stem, nn.Sequential):
        convolution: Any = stem[3]
        made["stem_width"] = scaled(convolution.out_channels, width)
    return made


def _regnet(timm_name: str, width: float, depth: float) -> dict[str, Any]:
    """Of stages whose channels grow from `w0` by `wa` a block: both are multiplied by what `w0` is rounded to.

    Fewer blocks grow faster, so that they end where more would.
    """
    plan = model_cfgs[timm_name]
    blocks = shortened(plan.depth, depth)
    start = scaled(plan.w0, width)
    growth = plan.wa * start / plan.w0 * plan.depth / blocks
    return {"w0": start, "wa": growth, "depth": blocks, "stem_width": scaled(plan.stem_width, width)}


def _multiplied(timm_name: str, width: float, depth: float) -> Callable[..., nn.Module]:
    """The function of that name in timm, with its own multipliers multiplied.

    Each of these functions calls a generator (`_gen_efficientnet`, …) with constants for `channel_multiplier` and
    `depth_multiplier`, and has no argument for them; here it calls the generator through one that multiplies them.
    """
    entry: Any = timm.model_entrypoint(timm_name)
    scope = {
        name: _multiplying(found, timm_name, width, depth) if name.startswith("_gen_") else found
        for name, found in entry.__globals__.items()
    }
    made = FunctionType(entry.__code__, scope, entry.__name__, entry.__defaults__, entry.__closure__)
    made.__kwdefaults__ = entry.__kwdefaults__
    return made


def _multiplying(generate: Any, timm_name: str, width: float, depth: float) -> Callable[..., nn.Module]:
    factors = {"channel_multiplier": width, "model_width": width, "depth_multiplier": depth}

    @wraps(generate)
    def scaling(*args: Any, **kwargs: Any) -> nn.Module:
        bound = inspect.signature(generate).bind(*args, **kwargs)
        bound.apply_defaults()
        known = {name: factor for name, factor in factors.items() if name in bound.arguments}
        if depth != 1 and "depth_multiplier" not in known:
            raise ValueError(f"backbone {timm_name}: timm cannot change its depth; width alone can be set")
        bound.arguments.update({name: bound.arguments[name] * factor for name, factor in known.items()})
        made: nn.Module = generate(*bound.args, **bound.kwargs)
        return made

    return scaling
