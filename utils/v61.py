"""v6.1's functions where they differ from ours: in place, positional, or a mapping instead of a value.

For code outside of this tree, which imports them through the doors (`utils.general`); nothing in the tree calls them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from utils.base.config import DataConfig
from utils.base.config import make_divisible as _make_divisible
from utils.base.paths import check_yaml
from utils.boxes.convert import RatioPad, clip_boxes, scale_boxes
from utils.boxes.convert import xyxy2xywhn as _xyxy2xywhn
from utils.prepare.downloads import fetch
from utils.prepare.label_formats import COCO_IDS

Boxes = TypeVar("Boxes", np.ndarray, torch.Tensor)


# -------------------------------------------------------------------------------------------------------------- boxes
def clip_coords(boxes: Boxes, shape: Sequence[float]) -> None:
    """Clip xyxy boxes to an image of `shape` (height, width), in place."""
    boxes[:, :4] = clip_boxes(boxes[:, :4], shape)


def scale_coords(
    img1_shape: Sequence[float], coords: Boxes, img0_shape: Sequence[float], ratio_pad: RatioPad | None = None
) -> Boxes:
    """Map xyxy boxes from the letterboxed input (img1) to the image (img0), in place; they are also returned."""
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
    """COCO's own category number of each of the 80 classes that have images."""
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
