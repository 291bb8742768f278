"""v6.1's import path `utils.datasets`, for code outside of this tree; nothing in the tree imports it."""

from utils.data.datasets import DetectionDataset as LoadImagesAndLabels
from utils.data.datasets import create_dataloader

__all__ = ["LoadImagesAndLabels", "create_dataloader"]
