"""The catalogue: one file per method, and the folder is the registry."""

from segdistill._lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
