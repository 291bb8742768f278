"""v6.1's import path `utils.torch_utils`, for code outside of this tree; nothing in the tree imports it."""

from utils.base.devices import select_device, time_sync
from utils.base.networks import (
    copy_attr,
    de_parallel,
    fuse_conv_and_bn,
    initialize_weights,
    is_parallel,
    model_info,
    profile,
    scale_img,
)  # fmt: skip
from utils.training.optim import ModelEMA
from utils.training.state import EarlyStopping
from utils.training.transfer import intersect_dicts
from utils.v61 import __getattr__ as __getattr__

__all__ = [
    "EarlyStopping", "ModelEMA", "copy_attr", "de_parallel", "fuse_conv_and_bn", "initialize_weights",
    "intersect_dicts", "is_parallel", "model_info", "profile", "scale_img", "select_device", "time_sync",
]  # fmt: skip
