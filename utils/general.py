"""The names that YOLOv5 v6.1 kept in `utils.general`, for code outside of this tree; nothing in the tree imports it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.balance import labels_to_class_weights, labels_to_image_weights
from utils.boxes import (
    RatioPad,
    clip_boxes,
    resample_segments,
    scale_boxes,
    segment2box,
    segments2boxes,
    xyn2xy,
    xywh2xyxy,
    xywhn2xyxy,
    xyxy2xywh,
)
from utils.boxes import xyxy2xywhn as _xyxy2xywhn
from utils.checkpoint import strip_optimizer
from utils.config import DataConfig, check_img_size
from utils.config import make_divisible as _make_divisible
from utils.downloads import fetch, url2file
from utils.label_formats import COCO_IDS
from utils.log import LOGGER, colorstr
from utils.nms import non_max_suppression
from utils.paths import ROOT, check_file, check_yaml, increment_path
from utils.torch_utils import seed_everything as init_seeds
from utils.transfer import intersect_dicts

__all__ = [
    "LOGGER",
    "ROOT",
    "check_dataset",
    "check_file",
    "check_img_size",
    "check_yaml",
    "clip_coords",
    "coco80_to_coco91_class",
    "colorstr",
    "download",
    "file_size",
    "get_latest_run",
    "increment_path",
    "init_seeds",
    "intersect_dicts",
    "is_ascii",
    "is_chinese",
    "labels_to_class_weights",
    "labels_to_image_weights",
    "make_divisible",
    "non_max_suppression",
    "one_cycle",
    "resample_segments",
    "scale_coords",
    "segment2box",
    "segments2boxes",
    "strip_optimizer",
    "url2file",
    "xyn2xy",
    "xywh2xyxy",
    "xywhn2xyxy",
    "xyxy2xywh",
    "xyxy2xywhn",
]

Boxes = np.ndarray | torch.Tensor



# -------------------------------------------------------------------------------------------------------------- boxes
def clip_coords(boxes: Boxes, shape: Sequence[float]) -> None:
    """Clip xyxy boxes to a picture of `shape` (height, width), in place."""
    boxes[:, :4] = clip_boxes(boxes[:, :4], shape)


def scale_coords(
    img1_shape: Sequence[float], coords: Boxes, img0_shape: Sequence[float], ratio_pad: RatioPad | None = None
) -> Boxes:
    """Map xyxy boxes from the letterboxed input (img1) to the picture (img0), in place; they are also returned."""
    coords[:, :4] = scale_boxes(img1_shape, coords[:, :4], img0_shape, ratio_pad)
    return coords


def xyxy2xywhn(x: Boxes, w: float = 640, h: float = 640, clip: bool = False, eps: float = 0.0) -> Boxes:
    """Pixel corners to normalised centre and size; `clip` also cuts the argument itself, in place."""
    if clip:
        clip_coords(x, (h - eps, w - eps))
    return _xyxy2xywhn(x, w, h)


# ------------------------------------------------------------------------------------------------------------ numbers
def make_divisible(x: float, divisor: int | torch.Tensor) -> int:
    """`x` rounded up to a multiple of `divisor`, of a tensor its largest element."""
    return _make_divisible(x, int(divisor.max()) if isinstance(divisor, torch.Tensor) else divisor)


def one_cycle(y1: float = 0.0, y2: float = 1.0, steps: int = 100) -> Callable[[float], float]:
    """The half cosine wave that leads from `y1` at 0 to `y2` at `steps`."""
    return lambda x: y1 + (y2 - y1) * (1 - math.cos(x * math.pi / steps)) / 2


def coco80_to_coco91_class() -> list[int]:
    """COCO's own category number of each of the 80 classes that have pictures."""
    return list(COCO_IDS)


# ----------------------------------------------------------------------------------------------------- files and text
def check_dataset(data: str | Path) -> dict[str, Any]:
    """A data set YAML as the mapping v6.1's functions pass around; nothing is downloaded."""
    config = DataConfig.load(check_yaml(data))
    splits = {name: [str(path) for path in getattr(config, name)] for name in ("train", "val", "test")}
    names = list(config.names)
    return {"path": config.root, **splits, "nc": config.nc, "names": names, "download": config.download}


def download(url: str | Sequence[str], dir: str | Path = ".", unzip: bool = True, threads: int = 1) -> list[Path]:
    """Fetch one or several addresses into a folder, and unpack archives there."""
    return fetch([url] if isinstance(url, str) else list(url), dir, unpack=unzip, threads=threads)


def get_latest_run(search_dir: str | Path = ".") -> str:
    """The newest file named `last*.pt` anywhere below a folder; empty where there is none."""
    return str(max(Path(search_dir).rglob("last*.pt"), key=lambda file: file.stat().st_mtime, default=""))


def file_size(path: str | Path) -> float:
    """Size in MB (2^20 bytes) of a file, or of all files in a folder; 0 where there is neither."""
    path = Path(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / (1 << 20)


def is_ascii(s: object = "") -> bool:
    """Whether the text of `s` is plain ASCII."""
    return str(s).isascii()


def is_chinese(s: object = "") -> bool:
    """Whether the text of `s` has a Chinese character."""
    return re.search("[\u4e00-\u9fff]", str(s)) is not None
