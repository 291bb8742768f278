"""v6.1's import path `utils.augmentations`, for code outside of this tree; nothing in the tree imports it."""

from utils.data.augmentations import box_candidates
from utils.data.painting import hist_equalize
from utils.images.letterbox import letterbox
from utils.v61 import __getattr__ as __getattr__

__all__ = ["box_candidates", "hist_equalize", "letterbox"]
