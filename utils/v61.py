"""v6.1's functions where they differ from ours: in place, positional, or a mapping instead of a value.

For code outside of this tree, which imports them through the doors (`utils.general`); nothing in the tree calls them.
Names of v6.1's that the doors do not hand on are an ImportError that says what to use instead.
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

_OF_SAMPLES = "use utils.data.augmentations.{}, which takes a Sample and a generator"
_SOURCES = "use utils.predict.sources.open_source, which takes what --source takes and yields Frames"
_NO_INSTALL = "use pip: nothing is installed, updated or asked on the web behind your back"
_ASKED = "use utils.prepare.downloads.download_file(url, file): nothing is downloaded unasked"
INSTEAD = {
    **dict.fromkeys(("LoadImages", "LoadStreams", "LoadWebcam"), _SOURCES),
    **{name: _OF_SAMPLES.format(name) for name in ("copy_paste", "cutout", "mixup", "random_perspective")},
    **dict.fromkeys(("check_git_status", "check_online", "check_python", "check_requirements"), _NO_INSTALL),
    **dict.fromkeys(("gdrive_download", "gsutil_getsize", "safe_download"), _ASKED),
    "Albumentations": "use the hyper-parameter `albumentations` of --hyp",
    "BCEBlurWithLogitsLoss": "use utils.training.loss.FocalLoss, or a loss of your own (docs/extending.md)",
    "InfiniteDataLoader": "use utils.data.datasets.create_dataloader, whose workers stay for all epochs",
    "Loggers": "use utils.loggers.subscribe_loggers",
    "Profile": "use utils.predict.pipeline.Clock",
    "apply_classifier": "use model(crop) on what utils.drawing.writers.save_one_box cuts out",
    "attempt_download": "use utils.prepare.named_weights.named_weights, which fetches what is published by name",
    "augment_hsv": "use utils.data.painting.augment_hsv, with factors drawn by utils.data.augmentations.hsv_factors",
    "check_font": "use utils.drawing.fonts.find_font: fonts are looked for on this machine",
    "check_imshow": "use utils.predict.viewer.display_problem",
    "check_suffix": "use utils.base.paths.check_file(file, suffixes)",
    "dataset_stats": "use utils.data.label_index.load_index, which counts what it finds",
    "exif_size": "use utils.images.reading.inspect_image(path).size, which has the orientation in it",
    "extract_boxes": "use detect.py --save-crop",
    "plot_lr_scheduler": "use a run's results.csv, which has the rates of every epoch",
    "plot_mc_curve": "use utils.evaluation.plots.plot_curves",
    "plot_pr_curve": "use utils.evaluation.plots.plot_curves",
    "print_args": "use utils.base.log.LOGGER",
    "prune": "use torch.nn.utils.prune of PyTorch",
    "set_logging": "use utils.base.log.set_up_logging",
    "torch_distributed_zero_first": "use utils.distributed.processes.main_first",
    "verify_image_label": "use utils.data.labels.check_pair",
}


def __getattr__(name: str) -> Any:
    """Raise ImportError for a name of v6.1's that is elsewhere or gone; the doors take it over as their own."""
    if name in INSTEAD:
        raise ImportError(f"YOLOv5 6.1's {name} is not here: {INSTEAD[name]}")
    raise AttributeError(f"no {name} in the modules that keep YOLOv5 6.1's import paths")


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
