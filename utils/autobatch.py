"""v6.1's import path `utils.autobatch`, for code outside of this tree; nothing in the tree imports it."""

from utils.training.autobatch import autobatch, check_train_batch_size
from utils.v61 import __getattr__ as __getattr__

__all__ = ["autobatch", "check_train_batch_size"]
