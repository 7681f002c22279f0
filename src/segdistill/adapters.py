"""Layers on the student's side that exist in training only: they bring its channels to the teacher's."""

from torch import nn


def projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1×1 convolution without bias, (N,in_channels,H,W) → (N,out_channels,H,W).

    Args:
        in_channels: channels of the student's map.
        out_channels: channels of the teacher's map.
    """
    layer = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer
