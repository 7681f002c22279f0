"""segdistill: knowledge distillation for semantic segmentation.

Every public name loads what it needs when it is first used, so that importing the package costs next to nothing.
"""

from segdistill._lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
