"""segdistill: knowledge distillation for semantic segmentation."""

from segdistill._version import __version__
from segdistill.engine import Distiller, distill, evaluate, load_config, load_student, predict
from segdistill.methods import Method, build_method, list_methods
from segdistill.models import build_model, list_models
from segdistill.taps import Tapped

__all__ = [
    "Distiller",
    "Method",
    "Tapped",
    "__version__",
    "build_method",
    "build_model",
    "distill",
    "evaluate",
    "list_methods",
    "list_models",
    "load_config",
    "load_student",
    "predict",
]
