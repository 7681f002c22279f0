"""How tensors are named elsewhere, and how by us.

Each source is a table of renames per family: (what their name starts with, what ours does), tried from the top; the
first that fits counts.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def renamed(tensors: Mapping[str, Tensor], table: Renames) -> dict[str, Tensor]:
    """Tensors under the names that a table gives them; those that it does not know keep theirs.

    Args:
        tensors: name → tensor.
        table: of renames.
    """
    result = {}
    for name, tensor in tensors.items():
        theirs, ours = next((pair for pair in table if re.match(pair[0], name)), (None, ""))
        result[name if theirs is None else re.sub(theirs, ours, name, count=1)] = tensor
    return result


def block(theirs: str, ours: str, conv: str = "conv", norm: str = "bn") -> Renames:
    """Renames of a convolution with its batch norm, which we name 0 and 1."""
    return ((rf"{theirs}\.{conv}\.", rf"{ours}.0."), (rf"{theirs}\.{norm}\.", rf"{ours}.1."))


def separable(theirs: str, ours: str) -> Renames:
    """Renames of OpenMMLab's depthwise and pointwise convolutions."""
    return (
        (rf"{theirs}\.depthwise_conv\.conv\.", rf"{ours}.0."),
        (rf"{theirs}\.depthwise_conv\.bn\.", rf"{ours}.1."),
        (rf"{theirs}\.pointwise_conv\.conv\.", rf"{ours}.3."),
        (rf"{theirs}\.pointwise_conv\.bn\.", rf"{ours}.4."),
    )


def deep_stem(prefix: str) -> Renames:
    """Renames of three convolutions conv1 … conv3 in front of a residual network, and of its stages."""
    return (
        *((rf"{prefix}conv{i + 1}\.", rf"backbone.body.conv1.{3 * i}.") for i in range(3)),
        *((rf"{prefix}bn{i + 1}\.", rf"backbone.body.conv1.{3 * i + 1}.") for i in range(2)),
        (rf"{prefix}bn3\.", r"backbone.body.bn1."),
        (rf"{prefix}(layer\d)\.", r"backbone.body.\1."),
    )


IMAGENET_STEMS: tuple[Renames, ...] = (
    (  # SKD's and CIRKD's
        (r"conv([123])\.", lambda m: f"conv1.{3 * int(m[1]) - 3}."),
        (r"bn([12])\.", lambda m: f"conv1.{3 * int(m[1]) - 2}."),
        (r"bn3\.", r"bn1."),
    ),
    (  # OpenMMLab's ResNetV1c
        (r"stem\.7\.", r"bn1."),
        (r"stem\.", r"conv1."),
    ),
)
"""Of ImageNet weights of residual networks that begin with three convolutions: to timm's names."""

