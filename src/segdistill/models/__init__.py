"""Networks: `build_model("<family>_<backbone>")` joins most families with any timm backbone.

The families are in `families/`; networks of other libraries have names with a colon, `smp:Unet:resnet18`, and are built
in `external/`.
"""

from segdistill._lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, __file__)
