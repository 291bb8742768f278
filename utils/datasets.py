"""v6.1's import path `utils.datasets`, for code outside of this tree; nothing in the tree imports it."""

from utils.data.datasets import DetectionDataset as LoadImagesAndLabels
from utils.data.datasets import create_dataloader
from utils.data.image_files import img2label_paths
from utils.images.reading import IMG_FORMATS
from utils.predict.video_files import VID_FORMATS
from utils.prepare.dataset_tools import autosplit
from utils.v61 import __getattr__ as __getattr__

__all__ = ["IMG_FORMATS", "VID_FORMATS", "LoadImagesAndLabels", "autosplit", "create_dataloader", "img2label_paths"]
