"""Data sets, in `sets/`, and what they are built from: files, augmentation, sampling, checks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
