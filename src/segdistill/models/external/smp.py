"""segmentation_models_pytorch: every decoder on every encoder."""

import importlib
import inspect
from typing import Any

from torch import nn

from segdistill._options import closest
from segdistill._printing import first_line
from segdistill.models.external.wrapper import External
from segdistill.models.normalisation import Normalisation
from segdistill.models.weights.files import load_named, read_source
from segdistill.models.weights.state_dicts import fitting, unwrapped

DECODERS = (
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3",
    "DeepLabV3Plus",
    "UPerNet",
    "Segformer",
    "DPT",
)
EXAMPLES = [f"{decoder}:resnet18" for decoder in DECODERS]
HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NORMALISATIONS = {
    "xception": HALF,
    "inceptionv4": HALF,
    "inceptionresnetv2": HALF,
    "dpn": Normalisation(mean=(124 / 255, 117 / 255, 104 / 255), std=(1 / (0.0167 * 255),) * 3),
}
"""By the start of an encoder's name, where it is not ImageNet's mean and standard deviation."""


def build_smp(
    name: str,
    num_classes: int | None,
    *,
    aux: bool = False,
    pretrained: bool | str = False,
    arguments: dict[str, Any] | None = None,
) -> External:
    """A network of segmentation_models_pytorch.

    Args:
        name: `DECODER:ENCODER`; encoders of timm are `tu-NAME`.
        num_classes: C.
        aux: not to be had here.
        pretrained: ImageNet weights of the encoder: True asks the hub; else a path, or `pip:DISTRIBUTION`.
        arguments: further ones of the decoder's class, such as `decoder_channels`.

    Raises:
        ValueError: on unknown names or arguments, or weights that cannot be had.
    """
    try:
        smp = importlib.import_module("segmentation_models_pytorch")
    except ModuleNotFoundError:
        raise ValueError(f"smp:{name} needs segmentation_models_pytorch; pip install 'segdistill[smp]'") from None
    decoder, _, encoder = name.partition(":")
    if decoder not in DECODERS or not encoder:
        hint = closest(decoder, DECODERS) if decoder not in DECODERS else ""
        raise ValueError(f"smp:{name}: expected smp:DECODER:ENCODER, as smp:Unet:resnet18{hint}")
    if aux:
        raise ValueError(f"smp:{name} has no auxiliary head; leave out aux")
    if num_classes is None or pretrained == "published":
        raise ValueError(f"smp:{name}: there is no published network of that name; give weights: PATH")
    chosen = {"dynamic_img_size": True} if decoder == "DPT" else {}
    chosen |= arguments or {}
    network = _built(getattr(smp, decoder), name, encoder, num_classes, chosen)
    if pretrained is True:
        _fetch(smp, network, encoder)
    elif pretrained:
        encoder_network: nn.Module = network.encoder  # type: ignore[assignment]
        tensors = fitting(unwrapped(read_source(str(pretrained))), encoder_network.state_dict())
        load_named(encoder_network, tensors, str(pretrained))
    stride = int(getattr(network.encoder, "output_stride", 32))
    stride *= 2 if decoder == "DPT" else 1  # it halves the tokens' map once more
    # PAN halves its deepest map three times.
    least = 8 * stride if decoder == "PAN" else 1
    wrapped = External(network, normalisation=_normalisation(encoder), multiple=stride, minimum=least)
    wrapped.spec = {"num_classes": num_classes, "aux": False, "pretrained": False, "arguments": arguments}
    return wrapped


def _built(cls: Any, name: str, encoder: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    known = set(inspect.signature(cls).parameters) - {"encoder_name", "encoder_weights", "classes", "kwargs"}
    for argument in arguments:
        if argument not in known | {"dynamic_img_size", "output_stride"}:
            raise ValueError(f"smp:{name} has no argument {argument!r}{closest(argument, known)}")
    try:
        network: nn.Module = cls(encoder_name=encoder, encoder_weights=None, classes=num_classes, **arguments)
    except (KeyError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"smp:{name} cannot be built: {first_line(error)}") from error
    return network


def _fetch(smp: Any, network: nn.Module, encoder: str) -> None:
    try:
        fetched = smp.encoders.get_encoder(encoder, weights="imagenet", output_stride=network.encoder.output_stride)  # type: ignore[union-attr]
    except Exception as error:
        raise ValueError(
            f"cannot fetch ImageNet weights of {encoder} ({first_line(error)}); give pretrained: PATH, or leave it out"
        ) from error
    network.encoder.load_state_dict(fetched.state_dict())  # type: ignore[union-attr]


def _normalisation(encoder: str) -> Normalisation:
    if encoder.startswith("tu-"):
        timm = importlib.import_module("timm")
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return Normalisation() if config is None else Normalisation(mean=config.mean, std=config.std)
    return next((n for start, n in NORMALISATIONS.items() if encoder.startswith(start)), Normalisation())
