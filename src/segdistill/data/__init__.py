"""Data sets, in `sets/`, and what they are built from: files, augmentation, sampling, checks."""

from segdistill._lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
