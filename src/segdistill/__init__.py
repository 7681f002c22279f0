"""segdistill: knowledge distillation for semantic segmentation."""

from segdistill._version import __version__

__all__ = ["__version__"]
