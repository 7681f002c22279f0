"""Every pure loss function, for people with their own training loop."""

from segdistill.methods.cwd import channel_kl
from segdistill.methods.kd import pixel_kl

__all__ = ["channel_kl", "pixel_kl"]
