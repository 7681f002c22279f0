"""Where trained networks come from: how their images were normalised, and in what details they differ from ours."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from segdistill._options import closest
from segdistill.models.normalisation import Normalisation, Triple
from segdistill.models.segmenter import conv_bn_relu


class Source(NamedTuple):
    """A code base that published trained networks."""

    what: str
    """Its name in full, and what is known of its networks, for a printed line."""
    normalisation: Normalisation | None
    """Of its images; None for the network's own."""
    adapt: Callable[[Any], None]
    """Gives a network of ours the details of theirs."""
    align_corners: bool = False
    """Whether its networks resize logits and pooled maps with aligned corners."""


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
    for part in (network.decoder, network.aux):
        for module in part.modules() if part is not None else ():
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):  # InPlaceABN's default
                    setattr(module, name, nn.LeakyReLU(0.01, inplace=True))


def _dilate(stages: Iterable[nn.Module], dilation: int) -> None:
    """Set the dilation of all 3×3 convolutions; at this output stride their stride is 1."""
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


CAFFE = Normalisation(mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0), range=255, bgr=True)
"""BGR in 0…255 without a mean."""


def _espnet(mean: Triple, std: Triple) -> Normalisation:
    """BGR less the mean, over the standard deviation of values in 0…255, and over 255 once more."""
    return Normalisation(mean=mean, std=(std[0] * 255, std[1] * 255, std[2] * 255), range=255, bgr=True)


SOURCES = {
    "segdistill": Source("segdistill's own", None, _unchanged),
    "torchvision": Source("torchvision", Normalisation(), _unchanged),
    "openmmlab": Source("OpenMMLab", Normalisation(), _openmmlab),
    "skd": Source("SKD, BGR in 0…255 without a mean, corners aligned", CAFFE, _skd, align_corners=True),
    "cirkd": Source("CIRKD, BGR in 0…255 without a mean, corners aligned", CAFFE, _unchanged, align_corners=True),
    "espnet": Source(
        "ESPNet's authors, BGR with mean and standard deviation of Cityscapes over 255",
        _espnet((72.3923111, 82.90893555, 73.15840149), (45.3192215, 46.15289307, 44.91483307)),
        _unchanged,
    ),
}
VARIANTS = {
    ("espnet", 12): Source(
        "ESPNet's authors, BGR with mean and standard deviation of CamVid, since it has 12 classes, over 255",
        # Not published. Of the 367 training images of SegNet's CamVid: the means of theirs, and of their deviations.
        _espnet((110.2165, 108.3578, 104.9640), (72.0564, 72.6232, 69.8368)),
        _unchanged,
    ),
}
"""Forms of a source's networks that only their number of classes tells from the others."""


def form_of(source: str, num_classes: int) -> Source:
    """The form of a source's network.

    Args:
        source: its name.
        num_classes: of the network.

    Raises:
        ValueError: if there is no such source.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}{closest(source, SOURCES)}")
    return VARIANTS.get((source, num_classes), SOURCES[source])
