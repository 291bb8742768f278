"""v6.1's import path `utils.general`, for code outside of this tree; nothing in the tree imports it."""

from utils.base.config import check_img_size
from utils.base.devices import seed_everything as init_seeds
from utils.base.log import LOGGER, colorstr
from utils.base.paths import ROOT, check_file, check_yaml, increment_path
from utils.boxes.convert import resample_segments, segment2box, segments2boxes, xyn2xy, xywh2xyxy, xywhn2xyxy, xyxy2xywh
from utils.boxes.iou import box_iou
from utils.boxes.nms import non_max_suppression
from utils.checkpoints.checkpoint import strip_optimizer
from utils.data.samplers import labels_to_class_weights, labels_to_image_weights
from utils.evaluation.metrics import fitness
from utils.prepare.downloads import url2file
from utils.training.transfer import intersect_dicts
from utils.v61 import __getattr__ as __getattr__
from utils.v61 import (
    check_dataset,
    clip_coords,
    coco80_to_coco91_class,
    download,
    file_size,
    get_latest_run,
    is_ascii,
    is_chinese,
    make_divisible,
    one_cycle,
    scale_coords,
    xyxy2xywhn,
)  # fmt: skip

__all__ = [
    "LOGGER", "ROOT", "box_iou", "check_dataset", "check_file", "check_img_size", "check_yaml", "clip_coords",
    "coco80_to_coco91_class", "colorstr", "download", "file_size", "fitness", "get_latest_run", "increment_path",
    "init_seeds", "intersect_dicts", "is_ascii", "is_chinese", "labels_to_class_weights",
    "labels_to_image_weights", "make_divisible", "non_max_suppression", "one_cycle", "resample_segments",
    "scale_coords", "segment2box", "segments2boxes", "strip_optimizer", "url2file", "xyn2xy", "xywh2xyxy",
    "xywhn2xyxy", "xyxy2xywh", "xyxy2xywhn",
]  # fmt: skip
