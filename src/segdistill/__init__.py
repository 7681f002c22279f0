"""segdistill: knowledge distillation for semantic segmentation.

Every public name loads what it needs when it is first used, so that importing the package costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
