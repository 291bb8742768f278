"""v6.1's import path `utils.callbacks`, for code outside of this tree; nothing in the tree imports it."""

from utils.base.callbacks import Callbacks
from utils.v61 import __getattr__ as __getattr__

__all__ = ["Callbacks"]
