"""v6.1's import path `utils.autobatch`, for code outside of this tree; nothing in the tree imports it."""

from utils.training.autobatch import autobatch, check_train_batch_size

__all__ = ["autobatch", "check_train_batch_size"]
