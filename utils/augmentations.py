"""v6.1's import path `utils.augmentations`, for code outside of this tree; nothing in the tree imports it."""

from utils.data.augmentations import (
    augment_hsv,
    box_candidates,
    copy_paste,
    cutout,
    hist_equalize,
    mixup,
    random_perspective,
)  # fmt: skip
from utils.images.letterbox import letterbox

__all__ = [
    "augment_hsv", "box_candidates", "copy_paste", "cutout", "hist_equalize", "letterbox", "mixup",
    "random_perspective",
]  # fmt: skip