OPENMMLAB: Renames = (
    (r"backbone\.stem\.6\.", r"backbone.body.conv1.6."),
    (r"backbone\.stem\.7\.", r"backbone.body.bn1."),
    (r"backbone\.stem\.", r"backbone.body.conv1."),
    # MobileNetV2: numbered convolutions; the first stage's block has two, the others three.
    (r"backbone\.conv1\.conv\.", r"backbone.body.conv_stem."),
    (r"backbone\.conv1\.bn\.", r"backbone.body.bn1."),
    (r"backbone\.layer1\.0\.conv\.0\.conv\.", r"backbone.body.blocks.0.0.conv_dw."),
    (r"backbone\.layer1\.0\.conv\.0\.bn\.", r"backbone.body.blocks.0.0.bn1."),
    (r"backbone\.layer1\.0\.conv\.1\.conv\.", r"backbone.body.blocks.0.0.conv_pw."),
    (r"backbone\.layer1\.0\.conv\.1\.bn\.", r"backbone.body.blocks.0.0.bn2."),
    *(
        rename
        for stage in range(2, 8)
        for i, conv in enumerate(("conv_pw", "conv_dw", "conv_pwl"))
        for rename in (
            (rf"backbone\.layer{stage}\.(\d+)\.conv\.{i}\.conv\.", rf"backbone.body.blocks.{stage - 1}.\1.{conv}."),
            (rf"backbone\.layer{stage}\.(\d+)\.conv\.{i}\.bn\.", rf"backbone.body.blocks.{stage - 1}.\1.bn{i + 1}."),
        )
    ),
    (r"backbone\.", r"backbone.body."),
    (r"decode_head\.conv_seg\.", r"classifier."),
    *block(r"auxiliary_head\.convs\.0", "aux.0"),
    (r"auxiliary_head\.conv_seg\.", r"aux.2."),
)
"""Of all families; the heads follow."""
OPENMMLAB_ASPP: Renames = (
    *block(r"decode_head\.image_pool\.1", "decoder.aspp.pool.1"),
    *separable(r"decode_head\.aspp_modules\.(\d)", r"decoder.aspp.branches.\1"),
    *block(r"decode_head\.aspp_modules\.(\d)", r"decoder.aspp.branches.\1"),
    *block(r"decode_head\.bottleneck", "decoder.aspp.fuse"),
    *block(r"decode_head\.c1_bottleneck", "decoder.low"),
    *separable(r"decode_head\.sep_bottleneck\.(\d)", r"decoder.fuse.\1"),
)
RENAMES: dict[str, dict[str, Renames]] = {
    "openmmlab": {
        "pspnet": (
            *block(r"decode_head\.psp_modules\.(\d)\.1", r"decoder.branches.\1.1"),
            *block(r"decode_head\.bottleneck", "decoder.fuse"),
            *OPENMMLAB,
        ),
        "deeplabv3": (*OPENMMLAB_ASPP, *OPENMMLAB),
        "deeplabv3plus": (*OPENMMLAB_ASPP, *OPENMMLAB),
        "fcn": (
            *block(r"decode_head\.convs\.(\d)", r"decoder.convs.\1"),
            *block(r"decode_head\.conv_cat", "decoder.fuse"),
            *OPENMMLAB,
        ),
        "hrnet": (
            *block(r"decode_head\.convs\.0", "decoder.fuse"),
            (r"backbone\.", r"backbone.body."),
            *OPENMMLAB,
        ),
        "isanet": (
            *block(r"decode_head\.in_conv", "decoder.reduce"),
            *block(r"decode_head\.out_conv", "decoder.fuse"),
            *(
                rename
                for theirs, ours in (("global", "far"), ("local", "near"))
                for rename in (
                    *block(
                        rf"decode_head\.{theirs}_relation\.(key|query)_project\.(\d)",
                        rf"decoder.attention.{ours}.\1.\2",
                    ),
                    (rf"decode_head\.{theirs}_relation\.value_project\.", rf"decoder.attention.{ours}.value."),
                    *block(rf"decode_head\.{theirs}_relation\.output_project", rf"decoder.attention.{ours}.out"),
                )
            ),
            *OPENMMLAB,
        ),
    },
    "torchvision": {
        "deeplabv3": (
            (r"classifier\.0\.convs\.4\.([12])\.", lambda m: f"decoder.aspp.pool.1.{int(m[1]) - 1}."),
            (r"classifier\.0\.convs\.", r"decoder.aspp.branches."),
            (r"classifier\.0\.project\.", r"decoder.aspp.fuse."),
            (r"classifier\.([12])\.", lambda m: f"decoder.fuse.{int(m[1]) - 1}."),
            (r"classifier\.4\.", r"classifier."),
            (r"aux_classifier\.([01])\.", r"aux.0.\1."),
            (r"aux_classifier\.4\.", r"aux.2."),
            (r"backbone\.", r"backbone.body."),
        ),
    },
    "skd": {
        "pspnet": (
            *deep_stem(""),
            *block(r"pspmodule\.stages\.(\d)", r"decoder.branches.\1.1", "1", "2"),
            (r"pspmodule\.bottleneck\.", r"decoder.fuse."),
            (r"head\.", r"classifier."),
            (r"dsn\.([01])\.", r"aux.0.\1."),
            (r"dsn\.3\.", r"aux.2."),
        ),
    },
    "cirkd": {
        "deeplabv3": (
            *deep_stem(r"pretrained\."),
            *block(r"head\.aspp\.b0", "decoder.aspp.branches.0", "0", "1"),
            *block(r"head\.aspp\.b([123])\.block", r"decoder.aspp.branches.\1", "0", "1"),
            *block(r"head\.aspp\.b4\.gap", "decoder.aspp.pool.1", "1", "2"),
            (r"head\.aspp\.project\.", r"decoder.aspp.fuse."),
            (r"head\.block\.([01])\.", r"decoder.fuse.\1."),
            (r"head\.block\.4\.", r"classifier."),
            (r"auxlayer\.block\.([01])\.", r"aux.0.\1."),
            (r"auxlayer\.block\.4\.", r"aux.2."),
        ),
        "pspnet": (
            *deep_stem(r"pretrained\."),
            (r"head\.psp\.conv([1234])\.", lambda m: f"decoder.branches.{int(m[1]) - 1}.1."),
            (r"head\.block\.", r"decoder.fuse."),
            (r"head\.classifier\.", r"classifier."),
            (r"auxlayer\.block\.([01])\.", r"aux.0.\1."),
            (r"auxlayer\.block\.4\.", r"aux.2."),
        ),
    },
    "espnet": {
        "espnet": (),
        "espnet_c": ((r"(?!encoder\.)", r"encoder."),),
    },
}
"""Source → our family → (start of their name, start of ours)."""
SIGNS = {
    "skd": r"pspmodule\.stages\.",
    "cirkd": r"pretrained\.layer1\.",
    "openmmlab": r"decode_head\.conv_seg\.",
    "torchvision": r"backbone\.(layer1\.|\d+\.|conv1\.)",
    "espnet": r"(encoder\.)?level2_0\.",
}
"""Names that give a source away, besides our own."""
