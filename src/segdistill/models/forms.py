"""Where trained networks come from: how their images were normalised, and in what details they differ from ours."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.models.normalisation import Normalisation
from segdistill.models.segmenter import conv_bn_relu


class Source(NamedTuple):
    """A code base that published trained networks."""

    what: str
    """Its name in full, and what is known of its networks, for a printed line."""
    normalisation: Normalisation | None
    """Of its images; None for the network's own."""
    adapt: Callable[[Any], None]
    """Gives a network of ours the details of theirs."""


class AlignedPyramid(nn.Module):
    """Our pyramid pooling with aligned corners where cells are resized to the map.

    Args:
        decoder: whose layers it takes over.
    """

    def __init__(self, decoder: Any):
        super().__init__()
        self.branches = decoder.branches
        self.fuse = decoder.fuse

    def forward(self, low1: Tensor, low2: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        """Fused map, at the deepest map's resolution."""
        size = deep.shape[-2:]
        pooled = [F.interpolate(b(deep), size=size, mode="bilinear", align_corners=True) for b in self.branches]
        return self.fuse(torch.cat([deep, *pooled], dim=1))  # type: ignore[no-any-return]


def _unchanged(network: Any) -> None:
    pass


def _openmmlab(network: Any) -> None:
    name = network.spec["name"]
    if name.startswith("deeplabv3_"):  # one 3×3 convolution joins the branches, and no other follows
        fuse = network.decoder.aspp.fuse[0]
        network.decoder.aspp.fuse = conv_bn_relu(fuse.in_channels, fuse.out_channels, 3)
        network.decoder.fuse = nn.Identity()
    if "mobilenetv2" in name and network.spec.get("output_stride") in (None, 8):
        for dilation, blocks in ((2, network.backbone.body.blocks[3:5]), (4, network.backbone.body.blocks[5:7])):
            _dilate(blocks, dilation)


def _skd(network: Any) -> None:
    body = network.backbone.body
    body.maxpool.ceil_mode = True
    for dilation, stage in ((2, body.layer3), (4, body.layer4)):  # of the first block's convolutions, too
        _dilate([stage], dilation)
    _cirkd(network)
    for part in (network.decoder, network.aux):
        for module in part.modules() if part is not None else ():
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):  # InPlaceABN's default
                    setattr(module, name, nn.LeakyReLU(0.01, inplace=True))


def _cirkd(network: Any) -> None:
    if network.spec["name"].startswith("pspnet_"):
        network.decoder = AlignedPyramid(network.decoder)


def _dilate(stages: Iterable[nn.Module], dilation: int) -> None:
    """Set the dilation of all 3×3 convolutions; at this output stride their stride is 1."""
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


CAFFE = Normalisation(mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0), range=255, bgr=True)
"""BGR in 0…255 without a mean."""
SOURCES = {
    "segdistill": Source("segdistill's own", None, _unchanged),
    "torchvision": Source("torchvision", Normalisation(), _unchanged),
    "openmmlab": Source("OpenMMLab", Normalisation(), _openmmlab),
    "skd": Source("SKD, BGR in 0…255 without a mean", CAFFE, _skd),
    "cirkd": Source("CIRKD, BGR in 0…255 without a mean", CAFFE, _cirkd),
    "espnet": Source(
        "ESPNet's authors, BGR with their mean and standard deviation over 255",
        # They divide by the standard deviation of values in 0…255, and then by 255 once more.
        Normalisation(
            mean=(72.3923111, 82.90893555, 73.15840149),
            std=(45.3192215 * 255, 46.15289307 * 255, 44.91483307 * 255),
            range=255,
            bgr=True,
        ),
        _unchanged,
    ),
}
