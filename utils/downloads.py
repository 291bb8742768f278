"""v6.1's import path `utils.downloads`, for code outside of this tree; nothing in the tree imports it."""

from utils.prepare.downloads import url2file

__all__ = ["url2file"]
