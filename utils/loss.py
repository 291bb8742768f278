"""v6.1's import path `utils.loss`, for code outside of this tree; nothing in the tree imports it."""

from utils.training.loss import ComputeLoss, FocalLoss, QFocalLoss, smooth_BCE

__all__ = ["ComputeLoss", "FocalLoss", "QFocalLoss", "smooth_BCE"]
