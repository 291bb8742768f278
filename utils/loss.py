"""v6.1's import path `utils.loss`, for code outside of this tree; nothing in the tree imports it."""

from utils.training.loss import ComputeLoss, FocalLoss, QFocalLoss, smooth_BCE
from utils.v61 import __getattr__ as __getattr__

__all__ = ["ComputeLoss", "FocalLoss", "QFocalLoss", "smooth_BCE"]
