"""A network's normalisation as a module in it."""

from collections.abc import Mapping
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from segdistill._options import first_mistake
from segdistill.models.normalisation import Normalisation


class Normaliser(nn.Module):
    """A `Normalisation` as a module.

    Args:
        normalisation: what to do.
    """

    def __init__(self, normalisation: Normalisation):
        super().__init__()
        self.normalisation = normalisation
        self.bgr = normalisation.bgr
        mean, std = (torch.tensor(v) / normalisation.range for v in (normalisation.mean, normalisation.std))
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (N,3,H,W)."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std


def normalise_with(network: Any, normalisation: Normalisation | Mapping[str, Any]) -> None:
    """Give a network another normalisation, and write it into the network's `spec`.

    Args:
        network: one that has `normalise`, `mean` and `std`.
        normalisation: or its fields.

    Raises:
        ValueError: if the network normalises in some other way, or the fields are wrong.
    """
    if not isinstance(getattr(network, "normalise", None), nn.Module):
        raise ValueError(f"{type(network).__name__} does not say how it normalises; leave out normalisation")
    try:
        checked = Normalisation.model_validate(normalisation)
    except pydantic.ValidationError as error:
        where, _, line = first_mistake(error)
        raise ValueError(f"{'.'.join(('normalisation', *where))}: {line}") from None
    if checked.range <= 0 or min(checked.std) <= 0:
        raise ValueError(f"normalisation: expected a range and std above 0, got {checked.range} and {checked.std}")
    network.normalise = Normaliser(checked)
    network.mean, network.std = checked.rgb(checked.mean), checked.rgb(checked.std)
    if hasattr(network, "spec"):
        network.spec = {**network.spec, "normalisation": checked.model_dump(mode="json")}
