"""v6.1's import path `utils.downloads`, for code outside of this tree; nothing in the tree imports it."""

from utils.prepare.downloads import url2file
from utils.v61 import __getattr__ as __getattr__

__all__ = ["url2file"]
