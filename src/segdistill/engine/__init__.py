"""Training, evaluation and prediction. The whole data flow is in `loop.py`."""

from segdistill.engine.checkpoint import load_student, read_card, write_json
from segdistill.engine.config import Config, load_config
from segdistill.engine.distiller import Distiller
from segdistill.engine.evaluate import evaluate, evaluate_run, model_stats, predict
from segdistill.engine.loop import TrainingStopped, distill
from segdistill.engine.runtime import environment, runtime

__all__ = [
    "Config",
    "Distiller",
    "TrainingStopped",
    "distill",
    "environment",
    "evaluate",
    "evaluate_run",
    "load_config",
    "load_student",
    "model_stats",
    "predict",
    "read_card",
    "runtime",
    "write_json",
]
