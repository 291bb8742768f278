"""v6.1's import path `utils.autoanchor`, for code outside of this tree; nothing in the tree imports it."""

from utils.training.anchors import check_anchor_order, check_anchors, kmean_anchors
from utils.v61 import __getattr__ as __getattr__

__all__ = ["check_anchor_order", "check_anchors", "kmean_anchors"]
