"""What a segmentation is scored by: counts of pixels, and the catalogue of further metrics, one file each."""

from segdistill._lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
