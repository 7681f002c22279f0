"""The families of networks, one file each: the folder is the registry."""

from typing import TYPE_CHECKING

from segdistill._registry import Registry

if TYPE_CHECKING:
    from segdistill.models.segmenter import Segmenter

FAMILIES: "Registry[Segmenter]" = Registry(
    __name__, "segdistill.models.segmenter:Segmenter", "network family", skip=("num_classes",)
)


def list_families() -> list[str]:
    """Names of the network families: the files of this folder."""
    return FAMILIES.names()


def named_family(name: str) -> str | None:
    """The family that a network's name starts with, if any; no family is imported.

    Args:
        name: of a network, such as `deeplabv3plus_resnet18`.

    >>> named_family("deeplabv3plus_resnet18"), named_family("espnet_c"), named_family("unet")
    ('deeplabv3plus', 'espnet_c', None)
    """
    starting = [family for family in list_families() if name == family or name.startswith(f"{family}_")]
    return max(starting, key=len, default=None)
