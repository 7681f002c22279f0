from ._base import Metric as Metric
from ._catalogue import build_metric as build_metric
from ._catalogue import list_metrics as list_metrics
from ._catalogue import metric_class as metric_class
from ._confusion import class_iou as class_iou
from ._confusion import confusion_matrix as confusion_matrix
from ._confusion import image_counts as image_counts
from ._confusion import scores as scores
