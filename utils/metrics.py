"""v6.1's import path `utils.metrics`, for code outside of this tree; nothing in the tree imports it."""

from utils.boxes.iou import bbox_ioa, bbox_iou, box_iou, wh_iou
from utils.evaluation.metrics import ConfusionMatrix, ap_per_class, compute_ap, fitness, process_batch
from utils.v61 import __getattr__ as __getattr__

__all__ = [
    "ConfusionMatrix", "ap_per_class", "bbox_ioa", "bbox_iou", "box_iou", "compute_ap", "fitness",
    "process_batch", "wh_iou",
]  # fmt: skip
